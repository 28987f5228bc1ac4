"""Detections against sparse marks: the recall on held-out objects, beside how much is predicted."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64

from sparseshot_jax import metrics
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, whole_window
from sparseshot_jax.data.labels import TargetMaps, wanted
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.evaluate.detection import Detect
from sparseshot_jax.evaluate.windows import OBJECTS, evenly, tissue_windows, window_round, with_halo
from sparseshot_jax.metrics.detection_summary import STEPS
from sparseshot_jax.predict.stream import computed_windows
from sparseshot_jax.training import processes
from sparseshot_jax.types import Detections, Ground, Window

# predictions centred in each of the windows, which have one size
Found = Callable[[Case, Sequence[Window]], Iterator[metrics.ImageObjects]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Surroundings:
    """A held-out object, the other known objects near it, and the predictions there."""

    known_um: Float64[np.ndarray, "m 2"]  # centres
    own: int  # which of them is the held-out one
    found: metrics.ImageObjects

    def score(self, distance_um: float, *, above: float = 0.0) -> float | None:
        """Of the prediction above a threshold that is matched to the object; None without one."""
        found = self.found.take(self.found.score > above)
        pairs = metrics.match_points(self.known_um, found.xy_um, gate=distance_um)
        matched = pairs.predicted[pairs.truth == self.own]
        return float(found.score[matched[0]]) if len(matched) else None


def measure_sparse_detections(
    detect: Detect,
    cases: Sequence[Case],
    *,
    tiles: TileSpec,
    multiple: int,
    halo_px: int = 0,
    distance_um: float = 3.0,
    threshold: float = 0.5,
    batch_size: int = 4,
) -> dict[str, Any]:
    """What held-out marks support: the recall on them, beside the density of predictions.

    A held-out object counts as found when it has a prediction of its own: all known objects of its
    surroundings are matched one to one. The density is that of predictions in tiles of the tissue
    grid, ignored regions left out, each tile seen with its surroundings as in a prediction of the whole
    slide. A high recall at a plausible density is good; neither alone says
    anything. Precision and F1 need dense truth. Marks are enough for Elkan and Noto's threshold: c is the
    mean over the held-out objects of the score of their prediction, matched down to the floor, 0 without.

    Args:
        detect: images [b, h, w, 3] -> `Detections`, down to a floor below `threshold`.
        cases: with `held_out` objects.
        tiles: resolution and size of the windows.
        multiple: the model's; the sides of what it is shown are divisible by it.
        halo_px: how far the model sees beyond a pixel. Without it the borders of windows, where it then
            sees no neighbours, change the density.
        distance_um: a pair may match up to this distance of centres.
        threshold: of the score.
        batch_size: windows a call.

    Returns:
        held_out: objects looked at; recall on them; predicted_per_mm2; tissue_mm2 that was looked at;
        threshold; distance_um. Where a held-out object is found at the floor also elkan_noto: c, and
        recall, predicted_per_mm2 and threshold at its own.
    """
    side = -(-tiles.tile_px // multiple) * multiple
    options = {"multiple": multiple, "halo_px": halo_px, "batch_size": batch_size}
    find = functools.partial(_found, detect, **options)
    chosen = tissue_windows(cases, tiles)

    def look(k: int) -> tuple[list[_Surroundings], list[tuple[np.ndarray, float]]]:
        case, around = cases[k], []
        if case.held_out is not None and wanted(case.held_out, case.labels).any():
            around = _surroundings(find, case, tiles.mpp, side)
        given = TargetMaps(case.given, case.labels, mpp=case.mpp)
        rows = []
        for window, objects in zip(chosen[k], find(case, chosen[k])):
            counted = _counted_pixels(case, given, window)
            x, y = _window_pixels(objects, case, window).astype(int).T
            area_mm2 = int(counted.sum()) * (window.scale * case.mpp / 1000.0) ** 2
            rows.append((objects.score[counted[y, x]], area_mm2))
        return around, rows

    looked = processes.dealt(range(len(cases)), look)
    held_out = [one for around, _ in looked for one in around]
    windows = [row for _, rows in looked for row in rows]
    area_mm2 = sum(area for _, area in windows)

    def at(t: float) -> dict[str, Any]:
        found = [one.score(distance_um, above=t) is not None for one in held_out]
        predicted = sum(int((scores > t).sum()) for scores, _ in windows)
        return {
            "recall": sum(found) / len(found) if found else None,
            "predicted_per_mm2": predicted / area_mm2 if area_mm2 else None,
            "threshold": t,
        }

    c = metrics.estimate_c(np.array([one.score(distance_um) or 0.0 for one in held_out], np.float64))
    beside = {} if c is None else {"elkan_noto": {"c": c} | at(metrics.threshold_elkan_noto(c, STEPS))}
    about = {"tissue_mm2": area_mm2, "distance_um": distance_um}
    return {"held_out": len(held_out)} | at(threshold) | about | beside


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
    detect: Detect,
    case: Case,
    windows: Sequence[Window],
    *,
    multiple: int,
    halo_px: int,
    batch_size: int,
) -> Iterator[metrics.ImageObjects]:
    """Predictions down to the floor that are centred in each window, which is seen with its halo."""
    wide = [with_halo(window, multiple=multiple, halo_px=halo_px)[0] for window in windows]
    place = zip(windows, wide)
    for output, count in computed_windows(detect, case.slide, wide, batch_size=batch_size, threads=4):
        whole = jax.tree.map(np.asarray, output)
        for k, (window, seen) in enumerate(itertools.islice(place, count)):
            (objects,) = objects_of(jax.tree.map(lambda x, k=k: x[k : k + 1], whole), seen, mpp=case.mpp)
            xy = _window_pixels(objects, case, window)
            inside = ((xy >= 0) & (xy < [window.width, window.height])).all(axis=-1)
            yield objects.take(np.flatnonzero(inside))


def _window_pixels(objects: metrics.ImageObjects, case: Case, window: Window) -> Float64[np.ndarray, "n 2"]:
    """Centres x, y in pixels of the window."""
    level0_px = np.asarray(objects.xy_um, np.float64) / case.mpp
    return (level0_px - np.array([window.x_px, window.y_px])) / window.scale


def _surroundings(find: Found, case: Case, mpp: float, side: int) -> list[_Surroundings]:
    """Of each of the held-out objects looked at."""
    assert case.held_out is not None
    held_out = case.held_out.take(wanted(case.held_out, case.labels))
    given = case.given.take(wanted(case.given, case.labels))
    # first the held-out ones, so that index k is held-out object k
    known = Annotations.concatenate([held_out, given])
    scale = whole_window(case, mpp).scale
    looked = evenly(len(held_out), OBJECTS)
    windows = [window_round(known.centroids_px[k], side=side, scale=scale) for k in looked]
    around = []
    for k, window, found in zip(looked, windows, find(case, windows)):
        near = known.touching(window)
        (own,) = np.flatnonzero(near == k)
        around.append(_Surroundings(known_um=known.centroids_px[near] * case.mpp, own=int(own), found=found))
    return around


def _counted_pixels(case: Case, given: TargetMaps, window: Window) -> np.ndarray:
    """Pixels [h, w] of a window that lie in the slide and are not ignored."""
    ground, _ = given.draw(window)
    x = window.x_px + (np.arange(window.width) + 0.5) * window.scale
    y = window.y_px + (np.arange(window.height) + 0.5) * window.scale
    inside = ((y >= 0) & (y < case.slide.height))[:, None] & ((x >= 0) & (x < case.slide.width))
    return inside & (ground != Ground.IGNORED)
