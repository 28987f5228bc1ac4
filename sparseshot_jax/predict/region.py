"""Which part of a slide is wanted, and which tiles that needs."""

import functools

import numpy as np
import shapely
from jaxtyping import Bool, Float64

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.slides.tissue import TissueMask
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.stream import Grid


def tiles_to_compute(
    grid: Grid, area: shapely.Geometry | None, tissue: TissueMask | None
) -> Bool[np.ndarray, "n"]:
    """Which tiles to compute: those whose input sees tissue and the region."""
    windows = [grid.window(x, y) for x, y in grid.origins()]
    wanted = np.ones(len(windows), bool)
    if tissue is not None:
        wanted &= tissue.fraction(windows) > 0.0
    if area is not None:
        left, top = (np.array([getattr(w, k) for w in windows]) for k in ("x_px", "y_px"))
        side = windows[0].width * grid.scale
        wanted &= shapely.intersects(area, shapely.box(left, top, left + side, top + side))
    return wanted


def area_of(region: Annotations) -> shapely.Geometry:
    """All polygons of a region as one prepared geometry."""
    polygons = [_polygons(region, k) for k in np.flatnonzero(~region.is_point).tolist()]
    if not polygons:
        raise InputError(
            f"{region.source or 'region'}: must hold a polygon; it has {len(region)} points and no "
            "polygon. Draw the region as a rectangle, polygon or brush annotation."
        )
    area = shapely.union_all(polygons)
    shapely.prepare(area)
    return area


def _polygons(annotations: Annotations, k: int) -> shapely.Geometry:
    """Object k, even-odd over its rings."""
    rings = range(annotations.object_offsets[k], annotations.object_offsets[k + 1])
    polygons = [shapely.make_valid(shapely.Polygon(ring_of(annotations, i))) for i in rings]
    return functools.reduce(shapely.symmetric_difference, polygons)


def ring_of(annotations: Annotations, i: int) -> Float64[np.ndarray, "v 2"]:
    """Vertices of ring i, open."""
    return annotations.xy_px[annotations.ring_offsets[i] : annotations.ring_offsets[i + 1]]
