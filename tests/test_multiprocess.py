"""Jobs of several processes on this machine, connected as a cluster's are."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sparseshot_jax import experiment
from sparseshot_jax.config import load_config
from sparseshot_jax.training.log import read_rows

# What a program of many processes looks like; the scenes are named on the command line.
PROGRAM = """
import os, sys, time
import numpy as np
import jax
from sparseshot_jax.errors import InputError
from sparseshot_jax.training import processes
from sparseshot_jax.training.process_environment import split_flags

spec, (scene, *rest) = split_flags(sys.argv[1:], os.environ)
beat = 5 if scene == "asleep" else 20
spec = processes.ProcessSpec(
    coordinator=spec.coordinator, count=spec.count, index=spec.index, heartbeat_s=beat, connect_s=int(rest[0])
)
processes.start(spec)
processes.start(spec)  # a second time does nothing
me, count = jax.process_index(), jax.process_count()

def say(*words):
    print(*words, flush=True)

def talk():
    assert processes.is_lead() == (me == 0)
    assert processes.gather({"me": me, "much": "x" * 10 ** me}) == [
        {"me": k, "much": "x" * 10 ** k} for k in range(count)
    ]
    assert processes.gather(None) == [None] * count
    seen = []
    assert processes.dealt(range(7), lambda n: seen.append(n) or n * n) == [n * n for n in range(7)]
    assert seen == list(range(me, 7, count)), seen
    assert processes.dealt([], len) == []
    def fails(n):
        if n in (3, 4):
            raise InputError(f"item {n} is bad")
        return n
    try:
        processes.dealt(range(7), fails)
    except InputError as error:
        assert str(error) == "item 3 is bad"
    else:
        raise AssertionError("no error")
    if me == 1:
        time.sleep(1.0)
    at = time.time()
    processes.barrier("here")
    assert me == 1 or time.time() - at > 0.5
    say("talked", jax.device_count())

def steps(kind):
    with processes.Stop() as stop:
        for step in range(1, 3000):
            if kind == "loop":
                processes.gather(step)
            time.sleep(0.02)
            if step == 10:
                say("ready")
            if signum := stop.at(step):
                say("stopped at", step, "by", signum)
                sys.exit(128 + signum)

with processes.guarded():
    if scene == "talk":
        talk()
    elif scene in ("loop", "asleep"):
        steps(scene)
    elif scene == "mistake":
        if me == 1:
            raise InputError("the file is missing")
        steps("loop")
    elif scene == "bug":
        if me == 0:
            raise KeyError("oops")
        steps("asleep")
    say("end of", scene)
