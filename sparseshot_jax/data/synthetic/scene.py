"""A synthetic H&E slide with complete truth: for demonstrations, tests and first experiments.

Tumour nests in fibrous stroma, with lymphocytes and fibroblasts as look-alikes, stained by Beer and
Lambert's law. Any region can be drawn by itself, so that a slide of any size needs the memory of its
cells' parameters and of a row of tiles.
"""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from scipy import ndimage
from scipy.spatial import KDTree

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.data.slides.pyramid import write_pyramid
from sparseshot_jax.data.synthetic.cells import CLASSES, Cells, concatenate, make_cells, patches
from sparseshot_jax.data.synthetic.tissue import Tissue, periodic_texture
from sparseshot_jax.errors import InputError

WANTED = "tumour"

# Optical density of red, green, blue per unit of stain (Ruifrok and Johnston 2001).
_HAEMATOXYLIN_RGB = (0.650, 0.704, 0.286)
_EOSIN_RGB = (0.092, 0.954, 0.283)
_GLASS_RGB = (244.0, 243.0, 245.0)

_MARGIN_PX = 4  # drawn round a region, so that blur does not see its edge
_NOISE_PERIOD_PX = (509, 503)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticPaths:
    """The files of one synthetic slide."""

    slide: Path  # pyramidal TIFF
    given: Path  # GeoJSON: the share of tumour nuclei that the user marked
    truth: Path  # GeoJSON: every nucleus, of three classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSlide:
    """What to draw."""

    seed: int = 0
    width: int = 2560  # level-0 pixels
    height: int = 2560  # level-0 pixels
    mpp: float = 0.5  # micrometres a level-0 pixel, 0.1 to 2
    keep: float = 0.3  # share of the tumour nuclei that are given, [0, 1]

    def __post_init__(self) -> None:
        if self.width < 64 or self.height < 64 or not 0.1 <= self.mpp <= 2.0:
            raise InputError(
                "a synthetic slide needs width and height >= 64 and mpp from 0.1 to 2; got "
                f"{self.width} x {self.height}, mpp {self.mpp}. Try 2560 x 2560 at mpp 0.5."
            )
        if not 0.0 <= self.keep <= 1.0:
            raise InputError(f"keep is a share and must lie in [0, 1]; got {self.keep}. Try 0.3.")


def draw_slide(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    width: int = 2560,
    height: int = 2560,
    mpp: float = 0.5,
    keep: float = 0.3,
) -> SyntheticPaths:
    """Write slide.tiff, given.geojson and truth.geojson into a folder (made if missing).

    The arguments are those of `SyntheticSlide`. The given nuclei are a random share of the wanted
    class "tumour"; one permutation per seed, so that a larger share contains a smaller one.

    Raises:
        InputError: a size, resolution or share out of range.
    """
    spec = SyntheticSlide(seed=seed, width=width, height=height, mpp=mpp, keep=keep)
    scene = Scene(spec)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = SyntheticPaths(
        slide=folder / "slide.tiff",
        given=folder / "given.geojson",
        truth=folder / "truth.geojson",
    )
    write_pyramid(paths.slide, scene.draw, width, height, mpp=mpp)
    truth = scene.truth()
    write_geojson(paths.truth, truth, object_type="annotation")
    write_geojson(paths.given, truth.take(scene.given()), object_type="annotation")
    return paths


