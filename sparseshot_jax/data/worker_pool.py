"""Processes that share work on one machine, and leave no trace of themselves."""

import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from sparseshot_jax.data.worker_process import start_worker
from sparseshot_jax.errors import InputError

T = TypeVar("T")
_AHEAD = 2  # jobs a process that are sent out: their arguments are held twice


class Workers:
    """Processes that run jobs; a context manager that ends them.

    Args:
        count: processes, started with the first job; 0 = none but this one.
    """

    def __init__(self, count: int):
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def run(self, job: Callable[..., T], arguments: Iterable[tuple]) -> Iterator[T]:
        """The results of `job(*a)` for all arguments, in any order.

        Args:
            job: a function of a module.
            arguments: of each call; made when a process is about to be free, so that they need not
                all fit into memory.

        Raises:
            InputError: a process died, or what the job raised.
        """
        left = iter(arguments)
        if self._count == 0:
            yield from (job(*given) for given in left)
            return
        running: set[Future] = set()
        try:
            while True:
                for given in itertools.islice(left, _AHEAD * self._count - len(running)):
                    running.add(self._started().submit(job, *given))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process ended before its work: perhaps memory ran out. Run the same command "
                "again with fewer workers; what is finished is not done again."
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Started anew and not forked: slide libraries decode in threads that a fork does not copy.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, mp_context=context, initializer=start_worker)
        return self._pool
