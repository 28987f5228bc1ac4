"""Polygons as files give them to polygons that the rest of the package can rely on."""

import collections
import dataclasses

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int32, Int64, UInt8

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations, Kind

MAX_COORDINATE = 1e12  # pixels; squares and products of four of them stay finite

UNCLOSED = "{} unclosed rings were closed."
NOT_FINITE = "{} objects with coordinates that are no number or beyond 1e12 were rejected."
NO_AREA = "{} objects without area were rejected."
FLAT_RINGS = "{} rings without area were dropped."
REPAIRED = "{} self-crossing polygons were repaired."
TANGLED = "{} polygons that cross themselves all over were rejected."
MAX_REPAIRED_VERTICES = 1_000_000  # of one object; a hand's outline has thousands


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shapes:
    """Objects of parts of rings, the first ring of a part its outer one, as GeoJSON nests them."""

    xy: Float64[np.ndarray, "v 2"]  # any coordinates, rings closed or not
    ring_offsets: Int64[np.ndarray, "r_plus_1"]  # into xy
    part_offsets: Int64[np.ndarray, "p_plus_1"]  # into the rings
    object_offsets: Int64[np.ndarray, "n_plus_1"]  # into the parts
    class_ids: Int32[np.ndarray, "n"]
    kind: UInt8[np.ndarray, "n"]  # `Kind` codes


def clean(shapes: Shapes, class_names: tuple[str, ...], counts: collections.Counter[str]) -> Annotations:
    """Open the rings, drop what has no place or no area, repair what crosses itself; count all of it.

    Args:
        shapes: the objects as read.
        class_names: what their class_ids index.
        counts: sentences with a place for the number, raised by what was found here.
    """
    lengths, closed = _open_lengths(shapes)
    ring_object = _ring_objects(shapes)
    polygon_ring = (shapes.kind != Kind.POINT)[ring_object]
    counts[UNCLOSED] += int((~closed & polygon_ring & (lengths > 2)).sum())
    finite = (np.abs(shapes.xy) <= MAX_COORDINATE).all(axis=1)  # False for NaN
    bad = np.zeros(len(shapes.class_ids), bool)
    bad[ring_object[np.repeat(np.arange(len(lengths)), np.diff(shapes.ring_offsets))[~finite]]] = True
    counts[NOT_FINITE] += int(bad.sum())

    keep = ~bad[ring_object]
    lengths, kept_rings = lengths[keep], np.flatnonzero(keep)
    xy = shapes.xy[rings.ranges(shapes.ring_offsets[:-1][kept_rings], lengths)]
    offsets = rings.offsets_of(lengths)
    point = ~polygon_ring[kept_rings]
    sized = point | ((lengths > 2) & _has_extent(xy, offsets))
    owner = ring_object[kept_rings]
    part = np.repeat(np.arange(len(shapes.part_offsets) - 1), np.diff(shapes.part_offsets))[kept_rings]
    outer = np.isin(kept_rings, shapes.part_offsets[:-1])
    # A hole goes with the outer ring it was cut from.
    sized &= ~np.isin(part, part[outer & ~sized])
    alive = np.zeros(len(bad), bool)
    alive[owner[sized]] = True
    counts[NO_AREA] += int((~bad & ~alive).sum())
    counts[FLAT_RINGS] += int((~sized & alive[owner]).sum())

    survivors = np.flatnonzero(sized)
    xy = xy[rings.ranges(offsets[:-1][survivors], lengths[survivors])]
    owner, part = owner[survivors], part[survivors]
    objects = np.flatnonzero(alive)
    annotations = Annotations(
        xy_px=xy,
        ring_offsets=rings.offsets_of(lengths[survivors]),
        object_offsets=rings.offsets_of(np.bincount(owner, minlength=len(bad))[objects]),
        class_ids=shapes.class_ids[objects],
        class_names=class_names,
        kind=shapes.kind[objects],
    )
    return _repaired(annotations, part, counts)


def _open_lengths(shapes: Shapes) -> tuple[Int64[np.ndarray, "r"], Bool[np.ndarray, "r"]]:
    """Vertices of each ring without the closing one, and whether there was one."""
    first, last = shapes.xy[shapes.ring_offsets[:-1]], shapes.xy[shapes.ring_offsets[1:] - 1]
    lengths = np.diff(shapes.ring_offsets)
    closed = (first == last).all(axis=1) & (lengths > 1)
    return lengths - closed, closed


def _ring_objects(shapes: Shapes) -> Int64[np.ndarray, "r"]:
    part_object = np.repeat(np.arange(len(shapes.class_ids)), np.diff(shapes.object_offsets))
    return np.repeat(part_object, np.diff(shapes.part_offsets))


def _has_extent(
    xy: Float64[np.ndarray, "v 2"], offsets: Int64[np.ndarray, "r_plus_1"]
) -> Bool[np.ndarray, "r"]:
    """False for rings whose vertices lie on one line (a figure of eight may sum to 0 and has area)."""
    if len(offsets) == 1:
        return np.zeros(0, bool)
    starts, lengths = offsets[:-1], np.diff(offsets)
    local = xy - np.repeat(xy[starts], lengths, axis=0)
    distance = (local**2).sum(axis=1)
    reach = np.maximum.reduceat(distance, starts)
    # The vertex farthest from the first one gives the line that all others are held against.
    far = np.flatnonzero(distance == np.repeat(reach, lengths))
    ring = np.repeat(np.arange(len(lengths)), lengths)
    axis = np.zeros((len(lengths), 2))
    axis[ring[far]] = local[far]
    across = np.abs(local[:, 0] * axis[ring, 1] - local[:, 1] * axis[ring, 0])
    # 1e-12 of the extent squared is rounding of the coordinates' differences, not area.
    return np.maximum.reduceat(across, starts) > 1e-12 * reach


