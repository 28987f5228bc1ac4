import os
import signal
import time

import jax
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.training import process_end, processes
from sparseshot_jax.training.process_environment import Launch, ProcessSpec, find_launch, split_flags

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[01-04]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}


def found(environment=None, *, on_tpu=False, **given):
    return find_launch(ProcessSpec(**given), environment or {}, on_tpu=on_tpu)


def test_one_process_does_everything_alone():
    processes.start()
    assert process_end.job is None
    assert not jax.distributed.is_initialized()
    assert processes.is_lead()
    processes.barrier("here")
    assert processes.gather({"a": 1}) == [{"a": 1}]
    assert processes.dealt([1, 2, 3], lambda n: n * n) == [1, 4, 9]
    with processes.guarded():
        pass


def test_one_process_raises_what_it_raises():
    def fails(item):
        raise InputError(f"{item} is bad")

    with pytest.raises(InputError, match="3 is bad"):
        processes.dealt([3, 4], fails)
    with pytest.raises(KeyError), processes.guarded():
        raise KeyError


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stop_collects_a_first_signal_and_lets_a_second_through(signum):
    let_through = []
    before = signal.signal(signum, lambda *_: let_through.append(signum))
    try:
        with processes.Stop() as stop:
            assert stop.at(1) is None
            os.kill(os.getpid(), signum)
            time.sleep(0.01)
            assert stop.at(2) == signum
            assert let_through == []
            os.kill(os.getpid(), signum)
            time.sleep(0.01)
            assert let_through == [signum]
        with processes.Stop() as stop:
            assert stop.at(1) is None
        os.kill(os.getpid(), signum)
        time.sleep(0.01)
        assert let_through == [signum, signum]
    finally:
        signal.signal(signum, before)


def test_nothing_said_is_one_process():
    assert found() is None
    assert found({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # a batch script
    assert found(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert found(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert found({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) is None
    assert found({"TPU_WORKER_HOSTNAMES": "a,b"}) is None  # no TPU here
    assert found({"TPU_WORKER_HOSTNAMES": "localhost"}, on_tpu=True) is None
    assert found(count=1) is None
    assert found(SLURM, count=1, index=0) is None


def test_slurm_is_found():
    assert found(SLURM) == Launch(count=4, index=2, method="slurm", local_devices=(), launcher="Slurm")
    eight = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_NTASKS": "32"}
    assert found(eight).local_devices is None  # one GPU each, by local rank
    assert found(eight | {"CUDA_VISIBLE_DEVICES": "0"}).local_devices == ()  # bound by Slurm already
    assert found(eight | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}).local_devices is None


def test_open_mpi_and_tpu_are_found():
    assert found(MPI) == Launch(count=4, index=3, method="ompi", launcher="Open MPI")
    assert found({}, on_tpu=True) == Launch(launcher="TPU")
    assert found({"TPU_WORKER_HOSTNAMES": "a,b"}, on_tpu=True) == Launch(launcher="TPU")


def test_flags_go_before_the_environment():
    launch = found(SLURM, coordinator="h:1", count=2, index=1)
    assert (launch.coordinator, launch.count, launch.index) == ("h:1", 2, 1)
    launch = found(MPI, coordinator="h:1")  # what Open MPI 5 does not tell
    assert (launch.coordinator, launch.count, launch.index) == ("h:1", 4, 3)
    assert found({}, coordinator="[::1]:29400", count=2, index=0).method == "deactivate"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "h:1"}, "needs --processes and --process as well"),
        ({"count": 4}, "needs --coordinator and --process as well"),
        ({"coordinator": "h:1", "count": 4}, "needs --process as well"),
        ({"count": 4, "index": 1}, "needs --coordinator as well"),
        ({"coordinator": "h:1", "count": 4, "index": 4}, "between 0 and 3 for 4 processes; got 4"),
        ({"coordinator": "h", "count": 4, "index": 0}, "must be HOST:PORT.*got 'h'"),
        ({"coordinator": "h:port", "count": 4, "index": 0}, "must be HOST:PORT"),
        ({"coordinator": "http://h:1", "count": 4, "index": 0}, "must be HOST:PORT"),
    ],
)
def test_half_or_wrong_flags(given, message):
    with pytest.raises(InputError, match=message) as raised:
        found(**given)
    assert "Give --coordinator" in str(raised.value) or "Try" in str(raised.value)


def test_flags_are_taken_out_of_a_command_line():
    words = [
        "--processes",
        "4",
        "train",
        "config.py",
        "--process=3",
        "--coordinator",
        "h:1",
        "--train.steps",
        "5",
    ]
    spec, rest = split_flags(words, {"SPARSESHOT_PROCESS": "1"})
    assert spec == ProcessSpec(coordinator="h:1", count=4, index=3)
    assert rest == ["train", "config.py", "--train.steps", "5"]
    spec, rest = split_flags(["train"], {"SPARSESHOT_PROCESSES": "2", "SPARSESHOT_PROCESS": "0"})
    assert spec == ProcessSpec(count=2, index=0)
    assert split_flags([], {}) == (ProcessSpec(), [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes"], "--processes needs a value"),
        (["--process", "--debug"], "--process needs a value"),
        (["--processes", "two"], "must be a whole number from 0; got 'two'"),
        (["--process", "-1"], "must be a whole number"),
    ],
)
def test_flags_without_a_number(words, message):
    with pytest.raises(InputError, match=message):
        split_flags(words, {})


def test_a_loss_is_told_from_an_error():
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    own = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    assert process_end.is_loss(lost)
    assert not process_end.is_loss(own)
    assert not process_end.is_loss(ValueError("Connection closed by peer"))
    wrapped = InputError("cannot write a checkpoint")
    wrapped.__cause__ = lost
    assert process_end.is_loss(wrapped)


def test_a_second_handler_is_native_and_comes_back():
    before = process_end.native_handler(None)
    try:
        assert process_end.native_handler(before) is None
    finally:
        process_end.native_handler(before)
    assert process_end.native_handler(before) == before


def test_the_command_line_takes_the_flags(call, monkeypatch):
    status, output = call("train", "config.py", "--processes", "2")
    assert status == 2
    assert output.count("error:") == 1
    assert "needs --coordinator and --process as well" in output
    monkeypatch.setenv("SPARSESHOT_PROCESSES", "two")
    status, output = call("train", "config.py")
    assert status == 2
    assert "--processes (or SPARSESHOT_PROCESSES) must be a whole number" in output
    status, output = call("--processes", "2", "train", "--help")  # help starts no job
    assert status == 0
    for setting in ("2", "two"):  # these do not share their work: alone, whatever the launcher says
        monkeypatch.setenv("SPARSESHOT_PROCESSES", setting)
        assert call("data", "--help")[0] == 0
        assert call("train", "--help")[0] == 0
    status, output = call("doctor")
    assert status == 0, output


@pytest.mark.parametrize("verb", ["demo", "data", "doctor"])
def test_a_verb_that_is_not_shared_refuses_the_flags(call, verb):
    for arguments in ((verb, "--processes", "0"), ("--process=1", verb)):
        status, output = call(*arguments)
        assert status == 2
        words = " ".join(output.split())
        assert f"error: {verb} runs as one process" in words
        assert "are for train, evaluate, predict, ablate, curve, report, profile. Leave them out." in words