"""


class Job:
    """Processes of one program, whose lines are collected as they come."""

    def __init__(self, commands, environment):
        self.processes = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
            for command in commands
        ]
        self.lines = [[] for _ in commands]
        self._readers = [threading.Thread(target=self._read, args=(k,)) for k in range(len(commands))]
        for reader in self._readers:
            reader.start()

    def _read(self, k):
        with self.processes[k].stdout as lines:
            for line in lines:
                self.lines[k].append(line.rstrip())

    def wait_for(self, text, k=0, seconds=120):
        """Until process k said `text`."""
        until = time.monotonic() + seconds
        while not any(text in line for line in list(self.lines[k])):
            assert time.monotonic() < until, self.output()
            assert self.processes[k].poll() is None, self.output()
            time.sleep(0.01)

    def end(self, seconds=120):
        """Exit statuses; how long the last took."""
        begin = time.monotonic()
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() - begin > seconds:
                break
            time.sleep(0.02)
        took = time.monotonic() - begin
        self.ended_at = time.time()
        late = [process.poll() is None for process in self.processes]
        for process in self.processes:
            process.kill()
        codes = [process.wait() for process in self.processes]
        for reader in self._readers:
            reader.join()
        assert not any(late), f"still running after {seconds} s: {late}\n{self.output()}"
        return codes, took

    def output(self, k=None):
        chosen = self.lines if k is None else [self.lines[k]]
        return "\n".join(line for lines in chosen for line in lines)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment_of(devices=2):
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "COLUMNS": "200",
        "PYTHONUNBUFFERED": "1",
    }


def flags(count, port=None):
    port = port or free_port()
    return [
        ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process", str(k)]
        for k in range(count)
    ]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def play(program, scene, count=2, connect_s=120):
    commands = [[sys.executable, str(program), *own, scene, str(connect_s)] for own in flags(count)]
    return Job(commands, environment_of())


def test_values_travel_and_all_end_well(program):
    job = play(program, "talk")
    codes, _ = job.end()
    assert codes == [0, 0], job.output()
    for k in range(2):
        assert job.lines[k][-2:] == ["talked 4", "end of talk"], job.output()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_process_killed_in_mid_step_ends_the_others(program, victim):
    job = play(program, "loop", count=3)
    for k in range(3):
        job.wait_for("ready", k)
    job.processes[victim].kill()
    codes, took = job.end()
    assert codes[victim] == -signal.SIGKILL
    for k in {0, 1, 2} - {victim}:
        assert codes[k] != 0
        assert re.search(r"error: .*lost", job.output(k)), job.output()
        assert "give the same command again" in job.output(k)
        assert "Traceback" not in job.output(k)
    assert took < 60, job.output()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_while_the_others_compute_alone(program, victim):
    """No collective breaks here: JAX's heartbeat finds it (5 s in this program, 20 by default)."""
    job = play(program, "asleep")
    for k in range(2):
        job.wait_for("ready", k)
    job.processes[victim].kill()
    codes, took = job.end()
    other = 1 - victim
    assert codes[other] != 0
    assert re.search(r"error: .*lost", job.output(other)), job.output()
    assert took < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "status", "reason"), [("mistake", 2, "file is missing"), ("bug", 1, "oops")]
)
def test_an_error_in_one_process_is_told_by_all(program, scene, status, reason):
    job = play(program, scene, count=3)
    codes, took = job.end()
    assert codes == [status] * 3 or codes == [1 if k == 1 else status for k in range(3)], job.output()
    for k in range(3):
        assert reason in job.output(k), job.output(k)
    assert took < 60


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "to"), [("SIGTERM", [1]), ("SIGTERM", [0, 1, 2]), ("SIGINT", [2])])
def test_a_signal_to_any_stops_all_at_one_step(program, signum, to):
    job = play(program, "loop", count=3)
    for k in range(3):
        job.wait_for("ready", k)
    for k in to:
        job.processes[k].send_signal(getattr(signal, signum))
    codes, _ = job.end()
    assert codes == [143] * 3, job.output()
    stops = {line for lines in job.lines for line in lines if line.startswith("stopped at")}
    assert len(stops) == 1, job.output()


@pytest.mark.slow
def test_a_process_that_never_comes(program):
    job = play(program, "talk", count=2, connect_s=4)
    job.processes[1].kill()
    codes, took = job.end()
    assert codes[0] == 2, job.output()
    assert "must start within 4 s" in job.output(0)
    assert "Traceback" not in job.output(0)
    assert took < 40


# Training, the whole of it. Minutes, where the machine has other work.

LAUNCHER = Path(__file__).resolve().parents[1] / "scripts" / "launch_local_processes.py"
BATCH = 8

CONFIG = """
from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec

def get_config():
    return ExperimentConfig(
        name="many",
        data=FolderSource(root={root!r}, mpp=0.5, keep=0.6),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=4, depth=1),
        loss=FocalExclusive(),
        train=TrainSpec(
            steps=5, batch_size=8, ema_decay=0.9, log_every=1, validate_every=100, checkpoint_every=2,
            threads=1, log_tiles=True,
        ),
    )
"""

# The command line, in which one process does something to itself after a step; the next is then under way.
DRIVER = """
import os, signal, sys, threading, time
import jax
from sparseshot_jax.cli import main
from sparseshot_jax.errors import InputError
from sparseshot_jax.training import processes

def fault(kind):
    print("fault at", time.time(), flush=True)
    if kind == "kill":
        threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif kind == "mistake":
        raise InputError("the disk is on fire.")
    else:
        os.kill(os.getpid(), getattr(signal, kind))

if __name__ == "__main__":
    kind, at, who, *arguments = sys.argv[1:]
    ask = processes.Stop.at

    def faulty(self, step):
        if step == int(at) and jax.process_index() == int(who):
            fault(kind)
        if kind.startswith("SIG") and step > int(at):
            time.sleep(0.05)  # the notice takes its time
        return ask(self, step)

    processes.Stop.at = faulty
    main(arguments)
"""


