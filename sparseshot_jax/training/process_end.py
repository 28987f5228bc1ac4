"""How a job of many processes ends: asked to stop, by an error in one of them, or by the loss of one.

JAX ends a job whose process is lost, but by aborting the others from a thread of its own, with nothing
but its log; and a process that leaves early waits for the others at exit. So here: the first process
that fails tells the others why, each says it and ends at once; and a shell that each starts beside
itself says what happened where the process was aborted before it could.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import jax

from sparseshot_jax.errors import InputError

LOST = 75  # exit status after the loss of another process: EX_TEMPFAIL, try again
_AGREED = (None, 0, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # ends that all processes come to together
_REASON, _HEARD = "sparseshot/reason", "sparseshot/heard"  # keys in JAX's coordination service
_AGAIN = "The last checkpoint is whole: give the same command again, in all processes, to go on from it."
# What JAX's runtime says, by back end, when it cannot reach another process.
_SIGNS_OF_LOSS = (
    *("Gloo", "NCCL", "Connection closed by peer", "Connection reset", "Socket closed", "heartbeat"),
    *("oordination service", "Barrier failed", "Barrier timed out", "UNAVAILABLE", "task is set to ERROR"),
)


class LastWords:
    """A shell that prints the last line it was given, when this process ends however suddenly."""

    def __init__(self) -> None:
        script = (
            "trap '' INT TERM HUP; while IFS= read -r line; do last=$line; done; "
            'if [ -n "$last" ]; then printf \'%s\\n\' "$last" >&2; fi'
        )
        command = ["/bin/sh", "-c", script]
        self._shell = None
        with contextlib.suppress(OSError):  # no shell here: the runtime's log has to do
            self._shell = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )

    def change(self, text: str) -> None:
        """Say `text` (one line; empty: nothing) at the end."""
        if self._shell and self._shell.stdin:
            with contextlib.suppress(OSError, ValueError):  # gone, or closed by another thread that ends us
                self._shell.stdin.write(text.encode() + b"\n")
                self._shell.stdin.flush()

    def close(self) -> None:
        """Say nothing: the end is an orderly one."""
        self.change("")
        if self._shell and self._shell.stdin:
            with contextlib.suppress(OSError):
                self._shell.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._shell.wait(1.0)


class Job:
    """This process among the others of its job, once JAX has connected them."""

    def __init__(self, client: Any, words: LastWords, *, index: int, count: int, notice: int | None):
        self.client, self.words, self.index, self.count = client, words, index, count
        self.notice = notice  # address of the C function that tells JAX of SIGTERM, None where it has none
        self.calls = 0  # of `Stop.at`, over all loops of this process
        self.meetings = 0  # barriers so far: each needs a name of its own
        self.broken: int | None = None  # exit status, once the job cannot go on

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"process {self.index} of {self.count}"

    def tell(self, status: int, text: str) -> None:
        """Give the others the reason why this process ends; the first reason of a job stands."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_set(_REASON, json.dumps([self.index, status, text]))

    def told(self) -> tuple[int, int, str] | None:
        """Process, exit status and reason, where another one has given it."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            for key, value in self.client.key_value_dir_get("sparseshot/"):
                if key.endswith("reason"):
                    index, status, text = json.loads(value)
                    return None if index == self.index else (index, status, text)
        return None

    def end(self, status: int) -> NoReturn:
        """End now. No waiting for the others: what would wait is broken, and the rest of it would hang."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self.words.close()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_set(f"{_HEARD}/{self.index}", "")
        if self.index == 0:  # the reason is kept in this process: let the others read it
            self._wait_until_heard(3.0)
        os._exit(status)

    def _wait_until_heard(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while time.monotonic() < until and len(self.client.key_value_dir_get(_HEARD)) < self.count:
                time.sleep(0.1)


job: Job | None = None  # set by `processes.start`; None in a job of one process


class Stop:
    """Collects SIGTERM and SIGINT in place of dying from them; a second one is let through.

    With many processes, a signal to any of them leads all to stop at one step, which JAX finds. There
    SIGTERM belongs to JAX's own handler, and SIGINT is turned into it.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._previous: dict[int, Any] = {}
        self._native: int | None = None

    def __enter__(self) -> "Stop":
        try:
            for signum in (signal.SIGINT,) if job else (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._handle)
        except ValueError:  # not the main thread: signals go where Python sends them
            self._previous.clear()
        if job and job.notice:
            self._native = native_handler(job.notice)
        return self

    def __exit__(self, *_: object) -> None:
        if job and job.notice:
            native_handler(self._native)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def at(self, step: int) -> int | None:
        """The signal after which to stop at this step, if any: the same answer in all processes.

        Each process must ask at every step.
        """
        if job is None:
            return self._received[0] if self._received else None
        # A count of its own: the steps of a next loop begin at 0 again, and JAX's may only grow.
        job.calls += 1
        reached = job.notice and _reached_sync_point(job.calls)
        return int(signal.SIGTERM) if reached else None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._received.append(signum)
        signal.signal(signum, self._previous[signum])
        if job:
            os.kill(os.getpid(), signal.SIGTERM)


def native_handler(handler: int | None) -> int | None:
    """Make the C function at an address (None: the default) that of SIGTERM; returns the one before.

    JAX's handler is no Python object: `signal.signal` could replace it and never bring it back.
    """
    change = ctypes.CDLL(None).signal
    change.restype, change.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return change(int(signal.SIGTERM), handler)


def _reached_sync_point(call: int) -> bool:
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(call)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Round the main part of a program: no process of a job outlives an error or the loss of another.

    Nothing in a job of one process. Otherwise an error leaves here as it came, and the interpreter ends
    at once after it was reported; where another process failed or was lost, this one says so on stderr and
    ends inside. Call it once, after `start`, and nothing of JAX after it.
    """
    if job is None:
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(job, over), name="other processes", daemon=True)
    watch.start()
    job.words.change(
        f"error: {job.name} was ended from outside its program: another process of the job was lost, or "
        f"this one was killed or ran out of memory. {_AGAIN}"
    )
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code in _AGREED):
            _fail(job, error)
            raise
        _leave(job, over, watch)
        raise
    _leave(job, over, watch)


