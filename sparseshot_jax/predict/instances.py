"""Probability and depth tiles -> separate cells of a slide, also where they touch.

Each tile is parted into objects together with a margin of its neighbours, wide enough for the largest
object, and gives those whose summit lies in its core: so every object comes once and whole.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.data.slides.tissue import TissueMask
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.bands import WHOLE, Band, Progress, Work
from sparseshot_jax.predict.contours import Regions, contour
from sparseshot_jax.predict.mosaic import Edge, Mosaic
from sparseshot_jax.predict.objects import Finish, Prediction, begin
from sparseshot_jax.predict.stream import Probability
from sparseshot_jax.predict.watershed import Split, SplitSpec, split

# An object's summit lies in the core, and the object reaches one diameter on; to part it from the next
# one the summit of that must be seen too.
_DIAMETERS = 1.5
_DEFAULT = SplitSpec()


def predict_instances(
    probability: Probability,
    slide: Slide,
    *,
    class_names: Sequence[str],
    mpp: float,
    model_mpp: float,
    depth: bool,
    core_px: int = 512,
    halo_px: int,
    multiple: int = 1,
    threshold: float = 0.5,
    largest_um: float = 25.0,
    spec: SplitSpec = _DEFAULT,
    min_area_um2: float = 8.0,
    simplify_px: float = 0.0,
    region: Annotations | None = None,
    tissue: TissueMask | None = None,
    batch_size: int = 4,
    threads: int = 4,
    band: Band = WHOLE,
    on_progress: Progress = lambda done, total, objects: None,
) -> Work[Prediction]:
    """Separate objects of a slide, each once and whole, wherever the tiles' borders lie.

    Foreground is where the classes' p adds up to more than the threshold; an object has the class of the
    largest mean p. Objects that touch have a hair's breadth between their outlines. Memory: two rows of
    tiles, of those that are computed.

    Args:
        probability: RGB [b, h, w, 3] -> p [b, h, w, C], with the depth in [0, 1] behind it where `depth`.
        slide: the image.
        class_names: of the C classes, distinct.
        mpp: micrometres a level-0 pixel.
        model_mpp: micrometres a pixel of the model's input.
        depth: the last channel is the depth; without it objects part at their waists: see `split`.
        core_px: side of a tile without its halo, pixels of the model; divisible by `multiple`.
        halo_px: the model's receptive radius.
        multiple: what the sides of the model's input must be divisible by.
        threshold: of foreground, in (0, 1).
        largest_um: diameter of the largest object, > 0. A larger one may be cut where tiles meet.
        spec: when one area is several objects.
        min_area_um2, simplify_px, region, tissue, batch_size, threads, band, on_progress: as of `predict`.

    Returns:
        Chunks as they are complete, in no order that means anything.

    Raises:
        InputError: an argument out of range (at once); a damaged slide or model (on the way).
    """
    if not 0.0 < largest_um < math.inf:
        raise InputError(f"largest_um must be positive; got {largest_um}. Try 25.")
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
    margin_px = math.ceil(_DIAMETERS * largest_um / model_mpp)
    mosaic = Mosaic(finish.grid, margin_px=margin_px, channels=len(class_names) + depth, rows=rows)
    parting = _Parting(
        margin_px=margin_px,
        core_px=finish.grid.core_px,
        classes=len(class_names),
        depth=depth,
        threshold=threshold,
        spec=spec,
    )
    return Work(tiles, chosen, _Parted(mosaic, parting, finish), on_progress)


@dataclasses.dataclass(frozen=True)
class _Parted:
    """Objects of a band's tiles; the rows at its borders wait for the margins of the bands beside it."""

    mosaic: Mosaic
    parting: "_Parting"
    finish: Finish

    def add(self, x: int, y: int, tile: np.ndarray | None) -> Iterator[Prediction]:
        if tile is not None:
            self.parting.check(tile.shape[-1], self.finish.class_names)
        return self._finished(self.mosaic.add(x, y, tile))

    def _finished(self, windows: Iterable[tuple[int, int, np.ndarray]]) -> Iterator[Prediction]:
        for x, y, window in windows:
            yield self.finish(self.parting(window, x, y))

    def edges(self) -> tuple[Edge, Edge]:
        return self.mosaic.edges()

    def border(self, above: Edge | None, below: Edge | None) -> Iterator[Prediction]:
        return self._finished(self.mosaic.border(above or {}, below or {}))

    def rest(self) -> None:
        return None

    def join(self, rests: Iterable[None]) -> Iterator[Prediction]:
        del rests
        return iter(())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parting:
    """A tile with its margin -> the objects that are the tile's."""

    margin_px: int
    core_px: int
    classes: int
    depth: bool  # the channel behind the classes'
    threshold: float
    spec: SplitSpec

    def check(self, channels: int, names: tuple[str, ...]) -> None:
        """Raise InputError unless a tile has the channels that were announced."""
        if channels != self.classes + self.depth:
            beside = " and the depth" if self.depth else ""
            raise InputError(
                f"the model gives {channels} channels; it must give p of {self.classes} classes, "
                f"{', '.join(names)}{beside}. Name each of the model's, and say whether it has a depth."
            )

    def __call__(self, window: Float32[np.ndarray, "h w c"], x: int, y: int) -> list[Regions]:
        """Objects of each class whose summit lies in the core with first pixel (x, y), map pixels."""
        p = window[..., : self.classes]
        foreground = p[..., 0] if self.classes == 1 else np.minimum(p.sum(axis=-1), np.float32(1.0))
        depth = window[..., self.classes] if self.depth else None
        parts = split(foreground, depth, threshold=self.threshold, spec=self.spec)
        first = self.margin_px + 1  # of the core, in the window
        core = parts.summits_yx - first
        within = (core >= 0) & (core < self.core_px)
        own = within[:, 0] & within[:, 1]
        outlines, label = outline(foreground, parts, own, threshold=self.threshold, x=x - first, y=y - first)
        p_sum, p_count = _sums(p, parts)
        class_ids = p_sum[label].argmax(axis=1)
        return [
            Regions(
                outlines=outlines.take(class_ids == k),
                p_sum=p_sum[label[class_ids == k], k],
                p_count=p_count[label[class_ids == k]],
            )
            for k in range(self.classes)
        ]


