"""Foreground and truth to numbers: dense truth to Dice and F1, sparse marks to what they support."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from sparseshot_jax import metrics
from sparseshot_jax.data.cases import Case, Truth, truth_maps, whole_window
from sparseshot_jax.data.labels import TargetMaps
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate.windows import OBJECTS, evenly, tissue_windows, window_round
from sparseshot_jax.metrics.overlap import BINS, confusion
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


def carried_from_pixels(
    probability_map: ProbabilityMap, cases: Sequence[Case], *, mpp: float
) -> metrics.Carried:
    """What cases with dense truth give to others: the threshold with the best pooled Dice, and Elkan and
    Noto's c over the pixels of their objects.

    Raises:
        InputError: a case without dense truth.
    """
    counts = pixel_counts(probability_map, cases, mpp=mpp)
    return {
        "threshold_carried": metrics.best_threshold(counts),
        "elkan_noto_c": metrics.estimate_c_of_pixels(counts),
    }


def measure_dense(
    probability_map: ProbabilityMap,
    cases: Sequence[Case],
    *,
    mpp: float,
    split: str,
    threshold_carried: float | None,
    elkan_noto_c: float | None = None,
    seed: int,
    on_case: Callable[[str], None] = lambda name: None,
) -> metrics.Evaluation:
    """Dice, IoU and object F1 against dense truth, at every operating point.

    Cases are dealt out to the processes of a job, of which each has the whole result. Each holds the maps
    of its cases at once, 8 bytes a pixel: the oracle threshold is known only after the last one.

    Args:
        probability_map: p of foreground of a whole case at `mpp`.
        cases: with dense truth.
        mpp: micrometres a pixel of the maps.
        split: name for the record.
        threshold_carried: chosen on validation images, None where there were none.
        elkan_noto_c: estimated on validation positives, None where there were none.
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
    thresholds = metrics.operating_thresholds(counts, threshold_carried, elkan_noto_c)

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
        elkan_noto_c=elkan_noto_c,
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
    good; neither alone says anything. Precision, Dice and F1 need dense truth. Marks are enough for Elkan
    and Noto's threshold: c is the mean p over the pixels of the held-out objects that are looked at.

    Args:
        probability: images [b, h, w, 3] -> p [b, h, w, C].
        cases: with `held_out` objects.
        tiles: resolution and size of the windows.
        multiple: the model's; window sides are divisible by it.
        threshold: a pixel is foreground above it.
        batch_size: windows a call.

    Returns:
        held_out: objects looked at; recall on them; recall_area: the share of their area above the
        threshold; predicted_area: share of the tissue; threshold. Where there are held-out objects also
        elkan_noto: c, and the same at its threshold.
    """
    side = -(-tiles.tile_px // multiple) * multiple
    chosen = tissue_windows(cases, tiles)
    p_of = [functools.partial(_foreground, probability, case.slide, batch_size=batch_size) for case in cases]

    def look(k: int) -> tuple[np.ndarray, np.ndarray]:
        return _in_held_out(p_of[k], cases[k], whole_window(cases[k], tiles.mpp).scale, side, threshold)

    looked = processes.dealt(range(len(cases)), look)
    above, counts = (np.concatenate([one[at] for one in looked]) for at in (0, 1))
    points = {threshold: above}  # threshold -> pixels above it of each object
    c = metrics.estimate_c_of_pixels(counts)
    corrected = None if c is None else metrics.threshold_elkan_noto(c, BINS)
    if corrected is not None:
        points[corrected] = confusion(counts, corrected)[:, 0]

    def cover(k: int) -> list[list[float]]:
        return [[float((p > t).mean()) for t in points] for p in p_of[k](chosen[k])]

    areas = [row for rows in processes.dealt(range(len(cases)), cover) for row in rows]
    whole = counts.sum(axis=(1, 2))
    found = {
        t: {
            "recall": float((2 * above > whole).mean()) if len(whole) else None,
            "recall_area": float(above.sum() / whole.sum()) if whole.sum() else None,
            "predicted_area": float(np.mean([row[at] for row in areas])) if areas else None,
            "threshold": t,
        }
        for at, (t, above) in enumerate(points.items())
    }
    beside = {} if corrected is None else {"elkan_noto": {"c": c} | found[corrected]}
    return {"held_out": len(whole)} | found[threshold] | beside


def _foreground(
    probability: Probability, slide: Slide, windows: Sequence[Window], *, batch_size: int
) -> Iterator[Float32[np.ndarray, "h w"]]:
    """p of foreground in windows of one size, in their order."""
    for outputs, count in computed_windows(probability, slide, windows, batch_size=batch_size, threads=4):
        yield from foreground_of(np.asarray(outputs[:count]))


def _in_held_out(
    p_of: Callable[[Sequence[Window]], Iterator[np.ndarray]],
    case: Case,
    scale: float,
    side: int,
    threshold: float,
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n 2 b"]]:
    """For each of the held-out objects looked at its pixels above the threshold, and `histograms` of p."""
    above, counts = [], [np.zeros((0, 2, BINS), np.int64)]
    if case.held_out is not None and len(case.held_out):
        maps = TargetMaps(case.held_out, case.labels, mpp=case.mpp)
        centres = maps.objects().centroids_px
        looked = evenly(len(centres), OBJECTS)
        windows = [window_round(centres[k], side=side, scale=scale) for k in looked]
        for k, window, p in zip(looked, windows, p_of(windows)):
            inside = p[maps.instances(window) == k + 1]
            above.append(int((inside > threshold).sum()))
            counts.append(metrics.histograms(inside, np.ones(len(inside), bool))[None])
    return np.array(above, np.int64), np.concatenate(counts)
