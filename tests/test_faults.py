"""Runs that are killed, stopped, or starved of disk, as a machine does it: in processes of their own."""

import json
import os
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.training.log import read_rows

CONFIG = """
from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.training.sharding import MeshSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec

def get_config():
    return ExperimentConfig(
        name="faults",
        data=FolderSource(root={root!r}, mpp=0.5, keep=0.6),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=4, depth=1),
        loss=FocalExclusive(),
        train=TrainSpec(
            steps=16, batch_size=4, ema_decay=0.9, log_every=1, validate_every=100, checkpoint_every=3,
            threads=1, mesh=MeshSpec(data=1),
        ),
    )
"""

# The command line, which does something to itself once the log has a row of a given step.
DRIVER = """
import os, resource, signal, sys, threading, time
from sparseshot_jax.cli import main
from sparseshot_jax.training.log import JsonlLog

def fault(kind, delay):
    if kind == "full":
        time.sleep(1.0)  # until the checkpoint begun before is written
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(delay), resource.RLIM_INFINITY))
    elif kind == "kill":
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif kind in ("stop", "die"):
        if kind == "die":  # as a program does that does not know the signal
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        os.kill(os.getpid(), getattr(signal, kind))

if __name__ == "__main__":
    kind, at, delay, *arguments = sys.argv[1:]
    write = JsonlLog.write

    def faulty(self, event, step, **values):
        write(self, event, step, **values)
        if step == int(at):
            fault(kind, float(delay))

    JsonlLog.write = faulty
    main(arguments)
"""


WORKERS = ("--train.workers", "2")


class Place:
    """Where processes train that fail."""

    def __init__(self, workplace):
        self.folder, self.config, self.driver = workplace.folder, workplace.config, workplace.driver
        self.shared, self.state = workplace.shared, workplace.state

    def train(self, run, *options, fault="none", at=-1, delay=0.0):
        """Exit status and output of `sparseshot train`, its row `at` followed by a fault."""
        command = [sys.executable, str(self.driver), fault, str(at), str(delay)]
        command += ["train", str(self.config), "--run", str(run), *options]
        environment = os.environ | self.shared | {"COLUMNS": "200"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_workplace):
    folder = tmp_path_factory.mktemp("faults")
    return Place(make_workplace(folder, side=32, config=CONFIG, driver=DRIVER))


@pytest.fixture(scope="module")
def uninterrupted(place):
    run = place.folder / "uninterrupted"
    status, output = place.train(run)
    assert status == 0, output
    return run


def assert_same_end(place, run, uninterrupted):
    (ours, position), (theirs, expected) = place.state(run), place.state(uninterrupted)
    assert int(ours.step) == 16
    assert position == expected
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    clock = ("images_per_second", "wait_share")
    rows, expected = (
        [{k: v for k, v in row.items() if k not in clock} for row in read_rows(folder / "log.jsonl")]
        for folder in (run, uninterrupted)
    )
    assert rows == expected


def test_killed_then_terminated_then_finished(place, uninterrupted, tmp_path):
    """With worker processes, which the uninterrupted run had not."""
    run = tmp_path / "run"
    status, _ = place.train(run, *WORKERS, fault="kill", at=8, delay=0.01)
    assert status == -signal.SIGKILL
    assert not (run / "evaluation.json").exists()
    status, output = place.train(run, fault="SIGTERM", at=11)
    assert status == 143, output
    assert "stopped by SIGTERM at step 12; state saved. The same command goes on from there." in output
    assert "Traceback" not in output
    assert int(place.state(run)[0].step) == 12
    status, output = place.train(run, *WORKERS)
    assert status == 0, output
    assert "goes on from step 12" in output
    assert_same_end(place, run, uninterrupted)


