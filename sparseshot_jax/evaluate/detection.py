"""Detections against dense truth: F1 by distance and by overlap, at every operating point."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import shapely
from jaxtyping import Bool, Float, Float64, Integer, UInt8

from sparseshot_jax import metrics
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec, Role, discs, label_ids, roles, wanted
from sparseshot_jax.data.tile_objects import object_boxes_px
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.detections import DetectionPart
from sparseshot_jax.predict.region import area_of
from sparseshot_jax.training import processes

FindObjects = Callable[[Case], metrics.ImageObjects]  # all of a case, down to a low floor of the score
Detect = Callable[[UInt8[np.ndarray, "b h w 3"]], Any]  # images -> `Detections`, down to a low floor


def measure_detections(
    find: FindObjects,
    cases: Sequence[Case],
    *,
    class_names: Sequence[str],
    distance_um: float = 3.0,
    iou: float = 0.5,
    split: str,
    threshold_carried: float | None,
    elkan_noto_c: float | None = None,
    seed: int,
    exclusive_class: str | None = None,
    on_case: Callable[[str], None] = lambda name: None,
) -> metrics.DetectionEvaluation:
    """Precision, recall, F1 and their kin against dense truth; see `metrics.summarise_detections`.

    What lies in an ignored region of the truth, by its centre, counts nowhere, true or predicted.

    Args:
        find: the objects of a whole case, at a low floor of the score; thresholds are applied here.
        cases: with dense truth.
        class_names: of classes 1..C.
        distance_um: a pair may match up to this distance of centres.
        iou: a pair may match from this IoU of boxes on.
        split: name for the record.
        threshold_carried: chosen on validation images, None where there were none.
        elkan_noto_c: estimated on validation positives, None where there were none.
        seed: of the bootstrap.
        exclusive_class: the class whose exclusive recall is kept image by image.
        on_case: told of every case of this process when its objects are there.

    Raises:
        InputError: a case without dense truth.
    """
    truths, found = _both(find, cases, on_case)
    return metrics.summarise_detections(
        truths,
        found,
        names=[case.name for case in cases],
        class_names=class_names,
        distance_um=distance_um,
        iou=iou,
        split=split,
        threshold_carried=threshold_carried,
        elkan_noto_c=elkan_noto_c,
        seed=seed,
        exclusive_class=exclusive_class,
        extents_known=_extents_known(cases),
    )


def carried_from_detections(
    find: FindObjects,
    cases: Sequence[Case],
    *,
    distance_um: float = 3.0,
    on_case: Callable[[str], None] = lambda name: None,
) -> metrics.Carried:
    """What cases with dense truth give to others: the threshold with the best pooled F1 by distance, and
    Elkan and Noto's c over their objects.

    Raises:
        InputError: a case without dense truth.
    """
    truths, found = _both(find, cases, on_case)
    return {
        "threshold_carried": metrics.best_detection_threshold(truths, found, distance_um=distance_um),
        "elkan_noto_c": metrics.estimate_c(metrics.matched_scores(truths, found, distance_um=distance_um)),
    }


def true_objects(case: Case) -> metrics.ImageObjects:
    """The wanted objects of the dense truth; label 0 where nobody knows the class.

    Raises:
        InputError: the case has no dense truth.
    """
    if case.truth is None:
        raise InputError(
            f"{case.name}: precision, recall and F1 need dense truth, and this case has none. Give dense "
            "annotations (data.truth), or measure the recall on held-out objects."
        )
    objects = case.truth.take(wanted(case.truth, case.labels))
    label = label_ids(objects, case.labels)
    return image_objects(objects, label=label, spec=case.labels, mpp=case.mpp)


def image_objects(
    objects: Annotations,
    *,
    label: Integer[np.ndarray, "n"],
    score: Float[np.ndarray, "n"] | None = None,
    spec: LabelSpec,
    mpp: float,
) -> metrics.ImageObjects:
    """Objects in level-0 pixels as what is measured, in micrometres.

    A polygon has its centroid and bounding box; a point the square round the disc of its class.

    Args:
        objects: true or predicted.
        label: class 1..C of each; 0 = a true object of unknown class.
        score: p of an object; None: 1 each, as for truth.
        spec: the radius of points.
        mpp: micrometres a level-0 pixel.
    """
    return metrics.ImageObjects(
        xy_um=objects.centroids_px * mpp,
        boxes_um=object_boxes_px(objects, spec, mpp=mpp) * mpp,
        label=label,
        score=np.ones(len(objects)) if score is None else score,
    )


def found_objects(part: DetectionPart, *, mpp: float) -> metrics.ImageObjects:
    """Detections of a slide as what is measured, in micrometres; boxes uncut at its border.

    Args:
        part: of `predict_detections`, all parts of the slide together.
        mpp: micrometres a level-0 pixel.
    """
    return metrics.ImageObjects(
        xy_um=part.centres_xy_px * mpp,
        boxes_um=part.boxes_xyxy_px * mpp,
        label=part.class_p.argmax(axis=1) + 1,
        score=part.score,
    )


def ignored_at(
    xy_px: Float64[np.ndarray, "n 2"], annotations: Annotations, spec: LabelSpec, *, mpp: float
) -> Bool[np.ndarray, "n"]:
    """Which of the level-0 points x, y lie in a region that `spec` ignores."""
    regions = annotations.take(roles(annotations, spec) == Role.IGNORED)
    if not len(regions) or not len(xy_px):
        return np.zeros(len(xy_px), bool)
    return shapely.intersects_xy(area_of(discs(regions, spec, mpp=mpp)), xy_px)


def _extents_known(cases: Sequence[Case]) -> bool:
    """Whether any true object is more than a point, so that overlap with it means something."""
    truths = [case.truth.take(wanted(case.truth, case.labels)) for case in cases if case.truth is not None]
    return not any(map(len, truths)) or any(not truth.is_point.all() for truth in truths)


def _both(
    find: FindObjects, cases: Sequence[Case], on_case: Callable[[str], None]
) -> tuple[list[metrics.ImageObjects], list[metrics.ImageObjects]]:
    """True and predicted objects of every case that count; cases are dealt out to the processes of a job."""

    def both(case: Case) -> tuple[metrics.ImageObjects, metrics.ImageObjects]:
        truth, found = _counted(true_objects(case), case), _counted(find(case), case)
        on_case(case.name)
        return truth, found

    pairs = processes.dealt(cases, both)
    return [truth for truth, _ in pairs], [found for _, found in pairs]


def _counted(objects: metrics.ImageObjects, case: Case) -> metrics.ImageObjects:
    assert case.truth is not None
    xy_px = np.asarray(objects.xy_um, np.float64) / case.mpp
    return objects.take(~ignored_at(xy_px, case.truth, case.labels, mpp=case.mpp))
