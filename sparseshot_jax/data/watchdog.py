"""Waiting only so long for a call: what hangs in a library cannot be interrupted, but left behind."""

import queue
import threading
from collections.abc import Callable
from typing import Any


class Watchdog:
    """Makes calls in a thread of its own. One that timed out keeps that thread; the next gets a new one."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue | None = None

    def call(self, job: Callable[[], Any], timeout_s: float) -> Any:
        """The result of `job()`, or what it raised.

        Raises:
            TimeoutError: it took longer than `timeout_s`. It goes on in its thread.
        """
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            # A daemon: the interpreter does not wait for it at its end.
            threading.Thread(target=_serve, args=(self._jobs,), daemon=True, name="watchdog").start()
        answer: queue.SimpleQueue = queue.SimpleQueue()
        self._jobs.put((job, answer))
        try:
            result, error = answer.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise TimeoutError(f"no answer within {timeout_s} s") from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the thread once it is free."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None


def _serve(jobs: queue.SimpleQueue) -> None:
    while (work := jobs.get()) is not None:
        job, answer = work
        try:
            answer.put((job(), None))
        except BaseException as error:  # handed on to the caller, whatever it is
            answer.put((None, error))
        del job, answer, work  # while it waits it must hold no batch