class Place:
    """Where jobs train."""

    def __init__(self, workplace):
        self.folder, self.config, self.driver = workplace.folder, workplace.config, workplace.driver
        self.shared, self.state = workplace.shared, workplace.state

    def train(self, run, count, *options, fault="none", at=-1, who=0, seconds=500):
        """The job of `sparseshot train` on `count` processes, ended, and its exit statuses."""
        program = [sys.executable, str(self.driver), fault, str(at), str(who)]
        arguments = ["train", str(self.config), "--run", str(run), *options]
        own = flags(count) if count > 1 else [[]]
        job = Job([[*program, *words, *arguments] for words in own], self.environment())
        job.codes, _ = job.end(seconds)
        job.seconds_after_fault = None
        if found := re.search(r"fault at ([0-9.]+)", job.output()):
            job.seconds_after_fault = job.ended_at - float(found[1])
            print(f"{fault} of process {who} of {count}: all ended after {job.seconds_after_fault:.1f} s")
        return job

    def environment(self):
        return environment_of() | self.shared


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_workplace):
    folder = tmp_path_factory.mktemp("training")
    return Place(make_workplace(folder, side=48, config=CONFIG, driver=DRIVER))


@pytest.fixture(scope="module")
def alone(place):
    """The run of one process with two devices."""
    run = place.folder / "alone"
    job = place.train(run, 1)
    assert job.codes == [0], job.output()
    return run


def assert_same_end(place, run, alone, steps=5):
    """Parameters, statistics, EMA and position.

    Sums over the batch come in another order, so float32 rounding (1e-7 of a gradient) is what may differ;
    Adam divides a gradient by its own size, which lets through what rounding makes of the smallest ones: up
    to 1e-5 in 9 steps of a learning rate of 1e-3 were seen.
    """
    (ours, position), (theirs, expected) = place.state(run), place.state(alone)
    assert int(ours.step) == int(theirs.step) == steps
    assert position == expected
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4),
        (ours.params, ours.stats, ours.ema),
        (theirs.params, theirs.stats, theirs.ema),
    )


def tiles_given(run):
    """Step -> a list for each process that took part of (number in the sequence, place)."""
    given = {}
    for path in sorted((run / "tiles").glob("process-*.jsonl")):
        for row in read_rows(path):
            given.setdefault(row["step"], []).append(list(zip(row["sequence"], row["places"])))
    return given


def assert_each_tile_once(run, steps):
    """No number of the sequence is missing or twice; an epoch has every place of the data once."""
    given = tiles_given(run)
    assert sorted(given) == list(range(1, steps + 1))
    for step, parts in given.items():
        numbers = [number for part in parts for number, _ in part]
        assert sorted(numbers) == list(range((step - 1) * BATCH, step * BATCH)), step
    flat = dict(pair for parts in given.values() for part in parts for pair in part)
    config = load_config(run / "config.json")
    epoch = len(experiment.training_tiles(config, config.data.load(config.labels, config.seed)))
    assert len(flat) > epoch, "more than an epoch, or it says nothing"
    assert sorted(flat[number] for number in range(epoch)) == list(range(epoch))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [2, 4])
