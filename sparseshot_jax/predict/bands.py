"""The rows of tiles of a slide dealt out to several processes, and objects put together over their borders.

A band is a run of whole rows. Every tile is computed once, in one band, and no object hangs on how the rows
were dealt: what lies within a band leaves it at once; what reaches over its border is decided from exact
values of both sides, by the band itself with the `edges` of its neighbours, or from what all bands left
open (`rest`, `join`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.predict.stream import Grid

Progress = Callable[[int, int, int], None]  # tiles done, tiles in all, objects found


@runtime_checkable
class Part(Protocol):
    """Some of a slide's objects: `Prediction`, `DetectionPart`."""

    @property
    def objects(self) -> Annotations:
        """In level-0 pixels."""
        ...

    @property
    def measurements(self) -> dict[str, np.ndarray]:
        """What a file says of each object beside its class, name -> [n]."""
        ...


P = TypeVar("P", bound=Part)
P_co = TypeVar("P_co", bound=Part, covariant=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """Which of the bands of a slide."""

    index: int = 0
    count: int = 1  # bands in all; fewer have rows where the slide has fewer, or only few with tissue

    def rows(self, wanted: Bool[np.ndarray, "rows columns"]) -> range:
        """The band's rows of tiles; none for those beyond the last that has any.

        Args:
            wanted: which tiles are computed: every band has about as many.

        >>> wanted = np.ones((5, 3), bool)
        >>> [list(Band(index=k, count=2).rows(wanted)) for k in range(3)]
        [[0, 1], [2, 3, 4], []]
        """
        load = wanted.sum(axis=1) + 0.01  # a row of glass is not quite for nothing
        middle = (np.cumsum(load) - load / 2) / load.sum()
        band = np.minimum((middle * self.count).astype(int), self.count - 1)
        mine = np.flatnonzero(np.unique(band, return_inverse=True)[1] == self.index)
        return range(int(mine[0]), int(mine[-1]) + 1) if len(mine) else range(0)


WHOLE = Band()


@runtime_checkable
class Assembly(Protocol[P_co]):
    """Puts the objects of a band together from its tiles."""

    def add(self, x: int, y: int, tile: Any | None) -> Iterator[P_co]:
        """Objects that a tile completes; tiles come in raster order, None where one was not computed."""
        ...

    def edges(self) -> tuple[Any, Any]:
        """After the last tile: what the bands above and below must know of this one; to be pickled."""
        ...

    def border(self, above: Any, below: Any) -> Iterator[P_co]:
        """Objects at the border; given the lower edge of the band above, the upper one of that below."""
        ...

    def rest(self) -> Any:
        """What is still open; to be pickled."""
        ...

    def join(self, rests: Iterable[Any]) -> Iterator[P_co]:
        """The objects of what all bands, in order, left open."""
        ...


class Work(Iterator[P], Generic[P]):
    """The objects of a band as they are complete; then what is open at its borders is in `assembly`."""

    def __init__(
        self,
        tiles: Iterator[Any],
        wanted: Sequence[tuple[int, int, bool]],
        assembly: Assembly[P],
        on_progress: Progress,
    ):
        """`wanted`: first pixel x, y of every tile of the band, and whether `tiles` has it."""
        self.assembly = assembly
        self._parts = self._found(tiles, wanted, on_progress)

    def __next__(self) -> P:
        return next(self._parts)

    def _found(
        self, tiles: Iterator[Any], wanted: Sequence[tuple[int, int, bool]], on_progress: Progress
    ) -> Iterator[P]:
        done, total, count = 0, sum(want for _, _, want in wanted), 0
        on_progress(done, total, count)
        for x, y, want in wanted:
            before = count
            for part in self.assembly.add(x, y, next(tiles) if want else None):
                if len(part.objects):
                    count += len(part.objects)
                    yield part
            done += want
            if want or count > before:  # a tile may complete objects though it was not computed
                on_progress(done, total, count)


def tiles_of(
    grid: Grid, wanted: Bool[np.ndarray, "n"], band: Band
) -> tuple[range, list[tuple[int, int, bool]]]:
    """The rows of a band, and of its tiles the first pixel x, y and whether it is computed."""
    columns = -(-grid.width // grid.core_px)
    rows = band.rows(wanted.reshape(-1, columns))
    mine = slice(rows.start * columns, rows.stop * columns)
    chosen = zip(grid.origins()[mine], wanted[mine].tolist())
    return rows, [(x, y, want) for (x, y), want in chosen]
