"""What a worker process does first."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable


def start_worker(worker: int = 0, count: int = 1) -> None:
    """Ctrl-C is the main process's to handle; and a worker must not outlive it, even after SIGKILL."""
    del worker, count  # which one of how many, as grain says
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_after, args=(parent.sentinel,), daemon=True).start()


def _leave_after(sentinel: int, leave: Callable[[int], None] = os._exit) -> None:
    multiprocessing.connection.wait([sentinel])
    leave(1)
