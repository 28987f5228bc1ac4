"""Which tiles of a case are cut, and cutting them: the same keys and bytes whoever does it."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from sparseshot_jax.data.cases import Case, read_whole, whole_window
from sparseshot_jax.data.cut_tiles import WHOLE_PX, drawn
from sparseshot_jax.data.labels import TargetMaps
from sparseshot_jax.data.shards.records import TilePlace, encode_record
from sparseshot_jax.data.tile_grid import CaseGrid
from sparseshot_jax.data.tile_objects import TileObjects
from sparseshot_jax.data.tiles import TileSpec, case_grid, object_places, place_round
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutSpec:
    """What decides the bytes of the records, beside the cases."""

    tiles: TileSpec
    seed: int = 0  # of which objects get a tile, and where in it they lie
    jpeg_quality: int | None = 95  # [1, 100]; None = PNG, without loss
    needs: Needs = Needs()  # what a model is trained on beside ground and class

    def __post_init__(self):
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"jpeg_quality must be in [1, 100], or none; got {self.jpeg_quality}.")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0; got {self.seed}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LostTiles:
    """Tiles of a case that could not be read."""

    case: str
    tiles: int  # 0 = its tissue could not be found: none of its tiles is there
    message: str  # of the first


def plan_case(case: Case, spec: CutSpec) -> Int32[np.ndarray, "n 3"]:
    """The tiles of one case: y and x of the origin, and the number of an object in `case.given`, or -1.

    First the central tile of every cell with tissue, in reading order; then tiles round annotated
    objects, as many as make `annotated_share` of the whole, at most one an object. Where there
    are more objects than that, they are chosen at random; `class_balance` of them so that the classes
    take turns.

    Raises:
        InputError: the tile is larger than the image, or the slide cannot be read.
    """
    tiles = spec.tiles
    grid = case_grid(case, tiles)
    row, column = grid.cells().T
    cells = np.stack([grid.central(row, 0), grid.central(column, 1), np.full_like(row, -1)], axis=1)
    which, centres, classes = object_places(case, grid.scale)
    share = tiles.annotated_share
    wanted = math.ceil(max(len(cells), 1) * share / (1.0 - share)) if share < 1.0 else len(which)
    name = int.from_bytes(hashlib.blake2b(case.name.encode(), digest_size=8).digest(), "little")
    rng = np.random.default_rng((spec.seed, name))
    chosen = _choose(classes, min(wanted, len(which)), tiles.class_balance, rng)
    size = np.full((len(chosen), 2), (grid.height, grid.width))
    origins = place_round(centres[chosen], size, tile_px=tiles.tile_px, jitter=tiles.jitter, rng=rng)
    round_objects = np.concatenate([origins, which[chosen][:, None]], axis=1)
    return np.concatenate([cells, round_objects]).astype(np.int32)


def _choose(
    classes: np.ndarray, count: int, class_balance: float, rng: np.random.Generator
) -> Int64[np.ndarray, "c"]:
    """`count` objects, sorted: `class_balance` of them taken from each class in turn, the others alike."""
    order = rng.permutation(len(classes))
    by_class = order[np.argsort(classes[order], kind="stable")]
    sizes = np.bincount(classes, minlength=1)
    turn = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    balanced = by_class[np.argsort(turn, kind="stable")][: round(class_balance * count)]
    others = order[~np.isin(order, balanced)][: count - len(balanced)]
    return np.sort(np.concatenate([balanced, others]))


class Cutter:
    """Cuts tiles of one case.

    Args:
        case: with what training sees of it.
        spec: what decides the bytes.
    """

    def __init__(self, case: Case, spec: CutSpec):
        whole = whole_window(case, spec.tiles.mpp)
        self._case, self._spec = case, spec
        self._grid = CaseGrid(
            height=whole.height,
            width=whole.width,
            tile_px=spec.tiles.tile_px,
            scale=whole.scale,
            tissue=None,
        )
        self._targets = TargetMaps(case.given, case.labels, mpp=case.mpp)
        self._boxes = TileObjects(case.given, case.labels, mpp=case.mpp) if spec.needs.objects else None

    def cut(self, y: int, x: int, of_object: int) -> tuple[str, bytes]:
        """Key and bytes of one tile of the plan.

        Raises:
            InputError: the slide cannot be read there.
        """
        window = self._grid.window(y, x)
        more = drawn(self._targets, window, self._spec.needs)
        ground, label = more.pop("ground"), more.pop("label")
        if self._boxes is not None:
            more |= self._boxes.objects_in(window, self._spec.needs.objects)
        place = TilePlace(
            key=tile_key(self._case.name, y, x, of_object),
            case=self._case.name,
            y=y,
            x=x,
            scale=self._grid.scale,
            cell=of_object < 0,
            classes=self._held(y, x),
        )
        image = np.ascontiguousarray(self._pixels(y, x))
        quality = self._spec.jpeg_quality
        return place.key, encode_record(place, image, ground, label, more, jpeg_quality=quality)

    def _pixels(self, y: int, x: int) -> UInt8[np.ndarray, "t t 3"]:
        """Of a tile; of a small image as a crop of the whole, which is decoded once."""
        side = self._grid.tile_px
        if self._whole is None:
            return self._case.slide.read(self._grid.window(y, x))
        return self._whole[y : y + side, x : x + side]

    @functools.cached_property
    def _whole(self) -> UInt8[np.ndarray, "h w 3"] | None:
        """None where the image is large, or damaged: then some of its tiles may still be read."""
        if self._grid.height * self._grid.width > WHOLE_PX:
            return None
        try:
            return read_whole(self._case, self._spec.tiles.mpp)
        except InputError:
            return None

    @functools.cached_property
    def _objects(self) -> tuple[np.ndarray, np.ndarray]:
        _, yx, classes = object_places(self._case, self._grid.scale)
        order = np.argsort(yx[:, 0], kind="stable")
        return yx[order], classes[order]

    def _held(self, y: int, x: int) -> tuple[int, ...]:
        """Classes of the objects whose centres lie in the tile: slivers at its edge do not count."""
        yx, classes = self._objects
        side = self._grid.tile_px
        low, high = np.searchsorted(yx[:, 0], (y, y + side))
        inside = (yx[low:high, 1] >= x) & (yx[low:high, 1] < x + side)
        return tuple(np.unique(classes[low:high][inside]).tolist())


def tile_key(case: str, y: int, x: int, of_object: int) -> str:
    """The key of a tile.

    >>> tile_key("slide", 12, 345, -1), tile_key("slide", 12, 345, 7)
    ('slide/cell/0000012/0000345', 'slide/object/0000007')
    """
    return f"{case}/cell/{y:07d}/{x:07d}" if of_object < 0 else f"{case}/object/{of_object:07d}"


def cut_tiles(
    case: Case, spec: CutSpec, places: Int32[np.ndarray, "n 3"]
) -> Iterator[tuple[str, bytes] | LostTiles]:
    """Key and bytes of the tiles of a plan, or in place of one that cannot be read a fault."""
    cutter = Cutter(case, spec)
    for y, x, of_object in places.tolist():
        try:
            cut = cutter.cut(y, x, of_object)
        except InputError as error:
            yield LostTiles(case=case.name, tiles=1, message=str(error))
        else:
            yield cut


def add_faults(faults: Sequence[LostTiles]) -> tuple[LostTiles, ...]:
    """One fault a case, sorted by name."""
    total: dict[str, LostTiles] = {}
    for fault in faults:
        before = total.get(fault.case, dataclasses.replace(fault, tiles=0))
        total[fault.case] = dataclasses.replace(before, tiles=before.tiles + fault.tiles)
    return tuple(total[name] for name in sorted(total))


def cases_digest(cases: Sequence[Case]) -> dict[str, Any]:
    """What the cases are, JSON-ready: name to size, resolution and a checksum of the annotations."""
    return {
        case.name: [case.slide.width, case.slide.height, case.mpp, _annotations_digest(case)]
        for case in cases
    }


def _annotations_digest(case: Case) -> str:
    given = case.given
    digest = hashlib.blake2b(repr(given.class_names).encode(), digest_size=12)
    for array in (given.xy_px, given.ring_offsets, given.object_offsets, given.class_ids, given.kind):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
