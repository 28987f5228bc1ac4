"""Image or slide -> detector -> its objects, each once, in level-0 pixels, as they are decided."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import shapely
from jaxtyping import Float32, Float64

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.data.slides.tissue import TissueMask
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.bands import WHOLE, Band, Progress, Work, tiles_of
from sparseshot_jax.predict.candidates import Candidates, Cells, candidate_tiles, reach_out_px
from sparseshot_jax.predict.merge import Suppression, TileMerger
from sparseshot_jax.predict.region import area_of, tiles_to_compute
from sparseshot_jax.predict.stream import Grid

GEOMETRIES = ("box", "point")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DetectionPart:
    """Some of a slide's detections."""

    objects: Annotations  # boxes, cut at the slide's border, or centres; level-0 pixels
    boxes_xyxy_px: Float64[np.ndarray, "n 4"]  # uncut boxes x0, y0, x1, y1, level-0 pixels
    score: Float32[np.ndarray, "n"]  # p of an object, (0, 1]
    class_p: Float32[np.ndarray, "n c"]  # p of each class given an object; sums to 1

    @classmethod
    def concatenate(cls, parts: Sequence["DetectionPart"], *, class_names: Sequence[str]) -> "DetectionPart":
        """All of all parts, of which there may be none, in order."""
        names = tuple(class_names)
        return cls(
            objects=Annotations.concatenate([Annotations.empty(names), *(p.objects for p in parts)]),
            boxes_xyxy_px=np.concatenate([np.zeros((0, 4)), *(p.boxes_xyxy_px for p in parts)]),
            score=np.concatenate([np.zeros(0, np.float32), *(p.score for p in parts)]),
            class_p=np.concatenate([np.zeros((0, len(names)), np.float32), *(p.class_p for p in parts)]),
        )

    @property
    def centres_xy_px(self) -> Float64[np.ndarray, "n 2"]:
        """Middles of the uncut boxes, level-0 pixels."""
        return 0.5 * (self.boxes_xyxy_px[:, :2] + self.boxes_xyxy_px[:, 2:])

    @property
    def measurements(self) -> dict[str, np.ndarray]:
        """What a file says of each object beside its class, name -> [n]."""
        names = self.objects.class_names
        of_classes = {f"p {name}": self.class_p[:, k] for k, name in enumerate(names)}
        return {"score": self.score} | (of_classes if len(names) > 1 else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Finish:
    """What is done to objects before they leave."""

    scale: float  # level-0 pixels a map pixel
    size_px: tuple[int, int]  # width and height of the slide, level-0 pixels
    class_names: tuple[str, ...]
    area: shapely.Geometry | None  # where centres must lie, level-0 pixels
    geometry: str

    def __call__(self, found: Candidates) -> DetectionPart:
        boxes = found.boxes_xyxy_px * self.scale
        if self.area is not None and len(found):
            inside = shapely.contains_xy(self.area, found.centres_xy_px * self.scale)
            found, boxes = found.take(inside), boxes[inside]
        limits = np.array(self.size_px * 2, float)
        if self.geometry == "point":
            middle = 0.5 * (boxes[:, :2] + boxes[:, 2:])
            objects = Annotations.from_points(np.clip(middle, 0.0, limits[:2]))
        else:
            objects = Annotations.from_boxes(np.clip(boxes, 0.0, limits))
        return DetectionPart(
            objects=dataclasses.replace(
                objects,
                class_ids=found.class_p.argmax(axis=1).astype(np.int32),
                class_names=self.class_names,
            ),
            boxes_xyxy_px=boxes,
            score=found.score,
            class_p=found.class_p,
        )


def predict_detections(
    cells: Cells,
    slide: Slide,
    *,
    class_names: Sequence[str],
    mpp: float,
    model_mpp: float,
    stride: int,
    core_px: int = 512,
    halo_px: int,
    multiple: int = 1,
    threshold: float = 0.5,
    rule: Suppression | None = None,
    peaks: bool = False,
    geometry: str = "box",
    region: Annotations | None = None,
    tissue: TissueMask | None = None,
    batch_size: int = 4,
    threads: int = 4,
    band: Band = WHOLE,
    on_progress: Progress = lambda done, total, objects: None,
) -> Work[DetectionPart]:
    """Detections of a slide, each once, wherever the tiles' borders lie: what one pass would give.

    Those above a threshold are those above a lower one whose score is above it: no object of a lower
    score suppresses one of a higher. Memory: the tiles in flight, and the candidates near the borders of
    a row of tiles.

    Args:
        cells: RGB [b, h, w, 3] -> `CellOutput`; always called with one shape.
        slide: the image.
        class_names: of the C classes, distinct.
        mpp: micrometres a level-0 pixel.
        model_mpp: micrometres a pixel of the model's input, a map pixel.
        stride: map pixels a side of a cell.
        core_px: side of a tile without its halo, map pixels; divisible by `multiple` and `stride`.
        halo_px: how far beyond a cell the model looks.
        multiple: what the sides of the model's input must be divisible by.
        threshold: an object's score is above it, in [0, 1).
        rule: which candidates suppress one another; by IoU 0.5 where it is not given.
        peaks: only the best of 3 x 3 cells is a candidate: for a heat map of centres.
        geometry: "box" or "point", of the objects.
        region: give only objects whose centre lies in these polygons. Tiles that are not within a halo of
            them are not computed: what lies beyond suppresses nothing.
        tissue: tiles that see none of it are not computed and hold no object.
        batch_size: tiles a call.
        threads: that read tiles ahead.
        band: only the objects that are decided within these rows of tiles; see `bands`.
        on_progress: called with 0 tiles done at the start, then as tiles are done.

    Returns:
        Chunks as they are decided, in no order that means anything.

    Raises:
        InputError: an argument out of range (at once); a damaged slide or model (on the way).
    """
    if not 0.0 <= threshold < 1.0:
        raise InputError(f"threshold must be in [0, 1); got {threshold}. Try 0.5.")
    if geometry not in GEOMETRIES:
        raise InputError(f"geometry must be one of {', '.join(GEOMETRIES)}; got {geometry!r}.")
    if stride < 1:
        raise InputError(f"stride must be at least 1 pixel; got {stride}. Give the model's.")
    grid = Grid.over(
        slide,
        mpp=mpp,
        model_mpp=model_mpp,
        core_px=core_px,
        halo_px=halo_px + stride * peaks,  # the cells beside a core decide on peaks in it
        multiple=math.lcm(multiple, stride),
    )
    area = None if region is None else area_of(region)
    finish = _Finish(
        scale=grid.scale,
        size_px=(slide.width, slide.height),
        class_names=tuple(class_names),
        area=area,
        geometry=geometry,
    )
    rows, chosen = tiles_of(grid, tiles_to_compute(grid, area, tissue), band)
    tiles = candidate_tiles(
        cells,
        slide,
        grid,
        [(x, y) for x, y, want in chosen if want],
        stride=stride,
        threshold=threshold,
        peaks=peaks,
        batch_size=batch_size,
        threads=threads,
    )
    merger = TileMerger(
        width=grid.width,
        height=grid.height,
        rule=rule or Suppression(),
        classes=len(finish.class_names),
        reach_out_px=reach_out_px(stride),
        top=rows.start * grid.core_px,
    )
    return Work(tiles, chosen, _Merged(merger, grid.core_px, finish), on_progress)


@dataclasses.dataclass(frozen=True)
class _Merged:
    """Detections of a band's tiles; candidates that hang on other bands stay open."""

    merger: TileMerger
    core_px: int
    finish: _Finish

    def add(self, x: int, y: int, tile: Candidates | None) -> Iterator[DetectionPart]:
        names = self.finish.class_names
        if tile is not None and tile.class_p.shape[1] != len(names):
            raise InputError(
                f"the model gives {tile.class_p.shape[1]} classes, but class_names has {len(names)}: "
                f"{', '.join(names)}. Name each of the model's."
            )
        yield from self._finished(self.merger.add(tile, x0=x, y0=y, x1=x + self.core_px, y1=y + self.core_px))

    def _finished(self, found: Candidates) -> Iterator[DetectionPart]:
        if len(found):
            yield self.finish(found)

    def edges(self) -> tuple[None, None]:
        return None, None

    def border(self, above: None, below: None) -> Iterator[DetectionPart]:
        del above, below
        return iter(())

    def rest(self) -> Candidates:
        return self.merger.rest()

    def join(self, rests: Iterable[Candidates]) -> Iterator[DetectionPart]:
        yield from self._finished(self.merger.join(rests))