class Scene:
    """One slide, laid out: draws any region, and knows every cell."""

    def __init__(self, spec: SyntheticSlide):
        self.spec = spec
        layout, cells, stain, keep = (np.random.default_rng([spec.seed, purpose]) for purpose in range(4))
        self._keep = keep
        width_um, height_um = spec.width * spec.mpp, spec.height * spec.mpp
        self._tissue = Tissue.random(layout, width_um, height_um, spec.mpp)
        self.cells = _place(cells, self._tissue, spec)
        self._reach = self.cells.reach_px
        self._chromatin = periodic_texture(stain, 0.9 / spec.mpp, (256, 256))
        self._noise = stain.standard_normal(_NOISE_PERIOD_PX).astype(np.float32)
        # Batches of stain differ: a few per cent in hue and strength between slides.
        shades = np.array([_HAEMATOXYLIN_RGB, _EOSIN_RGB])
        shades = shades * np.exp(0.06 * stain.standard_normal((2, 1)))
        self._absorption = (shades + 0.02 * stain.standard_normal((2, 3))).astype(np.float32)

    def draw(self, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB of a region in level-0 pixels, the same (to one grey level) in whatever tiles."""
        m, spec = _MARGIN_PX, self.spec
        x0, y0 = x - m, y - m
        haematoxylin, eosin, cover = self._tissue.stains(x0, y0, width + 2 * m, height + 2 * m)
        self._add_cells(x0, y0, haematoxylin, eosin)
        blur = 0.35 / spec.mpp  # sigma; a 20x objective resolves about 0.5 um
        densities = [
            ndimage.gaussian_filter(stain, blur, truncate=3.0, mode="nearest")[m:-m, m:-m]
            for stain in (haematoxylin, eosin)
        ]
        rows, columns = np.arange(y, y + height), np.arange(x, x + width)
        cover = cover[m:-m, m:-m]
        rgb = np.empty((height, width, 3), np.float32)
        for c in range(3):
            noise = self._noise[np.ix_((rows + 101 * c) % _NOISE_PERIOD_PX[0], columns % _NOISE_PERIOD_PX[1])]
            od = densities[0] * self._absorption[0, c] + densities[1] * self._absorption[1, c]
            rgb[..., c] = _GLASS_RGB[c] * np.exp(-od * np.float32(math.log(10.0) * 0.5))
            rgb[..., c] += noise * (0.8 + 1.7 * cover)
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)

    def truth(self) -> Annotations:
        """Every nucleus, as polygons."""
        outlines = self.cells.outlines_px()
        n, vertices = outlines.shape[:2]
        return Annotations(
            xy_px=outlines.reshape(-1, 2),
            ring_offsets=np.arange(n + 1, dtype=np.int64) * vertices,
            object_offsets=np.arange(n + 1, dtype=np.int64),
            class_ids=self.cells.class_ids,
            class_names=CLASSES,
            kind=np.full(n, Kind.POLYGON, np.uint8),
        )

    def given(self) -> np.ndarray:
        """Indices of the nuclei that the user marked."""
        wanted = np.flatnonzero(self.cells.class_ids == CLASSES.index(WANTED))
        order = np.random.default_rng([self.spec.seed, 3]).permutation(wanted)
        return np.sort(order[: math.ceil(self.spec.keep * len(order) - 1e-9)])

    def _add_cells(self, x0: int, y0: int, haematoxylin: np.ndarray, eosin: np.ndarray) -> None:
        """Lay the cells that touch the region over its stains, in place, in their order."""
        height, width = haematoxylin.shape
        xy, reach = self.cells.xy_px, self._reach
        touch = (xy[:, 0] + reach > x0) & (xy[:, 0] - reach < x0 + width)
        touch &= (xy[:, 1] + reach > y0) & (xy[:, 1] - reach < y0 + height)
        for class_id in range(len(CLASSES)):
            index = np.flatnonzero(touch & (self.cells.class_ids == class_id))
            if not len(index):
                continue
            for patch in patches(self.cells.take(index), self._chromatin, self.spec.mpp):
                side = len(patch.cover)
                left, top = patch.x - x0, patch.y - y0
                here = (slice(max(top, 0), top + side), slice(max(left, 0), left + side))
                h, e = haematoxylin[here], eosin[here]
                if not h.size:
                    continue
                skip_y, skip_x = max(-top, 0), max(-left, 0)
                part = (slice(skip_y, skip_y + h.shape[0]), slice(skip_x, skip_x + h.shape[1]))
                cover = patch.cover[part]
                # Where nuclei overlap, light passes both: part of what lies below shows through.
                h *= 1.0 - 0.65 * cover
                h += patch.haematoxylin[part] * cover
                e *= 1.0 - 0.55 * cover
                e += patch.eosin[part] * (1.0 - cover)


def _place(rng: np.random.Generator, tissue: Tissue, spec: SyntheticSlide) -> Cells:
    """Choose every cell: tumour in the nests, fibroblasts along fibres, lymphocytes in clusters."""
    parts = []
    for name, spacing_um in (("tumour", 11.5), ("lymphocyte", 8.5), ("fibroblast", 19.0)):
        xy_um = _jittered_lattice(rng, tissue.width_um, tissue.height_um, spacing_um)
        depth, nest = tissue.depth_at(xy_um), tissue.nest_at(xy_um)
        chance = rng.random(len(xy_um))
        if name == "tumour":
            single = 0.02 * (nest < -0.1)  # cells that left the nests: no cell body betrays them
            chosen = chance < np.where(nest > 0.06, 0.93, single)
            direction = rng.uniform(0.0, np.pi, len(xy_um))
        elif name == "fibroblast":
            chosen = (nest < -0.03) & (chance < 0.55)
            direction = tissue.fibre_direction_at(xy_um) + 0.15 * rng.standard_normal(len(xy_um))
        else:
            dense = 1.0 / (1.0 + np.exp(-(tissue.infiltrate.at(xy_um) - 1.1) / 0.18))
            inside = np.where(nest > 0.0, 0.4, 1.0)  # fewer between the tumour cells
            chosen = chance < (0.02 + 0.75 * dense) * inside
            direction = rng.uniform(0.0, np.pi, len(xy_um))
        chosen &= depth > 0.02
        xy_px = xy_um[chosen] / spec.mpp
        parts.append(make_cells(rng, name, xy_px, direction[chosen], spec.mpp))
    cells = concatenate(parts)
    outlines = cells.outlines_px()
    low, high = outlines.min(axis=1), outlines.max(axis=1)
    whole = (low > 0.0).all(axis=1) & (high < [spec.width, spec.height]).all(axis=1)
    return _separated(cells.take(whole))


def _jittered_lattice(
    rng: np.random.Generator, width_um: float, height_um: float, spacing_um: float
) -> Float64[np.ndarray, "n 2"]:
    """Points of a hexagonal lattice, each moved by up to a third of the spacing."""
    rows = np.arange(0.0, height_um, spacing_um * math.sqrt(0.75))
    columns = np.arange(0.0, width_um, spacing_um)
    x, y = np.meshgrid(columns, rows)
    x[1::2] += spacing_um / 2.0
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    return points + rng.uniform(-0.33, 0.33, points.shape) * spacing_um


def _separated(cells: Cells) -> Cells:
    """Drop cells that lie on another one: of a pair whose centres are too close, the later."""
    radius = np.sqrt(cells.axes_px[:, 0] * cells.axes_px[:, 1])
    tree = KDTree(cells.xy_px)
    pairs = tree.query_pairs(2.0 * float(radius.max(initial=1.0)), output_type="ndarray")
    gap = np.linalg.norm(cells.xy_px[pairs[:, 0]] - cells.xy_px[pairs[:, 1]], axis=1)
    close = gap < 0.72 * (radius[pairs[:, 0]] + radius[pairs[:, 1]])
    keep = np.ones(len(cells), bool)
    keep[pairs[close].max(axis=1)] = False
    return cells.take(keep)
