"""Which tile where: a grid of cells over the tissue, and draws round annotated objects.

All positions here are whole output pixels at the tiles' resolution; see `tile_grid`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int, Int64, UInt8
from scipy.spatial import KDTree

from sparseshot_jax.data.cases import Case, whole_window
from sparseshot_jax.data.labels import label_ids, wanted
from sparseshot_jax.data.slides.tissue import tissue_mask
from sparseshot_jax.data.tile_grid import CaseGrid, TissueBits
from sparseshot_jax.data.tile_index import CASE, TileIndex
from sparseshot_jax.errors import InputError

_MASK_UM = 16.0  # micrometres a pixel of the tissue mask
_TRIES = 8  # random places in a cell before its central one is taken

# Case, y and x of many tiles: the origins in output pixels.
Places = tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSpec:
    """Size, resolution and choice of the training tiles."""

    tile_px: int = 256  # side in output pixels; a multiple of the model's
    mpp: float = 0.5  # micrometres an output pixel
    annotated_share: float = 0.5  # of tiles drawn round an annotated object, [0, 1]
    class_balance: float = 0.0  # of the annotated draws, share that first picks a class, each alike,
    # then an object of it, [0, 1]
    jitter: float = 0.5  # how far from the tile's centre that object may lie, of half a side, [0, 1]
    min_tissue: float = 0.1  # least share of tissue in any other tile, [0, 1]; 0 = look for none

    def __post_init__(self):
        for name in ("annotated_share", "class_balance", "jitter", "min_tissue"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"tiles.{name} must be in [0, 1]; got {getattr(self, name)}.")
        if self.tile_px < 1 or self.mpp <= 0:
            raise InputError(
                f"tiles.tile_px and tiles.mpp must be above 0; got {self.tile_px} and {self.mpp}."
            )


def case_grid(case: Case, spec: TileSpec) -> CaseGrid:
    """The grid of one case.

    Raises:
        InputError: the tile is larger than the image.
    """
    whole = whole_window(case, spec.mpp)
    check_size(case, spec)
    tissue = None
    if spec.min_tissue > 0:
        found = tissue_mask(case.slide, um_per_pixel=_MASK_UM)
        if not found.mask.all():
            tissue = TissueBits.pack(found.mask, found.scale / whole.scale)
    return CaseGrid(
        height=whole.height,
        width=whole.width,
        tile_px=spec.tile_px,
        scale=whole.scale,
        tissue=tissue,
        min_tissue=spec.min_tissue,
    )


def object_places(
    case: Case, scale: float
) -> tuple[Int64[np.ndarray, "m"], Float64[np.ndarray, "m 2"], UInt8[np.ndarray, "m"]]:
    """The wanted objects whose centres lie on the image.

    Args:
        case: with what training sees.
        scale: level-0 pixels per output pixel.

    Returns:
        Their numbers in `case.given`; y and x of their centres, output pixels; class ids 1..C, 0 = unknown.
    """
    ids = label_ids(case.given, case.labels)
    xy = case.given.centroids_px
    inside = ((xy >= 0) & (xy < (case.slide.width, case.slide.height))).all(axis=1)
    which = np.flatnonzero(inside & wanted(case.given, case.labels))
    return which, xy[which][:, ::-1] / scale, ids[which].astype(np.uint8)


def tile_index(cases: Sequence[Case], spec: TileSpec) -> TileIndex:
    """All cells with tissue and all annotated objects of the cases.

    Raises:
        InputError: a tile is larger than its image, or there is no tissue at all.
    """
    grids = [case_grid(case, spec) for case in cases]
    cells = [np.pad(grid.cells(), ((0, 0), (1, 0)), constant_values=k) for k, grid in enumerate(grids)]
    index = build_index(cases, spec, grids, cells, _objects(cases, grids))
    if not len(index.cells):
        names = ", ".join(case.name for case in cases[:5])
        raise InputError(
            f"no tile of {names or 'no case'} holds {spec.min_tissue:.0%} tissue. Lower "
            "tiles.min_tissue (0 looks for no tissue), or check that the slides are not blank."
        )
    return index


def object_index(cases: Sequence[Case], spec: TileSpec) -> TileIndex:
    """The annotated objects of the cases and no cells: nothing is asked of the tissue.

    Raises:
        InputError: a tile is larger than its image.
    """
    spec = dataclasses.replace(spec, min_tissue=0.0)
    grids = [case_grid(case, spec) for case in cases]
    return build_index(cases, spec, grids, [], _objects(cases, grids))


def build_index(
    cases: Sequence[Case],
    spec: TileSpec,
    grids: Sequence[CaseGrid],
    cells: Sequence[np.ndarray],
    objects: Sequence[tuple[np.ndarray, np.ndarray]],
) -> TileIndex:
    """Flat arrays from the parts of each case: its grid, cells [n, 3], centres [m, 2] and class ids [m]."""
    masks = [
        np.zeros(0, np.uint8) if g.tissue is None else g.tissue.rows(0, g.tissue.height).ravel()
        for g in grids
    ]
    classes = np.concatenate([*(ids for _, ids in objects), np.zeros(0, np.uint8)])
    count = len(cases[0].labels.names) if cases else 0
    text = [part.encode() for case in cases for part in (case.name, case.slide.path)]
    starts = _offsets([len(mask) for mask in masks])
    return TileIndex(
        tile_px=spec.tile_px,
        min_tissue=spec.min_tissue,
        cells=np.concatenate([*cells, np.zeros((0, 3), np.int64)]).astype(np.int32),
        objects_yx=np.concatenate([*(yx for yx, _ in objects), np.zeros((0, 2))]),
        object_offsets=_offsets([len(ids) for _, ids in objects]),
        object_classes=classes,
        by_class=np.argsort(classes, kind="stable").astype(np.int32),
        # Those of unknown class come first in `by_class`, and class 1 begins behind them.
        class_offsets=np.cumsum(np.bincount(classes, minlength=count + 1), dtype=np.int64),
        cases=_case_table(cases, grids, starts),
        mask_bytes=np.concatenate([*masks, np.zeros(0, np.uint8)]),
        text=np.frombuffer(b"".join(text), np.uint8),
        text_offsets=_offsets([len(part) for part in text]),
    )


def uniform_places(index: TileIndex, n: int, rng: np.random.Generator) -> Places:
    """`n` random places in random cells: every origin of the tissue alike."""
    return places_in_cells(index, index.cells[rng.integers(len(index.cells), size=n)], rng)


def annotated_places(index: TileIndex, jitter: float, n: int, rng: np.random.Generator) -> Places:
    """`n` places round annotated objects: a random case, each alike, then one of its objects."""
    case = index.annotated[rng.integers(len(index.annotated), size=n)]
    first = index.object_offsets[case]
    chosen = first + rng.integers(0, index.object_offsets[case + 1] - first)
    return _around(index, case, chosen, jitter, rng)


def class_balanced_places(index: TileIndex, jitter: float, n: int, rng: np.random.Generator) -> Places:
    """`n` places round annotated objects: a random class, each alike, then one of its objects."""
    place = index.classes[rng.integers(len(index.classes), size=n)] - 1
    first = index.class_offsets[place]
    chosen = index.by_class[first + rng.integers(0, index.class_offsets[place + 1] - first)].astype(np.int64)
    case = np.searchsorted(index.object_offsets, chosen, side="right") - 1
    return _around(index, case, chosen, jitter, rng)


def objects_round(
    index: TileIndex, spec: TileSpec, n: int, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """Of `n` tiles drawn round annotated objects: how many such objects each holds, and its case has.

    An object lies in a tile if its centre does. The index must hold one at least.
    """
    balanced = rng.binomial(n, spec.class_balance)
    parts = [annotated_places(index, spec.jitter, n - balanced, rng)]
    if balanced:
        parts.append(class_balanced_places(index, spec.jitter, balanced, rng))
    case, y, x = (np.concatenate(column) for column in zip(*parts))
    half = index.tile_px / 2
    held = np.zeros(n, np.int64)
    for k in np.unique(case):
        own = index.objects_yx[index.object_offsets[k] : index.object_offsets[k + 1]]
        centres = np.stack([y, x], axis=1)[case == k] + half
        held[case == k] = KDTree(own).query_ball_point(centres, half, p=np.inf, return_length=True)
    return held, np.diff(index.object_offsets)[case]


def places_in_cells(index: TileIndex, cells: Int[np.ndarray, "n 3"], rng: np.random.Generator) -> Places:
    """A random origin with enough tissue in each cell; the central one where eight tries find none."""
    case, row, column = np.asarray(cells, np.int64).T
    y, x = np.empty_like(row), np.empty_like(column)
    left = np.arange(len(case))
    grids = {k: index.grids[k] for k in np.unique(case).tolist()}
    ranges = np.array([(*g.origins(r, 0), *g.origins(c, 1)) for g, r, c in _rows(grids, case, row, column)])
    ranges = ranges.reshape(-1, 4).T
    for _ in range(_TRIES):
        low_y, high_y, low_x, high_x = ranges[:, left]
        y[left], x[left] = rng.integers(low_y, high_y), rng.integers(low_x, high_x)
        poor = [k for k in left if not _enough(grids[int(case[k])], y[k : k + 1], x[k : k + 1])]
        left = np.array(poor, np.int64)
        if not len(left):
            break
    low_y, high_y, low_x, high_x = ranges[:, left]
    y[left], x[left] = (low_y + high_y - 1) // 2, (low_x + high_x - 1) // 2
    return case, y, x


def draw_tile(
    index: TileIndex, spec: TileSpec, cell: Int[np.ndarray, "3"], rng: np.random.Generator
) -> tuple[int, int, int]:
    """Case and origin (y, x in output pixels) of one training tile.

    With probability `annotated_share` it lies round an annotated object (`annotated_places`, and for
    `class_balance` of them `class_balanced_places`), else at a random place in the given cell.
    """
    if len(index.annotated) and rng.random() < spec.annotated_share:
        # Without balance no number is drawn for it: the places stay those of earlier versions.
        balanced = spec.class_balance > 0 and rng.random() < spec.class_balance
        places = (class_balanced_places if balanced else annotated_places)(index, spec.jitter, 1, rng)
    else:
        places = places_in_cells(index, cell[None], rng)
    case, y, x = (int(values[0]) for values in places)
    return case, y, x


def place_round(
    yx: Float64[np.ndarray, "n 2"],
    size: Int[np.ndarray, "n 2"],
    *,
    tile_px: int,
    jitter: float,
    rng: np.random.Generator,
) -> Int64[np.ndarray, "n 2"]:
    """Random origins of tiles that hold the points `yx` of images of this size (height, width)."""
    half = tile_px / 2
    shift = rng.uniform(-1.0, 1.0, yx.shape) * jitter * half - half
    return np.clip(np.floor(yx + shift).astype(np.int64), 0, size - tile_px)


def check_size(case: Case, spec: TileSpec) -> None:
    """A tile must fit into the image.

    Raises:
        InputError: it does not; names the largest that does.
    """
    whole = whole_window(case, spec.mpp)
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


def _objects(cases: Sequence[Case], grids: Sequence[CaseGrid]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [object_places(case, grid.scale)[1:] for case, grid in zip(cases, grids)]


def _around(
    index: TileIndex, case: np.ndarray, chosen: np.ndarray, jitter: float, rng: np.random.Generator
) -> Places:
    rows = index.cases[case]
    size = np.stack([rows["height"], rows["width"]], axis=1)
    origin = place_round(index.objects_yx[chosen], size, tile_px=index.tile_px, jitter=jitter, rng=rng)
    return case, origin[:, 0], origin[:, 1]


def _rows(grids: dict[int, CaseGrid], *columns: np.ndarray) -> list[tuple[CaseGrid, int, int]]:
    return [(grids[k], row, column) for k, row, column in zip(*(c.tolist() for c in columns))]


def _enough(grid: CaseGrid, y: np.ndarray, x: np.ndarray) -> bool:
    return grid.tissue is None or bool(grid.fractions(y, x)[0] >= grid.min_tissue)


def _case_table(cases: Sequence[Case], grids: Sequence[CaseGrid], starts: np.ndarray) -> np.ndarray:
    table = np.zeros(len(cases), CASE)
    for row, case, grid, start in zip(table, cases, grids, starts):
        row["height"], row["width"] = grid.height, grid.width
        row["rows"], row["columns"] = grid.shape
        row["slide_height"], row["slide_width"] = case.slide.height, case.slide.width
        row["mpp"], row["scale"], row["mask_start"] = case.mpp, grid.scale, start
        if grid.tissue is not None:
            row["mask_scale"] = grid.tissue.scale
            row["mask_height"], row["mask_width"] = grid.tissue.height, grid.tissue.width
    return table


def _offsets(counts: Sequence[int] | np.ndarray) -> Int64[np.ndarray, "n"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
