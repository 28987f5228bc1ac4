"""Detections against sparse marks: the recall on held-out objects, beside how much is predicted."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from sparseshot_jax import metrics
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, whole_window
from sparseshot_jax.data.labels import TargetMaps, wanted
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.evaluate.detection import Detect
from sparseshot_jax.evaluate.windows import OBJECTS, evenly, tissue_windows, window_round, with_halo
from sparseshot_jax.types import Detections, Ground, Window

Found = Callable[[Case, Window], metrics.ImageObjects]  # predictions centred in a window


def measure_sparse_detections(
    detect: Detect,
    cases: Sequence[Case],
    *,
    tiles: TileSpec,
    multiple: int,
    halo_px: int = 0,
    distance_um: float = 3.0,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """What held-out marks support: the recall on them, beside the density of predictions.

    A held-out object counts as found when it has a prediction of its own: all known objects of its
    surroundings are matched one to one. The density is that of predictions in tiles of the tissue
    grid, ignored regions left out, each tile seen with its surroundings as in a prediction of the whole
    slide. A high recall at a plausible density is good; neither alone says
    anything. Precision and F1 need dense truth.

    Args:
        detect: images [b, h, w, 3] -> `Detections`, down to a floor below `threshold`.
        cases: with `held_out` objects.
        tiles: resolution and size of the windows.
        multiple: the model's; the sides of what it is shown are divisible by it.
        halo_px: how far the model sees beyond a pixel. Without it the borders of windows, where it then
            sees no neighbours, change the density.
        distance_um: a pair may match up to this distance of centres.
        threshold: of the score.

    Returns:
        held_out: objects looked at; recall on them; predicted_per_mm2; tissue_mm2 that was looked at;
        threshold; distance_um.
    """
    found = total = predicted = 0
    area_mm2 = 0.0
    side = -(-tiles.tile_px // multiple) * multiple
    find = functools.partial(_found, detect, multiple=multiple, halo_px=halo_px, threshold=threshold)
    for case, windows in zip(cases, tissue_windows(cases, tiles)):
        if case.held_out is not None and wanted(case.held_out, case.labels).any():
            hits = _recalled(find, case, tiles.mpp, side, distance_um)
            found, total = found + int(hits.sum()), total + len(hits)
        given = TargetMaps(case.given, case.labels, mpp=case.mpp)
        for window in windows:
            counted = _counted_pixels(case, given, window)
            predicted += _predicted(find, case, window, counted)
            area_mm2 += int(counted.sum()) * (window.scale * case.mpp / 1000.0) ** 2
    return {
        "held_out": total,
        "recall": found / total if total else None,
        "predicted_per_mm2": predicted / area_mm2 if area_mm2 else None,
        "tissue_mm2": area_mm2,
        "threshold": threshold,
        "distance_um": distance_um,
    }


def objects_of(detections: Detections, window: Window, *, mpp: float) -> list[metrics.ImageObjects]:
    """Detections in each image of a batch as what is measured, in micrometres of the slide.

    Args:
        detections: in pixels of the window; jax or NumPy.
        window: that all images of the batch show.
        mpp: micrometres a level-0 pixel.
    """
    boxes, scores, classes, valid = (
        np.asarray(value)
        for value in (detections.boxes_yxyx_px, detections.score, detections.classes, detections.valid)
    )
    found = []
    for k, there in enumerate(valid):
        y0, x0, y1, x1 = boxes[k, there].astype(np.float64).T
        xyxy_px = np.stack([x0, y0, x1, y1], axis=1) * window.scale
        xyxy_um = (xyxy_px + np.array([window.x_px, window.y_px] * 2)) * mpp
        found.append(
            metrics.ImageObjects(
                xy_um=(xyxy_um[:, :2] + xyxy_um[:, 2:]) / 2,
                boxes_um=xyxy_um,
                label=classes[k, there].argmax(-1) + 1,
                score=scores[k, there],
            )
        )
    return found


def _found(
    detect: Detect, case: Case, window: Window, *, multiple: int, halo_px: int, threshold: float
) -> metrics.ImageObjects:
    """Predictions above the threshold that are centred in the window, which is seen with its halo."""
    wide, _ = with_halo(window, multiple=multiple, halo_px=halo_px)
    (objects,) = objects_of(detect(case.slide.read(wide)[None]), wide, mpp=case.mpp)
    xy = _window_pixels(objects, case, window)
    inside = ((xy >= 0) & (xy < [window.width, window.height])).all(axis=-1)
    return objects.take(inside & (objects.score > threshold))


def _window_pixels(objects: metrics.ImageObjects, case: Case, window: Window) -> Float64[np.ndarray, "n 2"]:
    """Centres x, y in pixels of the window."""
    level0_px = np.asarray(objects.xy_um, np.float64) / case.mpp
    return (level0_px - np.array([window.x_px, window.y_px])) / window.scale


def _recalled(find: Found, case: Case, mpp: float, side: int, distance_um: float) -> np.ndarray:
    """For each of the held-out objects looked at, whether it is found."""
    assert case.held_out is not None
    held_out = case.held_out.take(wanted(case.held_out, case.labels))
    given = case.given.take(wanted(case.given, case.labels))
    # first the held-out ones, so that index k is held-out object k
    known = Annotations.concatenate([held_out, given])
    scale = whole_window(case, mpp).scale
    hits = []
    for k in evenly(len(held_out), OBJECTS):
        window = window_round(known.centroids_px[k], side=side, scale=scale)
        found = find(case, window)
        near = known.touching(window)
        pairs = metrics.match_points(known.centroids_px[near] * case.mpp, found.xy_um, gate=distance_um)
        hits.append(bool((near[pairs.truth] == k).any()))
    return np.array(hits, bool)


def _counted_pixels(case: Case, given: TargetMaps, window: Window) -> np.ndarray:
    """Pixels [h, w] of a window that lie in the slide and are not ignored."""
    ground, _ = given.draw(window)
    x = window.x_px + (np.arange(window.width) + 0.5) * window.scale
    y = window.y_px + (np.arange(window.height) + 0.5) * window.scale
    inside = ((y >= 0) & (y < case.slide.height))[:, None] & ((x >= 0) & (x < case.slide.width))
    return inside & (ground != Ground.IGNORED)


def _predicted(find: Found, case: Case, window: Window, counted: np.ndarray) -> int:
    """Predictions whose centre lies in a counted pixel of the window."""
    x, y = _window_pixels(find(case, window), case, window).astype(int).T
    return int(counted[y, x].sum())
