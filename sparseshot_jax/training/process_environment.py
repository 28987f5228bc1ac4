"""Which job of many processes this one belongs to, from its flags and its environment. Pure functions."""

import dataclasses
import re
from collections.abc import Mapping

from sparseshot_jax.errors import InputError

# flag, field of ProcessSpec, environment variable
FLAGS = (
    ("--coordinator", "coordinator", "SPARSESHOT_COORDINATOR"),
    ("--processes", "count", "SPARSESHOT_PROCESSES"),
    ("--process", "index", "SPARSESHOT_PROCESS"),
)
_REMEDY = "Give --coordinator HOST:PORT --processes N --process K to each process, K from 0 to N - 1."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """How one process finds the others. Nothing given: what TPU, Slurm or Open MPI say, else one process."""

    coordinator: str = ""  # HOST:PORT on which process 0 listens
    count: int = 0  # processes of the job; 0: not given
    index: int = -1  # of this process, 0 to count - 1; -1: not given
    heartbeat_s: int = 20  # a process silent for so long is lost, and the job ends
    connect_s: int = 300  # how long a process waits for the others to start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Arguments for `jax.distributed.initialize`; an empty field is left to JAX's own detection."""

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    method: str | None = None  # JAX's name for the environment, "deactivate" for none
    local_devices: tuple[int, ...] | None = None  # None: JAX's rule; empty: all that the process sees
    launcher: str = "flags"  # for messages


def split_flags(arguments: list[str], environment: Mapping[str, str]) -> tuple[ProcessSpec, list[str]]:
    """Take the process flags out of a command line; the environment fills in those that are absent.

    Raises:
        InputError: a flag without a value, or a value that is no whole number.
    """
    given = {field: environment[name] for _, field, name in FLAGS if environment.get(name)}
    names = {flag: field for flag, field, _ in FLAGS}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in names:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("--"):
            raise InputError(f"{flag} needs a value. {_REMEDY}")
        given[names[flag]] = value
    numbers = {field: _whole(field, given[field]) for field in ("count", "index") if field in given}
    return ProcessSpec(coordinator=given.get("coordinator", ""), **numbers), rest


def find_launch(spec: ProcessSpec, environment: Mapping[str, str], *, on_tpu: bool) -> Launch | None:
    """How to start JAX in a job of many processes; None where there is one process alone.

    Args:
        spec: what was given by hand; goes before the environment.
        environment: variables of this process.
        on_tpu: this machine has TPU chips, whose runtime knows the other hosts.

    Raises:
        InputError: flags that are incomplete or contradict each other.
    """
    slurm, mpi = _slurm(environment), _open_mpi(environment)
    if spec.coordinator or spec.count or spec.index != -1:
        return _by_hand(spec, slurm or mpi)
    if slurm or mpi:
        return slurm or mpi
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    if on_tpu and ("," in hosts or not hosts):  # no list of hosts: JAX asks the machine's metadata
        return Launch(launcher="TPU")
    return None


def _by_hand(spec: ProcessSpec, found: Launch | None) -> Launch | None:
    count = spec.count or (found.count if found else 0) or 0
    index = spec.index if spec.index != -1 else (found.index if found else None)
    if count == 1 and index in (None, 0):
        return None
    if not count or index is None or not spec.coordinator:
        missing = [
            flag
            for flag, absent in (
                ("--coordinator", not spec.coordinator),
                ("--processes", not count),
                ("--process", index is None),
            )
            if absent
        ]
        raise InputError(f"a job of many processes needs {' and '.join(missing)} as well. {_REMEDY}")
    if not 0 <= index < count:
        raise InputError(
            f"--process must be between 0 and {count - 1} for {count} processes; got {index}. {_REMEDY}"
        )
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):\d{1,5}", spec.coordinator):
        raise InputError(
            f"--coordinator must be HOST:PORT, the same in all processes; got {spec.coordinator!r}. "
            "Try the host name of process 0 and a free port, such as node01:29400."
        )
    devices = found.local_devices if found else ()
    method = "deactivate" if devices is not None or found is None else found.method
    return Launch(
        coordinator=spec.coordinator, count=count, index=index, method=method, local_devices=devices
    )


def _slurm(environment: Mapping[str, str]) -> Launch | None:
    """A step of several tasks, started by srun. The batch script itself, or one task, waits for nobody."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(name in environment for name in names):
        return None
    count = int(environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"])
    if count <= 1:
        return None
    layout = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or ""
    node = max((int(number) for number in re.findall(r"(?:^|,)(\d+)", layout)), default=count)
    return Launch(
        count=count,
        index=int(environment["SLURM_PROCID"]),
        method="slurm",
        local_devices=_local_devices(environment, node),
        launcher="Slurm",
    )


def _open_mpi(environment: Mapping[str, str]) -> Launch | None:
    count = int(environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    if count <= 1:
        return None
    node = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", str(count)))
    return Launch(
        count=count,
        index=int(environment["OMPI_COMM_WORLD_RANK"]),
        method="ompi",
        local_devices=_local_devices(environment, node),
        launcher="Open MPI",
    )


def _local_devices(environment: Mapping[str, str], processes: int) -> tuple[int, ...] | None:
    """Which GPUs one of `processes` on a machine takes.

    JAX's rule is one each, by local rank. It is wrong for one process a machine, which would leave the
    other GPUs idle, and where the launcher bound the GPUs already, so that each process sees its own.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    bound = bool(visible) and len(visible.split(",")) < processes
    return () if processes == 1 or bound else None


def _whole(field: str, text: str) -> int:
    flag, name = next((flag, name) for flag, known, name in FLAGS if known == field)
    if not text.isdecimal():
        raise InputError(f"{flag} (or {name}) must be a whole number from 0; got {text!r}. {_REMEDY}")
    return int(text)
