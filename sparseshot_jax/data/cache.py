"""What is dear to make, kept by a process up to a number of bytes."""

import collections
import dataclasses
import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


@runtime_checkable
class Sized(Protocol):
    """What a cache can hold."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WholeMaps:
    """A small image at the tiles' resolution: a tile of it is a crop."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    ground: UInt8[np.ndarray, "h w"]  # `Ground` codes
    label: UInt8[np.ndarray, "h w"]  # class ids
    distance: UInt8[np.ndarray, "h w"] | None = None  # depth in the object, where the model asks for it

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.crop(slice(None), slice(None)).values())

    def crop(self, rows: slice, columns: slice) -> dict[str, np.ndarray]:
        """The same part of each array."""
        return {name: array[rows, columns] for name, array in vars(self).items() if array is not None}


class Cache:
    """Least recently used first out. A pickled copy is empty."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._held: collections.OrderedDict[int, Sized] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._making: dict[int, threading.Lock] = collections.defaultdict(threading.Lock)

    def __reduce__(self):
        return Cache, (self._max_bytes,)

    def get(self, key: int, make: Callable[[], Any]) -> Any:
        """What is held under `key`, made first where nothing is; made once by concurrent threads."""
        found = self._find(key)
        if found is not None:
            return found
        with self._lock:
            making = self._making[key]
        with making:
            found = self._find(key)
            if found is None:
                found = make()
                self._keep(key, found)
        return found

    def _find(self, key: int) -> Any:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def _keep(self, key: int, made: Sized) -> None:
        with self._lock:
            self._held[key] = made
            self._bytes += made.nbytes
            while self._bytes > self._max_bytes and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