def _repaired(
    annotations: Annotations, part: Int64[np.ndarray, "r"], counts: collections.Counter[str]
) -> Annotations:
    """The same objects with shapely's repair in place of those that are not valid polygons."""
    single = np.diff(annotations.object_offsets) == 1
    simple = rings.surely_simple(annotations.xy_px, annotations.ring_offsets)
    doubtful = ~annotations.is_point & ~(single & simple[annotations.object_offsets[:-1]])
    solid = np.flatnonzero(doubtful)
    if not len(solid):
        return annotations
    polygons = annotations.take(solid)
    geometries = _geometries(polygons, part[np.repeat(doubtful, np.diff(annotations.object_offsets))])
    invalid = np.flatnonzero(~shapely.is_valid(geometries))
    if not len(invalid):
        return annotations
    kept = np.setdiff1d(np.arange(len(annotations)), solid[invalid])
    tangled = _tangled(polygons.take(invalid))
    counts[TANGLED] += int(tangled.sum())
    invalid = invalid[~tangled]
    counts[REPAIRED] += len(invalid)
    fixed = shapely.make_valid(geometries[invalid], method="structure", keep_collapsed=False)
    replaced, where = _from_geometries(fixed, polygons.take(invalid))
    counts[NO_AREA] += len(invalid) - len(where)
    at = solid[invalid]
    joined = Annotations.concatenate([annotations.take(kept), replaced])
    return joined.take(np.argsort(np.concatenate([kept, at[where]]), kind="stable"))


def _tangled(polygons: Annotations) -> Bool[np.ndarray, "n"]:
    """True for objects whose repair could take hours: it costs time and memory for every crossing.

    3,000 random vertices take half a minute and 2 GB. What a hand drew crosses itself less often than it
    has vertices. Edges can cross where their boxes meet; there the search ends too, past a limit that
    outlines stay far below (an edge meets itself, its neighbours and a few more).
    """
    tangled = np.zeros(len(polygons), bool)
    vertices = np.diff(polygons.ring_offsets[polygons.object_offsets])
    for k in np.flatnonzero(vertices > 50).tolist():
        if vertices[k] > MAX_REPAIRED_VERTICES:
            tangled[k] = True
            continue
        one = polygons.take(np.array([k]))
        ends = np.stack([one.xy_px, one.xy_px[rings.following(one.ring_offsets)]], axis=1)
        edges = np.asarray(shapely.linestrings(ends))
        tree = shapely.STRtree(edges)
        meetings, crossings = 100_000 + 8 * len(edges), 2 * (100 + len(edges))  # left; both count twice
        for start in range(0, len(edges), 64):  # few at once: each may meet all others
            one_edge, other = tree.query(edges[start : start + 64])
            meetings -= len(other)
            if meetings >= 0:
                crossings -= int(shapely.crosses(edges[start + one_edge], edges[other]).sum())
            if meetings < 0 or crossings < 0:
                tangled[k] = True
                break
    return tangled


def _geometries(polygons: Annotations, part: Int64[np.ndarray, "r"]) -> np.ndarray:
    """A shapely MultiPolygon an object; `part` names the polygon of each ring."""
    count = np.diff(polygons.ring_offsets)
    closed = rings.ranges(polygons.ring_offsets[:-1], count + 1)
    closed[np.cumsum(count + 1) - 1] = polygons.ring_offsets[:-1]
    part_start = np.flatnonzero(np.diff(part, prepend=-1))
    part_offsets = np.append(part_start, len(part))
    object_offsets = np.searchsorted(part_offsets, polygons.object_offsets)
    return shapely.from_ragged_array(
        shapely.GeometryType.MULTIPOLYGON,
        polygons.xy_px[closed],
        (rings.offsets_of(count + 1), part_offsets, object_offsets),
    )


def _from_geometries(fixed: np.ndarray, model: Annotations) -> tuple[Annotations, Int64[np.ndarray, "m"]]:
    """Rings of repaired geometries, with the classes of `model`; also which of them have any area."""
    pieces, owner = shapely.get_parts(fixed, return_index=True)
    pieces, inner = shapely.get_parts(pieces, return_index=True)  # multipolygons in collections
    owner = owner[inner]
    sized = (shapely.get_type_id(pieces) == shapely.GeometryType.POLYGON) & (shapely.area(pieces) > 0)
    ring, ring_piece = shapely.get_rings(pieces[sized], return_index=True)
    owner = owner[sized][ring_piece]
    xy, ring_of = shapely.get_coordinates(ring, return_index=True)
    lengths = np.bincount(ring_of, minlength=len(ring))
    offsets = rings.offsets_of(lengths)
    where = np.unique(owner)
    return (
        Annotations(
            xy_px=xy[rings.ranges(offsets[:-1], lengths - 1)],
            ring_offsets=rings.offsets_of(lengths - 1),
            object_offsets=rings.offsets_of(np.bincount(owner, minlength=len(fixed))[where]),
            class_ids=model.class_ids[where],
            class_names=model.class_names,
            kind=np.full(len(where), Kind.POLYGON, np.uint8),
        ),
        where,
    )
