"""Geometry of many rings at once: flat vertices and offset arrays, no Python object per ring.

Ring i is `xy[offsets[i]:offsets[i + 1]]`, not closed: its last vertex is joined to its first.
"""

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int64


def offsets_of(lengths: np.ndarray) -> Int64[np.ndarray, "k_plus_1"]:
    """Offsets of consecutive pieces of the given lengths: 0, then the running sum.

    >>> offsets_of(np.array([3, 4]))
    array([0, 3, 7])
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: np.ndarray, lengths: np.ndarray) -> Int64[np.ndarray, "total"]:
    """Concatenation of `arange(start, start + length)` over all pairs.

    >>> ranges(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)


def following(offsets: Int64[np.ndarray, "r_plus_1"]) -> Int64[np.ndarray, "v"]:
    """Index of the vertex after each one, round its own ring."""
    after = np.arange(1, offsets[-1] + 1)
    filled = offsets[1:] > offsets[:-1]
    after[offsets[1:][filled] - 1] = offsets[:-1][filled]
    return after


def signed_moments(
    xy: Float64[np.ndarray, "v 2"], offsets: Int64[np.ndarray, "r_plus_1"]
) -> tuple[Float64[np.ndarray, "r"], Float64[np.ndarray, "r 2"]]:
    """Signed area and centroid of every ring, by the shoelace formula.

    The sign is that of the vertex order; a ring without area has its first vertex as centroid.
    """
    if len(offsets) == 1:
        return np.zeros(0), np.zeros((0, 2))
    starts = offsets[:-1]
    # Products of level-0 coordinates (1e5 each) would cost digits: measure from the ring's own vertex.
    origin = xy[starts]
    local = xy - np.repeat(origin, np.diff(offsets), axis=0)
    after = local[following(offsets)]
    cross = local[:, 0] * after[:, 1] - after[:, 0] * local[:, 1]
    area = np.add.reduceat(cross, starts) / 2
    moment = np.add.reduceat((local + after) * cross[:, None], starts, axis=0) / 6
    flat = area == 0
    return area, origin + np.where(flat[:, None], 0, moment / np.where(flat, 1, area)[:, None])


def surely_simple(
    xy: Float64[np.ndarray, "v 2"], offsets: Int64[np.ndarray, "r_plus_1"]
) -> Bool[np.ndarray, "r"]:
    """True where a ring cannot cross or touch itself: most cells, in a fraction of the time of a full test.

    Such a ring goes once, always the same way, round the mean of its vertices: every edge has a sector
    of its own. False says nothing.
    """
    if len(offsets) == 1:
        return np.zeros(0, bool)
    starts, lengths = offsets[:-1], np.diff(offsets)
    ring = np.repeat(np.arange(len(lengths)), lengths)
    x, y = (
        np.ascontiguousarray(column) - (np.add.reduceat(column, starts) / lengths)[ring] for column in xy.T
    )
    after = following(offsets)
    left, right = x * y[after], y * x[after]
    # The rounding of left - right is below 1e-15 of the products' size: beyond 1e-12 its sign is exact.
    doubt = 1e-12 * (np.abs(left) + np.abs(right)) + 1e-290
    cross = left - right
    one_way = np.logical_and.reduceat(cross > doubt, starts)
    one_way |= np.logical_and.reduceat(cross < -doubt, starts)
    below = y < 0
    turns = np.add.reduceat(below & ~below[after], starts, dtype=np.int64)
    return one_way & (turns == 1)


def object_moments(
    xy: Float64[np.ndarray, "v 2"],
    ring_offsets: Int64[np.ndarray, "r_plus_1"],
    object_offsets: Int64[np.ndarray, "n_plus_1"],
    depth: Int64[np.ndarray, "r"],
) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n 2"]]:
    """Area and centroid of every object; rings of odd `depth` are taken out as holes."""
    if len(object_offsets) == 1:
        return np.zeros(0), np.zeros((0, 2))
    area, centroid = signed_moments(xy, ring_offsets)
    area = np.where(depth % 2 == 0, np.abs(area), -np.abs(area))
    first = object_offsets[:-1]
    total = np.add.reduceat(area, first)
    origin = centroid[first]
    away = area[:, None] * (centroid - np.repeat(origin, np.diff(object_offsets), axis=0))
    flat = total == 0
    shift = np.add.reduceat(away, first, axis=0) / np.where(flat, 1, total)[:, None]
    return total, origin + np.where(flat[:, None], 0, shift)


def polygons(xy: Float64[np.ndarray, "v 2"], offsets: Int64[np.ndarray, "r_plus_1"]) -> np.ndarray:
    """A shapely Polygon without holes for every ring (3 vertices at least), all built at once."""
    lengths = np.diff(offsets)
    closed = ranges(offsets[:-1], lengths + 1)
    ends = np.cumsum(lengths + 1) - 1
    closed[ends] = offsets[:-1]
    ring_ids = np.repeat(np.arange(len(lengths)), lengths + 1)
    return np.asarray(shapely.polygons(shapely.linearrings(xy[closed], indices=ring_ids)))


def nesting(
    xy: Float64[np.ndarray, "v 2"],
    ring_offsets: Int64[np.ndarray, "r_plus_1"],
    object_offsets: Int64[np.ndarray, "n_plus_1"],
) -> tuple[Int64[np.ndarray, "r"], Int64[np.ndarray, "r"]]:
    """How many rings of the same object lie round each ring, and the smallest of them (or -1).

    An even count is an outer ring, an odd one a hole of the ring named. Rings of one object may touch
    and must not cross.
    """
    counts = np.diff(object_offsets)
    depth = np.zeros(len(ring_offsets) - 1, np.int64)
    parent = np.full(len(ring_offsets) - 1, -1, np.int64)
    rings = ranges(object_offsets[:-1][counts > 1], counts[counts > 1])
    if not len(rings):  # the usual file: every object is one ring
        return depth, parent
    owner = np.repeat(np.arange(len(counts)), counts)[rings]
    lengths = np.diff(ring_offsets)[rings]
    vertices = ranges(ring_offsets[:-1][rings], lengths)
    shapes = polygons(xy[vertices], offsets_of(lengths))
    inner, outer = shapely.STRtree(shapes).query(shapes, predicate="covered_by")
    area = shapely.area(shapes)
    # Two equal rings cover each other: the first in the file counts as the outer one.
    larger = (area[outer] > area[inner]) | ((area[outer] == area[inner]) & (outer < inner))
    inside = (owner[inner] == owner[outer]) & larger
    inner, outer = inner[inside], outer[inside]
    depth[rings] = np.bincount(inner, minlength=len(rings))
    nearest_last = np.argsort(-area[outer], kind="stable")
    parent[rings[inner[nearest_last]]] = rings[outer[nearest_last]]
    return depth, parent