def test_many_processes_train_as_one(place, alone, tmp_path, count):
    run = tmp_path / "run"
    job = place.train(run, count)
    assert job.codes == [0] * count, job.output()
    assert_same_end(place, run, alone)
    given = tiles_given(run)
    assert sorted(given) == [1, 2, 3, 4, 5]
    for parts in given.values():
        assert [len(part) for part in parts] == [BATCH // count] * count
        numbers = [{number for number, _ in part} for part in parts]
        assert len(set.union(*numbers)) == BATCH, "disjoint"
    rows, expected = ([row for row in read_rows(r / "log.jsonl")] for r in (run, alone))
    assert [(row["event"], row["step"]) for row in rows] == [(row["event"], row["step"]) for row in expected]
    for row, other in zip(rows, expected):
        if row["event"] == "train":
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert any("trained to step 5" in line for line in job.lines[0])
    for k in range(1, count):
        assert not any("trained" in line for line in job.lines[k]), "the lead alone talks"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("who", [0, 2])
def test_one_of_four_killed_in_mid_step_and_the_restart(place, alone, tmp_path, who):
    run = tmp_path / "run"
    often = ("--train.checkpoint-every", "1")  # one is begun when the one before is whole
    job = place.train(run, 4, *often, fault="kill", at=3, who=who)
    assert job.codes[who] == -signal.SIGKILL, job.output()
    assert 0 not in job.codes
    assert job.seconds_after_fault < 60, job.output()
    for k in {0, 1, 2, 3} - {who}:
        assert re.search(r"error: .*lost", job.output(k)), job.output(k)
    job = place.train(run, 4, *often)
    assert job.codes == [0] * 4, job.output()
    assert re.search(r"goes on from step [123]", job.output(0)), job.output(0)
    assert_same_end(place, run, alone)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_saved_on_four_processes_resumed_on_one_and_on_two(place, tmp_path):
    steps = ("--train.steps", "9")
    run = tmp_path / "four"
    job = place.train(run, 4, *steps, fault="SIGTERM", at=2, who=3)
    assert job.codes == [143] * 4, job.output()
    assert "state saved" in job.output(0)
    stopped = int(place.state(run)[0].step)
    assert 2 < stopped < 9, job.output()
    ends = []
    for count in (1, 2):
        resumed = tmp_path / f"on{count}"
        shutil.copytree(run, resumed)
        job = place.train(resumed, count, *steps)
        assert job.codes == [0] * count, job.output()
        assert f"goes on from step {stopped}" in job.output(0)
        assert_each_tile_once(resumed, 9)
        ends.append(resumed)
    assert_same_end(place, *ends, steps=9)


@pytest.mark.slow
def test_a_mistake_in_one_process_of_a_training_ends_all(place, tmp_path):
    job = place.train(tmp_path / "run", 2, fault="mistake", at=3, who=1)
    assert job.codes == [2, 2], job.output()
    assert job.seconds_after_fault < 60
    for k in range(2):
        assert job.output(k).count("error: the disk is on fire.") == 1, job.output(k)
        assert "Traceback" not in job.output(k)


@pytest.mark.slow
def test_the_local_launcher(place, tmp_path):
    own = ["--processes", "2", "--devices", "2", "--fake", "--"]
    train = ["train", str(place.config), "--run", str(tmp_path / "run"), "--train.steps", "100000"]
    job = Job([[sys.executable, str(LAUNCHER), *own, *train]], place.environment())
    until = time.monotonic() + 400
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < until, job.output()
        time.sleep(0.1)
    job.processes[0].send_signal(signal.SIGTERM)
    codes, _ = job.end()
    assert codes == [143], job.output()
    assert any(re.match(r"\[0\] .*stopped by SIGTERM", line) for line in job.lines[0]), job.output()
    missing = [sys.executable, str(LAUNCHER), *own, "evaluate", str(tmp_path / "nowhere")]
    job = Job([missing], place.environment())
    codes, _ = job.end()
    assert codes == [2], job.output()
    assert any(line.startswith("[1] error:") for line in job.lines[0]), job.output()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rounds_of_many_processes_are_those_of_one(place, tmp_path):
    """Each labels its part of the images; stopped in the first training, the job goes on from there."""
    strong = ["--loss", "cross_entropy", "--loss.background-weight", "0.02"]
    strong += ["--optimizer.learning-rate", "0.03", "--train.steps", "12"]
    options = [*strong, "--data.keep", "0.4", "--relabel.rounds", "1", "--relabel.threshold", "0.5"]
    runs = {count: tmp_path / str(count) for count in (1, 2)}
    job = place.train(runs[2], 2, *options, fault="SIGTERM", at=6, who=1)
    assert set(job.codes) == {143}, job.output()
    assert not (runs[2] / "round-1").exists()
    for count, run in runs.items():
        job = place.train(run, count, *options)
        assert job.codes == [0] * count, job.output()
    labels = {}
    for count, run in runs.items():
        told = json.loads((run / "round-1" / "pseudo_labels.json").read_text())
        labels[count] = {name: case["added"] for name, case in told["cases"].items()}
        assert place.state(run)[0].step == 12
        marks, more = (json.loads((part / "data.json").read_text()) for part in (run / "round-0", run))
        for name, added in labels[count].items():
            assert more[name]["objects"] == marks[name]["objects"] + added
    assert sum(labels[1].values()) > 0
    assert labels[1] == labels[2]