def _watch(job: Job, over: threading.Event) -> None:
    while not over.wait(1.0):
        if job.broken is None and (reason := job.told()):
            _end_for(job, reason)


def _end_for(job: Job, reason: tuple[int, int, str]) -> NoReturn:
    index, status, text = reason
    print(f"error: {text} (So says process {index}; {job.name} ends with it.)", file=sys.stderr)
    job.end(status)


def _fail(job: Job, error: BaseException) -> None:
    """Tell the others, and see to it that this process ends once the error was reported."""
    lost = is_loss(error)
    if lost:
        time.sleep(1.5)  # it may be the echo of an error that the other is about to tell
        if reason := job.told():
            _end_for(job, reason)
        text = f"another process of this job was lost. {_AGAIN}"
        job.broken = LOST
        job.tell(LOST, text)
        print(f"JAX says: {_first_line(error)}\nerror: {text} ({job.name} ends.)", file=sys.stderr)
        job.end(LOST)
    if isinstance(error, InputError):
        job.broken, text = 2, str(error)
    elif isinstance(error, KeyboardInterrupt):
        job.broken, text = 130, "Ctrl-C."
    else:
        code = error.code if isinstance(error, SystemExit) else 1
        job.broken = code if isinstance(code, int) else 1
        text = traceback.format_exception_only(error)[-1].strip()
    job.tell(job.broken, text)
    status = job.broken
    atexit.register(job.end, status)  # comes before JAX's own, which waits for the others
    # A thread that waits for the others may hold up even that.
    late = threading.Timer(15.0, job.end, (status,))
    late.daemon = True
    late.start()


def _leave(job: Job, over: threading.Event, watch: threading.Thread) -> None:
    over.set()
    watch.join()
    jax.distributed.shutdown()  # waits for the others, so that none takes this end for a loss
    job.words.close()


def is_loss(error: BaseException) -> bool:
    """True where the cause is JAX's runtime not reaching another process."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        if isinstance(at, jax.errors.JaxRuntimeError) and any(sign in str(at) for sign in _SIGNS_OF_LOSS):
            return True
        at = at.__cause__ or at.__context__
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]
