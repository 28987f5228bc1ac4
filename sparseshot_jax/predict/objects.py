"""Probability tiles -> objects of a slide, in level-0 pixels, as they are complete."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import shapely
from jaxtyping import Float64, Int64

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.data.slides.tissue import TissueMask
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.bands import WHOLE, Band, Progress, Work, tiles_of
from sparseshot_jax.predict.contours import Regions
from sparseshot_jax.predict.region import area_of, ring_of, tiles_to_compute
from sparseshot_jax.predict.seams import Open, SeamlessContours
from sparseshot_jax.predict.stream import Grid, Probability, probability_tiles


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    """Some of a slide's objects."""

    objects: Annotations  # polygons in level-0 pixels, holes included
    probability: Float64[np.ndarray, "n"]  # mean p of the object's class over the pixel centres inside
    area_um2: Float64[np.ndarray, "n"]  # square micrometres, holes taken out

    @classmethod
    def concatenate(cls, parts: Sequence["Prediction"], *, class_names: Sequence[str]) -> "Prediction":
        """All of all parts, of which there may be none, in order."""
        names = tuple(class_names)
        return cls(
            objects=Annotations.concatenate([Annotations.empty(names), *(p.objects for p in parts)]),
            probability=np.concatenate([np.zeros(0), *(p.probability for p in parts)]),
            area_um2=np.concatenate([np.zeros(0), *(p.area_um2 for p in parts)]),
        )

    @property
    def measurements(self) -> dict[str, np.ndarray]:
        """What a file says of each object beside its class, name -> [n]."""
        return {"probability": self.probability, "area um^2": self.area_um2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finish:
    """What is done to objects before they leave."""

    grid: Grid
    size_px: tuple[int, int]  # width and height of the slide, level-0 pixels
    mpp: float  # micrometres a level-0 pixel
    class_names: tuple[str, ...]
    area: shapely.Geometry | None  # where centroids must lie, level-0 pixels
    min_area_um2: float
    simplify_px: float

    def __call__(self, found: list[Regions]) -> Prediction:
        """Regions of each class, map pixels -> objects, level-0 pixels."""
        parts = [
            dataclasses.replace(
                regions.outlines,
                class_ids=np.full(len(regions), k, np.int32),
                class_names=self.class_names,
            )
            for k, regions in enumerate(found)
        ]
        objects = Annotations.concatenate(parts)
        # Beyond the slide p is 0, half a pixel outside: the outline may not follow it there.
        xy = np.clip(objects.xy_px * self.grid.scale, 0.0, np.array(self.size_px, float))
        objects = dataclasses.replace(objects, xy_px=xy)
        p_sum = np.concatenate([regions.p_sum for regions in found])
        mean = p_sum / np.concatenate([regions.p_count for regions in found])
        area_um2 = objects.areas_px * self.mpp**2
        kept = area_um2 >= self.min_area_um2
        if self.area is not None and len(objects):
            kept &= shapely.contains_xy(self.area, objects.centroids_px)
        objects = objects.take(kept)
        if self.simplify_px and len(objects):
            objects = _simplified(objects, self.simplify_px * self.grid.scale)
        return Prediction(objects=objects, probability=mean[kept], area_um2=area_um2[kept])


def predict(
    probability: Probability,
    slide: Slide,
    *,
    class_names: Sequence[str],
    mpp: float,
    model_mpp: float,
    core_px: int = 512,
    halo_px: int,
    multiple: int = 1,
    threshold: float = 0.5,
    min_area_um2: float = 8.0,
    simplify_px: float = 0.0,
    region: Annotations | None = None,
    tissue: TissueMask | None = None,
    batch_size: int = 4,
    threads: int = 4,
    band: Band = WHOLE,
    on_progress: Progress = lambda done, total, objects: None,
) -> Work[Prediction]:
    """Objects of a slide, each once and whole, wherever the tiles' borders lie.

    The classes' maps are contoured one by one: classes may overlap where the threshold is below 1/2.
    Memory: the tiles in flight, a row of p a class, and the outlines of objects that reach into tiles to
    come.

    Args:
        probability: RGB [b, h, w, 3] -> p [b, h, w, C]; always called with one shape.
        slide: the image.
        class_names: of the C classes, distinct.
        mpp: micrometres a level-0 pixel.
        model_mpp: micrometres a pixel of the model's input.
        core_px: side of a tile without its halo, pixels of the model; divisible by `multiple`.
        halo_px: the model's receptive radius.
        multiple: what the sides of the model's input must be divisible by.
        threshold: an object is where p is above it, in (0, 1).
        min_area_um2: smaller objects are left out.
        simplify_px: how far a simplified outline may depart, pixels of the model; 0 keeps every vertex.
        region: give only objects whose centroid lies in these polygons. Tiles that are not within a halo
            of them are not computed; an object that reaches further than that may be cut there.
        tissue: tiles that see none of it are not computed; p counts as 0 there.
        batch_size: tiles a call.
        threads: that read tiles ahead.
        band: only the objects that are complete in these rows of tiles; see `bands`.
        on_progress: called with 0 tiles done at the start, then after each tile.

    Returns:
        Chunks as they are complete, in no order that means anything.

    Raises:
        InputError: an argument out of range (at once); a damaged slide or model (on the way).
    """
    finish, rows, chosen, tiles = begin(
        probability,
        slide,
        class_names=class_names,
        mpp=mpp,
        model_mpp=model_mpp,
        core_px=core_px,
        halo_px=halo_px,
        multiple=multiple,
        threshold=threshold,
        min_area_um2=min_area_um2,
        simplify_px=simplify_px,
        region=region,
        tissue=tissue,
        batch_size=batch_size,
        threads=threads,
        band=band,
    )
    areas = _Areas(threshold, finish, top=rows.start * finish.grid.core_px)
    return Work(tiles, chosen, areas, on_progress)


def begin(
    probability: Probability,
    slide: Slide,
    *,
    class_names: Sequence[str],
    mpp: float,
    model_mpp: float,
    core_px: int,
    halo_px: int,
    multiple: int,
    threshold: float,
    min_area_um2: float,
    simplify_px: float,
    region: Annotations | None,
    tissue: TissueMask | None,
    batch_size: int,
    threads: int,
    band: Band,
) -> tuple[Finish, range, list[tuple[int, int, bool]], Iterator[np.ndarray]]:
    """How objects are finished, the rows and tiles of a band (`tiles_of`), and those that are computed.

    Arguments as of `predict`.

    Raises:
        InputError: an argument out of range.
    """
    if not 0.0 < threshold < 1.0:
        raise InputError(f"threshold must be in (0, 1); got {threshold}. Try 0.5.")
    if min_area_um2 < 0.0 or simplify_px < 0.0:
        raise InputError(
            f"min_area_um2 and simplify_px must be at least 0; got {min_area_um2}, {simplify_px}."
        )
    grid = Grid.over(slide, mpp=mpp, model_mpp=model_mpp, core_px=core_px, halo_px=halo_px, multiple=multiple)
    area = None if region is None else area_of(region)
    finish = Finish(
        grid=grid,
        size_px=(slide.width, slide.height),
        mpp=mpp,
        class_names=tuple(class_names),
        area=area,
        min_area_um2=min_area_um2,
        simplify_px=simplify_px,
    )
    rows, chosen = tiles_of(grid, tiles_to_compute(grid, area, tissue), band)
    origins = [(x, y) for x, y, want in chosen if want]
    tiles = probability_tiles(probability, slide, grid, origins, batch_size=batch_size, threads=threads)
    return finish, rows, chosen, tiles


class _Areas:
    """Connected areas of every class, from a band's tiles; those that reach over its border stay open."""

    def __init__(self, threshold: float, finish: Finish, *, top: int = 0) -> None:
        """`top`: first map row of the band."""
        self._threshold, self._finish = threshold, finish
        self._maps = self._new(top)

    def _new(self, top: int) -> list[SeamlessContours]:
        grid, names = self._finish.grid, self._finish.class_names
        shape = {"width": grid.width, "height": grid.height, "threshold": self._threshold}
        return [SeamlessContours(**shape, top=top) for _ in names]

    def add(self, x: int, y: int, tile: np.ndarray | None) -> Iterator[Prediction]:
        names = self._finish.class_names
        if tile is not None and tile.shape[-1] != len(names):
            raise InputError(
                f"the model gives {tile.shape[-1]} classes, but class_names has {len(names)}: "
                f"{', '.join(names)}. Name each of the model's."
            )
        size = self._finish.grid.core_px
        yield from self._finished(
            one.add(x, y, None if tile is None else tile[..., k], size=size)
            for k, one in enumerate(self._maps)
        )

    def _finished(self, found: Iterable[Regions]) -> Iterator[Prediction]:
        found = list(found)
        if any(len(regions) for regions in found):
            yield self._finish(found)

    def edges(self) -> tuple[None, None]:
        return None, None

    def border(self, above: None, below: None) -> Iterator[Prediction]:
        del above, below
        return iter(())

    def rest(self) -> list[Open]:
        return [one.rest() for one in self._maps]

    def join(self, rests: Iterable[list[Open]]) -> Iterator[Prediction]:
        maps, size = self._new(0), self._finish.grid.core_px
        for rest in rests:
            for found in zip(*(one.bridge(open_, size=size) for one, open_ in zip(maps, rest))):
                yield from self._finished(found)


def _simplified(objects: Annotations, tolerance_px: float) -> Annotations:
    """Fewer vertices, the same holes; Douglas and Peucker's method on valid polygons.

    It hangs on a ring's first vertex: each begins where no tile has a say, and where it bends, for a first
    vertex that is taken out may lie twice the tolerance away.
    """
    objects = dataclasses.replace(objects, xy_px=_from_the_sharpest(objects.xy_px, objects.ring_offsets))
    bounds = objects.object_offsets
    polygons = [
        shapely.Polygon(ring_of(objects, a), [ring_of(objects, i) for i in range(a + 1, b)])
        for a, b in itertools.pairwise(bounds.tolist())  # the outer ring comes first
    ]
    simple = shapely.simplify(polygons, tolerance_px, preserve_topology=True)
    rings = [
        [np.asarray(ring.coords) for ring in (polygon.exterior, *polygon.interiors)] for polygon in simple
    ]
    thin = Annotations.from_polygons(rings)
    return dataclasses.replace(thin, class_ids=objects.class_ids, class_names=objects.class_names)


def _from_the_sharpest(
    xy: Float64[np.ndarray, "v 2"], offsets: Int64[np.ndarray, "r_plus_1"]
) -> Float64[np.ndarray, "v 2"]:
    """Each ring turned to begin at the vertex that lies farthest from the line between its neighbours."""
    first, sizes = (np.repeat(of_ring, np.diff(offsets)) for of_ring in (offsets[:-1], np.diff(offsets)))
    place = np.arange(len(xy)) - first
    before, after = (xy[first + (place + step) % sizes] for step in (-1, 1))
    (ux, uy), (vx, vy) = (after - before).T, (xy - before).T
    distance = np.abs(ux * vy - uy * vx) / np.maximum(np.hypot(ux, uy), 1e-12)
    start = np.lexsort((xy[:, 1], xy[:, 0], -distance, first))[first]
    return xy[first + (place + start - first) % sizes]
