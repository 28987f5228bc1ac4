"""Foreground and truth to numbers: dense truth to Dice and F1, sparse marks to what they support."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from sparseshot_jax import metrics
from sparseshot_jax.data.cases import Case, Truth, truth_maps, whole_window
from sparseshot_jax.data.labels import TargetMaps
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate.windows import OBJECTS, evenly, tissue_windows, window_round
from sparseshot_jax.predict.stream import computed_windows
from sparseshot_jax.training import processes
from sparseshot_jax.types import Window

ProbabilityMap = Callable[[Case], Float32[np.ndarray, "h w"]]  # p of foreground at the model's mpp
Probability = Callable[[UInt8[np.ndarray, "b h w 3"]], Any]  # p of each class, NumPy or JAX

_LARGEST_PX = 500_000_000  # of all maps that a dense measure holds, 8 bytes a pixel


def foreground_of(p: Float32[np.ndarray, "... c"]) -> Float32[np.ndarray, "..."]:
    """Probability of any wanted class; rounding may not take it above 1."""
    return p[..., 0] if p.shape[-1] == 1 else np.minimum(p.sum(-1), np.float32(1.0))


def pixel_counts(probability_map: ProbabilityMap, cases: Sequence[Case], *, mpp: float) -> np.ndarray:
    """`metrics.histograms` of every case, [n, 2, bins]: all that Dice at any threshold needs."""

    def count(case: Case) -> np.ndarray:
        truth = truth_maps(case, whole_window(case, mpp))
        return metrics.histograms(probability_map(case), truth.instances, truth.valid)

    return np.stack(processes.dealt(cases, count))


def measure_dense(
    probability_map: ProbabilityMap,
    cases: Sequence[Case],
    *,
    mpp: float,
    split: str,
    threshold_carried: float | None,
    seed: int,
    on_case: Callable[[str], None] = lambda name: None,
) -> metrics.Evaluation:
    """Dice, IoU and object F1 against dense truth, at the three operating points.

    Cases are dealt out to the processes of a job, of which each has the whole result. Each holds the maps
    of its cases at once, 8 bytes a pixel: the oracle threshold is known only after the last one.

    Args:
        probability_map: p of foreground of a whole case at `mpp`.
        cases: with dense truth.
        mpp: micrometres a pixel of the maps.
        split: name for the record.
        threshold_carried: chosen on validation images, None where there were none.
        seed: of the bootstrap.
        on_case: told of every case of this process when its map is there.

    Raises:
        InputError: a case without dense truth.
    """
    windows = [whole_window(case, mpp) for case in cases]
    pixels = sum(window.width * window.height for window in windows)
    if pixels > _LARGEST_PX:
        raise InputError(
            f"dense truth of {pixels / 1e6:.0f} megapixels cannot be measured at once; the most is "
            f"{_LARGEST_PX / 1e6:.0f}. Measure on fewer cases, or on crops of the slides."
        )
    held: dict[int, tuple[np.ndarray, Truth]] = {}  # of the cases that this process is dealt

    def count(k: int) -> np.ndarray:
        held[k] = p, truth = probability_map(cases[k]), truth_maps(cases[k], windows[k])
        on_case(cases[k].name)
        return metrics.histograms(p, truth.instances, truth.valid)

    counts = np.stack(processes.dealt(range(len(cases)), count))
    thresholds = metrics.operating_thresholds(counts, threshold_carried)

    def match(k: int) -> dict[float, np.ndarray]:
        p, truth = held[k]
        return {
            threshold: _match(p, truth.instances, truth.valid, threshold)
            for threshold in set(thresholds.values())
        }

    matched = processes.dealt(range(len(cases)), match)  # to each process what it holds
    objects = {
        threshold: np.array([of_case[threshold] for of_case in matched])
        for threshold in set(thresholds.values())
    }
    return metrics.summarise(
        counts,
        objects,
        split=split,
        names=[case.name for case in cases],
        threshold_carried=threshold_carried,
        seed=seed,
    )


def _match(
    p: np.ndarray, instances: np.ndarray, valid: np.ndarray, threshold: float
) -> Int64[np.ndarray, "3"]:
    """TP, FP, FN of the connected components of p > threshold."""
    predicted = metrics.components((p > np.float32(threshold)) & valid)
    return metrics.match_by_iou(np.where(valid, instances, 0), predicted).confusion


def measure_sparse(
    probability: Probability,
    cases: Sequence[Case],
    *,
    tiles: TileSpec,
    multiple: int,
    threshold: float = 0.5,
    batch_size: int = 4,
) -> dict[str, Any]:
    """What held-out marks support: the recall on them, beside the area that is called foreground.

    A held-out object counts as found when more than half of its pixels are above `threshold`. The area
    is the share of pixels above it in tiles of the tissue grid. A high recall with a small area is
    good; neither alone says anything. Precision, Dice and F1 need dense truth.

    Args:
        probability: images [b, h, w, 3] -> p [b, h, w, C].
        cases: with `held_out` objects.
        tiles: resolution and size of the windows.
        multiple: the model's; window sides are divisible by it.
        threshold: a pixel is foreground above it.
        batch_size: windows a call.

    Returns:
        held_out: objects looked at; recall on them; predicted_area: share of the tissue.
    """
    side = -(-tiles.tile_px // multiple) * multiple
    chosen = tissue_windows(cases, tiles)

    def look(k: int) -> tuple[np.ndarray, list[float]]:
        case = cases[k]
        p_of = functools.partial(_foreground, probability, case.slide, batch_size=batch_size)
        hits = np.zeros(0, bool)
        if case.held_out is not None and len(case.held_out):
            scale = whole_window(case, tiles.mpp).scale
            hits = _recalled(p_of, case, scale, side, threshold)
        return hits, [float((p > threshold).mean()) for p in p_of(chosen[k])]

    looked = processes.dealt(range(len(cases)), look)
    found, total = (sum(int(of(hits)) for hits, _ in looked) for of in (np.sum, len))
    area = [share for _, shares in looked for share in shares]
    return {
        "held_out": total,
        "recall": found / total if total else None,
        "predicted_area": float(np.mean(area)) if area else None,
        "threshold": threshold,
    }


def _foreground(
    probability: Probability, slide: Slide, windows: Sequence[Window], *, batch_size: int
) -> Iterator[Float32[np.ndarray, "h w"]]:
    """p of foreground in windows of one size, in their order."""
    for outputs, count in computed_windows(probability, slide, windows, batch_size=batch_size, threads=4):
        yield from foreground_of(np.asarray(outputs[:count]))


def _recalled(
    p_of: Callable[[Sequence[Window]], Iterator[np.ndarray]],
    case: Case,
    scale: float,
    side: int,
    threshold: float,
) -> Bool[np.ndarray, "n"]:
    """For each of the held-out objects looked at, whether it is found."""
    assert case.held_out is not None
    maps = TargetMaps(case.held_out, case.labels, mpp=case.mpp)
    centres = maps.objects().centroids_px
    looked = evenly(len(centres), OBJECTS)
    windows = [window_round(centres[k], side=side, scale=scale) for k in looked]
    hits = []
    for k, window, p in zip(looked, windows, p_of(windows)):
        inside = maps.instances(window) == k + 1
        hits.append(bool(inside.any() and (p[inside] > threshold).mean() > 0.5))
    return np.array(hits, bool)
