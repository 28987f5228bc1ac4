"""Many processes of one program: how they meet, and what they tell each other.

Every process runs the same code on its own part of the data; `jax.distributed` makes one machine of their
devices. In a job of one process everything here does nothing.
"""

import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from sparseshot_jax.errors import InputError
from sparseshot_jax.training import process_end
from sparseshot_jax.training.process_end import Stop as Stop
from sparseshot_jax.training.process_end import guarded as guarded
from sparseshot_jax.training.process_environment import Launch, find_launch
from sparseshot_jax.training.process_environment import ProcessSpec as ProcessSpec

T = TypeVar("T")
R = TypeVar("R")

_DAY_MS = 24 * 3600 * 1000
_SHUTDOWN_S = 1800  # at an orderly end: the lead may still write a report


def start(spec: ProcessSpec | None = None) -> None:
    """Join the job that `spec`, TPU, Slurm or Open MPI describe; before JAX is first used.

    Nothing where there is one process, or at a second call. A process that cannot reach the others in
    `spec.connect_s` ends with status 2 and says so.

    Raises:
        InputError: flags that are incomplete or wrong, an environment that JAX cannot use, JAX used before.
    """
    spec = spec or ProcessSpec()
    if process_end.job is not None or jax.distributed.is_initialized():
        return
    launch = find_launch(spec, os.environ, on_tpu=_on_tpu())
    if launch is None:
        return
    words = process_end.LastWords()
    giving_up = threading.Timer(spec.connect_s, _give_up, (launch, spec, words))
    giving_up.daemon = True
    giving_up.start()
    words.change("error: this process was aborted while it waited for the others of its job.")
    try:
        if _connect(launch, spec):
            process_end.job = _joined(words)
        # The back ends meet here, where all processes come at one time: they wait minutes at most.
        gather(None)
    except BaseException:
        words.close()
        raise
    finally:
        giving_up.cancel()
    words.change("")
    if process_end.job is None:
        words.close()


def is_lead() -> bool:
    """True in the one process that writes and talks: process 0."""
    return process_end.job is None or process_end.job.index == 0


def barrier(name: str) -> None:
    """Wait until every process is here. No device takes part, so that it may last for hours."""
    job = process_end.job
    if job is not None:
        job.meetings += 1
        job.client.wait_at_barrier(f"sparseshot/{name}/{job.meetings}", _DAY_MS)


def joined() -> bool:
    """True where this process is one of several."""
    return process_end.job is not None


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes; all must call it.

    Values are pickled, and never leave the job; each process holds all of them, so keep them small
    (megabytes).
    """
    if process_end.job is None:
        return [value]
    from jax.experimental import multihost_utils

    barrier("gather")  # a collective would not wait long enough for a slow process
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
    room = 1 << int(sizes.max() - 1).bit_length()  # few sizes, few compilations
    padded = np.zeros(room, np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), room)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def dealt(items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """`work` on every item, item i in process i % count; all processes get all results, in order.

    Raises:
        InputError: `work` raised it in one process; the first item's is raised in all of them.
    """
    job = process_end.job
    if job is None:
        return [work(item) for item in items]
    done: dict[int, R] = {}
    failed: tuple[int, str] | None = None
    for at in range(job.index, len(items), job.count):
        try:
            done[at] = work(items[at])
        except InputError as error:
            failed = (at, str(error))
            break
    parts = gather((done, failed))
    failures = [failed for _, failed in parts if failed is not None]
    if failures:
        raise InputError(min(failures)[1])
    results = {at: result for done, _ in parts for at, result in done.items()}
    return [results[at] for at in range(len(items))]


def _connect(launch: Launch, spec: ProcessSpec) -> bool:
    """Whether there is a job at all: a TPU machine need not belong to a group that JAX knows."""
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.count,
            launch.index,
            local_device_ids=None if launch.local_devices is None else list(launch.local_devices),
            cluster_detection_method=launch.method,
            initialization_timeout=spec.connect_s + 30,  # the runtime aborts then: we give up before
            heartbeat_timeout_seconds=spec.heartbeat_s,
            shutdown_timeout_seconds=_SHUTDOWN_S,
        )
    except (RuntimeError, ValueError) as error:
        if launch.launcher == "TPU" and "coordinator_address should be defined" in str(error):
            return False
        raise InputError(
            f"cannot start the job of many processes that {launch.launcher} describes: {error}. Give each "
            "process --coordinator HOST:PORT --processes N --process K (or --processes 1), and let nothing "
            "use JAX before."
        ) from error
    return True


def _joined(words: process_end.LastWords) -> process_end.Job | None:
    from jax._src import distributed  # the client has no public name; orbax takes it from here too

    state = distributed.global_state
    notice = None
    if state.preemption_sync_manager is not None:
        # JAX made its handler that of SIGTERM. Outside `Stop` nobody would ask it: a signal is to end us.
        notice = process_end.native_handler(None)
    if state.num_processes == 1:
        return None
    return process_end.Job(
        state.client, words, index=state.process_id, count=state.num_processes, notice=notice
    )


def _give_up(launch: Launch, spec: ProcessSpec, words: process_end.LastWords) -> None:
    """The end of a process that waited for the others in vain."""
    where = launch.coordinator or f"the host that {launch.launcher} names"
    if launch.index == 0:
        seen = f"process 0 listens at {where}, but not all of the others came"
    elif launch.coordinator and not _answers(launch.coordinator):
        seen = f"nothing listens at {where}, where process 0 should"
    else:
        seen = f"process 0 answers at {where}, but not all of the others came"
    print(
        f"error: the {launch.count or 'many'} processes of this job must start within {spec.connect_s} s of "
        f"each other; {seen}. Start all of them with the same --coordinator and --processes, each with its "
        "own --process, and see that the port is free and open to the other machines.",
        file=sys.stderr,
        flush=True,
    )
    words.close()
    os._exit(2)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3.0):
            return True
    except OSError:
        return False


def _on_tpu() -> bool:
    from jax._src import cloud_tpu_init

    platforms = os.environ.get("JAX_PLATFORMS", "")
    return cloud_tpu_init.running_in_cloud_tpu_vm and (not platforms or "tpu" in platforms)
