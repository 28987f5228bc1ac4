"""One list of all objects and one a class, marked apart: joined to objects with or without a class."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int32
from scipy.spatial import KDTree

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import LabelSpec, Role, role_of, wanted

MATCH_PX = 1.0  # a class point this near to a detection is the same nucleus
UNKNOWN = -1  # the class of a detection that no class point tells


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class JoinedPoints:
    """What the lists of an image make together."""

    xy_px: Float64[np.ndarray, "n 2"]  # the detections first, in their file's order
    class_ids: Int32[np.ndarray, "n"]  # into the class lists, `UNKNOWN` = not told
    added: int  # the last so many come from the class lists alone


def join_lists(
    detections: Float64[np.ndarray, "d 2"], classed: Sequence[Float64[np.ndarray, "_ 2"]]
) -> JoinedPoints:
    """Detections, each with the class of the class point within `MATCH_PX`.

    The two are paired one to one, nearest first: some nuclei are in both lists twice, once for each of two
    classes. A detection whose class points were all given away takes the nearest of them.

    Args:
        detections: x, y of every nucleus in pixels.
        classed: for each class, its points.
    """
    points = np.concatenate([*classed, np.zeros((0, 2))])
    ids = np.repeat(np.arange(len(classed), dtype=np.int32), [len(each) for each in classed])
    class_ids = np.full(len(detections), UNKNOWN, np.int32)
    given = np.zeros(len(points), bool)
    pairs = _pairs(detections, points)
    for detection, point in pairs:
        if class_ids[detection] == UNKNOWN and not given[point]:
            class_ids[detection] = ids[point]
            given[point] = True
    for detection, point in pairs:
        if class_ids[detection] == UNKNOWN:
            class_ids[detection] = ids[point]
    lone = np.setdiff1d(np.arange(len(points)), pairs[:, 1])
    return JoinedPoints(
        xy_px=np.concatenate([detections, points[lone]]),
        class_ids=np.concatenate([class_ids, ids[lone]]),
        added=len(lone),
    )


def _pairs(detections: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Indices [k, 2] of detections and points within `MATCH_PX`, nearest first, then as in the files."""
    if not len(detections) or not len(points):
        return np.zeros((0, 2), np.int64)
    near = KDTree(detections).query_ball_point(points, MATCH_PX)
    pairs = np.array([(d, p) for p, several in enumerate(near) for d in several], np.int64).reshape(-1, 2)
    distance = np.linalg.norm(detections[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], distance))]


def used_points(read: Annotations, points_key: str, labels: LabelSpec) -> tuple[Annotations, int]:
    """What a data set uses of a points file; see `FolderSource.points_key`.

    Args:
        read: the lists of the file, as classes.
        points_key: the list that holds every object.
        labels: what the class names mean.

    Returns:
        The list `points_key` where no classes are named; where `labels.unknown_class` names it, the objects
        of `join_lists`, those of no known class under its name; else all. And how many points of the class
        lists have no partner in the list of all objects, and were added to it.
    """
    if points_key not in read.class_names:
        return read, 0
    every = read.of_classes([points_key])
    if not labels.classes:
        return read.take(every), 0
    if not _is_joined(points_key, labels):
        return read, 0
    objects = [name for name in read.class_names if role_of(name, labels) == Role.OBJECT]
    told = [*(name for name in objects if name != points_key), points_key]
    joined = join_lists(read.xy_px[every], [read.xy_px[read.of_classes([name])] for name in told[:-1]])
    # UNKNOWN is the last of `told`.
    points = Annotations.from_points(joined.xy_px, [told[k] for k in joined.class_ids.tolist()])
    whole = Annotations.concatenate([points, read.take(~read.of_classes(told))])
    return dataclasses.replace(whole, source=read.source, notes=read.notes), joined.added


def lists_of(used: Annotations, points_key: str, labels: LabelSpec) -> Annotations:
    """What to write so that `used_points` reads `used` again: joined objects are in two lists."""
    if not _is_joined(points_key, labels):
        return used
    objects = used.take(wanted(used, labels))
    every = dataclasses.replace(
        objects, class_names=(points_key,), class_ids=np.zeros_like(objects.class_ids)
    )
    return Annotations.concatenate([every, used.take(~used.of_classes([points_key]))])


def _is_joined(points_key: str, labels: LabelSpec) -> bool:
    told = points_key not in labels.classes and role_of(points_key, labels) == Role.OBJECT
    return bool(labels.classes) and told
