"""Probability tiles -> objects of a slide, in level-0 pixels, as they are complete."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import shapely
from jaxtyping import Bool, Float64

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.data.slides.tissue import TissueMask
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.contours import Regions
from sparseshot_jax.predict.region import area_of, ring_of, tiles_to_compute
from sparseshot_jax.predict.seams import SeamlessContours
from sparseshot_jax.predict.stream import Grid, Probability, probability_tiles

Progress = Callable[[int, int, int], None]  # tiles done, tiles in all, objects found


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
    on_progress: Progress = lambda done, total, objects: None,
) -> Iterator[Prediction]:
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
        on_progress: called with 0 tiles done at the start, then after each tile.

    Returns:
        Chunks as they are complete, in no order that means anything.

    Raises:
        InputError: an argument out of range (at once); a damaged slide or model (on the way).
    """
    finish, wanted, tiles = begin(
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
    )
    return _objects(tiles, wanted, threshold, finish, on_progress)


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
) -> tuple[Finish, Bool[np.ndarray, "n"], Iterator[np.ndarray]]:
    """How objects are finished, which tiles are computed, and those tiles; arguments as of `predict`.

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
    wanted = tiles_to_compute(grid, area, tissue)
    chosen = [origin for origin, want in zip(grid.origins(), wanted) if want]
    tiles = probability_tiles(probability, slide, grid, chosen, batch_size=batch_size, threads=threads)
    return finish, wanted, tiles


def _objects(
    tiles: Iterator[np.ndarray],
    wanted: Bool[np.ndarray, "n"],
    threshold: float,
    finish: Finish,
    on_progress: Progress,
) -> Iterator[Prediction]:
    grid, classes = finish.grid, len(finish.class_names)
    maps = [
        SeamlessContours(width=grid.width, height=grid.height, threshold=threshold) for _ in range(classes)
    ]
    done, total, count = 0, int(wanted.sum()), 0
    on_progress(done, total, count)
    for (x, y), want in zip(grid.origins(), wanted):
        p = next(tiles) if want else None
        if p is not None and p.shape[-1] != classes:
            raise InputError(
                f"the model gives {p.shape[-1]} classes, but class_names has {classes}: "
                f"{', '.join(finish.class_names)}. Name each of the model's."
            )
        found = [
            one.add(x, y, None if p is None else p[..., k], size=grid.core_px) for k, one in enumerate(maps)
        ]
        if any(len(regions) for regions in found):
            part = finish(found)
            count += len(part.objects)
            if len(part.objects):
                yield part
        if want:
            done += 1
            on_progress(done, total, count)


def _simplified(objects: Annotations, tolerance_px: float) -> Annotations:
    """Fewer vertices, the same holes; Douglas and Peucker's method on valid polygons."""
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