def outline(
    p: Float[np.ndarray, "h w"],
    parts: Split,
    chosen: Bool[np.ndarray, "n"],
    *,
    threshold: float,
    x: int = 0,
    y: int = 0,
) -> tuple[Annotations, Int64[np.ndarray, "m"]]:
    """Outlines of the chosen objects of a split, in map pixels, and which object each one is.

    Where an object meets background its outline is that of p = threshold; to it other objects are p = 0.

    Args:
        p: what was split, at the same threshold; its outermost pixels belong to no chosen object.
        parts: the split.
        chosen: which objects, a flag each.
        threshold: in (0, 1).
        x: column of the first pixel in the map.
        y: its row.
    """
    number = np.zeros(len(chosen) + 1, np.int32)
    number[1:][chosen] = 1 + np.flatnonzero(chosen)
    own = number[parts.labels]
    rows, columns = (np.flatnonzero(own.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return Annotations.empty(("",)), np.zeros(0, np.int64)
    # One pixel more: that is where the outline runs.
    top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
    crop = slice(top, rows[-1] + 2), slice(left, columns[-1] + 2)
    own, p, background = own[crop], p[crop].astype(float), parts.labels[crop] == 0
    x, y = x + left, y + top
    level = float(np.float32(threshold))  # p is float32: 0.3 must not exceed "0.3"
    colour = _colours(own, len(chosen))
    found, labels = [], []
    for k in range(1, int(colour.max()) + 1):
        # Objects of one colour do not touch: one pass outlines them all.
        plane = np.where(background | (colour[own] == k), p, 0.0)
        outlines = contour(plane, threshold=level, x=x, y=y).outlines
        found.append(outlines)
        labels.append(_inside(outlines, np.where(plane > level, own, 0), x, y))
    return Annotations.concatenate(found), np.concatenate(labels) - 1


def _inside(outlines: Annotations, own: Int32[np.ndarray, "h w"], x: int, y: int) -> Int64[np.ndarray, "m"]:
    """The label within each outline: its first vertex lies between a pixel of the object and one of none."""
    vertex = outlines.xy_px[outlines.ring_offsets[outlines.object_offsets[:-1]]]
    place = vertex - (x + 0.5, y + 0.5)
    (j0, i0), (j1, i1) = np.floor(place).astype(int).T, np.ceil(place).astype(int).T
    return np.maximum(own[i0, j0], own[i1, j1]).astype(np.int64)


def _colours(own: Int32[np.ndarray, "h w"], objects: int) -> Int32[np.ndarray, "n_plus_1"]:
    """A colour 1, 2, ... for each label, another one for labels that touch, by a corner even."""
    neighbours: dict[int, set[int]] = defaultdict(set)
    for a, b in (
        (own[:, :-1], own[:, 1:]),
        (own[:-1], own[1:]),
        (own[:-1, :-1], own[1:, 1:]),
        (own[:-1, 1:], own[1:, :-1]),
    ):
        meet = (a != b) & (a > 0) & (b > 0)
        pairs = np.unique(a[meet].astype(np.int64) * (objects + 1) + b[meet])
        for i, j in zip(*(side.tolist() for side in np.divmod(pairs, objects + 1))):
            neighbours[i].add(j)
            neighbours[j].add(i)
    colour = np.ones(objects + 1, np.int32)
    colour[0] = 0
    chosen: dict[int, int] = {}
    for label in sorted(neighbours):
        taken = {chosen.get(other) for other in neighbours[label]}
        chosen[label] = next(c for c in range(1, len(taken) + 2) if c not in taken)
        colour[label] = chosen[label]
    return colour


def _sums(
    p: Float32[np.ndarray, "h w C"], parts: Split
) -> tuple[Float64[np.ndarray, "n C"], Int64[np.ndarray, "n"]]:
    """Of every object the sum of each class's p, and its pixels."""
    n = len(parts.summits_yx)
    inside = np.flatnonzero(parts.labels)
    owner = parts.labels.reshape(-1)[inside] - 1
    flat = p.reshape(-1, p.shape[-1])
    sums = [np.bincount(owner, flat[inside, k], minlength=n) for k in range(p.shape[-1])]
    return np.stack(sums, axis=1).astype(float), np.bincount(owner, minlength=n).astype(np.int64)
