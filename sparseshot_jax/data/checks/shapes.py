"""Objects that lie on one another: overlaps and duplicates."""

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.checks.findings import Finding, Severity, places
from sparseshot_jax.data.geometry import geometries

OVERLAP_IOU = 0.1  # from here two objects overlap more than neighbours' outlines do
DOUBTFUL_IOU = 0.3  # from here nuclei that lie on one another are an unlikely reason
DUPLICATE_IOU = 0.9  # from here two outlines are one object drawn twice
DUPLICATE_PX = 1.0  # two points nearer than this are one object marked twice


def overlap_findings(annotations: Annotations, checked: Bool[np.ndarray, "n"]) -> list[Finding | None]:
    """Duplicates, and pairs of objects that overlap without being duplicates.

    Args:
        annotations: everything marked in the image.
        checked: True for the objects that should not lie on one another; regions should.
    """
    index = np.flatnonzero(checked & ~annotations.is_point)
    pairs, iou = overlaps(annotations.take(index))
    pairs = index[pairs]
    twins = np.concatenate([pairs[iou > DUPLICATE_IOU], _near_points(annotations, checked)])
    return [_duplicates(annotations, twins), _overlapping(annotations, pairs, iou)]


def overlaps(objects: Annotations) -> tuple[Int64[np.ndarray, "m 2"], Float64[np.ndarray, "m"]]:
    """Pairs (first < second) of outlines whose intersection over union is above `OVERLAP_IOU`."""
    if len(objects) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    shapes = geometries(objects)
    area = shapely.area(shapes)
    first, second = shapely.STRtree(shapes).query(shapes)
    first, second = first[first < second], second[first < second]
    box = objects.bounds_px
    meet = np.minimum(box[first, 2:], box[second, 2:]) - np.maximum(box[first, :2], box[second, :2])
    bound = np.minimum(meet.clip(0.0).prod(axis=1), np.minimum(area[first], area[second]))
    # Most pairs are neighbours whose boxes touch: their exact intersection need not be computed.
    possible = bound > OVERLAP_IOU * (area[first] + area[second] - bound)
    first, second = first[possible], second[possible]
    shared = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    iou = shared / np.maximum(area[first] + area[second] - shared, 1e-12)
    high = iou > OVERLAP_IOU
    return np.stack([first[high], second[high]], axis=1).astype(np.int64), iou[high]


def _near_points(annotations: Annotations, checked: np.ndarray) -> Int64[np.ndarray, "m 2"]:
    index = np.flatnonzero(checked & annotations.is_point)
    if len(index) < 2:
        return np.zeros((0, 2), np.int64)
    tree = KDTree(annotations.centroids_px[index])
    return index[tree.query_pairs(DUPLICATE_PX, output_type="ndarray").reshape(-1, 2)]


def _duplicates(annotations: Annotations, twins: np.ndarray) -> Finding | None:
    if not len(twins):
        return None
    n = len(annotations)
    graph = coo_array((np.ones(len(twins), bool), tuple(twins.T)), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    # The first of a group is the object, each further one a duplicate.
    _, first = np.unique(group, return_index=True)
    extra = np.setdiff1d(np.arange(n), first)
    mixed = int((annotations.class_ids[twins[:, 0]] != annotations.class_ids[twins[:, 1]]).sum())
    classes = (
        f" In {mixed} pairs the two have different classes: the later in the file wins." if mixed else ""
    )
    return Finding(
        severity=Severity.WARNING,
        kind="duplicate",
        what=f"{_objects(len(extra))} marked more than once (outlines with IoU above "
        f"{DUPLICATE_IOU:g}, points within {DUPLICATE_PX:g} px).{classes}",
        remedy="Delete the copies: counts and sparse subsets count each of them.",
        places=places(annotations, extra),
        count=len(extra),
    )


def _overlapping(annotations: Annotations, pairs: np.ndarray, iou: np.ndarray) -> Finding | None:
    partial = iou <= DUPLICATE_IOU
    pairs, iou = pairs[partial], iou[partial]
    if not len(pairs):
        return None
    worst = np.argsort(-iou, kind="stable")
    return Finding(
        severity=Severity.WARNING if iou.max() >= DOUBTFUL_IOU else Severity.NOTE,
        kind="overlap",
        what=f"Pairs of objects that overlap with IoU above {OVERLAP_IOU:g}: {len(pairs)}, the worst with "
        f"{iou.max():.2f}.",
        remedy="Where they share pixels the later in the file is drawn. Look whether one cell was "
        "outlined twice, or an outline swallows its neighbours.",
        places=places(annotations, pairs[worst].max(axis=1)),
        count=len(pairs),
    )


def _objects(count: int) -> str:
    return f"{count} object is" if count == 1 else f"{count} objects are"
