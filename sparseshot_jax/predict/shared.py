"""One slide among all processes of a job: each computes a band of its tiles, the lead joins them.

What travels goes through files beside the result, which all processes see: objects as they are complete,
the edges that neighbours need, and what is left open at the borders. Finished objects are read piece by
piece: no process holds those of the slide.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sparseshot_jax.data import storage
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.bands import Band, Part, Work
from sparseshot_jax.predict.write import write_predictions
from sparseshot_jax.training import processes


def write_shared(path: storage.Url, work_of: Callable[[Band], Work], *, bands: int) -> int:
    """Find the objects of a slide and write them as `write_predictions` does; gives their number.

    All processes call it, with the same slide and options. The lead writes.

    Args:
        path: the GeoJSON, in a folder that all processes see.
        work_of: band -> its work.
        bands: in how many the slide is dealt out; as many as processes, as a rule.

    Raises:
        InputError: that of any process, in all of them; the folder is not shared.
    """
    slide = _SharedSlide(path, work_of, bands)
    try:
        processes.dealt(range(bands), slide.alone)
        processes.dealt(range(bands), slide.with_neighbours)
        (count,) = processes.dealt([path], lambda path: write_predictions(path, slide.parts()))
        return count
    finally:
        slide.remove_files()


class _SharedSlide:
    def __init__(self, path: storage.Url, work_of: Callable[[Band], Work], bands: int) -> None:
        self._path, self._work_of, self._bands = path, work_of, bands
        self._works: dict[int, Work] = {}  # of this process
        self._written: list[str] = []

    def alone(self, k: int) -> None:
        """What band k finds without the others, and what they must know of it."""
        self._works[k] = work = self._work_of(Band(index=k, count=self._bands))
        self._write(k, "objects", work)
        upper, lower = work.assembly.edges()
        self._write(k, "upper", [upper])
        self._write(k, "lower", [lower])

    def with_neighbours(self, k: int) -> None:
        """What it finds with their edges, and what is open even then."""
        (above,) = self._read(k - 1, "lower") if k else [None]
        (below,) = self._read(k + 1, "upper") if k + 1 < self._bands else [None]
        assembly = self._works[k].assembly
        self._write(k, "border", assembly.border(above, below))
        self._write(k, "rest", [assembly.rest()])

    def parts(self) -> Iterator[Part]:
        """All objects of all bands."""
        for k in range(self._bands):
            yield from self._read(k, "objects")
            yield from self._read(k, "border")
        rests = (rest for k in range(self._bands) for rest in self._read(k, "rest"))
        yield from self._works[0].assembly.join(rests)

    def remove_files(self) -> None:
        """Those that this process wrote; when it is left the others have read them."""
        for name in self._written:
            with contextlib.suppress(InputError):  # whatever went wrong before is the one to report
                storage.remove(name)

    def _name(self, k: int, kind: str) -> str:
        return f"{self._path}.{kind}-{k}-of-{self._bands}.part"

    def _write(self, k: int, kind: str, values: Iterable[Any]) -> None:
        name = self._name(k, kind)
        self._written.append(name)
        try:
            with storage.staged(name) as path, path.open("wb") as stream:
                for value in values:
                    pickle.dump(value, stream, protocol=pickle.HIGHEST_PROTOCOL)
        except OSError as error:
            raise InputError(f"{name}: cannot be written: {error}. Give --out another folder.") from error

    def _read(self, k: int, kind: str) -> Iterator[Any]:
        name = self._name(k, kind)
        if not storage.exists(name):
            raise InputError(
                f"{name}: what process {k} of the job wrote is not seen by another. Give --out a folder that "
                "all of them share."
            )
        path = storage.fetch(name)
        with path.open("rb") as stream, contextlib.suppress(EOFError):
            while True:
                yield pickle.load(stream)  # written by this job, a moment ago
        if not storage.is_local(name):
            path.unlink()  # the copy in the cache
