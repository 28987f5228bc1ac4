"""Training tiles cut from slides and images, with their targets drawn."""

from collections.abc import Sequence

import numpy as np

from sparseshot_jax.data.cache import Cache, WholeMaps
from sparseshot_jax.data.cases import Case, whole_window
from sparseshot_jax.data.labels import TargetMaps
from sparseshot_jax.data.tile_index import TileIndex
from sparseshot_jax.data.tiles import TileSpec, draw_tile
from sparseshot_jax.errors import InputError

CACHE_BYTES = 1 << 29  # of decoded images, and as many of sorted annotations, that a process keeps
WHOLE_PX = 1 << 24  # an image up to this size is decoded and drawn whole, and cropped


class CutTiles:
    """Tiles cut from the slides at random places; an epoch is every cell of the tissue once.

    Args:
        cases: the training split, at least one.
        spec: size, resolution and choice of the tiles.
        index: of these cases for this spec.
        whole_px: output pixels of an image up to which it is decoded and drawn whole, kept, and cropped.

    Raises:
        InputError: there are no cases.
    """

    def __init__(self, cases: Sequence[Case], spec: TileSpec, index: TileIndex, *, whole_px: int = WHOLE_PX):
        if not cases:
            raise InputError("training needs at least one case; the training split is empty.")
        self._cases = tuple(cases)
        self._spec = spec
        self._index = index
        self._whole_px = whole_px
        self._images = Cache(CACHE_BYTES)
        self._targets = Cache(CACHE_BYTES)

    def __len__(self) -> int:
        return len(self._index.cells)

    def read(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """See `pipeline.Tiles.read`."""
        where, y, x = draw_tile(self._index, self._spec, self._index.cells[place], rng)
        grid = self._index.grids[where]
        if grid.height * grid.width <= self._whole_px:
            whole = self._images.get(where, lambda: self._whole(where))
            crop = slice(y, y + grid.tile_px), slice(x, x + grid.tile_px)
            image, ground, label = whole.image[crop], whole.ground[crop], whole.label[crop]
        else:
            window = grid.window(y, x)
            image = self._cases[where].slide.read(window)
            ground, label = self._maps(where).draw(window)
        return {"image": image, "ground": ground, "label": label, "valid": np.ones((), bool)}

    def name(self, place: int) -> str:
        """See `pipeline.Tiles.name`."""
        case = self._cases[int(self._index.cells[place][0])]
        return case.slide.path or case.name

    def _whole(self, where: int) -> WholeMaps:
        case = self._cases[where]
        window = whole_window(case, self._spec.mpp)
        ground, label = self._maps(where).draw(window)
        return WholeMaps(image=case.slide.read(window), ground=ground, label=label)

    def _maps(self, where: int) -> TargetMaps:
        case = self._cases[where]
        return self._targets.get(where, lambda: TargetMaps(case.given, case.labels, mpp=case.mpp))
