"""What a report shows of runs: crops with labels and predictions, config, versions, notes."""

import importlib.metadata
import sys
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits, truth_instances, whole_window
from sparseshot_jax.data.labels import TargetMaps, draw_targets, wanted
from sparseshot_jax.data.tile_objects import object_boxes_px
from sparseshot_jax.evaluate import foreground_of, with_halo
from sparseshot_jax.report import DetectionPanel, Panel, Predicted
from sparseshot_jax.run import Run
from sparseshot_jax.types import Window

_SIDE_PX = 256  # of a crop, pixels at the model's resolution
_CASES = 2  # of each part

NO_DENSE_TRUTH = (
    "The marks are sparse and there is no dense truth: Dice and F1 cannot be measured. A share of the marked "
    "objects was held out of training by spatial blocks; the report gives the recall on them beside the "
    "share of tissue that is called foreground. The parameters are the last ones (averaged where the "
    "config says so), and the threshold is the config's: nothing was chosen on these marks, but for Elkan "
    "and Noto's threshold, half the mean p on them."
)
NO_DENSE_OBJECTS = (
    "The marks are sparse and there is no dense truth: precision and F1 cannot be measured. A share of the "
    "marked objects was held out of training by spatial blocks; the report gives the recall on them beside "
    "the number of objects predicted in a square millimetre of tissue. The parameters are the last ones "
    "(averaged where the config says so), and the threshold is the config's: nothing was chosen on these "
    "marks, but for Elkan and Noto's threshold, half the mean score of the objects found there."
)
POINT_TRUTH = (
    "The true objects are points, all or most of them: their boxes are squares of the radius in the config. "
    "What is measured by IoU says how well these squares are met, and nothing of the objects' extent; where "
    "all are points it is left out."
)


def panels(runs: Mapping[str, Run], splits: Splits) -> list[Panel | DetectionPanel]:
    """Crops of the training part with the given labels, and of the test part with the truth."""
    shown = [("training", case) for case in splits.train[:_CASES]]
    shown += [("test", case) for case in splits.test[:_CASES]]
    detects = next(iter(runs.values())).detects
    draw = _detection_panel if detects else _panel
    return [draw(runs, part, case) for part, case in shown]


def truth_is_points(splits: Splits) -> bool:
    """Whether most of the true objects have no extent: see `POINT_TRUTH`."""
    points = total = 0
    for case in (*splits.test, *splits.validation):
        if case.truth is not None:
            objects = case.truth.take(wanted(case.truth, case.labels))
            points, total = points + int(objects.is_point.sum()), total + len(objects)
    return 2 * points > total


def _panel(runs: Mapping[str, Run], part: str, case: Case) -> Panel:
    first = next(iter(runs.values()))
    window = _crop(case, first.config.tiles.mpp)
    ground = None
    if part == "training":
        ground, _ = draw_targets(case.given, window, case.labels, mpp=case.mpp, ring=True)
    return Panel(
        title=_title(case, part),
        image=case.slide.read(window),
        given=ground,
        predictions={name: _p(run, case, window) for name, run in runs.items()},
        threshold=first.config.predict.threshold,
        truth=truth_instances(case, window) if case.truth is not None else None,
    )


def _detection_panel(runs: Mapping[str, Run], part: str, case: Case) -> DetectionPanel:
    first = next(iter(runs.values()))
    window = _crop(case, first.config.tiles.mpp)
    distance_um = first.config.measure.distance_um
    # Whoever hits or is hit across the border of the crop is there, too.
    margin = distance_um / (window.scale * case.mpp)
    given = ground = None
    if part == "training":
        given = _boxes_in(case.given, case, window, margin)
        maps = TargetMaps(case.given, case.labels, mpp=case.mpp)
        ground, _ = maps.draw(window, objects=False, ring=True)
    marked = case.given if case.truth is None else case.truth
    kinds = marked.take(wanted(marked, case.labels)).is_point
    return DetectionPanel(
        title=_title(case, part),
        image=case.slide.read(window),
        mpp=window.scale * case.mpp,
        given=given,
        ground=ground,
        predictions={name: _found(run, case, window, margin) for name, run in runs.items()},
        threshold=first.config.predict.threshold,
        truth=_boxes_in(case.truth, case, window, margin) if case.truth is not None else None,
        distance_um=distance_um,
        circles=bool(kinds.any() and kinds.mean() > 0.5),
    )


def _title(case: Case, part: str) -> str:
    return case.name if case.name == part else f"{case.name} ({part})"


def _crop(case: Case, mpp: float) -> Window:
    """A square round the annotated object with the most neighbours, inside the image."""
    whole = whole_window(case, mpp)
    side = min(_SIDE_PX, whole.width, whole.height)
    chosen = case.given if wanted(case.given, case.labels).any() else case.truth
    centre = np.array([whole.width, whole.height]) / 2
    if chosen is not None and wanted(chosen, case.labels).any():
        xy = chosen.centroids_px[wanted(chosen, case.labels)] / whole.scale
        some = xy[:: max(1, len(xy) // 500)]
        near = (np.abs(some[:, None] - some[None]) < side / 2).all(-1).sum(0)
        centre = some[near.argmax()]
    corner = np.clip(centre - side // 2, 0, [whole.width - side, whole.height - side]).astype(int)
    x, y = corner * whole.scale
    return Window(x_px=float(x), y_px=float(y), width=side, height=side, scale=whole.scale)


def _seen(run: Run, window: Window) -> tuple[Window, int]:
    """The window that the model has to be shown for one, and how many pixels it begins before that."""
    model = run.config.model
    return with_halo(window, multiple=model.multiple, halo_px=model.receptive_radius_px)


def _p(run: Run, case: Case, window: Window) -> np.ndarray:
    """p of foreground in a window, computed with the halo that the model needs."""
    wide, halo = _seen(run, window)
    p = foreground_of(np.asarray(run.probability(case.slide.read(wide)[None])))[0]
    return p[halo : halo + window.height, halo : halo + window.width]


def _found(run: Run, case: Case, window: Window, margin: float) -> Predicted:
    """Objects centred in a window and its margin, computed with the halo that the model needs."""
    wide, halo = _seen(run, window)
    found = run.detect(case.slide.read(wide)[None])
    boxes, score, valid = (np.asarray(v)[0] for v in (found.boxes_yxyx_px, found.score, found.valid))
    boxes = boxes - halo
    inside = valid & _centred(boxes, window, margin)
    return Predicted(boxes_yxyx_px=boxes[inside], score=score[inside])


def _boxes_in(objects: Annotations, case: Case, window: Window, margin: float) -> Float64[np.ndarray, "n 4"]:
    """Boxes of the wanted objects centred in a window and its margin, yxyx in its pixels."""
    objects = objects.take(wanted(objects, case.labels))
    corner = np.array([window.x_px, window.y_px] * 2)
    boxes = (object_boxes_px(objects, case.labels, mpp=case.mpp) - corner) / window.scale
    boxes = boxes[:, [1, 0, 3, 2]]
    return boxes[_centred(boxes, window, margin)]


def _centred(boxes: np.ndarray, window: Window, margin: float) -> np.ndarray:
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    end = np.array([window.height, window.width]) + margin
    return np.all((middle >= -margin) & (middle < end), axis=-1)


def versions() -> dict[str, str]:
    """Of the packages that decide a result."""
    names = ("sparseshot-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "fastslide")
    return {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in names}
