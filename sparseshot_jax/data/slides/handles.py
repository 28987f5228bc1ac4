"""Open slides, of which a process keeps a few: 20,000 of them would be more files than a system allows."""

import atexit
import collections
import os
import threading

from sparseshot_jax.data.slides.backends import Opened

OPEN_SLIDES = 128  # a process
OPEN_BYTES = 1 << 30  # of images held decoded, a process

Key = tuple[str, str]  # path, backend


class Handles:
    """Least recently used first out; one in use by a thread lives until that thread has done with it.

    A child process begins with none. The parent's stay there, unused: destroying them could wait for
    threads that a fork does not copy.
    """

    def __init__(self, most: int, most_bytes: int):
        self._most = most
        self._most_bytes = most_bytes
        self._left: list[object] = []  # the parent's, after a fork
        self._start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: Key) -> Opened | None:
        """The handle, now the most recently used one; None = not open."""
        with self._lock:
            handle = self._open.get(key)
            if handle is not None:
                self._open.move_to_end(key)
            return handle

    def put(self, key: Key, handle: Opened) -> None:
        """Keep a handle in place of any other of this key, and let go of the oldest ones."""
        gone = []  # destroyed behind the lock: closing a file may take its time
        with self._lock:
            gone.append(self._remove(key))
            self._open[key] = handle
            self._bytes += handle.nbytes
            while len(self._open) > 1 and (len(self._open) > self._most or self._bytes > self._most_bytes):
                gone.append(self._remove(next(iter(self._open))))

    def drop(self, key: Key) -> None:
        """Keep this one no longer."""
        with self._lock:
            gone = self._remove(key)
        del gone

    def clear(self) -> None:
        """Keep none."""
        with self._lock:
            gone, self._open = self._open, collections.OrderedDict()
            self._bytes = 0
        gone.clear()

    def _remove(self, key: Key) -> Opened | None:
        handle = self._open.pop(key, None)
        self._bytes -= handle.nbytes if handle is not None else 0
        return handle

    def _start(self) -> None:
        self._open: collections.OrderedDict[Key, Opened] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def _forked(self) -> None:
        self._left.append(self._open)
        self._start()  # the lock too: another thread may have held it


HANDLES = Handles(OPEN_SLIDES, OPEN_BYTES)
atexit.register(HANDLES.clear)  # while the libraries they belong to are still there
