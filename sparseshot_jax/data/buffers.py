"""Memory for batches, used again once nobody holds the batch any more.

Fresh memory is handed out by the system page by page and zeroed: for a batch of 10 MB that took as long as
decoding a tile or two (14 ms, where writing into memory in use took 0.1 ms).
"""

import sys
import threading

import numpy as np

_MOST = 64  # blocks kept; beyond, memory is fresh
_ALIGNED = 64  # bytes: JAX takes aligned arrays on a CPU as they are, and holds a reference


class Buffers:
    """Blocks of bytes. A block is free when no array looks into it: Python counts them."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._lock = threading.Lock()

    def arrays(self, like: dict[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, np.ndarray]:
        """Arrays of these shapes and types, in one block, their contents undefined."""
        sizes = {key: int(np.prod(shape)) * dtype.itemsize for key, (shape, dtype) in like.items()}
        block = self._block(sum(size + _ALIGNED for size in sizes.values()))
        out, at = {}, -block.ctypes.data % _ALIGNED
        for key, (shape, dtype) in like.items():
            out[key] = block[at : at + sizes[key]].view(dtype).reshape(shape)
            at += -(-sizes[key] // _ALIGNED) * _ALIGNED
        return out

    def _block(self, size: int) -> np.ndarray:
        alone = _free()
        with self._lock:
            for k in range(len(self._blocks)):
                # Every array that looks into it adds one.
                if self._blocks[k].nbytes == size and sys.getrefcount(self._blocks[k]) <= alone:
                    return self._blocks[k]
            block = np.empty(size, np.uint8)
            if len(self._blocks) >= _MOST:
                self._blocks.pop(0)  # of another size, or in use: its arrays keep it
            self._blocks.append(block)
            return block


def _free() -> int:
    """The count of an array that only a list holds, as it is found in `_block`."""
    alone = [np.empty(0, np.uint8)]
    return sys.getrefcount(alone[0])
