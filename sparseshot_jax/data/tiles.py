"""Which tile where: a grid of cells over the tissue, and draws round annotated objects.

All positions here are whole output pixels at the tiles' resolution, so that a tile of a stored level
is a plain crop of it. `CaseGrid.window` turns them into level-0 windows.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from sparseshot_jax.data.cases import Case, whole_window
from sparseshot_jax.data.labels import wanted
from sparseshot_jax.data.tissue import tissue_mask
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

_MASK_UM = 16.0  # micrometres a pixel of the tissue mask
_TRIES = 8  # random places in a cell before its best one is taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSpec:
    """Size, resolution and choice of the training tiles."""

    tile_px: int = 256  # side in output pixels; a multiple of the model's
    mpp: float = 0.5  # micrometres an output pixel
    annotated_share: float = 0.5  # of tiles drawn round an annotated object, [0, 1]
    jitter: float = 0.5  # how far from the tile's centre that object may lie, of half a side, [0, 1]
    min_tissue: float = 0.1  # least share of tissue in any other tile, [0, 1]; 0 = look for none

    def __post_init__(self):
        for name in ("annotated_share", "jitter", "min_tissue"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"tiles.{name} must be in [0, 1]; got {getattr(self, name)}.")
        if self.tile_px < 1 or self.mpp <= 0:
            raise InputError(
                f"tiles.tile_px and tiles.mpp must be above 0; got {self.tile_px} and {self.mpp}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CaseGrid:
    """Where tiles of one case may lie."""

    height: int  # of the case, output pixels
    width: int
    tile_px: int
    scale: float  # level-0 pixels per output pixel
    tissue: Int64[np.ndarray, "mh1 mw1"] | None  # sums of the mask from the corner; None = all tissue
    mask_scale: float = 1.0  # output pixels per mask pixel
    min_tissue: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells; each holds the origins of about one tile's worth of ground."""
        return -(-self.height // self.tile_px), -(-self.width // self.tile_px)

    def fractions(self, y: np.ndarray, x: np.ndarray) -> Float64[np.ndarray, "n"]:
        """Share of tissue in the tiles with these origins."""
        y, x = np.atleast_1d(y), np.atleast_1d(x)
        if self.tissue is None:
            return np.ones(len(y))
        rows, columns = (n - 1 for n in self.tissue.shape)
        top = np.clip((y / self.mask_scale).astype(int), 0, rows - 1)
        left = np.clip((x / self.mask_scale).astype(int), 0, columns - 1)
        bottom = np.clip(np.ceil((y + self.tile_px) / self.mask_scale).astype(int), top + 1, rows)
        right = np.clip(np.ceil((x + self.tile_px) / self.mask_scale).astype(int), left + 1, columns)
        sums = self.tissue
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        return inside / ((bottom - top) * (right - left))

    def cells(self) -> Int64[np.ndarray, "n 2"]:
        """Row and column of the cells whose central tile holds enough tissue."""
        rows, columns = np.divmod(np.arange(self.shape[0] * self.shape[1]), self.shape[1])
        y, x = (self._central(k, axis) for axis, k in enumerate((rows, columns)))
        enough = self.fractions(y, x) >= self.min_tissue
        return np.stack([rows, columns], axis=1)[enough].astype(np.int64)

    def draw(self, rng: np.random.Generator, row: int, column: int) -> tuple[int, int]:
        """A random origin (y, x) of the cell with enough tissue; its central one if none is found."""
        for _ in range(_TRIES):
            y, x = (int(rng.integers(*self._range(k, axis))) for axis, k in enumerate((row, column)))
            if self.tissue is None or self.fractions(np.array(y), np.array(x))[0] >= self.min_tissue:
                return y, x
        return self._central(row, 0), self._central(column, 1)

    def around(self, rng: np.random.Generator, y: float, x: float, jitter: float) -> tuple[int, int]:
        """A random origin (y, x) of a tile that holds the point (y, x), output pixels."""
        half = self.tile_px / 2
        shift = rng.uniform(-1.0, 1.0, 2) * jitter * half - half
        origin = np.floor(np.array([y, x]) + shift).astype(int)
        limit = np.array([self.height, self.width]) - self.tile_px
        clipped = np.clip(origin, 0, limit)
        return int(clipped[0]), int(clipped[1])

    def central_window(self, row: int, column: int) -> Window:
        """The tile in the middle of a cell."""
        return self.window(self._central(row, 0), self._central(column, 1))

    def window(self, y: int, x: int) -> Window:
        """The tile with this origin."""
        return Window(
            x_px=x * self.scale,
            y_px=y * self.scale,
            width=self.tile_px,
            height=self.tile_px,
            scale=self.scale,
        )

    def _range(self, cell: Any, axis: int) -> tuple[Any, Any]:
        """Origins [low, high) of a cell or of an array of them: all cells share out every origin."""
        origins = (self.height, self.width)[axis] - self.tile_px + 1
        count = self.shape[axis]
        return cell * origins // count, (cell + 1) * origins // count

    def _central(self, cell: Any, axis: int) -> Any:
        low, high = self._range(cell, axis)
        return (low + high - 1) // 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TileIndex:
    """Every place that training may look at."""

    grids: tuple[CaseGrid, ...]  # one a case
    cells: Int64[np.ndarray, "n 3"]  # case, row, column of the tissue's cells: one epoch
    objects: tuple[np.ndarray, ...]  # a case: float64 [m, 2], y and x of annotated objects, output pixels
    annotated: Int64[np.ndarray, "k"]  # cases with an annotated object


def case_grid(case: Case, spec: TileSpec) -> CaseGrid:
    """The grid of one case.

    Raises:
        InputError: the tile is larger than the image.
    """
    whole = whole_window(case, spec.mpp)
    _check_size(case, spec, whole)
    sums, mask_scale = None, 1.0
    if spec.min_tissue > 0:
        found = tissue_mask(case.slide, um_per_pixel=_MASK_UM)
        mask_scale = found.scale / whole.scale
        if not found.mask.all():
            sums = np.pad(found.mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return CaseGrid(
        height=whole.height,
        width=whole.width,
        tile_px=spec.tile_px,
        scale=whole.scale,
        tissue=sums,
        mask_scale=mask_scale,
        min_tissue=spec.min_tissue,
    )


def tile_index(cases: Sequence[Case], spec: TileSpec) -> TileIndex:
    """All cells with tissue and all annotated objects of the cases.

    Raises:
        InputError: a tile is larger than its image, or there is no tissue at all.
    """
    grids = tuple(case_grid(case, spec) for case in cases)
    cells = [np.pad(grid.cells(), ((0, 0), (1, 0)), constant_values=k) for k, grid in enumerate(grids)]
    objects = tuple(_positions(case, grid) for case, grid in zip(cases, grids))
    index = TileIndex(
        grids=grids,
        cells=np.concatenate([*cells, np.zeros((0, 3), np.int64)]),
        objects=objects,
        annotated=np.array([k for k, xy in enumerate(objects) if len(xy)], np.int64),
    )
    if not len(index.cells):
        names = ", ".join(case.name for case in cases[:5])
        raise InputError(
            f"no tile of {names or 'no case'} holds {spec.min_tissue:.0%} tissue. Lower "
            "tiles.min_tissue (0 looks for no tissue), or check that the slides are not blank."
        )
    return index


def draw_tile(
    index: TileIndex, spec: TileSpec, cell: np.ndarray, rng: np.random.Generator
) -> tuple[int, int, int]:
    """Case and origin (y, x in output pixels) of one training tile.

    With probability `annotated_share` a random annotated object of a random case that has any (each
    case alike, whatever its number of objects), else a random place in the given cell.
    """
    if len(index.annotated) and rng.random() < spec.annotated_share:
        case = int(rng.choice(index.annotated))
        y, x = index.objects[case][rng.integers(len(index.objects[case]))]
        return case, *index.grids[case].around(rng, y, x, spec.jitter)
    case, row, column = (int(k) for k in cell)
    return case, *index.grids[case].draw(rng, row, column)


def _positions(case: Case, grid: CaseGrid) -> Float64[np.ndarray, "m 2"]:
    xy = case.given.centroids_px[wanted(case.given, case.labels)]
    inside = ((xy >= 0) & (xy < (case.slide.width, case.slide.height))).all(axis=1)
    return xy[inside][:, ::-1] / grid.scale


def _check_size(case: Case, spec: TileSpec, whole: Window) -> None:
    short = min(whole.width, whole.height)
    if spec.tile_px <= short:
        return
    fits = short // 16 * 16
    remedy = f"tiles.tile_px={fits}" if fits else "another image"
    raise InputError(
        f"{case.slide.path or case.name}: a tile must fit into the image. tiles.tile_px "
        f"{spec.tile_px} at {spec.mpp} um a pixel is more than its {whole.width} x {whole.height} "
        f"pixels at that resolution. Try {remedy}, or a tiles.mpp below {spec.mpp}."
    )