@pytest.mark.slow
def test_killed_at_five_random_steps(place, uninterrupted, tmp_path):
    run, draw = tmp_path / "run", random.Random(0)
    for at in sorted(draw.sample(range(1, 16), 5)):
        status, output = place.train(run, *WORKERS, fault="kill", at=at, delay=draw.uniform(0.0, 0.03))
        assert status in (-signal.SIGKILL, 0), output  # 0: the end came before the late kill
    status, output = place.train(run, *WORKERS)
    assert status == 0, output
    assert_same_end(place, run, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigterm_at_twenty_moments_of_checkpoints_being_written(place, tmp_path):
    """A checkpoint after every step, some megabytes large: one is always on its way to the disk.

    Half of the processes save and leave; the others die in mid-write. Each goes on where the one before it
    left off, so that every newest checkpoint is read twice: here, and by the program itself.
    """
    run, draw, torn = tmp_path / "run", random.Random(1), 0
    often = ("--train.checkpoint-every", "1", "--train.steps", "100000", "--train.validate-every", "100000")
    reached = 0
    for k in range(20):
        kind = ("stop", "die")[k % 2]
        at, delay = reached + draw.randint(2, 4), draw.uniform(0.0, 0.4)
        status, output = place.train(run, *often, "--model.base", "48", fault=kind, at=at, delay=delay)
        torn += len(list((run / "checkpoints").glob("*.orbax-checkpoint-tmp")))
        state, position = place.state(run)
        assert reached == 0 or f"goes on from step {reached}" in output, output
        reached = int(state.step)
        assert position == {"next_tile": 4 * reached}
        if kind == "stop":
            assert status == 143, output
            assert f"stopped by SIGTERM at step {reached}; state saved" in output
        else:
            assert status == -signal.SIGTERM, output
            assert reached >= at - 2  # nothing older than the one before the last begun
    assert torn >= 5, torn


def one_message(output, *parts):
    assert "Traceback" not in output, output
    assert output.count("error:") == 1, output
    for part in parts:
        assert part in output, output


def test_a_disk_that_fills_under_the_log(place, tmp_path):
    """No file may grow any more from step 7 on."""
    run = tmp_path / "run"
    status, output = place.train(run, fault="full", at=7, delay=100)
    assert status == 2
    one_message(output, "cannot write the log", "Free some space", "same command")
    assert int(place.state(run)[0].step) == 6


@pytest.mark.slow
def test_a_disk_that_fills_under_a_checkpoint(place, uninterrupted, tmp_path):
    """The log, of some 300 bytes a row, still fits; the arrays of a checkpoint do not.

    Orbax's threads print tracebacks of their own; the last word is ours.
    """
    run = tmp_path / "run"
    status, output = place.train(run, fault="full", at=7, delay=8000)
    assert status == 2
    assert output.count("error: cannot write a checkpoint") == 1, output[-3000:]
    assert "sparseshot_jax/cli/" not in output
    assert int(place.state(run)[0].step) == 6
    status, output = place.train(run)
    assert status == 0, output
    assert_same_end(place, run, uninterrupted)


def test_data_that_are_not_there(place, tmp_path):
    status, output = place.train(tmp_path / "run", "--data.root", str(tmp_path / "nowhere"))
    assert status == 2
    one_message(output, "nowhere/images: no such folder")
    assert not (tmp_path / "run").exists()


def test_damaged_labels_leave_nothing_behind(place, tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "instances").mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "data" / "images" / "a.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "data" / "instances" / "a.png")
    status, output = place.train(tmp_path / "run", "--data.root", str(tmp_path / "data"))
    assert status == 2
    one_message(output, "instances/a.png", "label map")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_written(place, tmp_path):
    (tmp_path / "file").write_text("")
    status, output = place.train(tmp_path / "file" / "run")
    assert status == 2
    one_message(output, "cannot write to the run folder")


def test_evaluation_json_is_whole_or_absent(tmp_path, monkeypatch):
    from sparseshot_jax.run_folder import write_json

    path = tmp_path / "evaluation.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
