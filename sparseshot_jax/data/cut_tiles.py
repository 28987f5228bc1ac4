"""Training tiles cut from slides and images, with their targets drawn."""

from collections.abc import Sequence

import numpy as np

from sparseshot_jax.data.cache import Cache, WholeMaps
from sparseshot_jax.data.cases import Case, whole_window
from sparseshot_jax.data.labels import TargetMaps
from sparseshot_jax.data.tile_index import TileIndex
from sparseshot_jax.data.tile_objects import TileObjects
from sparseshot_jax.data.tiles import TileSpec, draw_tile
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Needs, Window

CACHE_BYTES = 1 << 29  # of decoded images, and as many of sorted annotations, that a process keeps
WHOLE_PX = 1 << 24  # an image up to this size is decoded and drawn whole, and cropped
NO_NEEDS = Needs()


class CutTiles:
    """Tiles cut from the slides at random places; an epoch is every cell of the tissue once.

    Args:
        cases: the training split, at least one.
        spec: size, resolution and choice of the tiles.
        index: of these cases for this spec.
        needs: what the model is trained on beside ground and class.
        places: whether a tile says where on `canvas_px` it lies.
        whole_px: output pixels of an image up to which it is decoded and drawn whole, kept, and cropped.

    Raises:
        InputError: there are no cases.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        spec: TileSpec,
        index: TileIndex,
        *,
        needs: Needs = NO_NEEDS,
        places: bool = False,
        whole_px: int = WHOLE_PX,
    ):
        if not cases:
            raise InputError("training needs at least one case; the training split is empty.")
        self._cases = tuple(cases)
        self._spec = spec
        self._index = index
        self._needs = needs
        self._tops = np.concatenate([[0], np.cumsum(index.cases["height"], dtype=np.int64)])
        self._places = places
        self._whole_px = whole_px
        self._images = Cache(CACHE_BYTES)
        self._targets = Cache(CACHE_BYTES)
        self._objects = Cache(CACHE_BYTES)

    def __len__(self) -> int:
        return len(self._index.cells)

    def read(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """See `pipeline.Tiles.read`."""
        where, y, x = draw_tile(self._index, self._spec, self._index.cells[place], rng)
        grid = self._index.grids[where]
        window = grid.window(y, x)
        if grid.height * grid.width <= self._whole_px:
            whole = self._images.get(where, lambda: self._whole(where))
            tile = whole.crop(slice(y, y + grid.tile_px), slice(x, x + grid.tile_px))
        else:
            tile = {"image": self._cases[where].slide.read(window), **self._drawn(where, window)}
        if self._needs.objects:
            tile |= self._boxes(where).objects_in(window, self._needs.objects)
        if self._places:
            tile["place"] = np.array([self._tops[where] + y, x], np.int32)
        return tile | {"valid": np.ones((), bool)}

    @property
    def canvas_px(self) -> tuple[int, int]:
        """Height and width of a picture of all cases, one below the other, at the tiles' resolution."""
        return int(self._tops[-1]), int(self._index.cases["width"].max())

    def name(self, place: int) -> str:
        """See `pipeline.Tiles.name`."""
        case = self._cases[int(self._index.cells[place][0])]
        return case.slide.path or case.name

    def _whole(self, where: int) -> WholeMaps:
        case = self._cases[where]
        window = whole_window(case, self._spec.mpp)
        return WholeMaps(image=case.slide.read(window), **self._drawn(where, window))

    def _drawn(self, where: int, window: Window) -> dict[str, np.ndarray]:
        case = self._cases[where]
        maps = self._targets.get(where, lambda: TargetMaps(case.given, case.labels, mpp=case.mpp))
        return drawn(maps, window, self._needs)

    def _boxes(self, where: int) -> TileObjects:
        case = self._cases[where]
        return self._objects.get(where, lambda: TileObjects(case.given, case.labels, mpp=case.mpp))


def drawn(maps: TargetMaps, window: Window, needs: Needs) -> dict[str, np.ndarray]:
    """The targets of a window that are pictures: ground, label and, where it is needed, distance."""
    ground, label = maps.draw(window, objects=not needs.objects, ring=True)
    arrays = {"ground": ground, "label": label}
    return arrays | {"distance": maps.distance(window)} if needs.distance else arrays
