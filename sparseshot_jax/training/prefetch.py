"""Batches on their way to the devices while the step before them runs."""

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

from sparseshot_jax.types import Batch

_PATIENCE_S = 2.0  # for a read under way when the thread is to end; beyond, it is left behind


@runtime_checkable
class BatchIterator(Protocol):
    """Batches in a fixed order, with a position that a checkpoint can hold."""

    def __next__(self) -> Batch:
        """The next batch of this process."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Where it stands, as JSON values."""
        ...


class Prefetch:
    """Reads and places the next `depth` batches in a thread of its own; 0: none, when they are asked for.

    Its position is that of the batches handed out: what was read ahead is read again after a restart.
    An error of reading or placing is raised where its batch would have come, after the good ones.
    """

    def __init__(self, batches: BatchIterator, place: Callable[[Batch], Batch], depth: int = 2):
        """`place` puts a batch of this process on the devices; each batch ahead takes its room there."""
        self._batches, self._place, self._depth = batches, place, depth
        self._ready: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._position: dict[str, Any] | None = None  # None: nothing was handed out yet
        self._failure: BaseException | None = None

    def next(self) -> tuple[Batch, int]:
        """The next batch, on the devices, and the number of its images over all processes.

        Raises:
            StopIteration: there are no more.
            Exception: what reading or placing this batch raised; again at every later call.
        """
        if self._failure is not None:
            raise self._failure
        if self._depth == 0:
            try:
                placed, self._position = self._placed()
            except BaseException as failure:
                self._failure = failure
                raise
            return placed, len(placed.valid)
        if self._thread is None:
            self._start()
        placed, position, failure = self._ready.get()
        if failure is not None:
            self._failure = failure
            raise failure
        self._position = position
        self._room.release()
        return placed, len(placed.valid)

    def get_state(self) -> dict[str, Any]:
        """The position after the batches that `next` gave, as JSON values."""
        return self._batches.get_state() if self._position is None else self._position

    def close(self) -> None:
        """End the thread; one that waits for a read that hangs is left behind and ends with it."""
        self._stopping.set()
        self._room.release()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)
            self._thread = None
        self._failure = self._failure or RuntimeError("the prefetch was closed")

    def _start(self) -> None:
        self._position = self._batches.get_state()  # before the thread moves it
        # A daemon: the interpreter does not wait for it where a read hangs.
        self._thread = threading.Thread(target=self._run, daemon=True, name="prefetch")
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._room.acquire()
            if self._stopping.is_set():
                return
            try:
                self._ready.put((*self._placed(), None))
            except BaseException as failure:  # whatever it is, it belongs to who asks for the batch
                self._ready.put((None, None, failure))
                return

    def _placed(self) -> tuple[Batch, dict[str, Any]]:
        """A batch on the devices, all of it arrived, and the position after it."""
        placed = self._place(next(self._batches))
        position = self._batches.get_state()
        # Else the step would wait for the copy, and nobody would count it as waiting for input.
        return jax.block_until_ready(placed), position
