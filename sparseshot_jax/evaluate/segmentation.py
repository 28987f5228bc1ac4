"""Foreground and truth to numbers: dense truth to Dice and F1, sparse marks to what they support."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from sparseshot_jax import metrics
from sparseshot_jax.data.cases import Case, truth_maps, whole_window
from sparseshot_jax.data.labels import TargetMaps
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate.windows import OBJECTS, evenly, tissue_windows, window_round

ProbabilityMap = Callable[[Case], Float32[np.ndarray, "h w"]]  # p of foreground at the model's mpp
Probability = Callable[[UInt8[np.ndarray, "b h w 3"]], Any]  # p of each class, NumPy or JAX

_LARGEST_PX = 500_000_000  # of all maps that a dense measure holds, 8 bytes a pixel


def foreground_of(p: Float32[np.ndarray, "... c"]) -> Float32[np.ndarray, "..."]:
    """Probability of any wanted class; rounding may not take it above 1."""
    return p[..., 0] if p.shape[-1] == 1 else np.minimum(p.sum(-1), np.float32(1.0))


def pixel_counts(probability_map: ProbabilityMap, cases: Sequence[Case], *, mpp: float) -> np.ndarray:
    """`metrics.histograms` of every case, [n, 2, bins]: all that Dice at any threshold needs."""
    counts = []
    for case in cases:
        truth = truth_maps(case, whole_window(case, mpp))
        counts.append(metrics.histograms(probability_map(case), truth.instances, truth.valid))
    return np.stack(counts)


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

    The maps of all cases are held at once, 8 bytes a pixel: the oracle threshold is known only after
    the last one.

    Args:
        probability_map: p of foreground of a whole case at `mpp`.
        cases: with dense truth.
        mpp: micrometres a pixel of the maps.
        split: name for the record.
        threshold_carried: chosen on validation images, None where there were none.
        seed: of the bootstrap.
        on_case: told of every case when its map is there.

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
    maps, truths = [], []
    for case in cases:
        truths.append(truth_maps(case, whole_window(case, mpp)))
        maps.append(probability_map(case))
        on_case(case.name)
    counts = np.stack([metrics.histograms(p, truth.instances, truth.valid) for p, truth in zip(maps, truths)])
    thresholds = metrics.operating_thresholds(counts, threshold_carried)
    objects = {
        threshold: np.array(
            [_match(p, truth.instances, truth.valid, threshold) for p, truth in zip(maps, truths)]
        )
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

    Returns:
        held_out: objects looked at; recall on them; predicted_area: share of the tissue.
    """
    found = total = 0
    area: list[float] = []
    side = -(-tiles.tile_px // multiple) * multiple
    for case, grid_cells in zip(cases, tissue_windows(cases, tiles)):
        scale = whole_window(case, tiles.mpp).scale
        if case.held_out is not None and len(case.held_out):
            hits = _recalled(probability, case, scale, side, threshold)
            found, total = found + int(hits.sum()), total + len(hits)
        for window in grid_cells:
            p = foreground_of(np.asarray(probability(case.slide.read(window)[None])))
            area.append(float((p > threshold).mean()))
    return {
        "held_out": total,
        "recall": found / total if total else None,
        "predicted_area": float(np.mean(area)) if area else None,
        "threshold": threshold,
    }


def _recalled(probability: Probability, case: Case, scale: float, side: int, threshold: float) -> np.ndarray:
    """For each of the held-out objects looked at, whether it is found."""
    assert case.held_out is not None
    maps = TargetMaps(case.held_out, case.labels, mpp=case.mpp)
    centres = maps.objects().centroids_px
    hits = []
    for k in evenly(len(centres), OBJECTS):
        window = window_round(centres[k], side=side, scale=scale)
        p = foreground_of(np.asarray(probability(case.slide.read(window)[None])))[0]
        inside = maps.instances(window) == k + 1
        hits.append(bool(inside.any() and (p[inside] > threshold).mean() > 0.5))
    return np.array(hits, bool)
