"""Annotations as shapely geometries, and back."""

import functools

import numpy as np
import shapely

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations


def geometries(objects: Annotations) -> np.ndarray:
    """A valid shapely geometry for each polygon or box, holes taken out; points are not allowed.

    >>> square = [[0, 0], [4, 0], [4, 4], [0, 4]]
    >>> hole = [[1, 1], [2, 1], [2, 2], [1, 2]]
    >>> [one.area for one in geometries(Annotations.from_polygons([[square, hole]]))]
    [15.0]
    """
    shapes = rings.polygons(objects.xy_px, objects.ring_offsets)
    broken = ~shapely.is_valid(shapes)
    shapes[broken] = shapely.make_valid(shapes[broken])
    starts = objects.object_offsets
    whole = shapes[starts[:-1]]
    for k in np.flatnonzero(np.diff(starts) > 1):
        # Even-odd, as `Annotations` means its rings.
        whole[k] = functools.reduce(shapely.symmetric_difference, shapes[starts[k] : starts[k + 1]])
    return whole


def rings_of(geometry: shapely.Geometry) -> list[np.ndarray]:
    """All rings of a polygon or of several; lines and points in a collection are left out.

    >>> [len(ring) for ring in rings_of(shapely.box(0, 0, 2, 1))]
    [5]
    """
    parts = [part for part in shapely.get_parts([geometry]) if isinstance(part, shapely.Polygon)]
    return [
        np.asarray(ring.coords)
        for part in parts
        if not part.is_empty
        for ring in (part.exterior, *part.interiors)
    ]
