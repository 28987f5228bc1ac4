"""A sweep that SIGKILL ends at any moment, and its command given again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CONFIG = """
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training.optimizer import OptimizerSpec

def get_config():
    return ExperimentConfig(
        name="killed",
        data=FolderSource(root={root!r}, train=("[ab]",), validation=("c",), mpp=0.5, keep=0.5),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=2, depth=1),
        loss=FocalExclusive(),
        optimizer=OptimizerSpec(learning_rate=0.03),
        train=TrainSpec(
            steps=60, batch_size=4, log_every=10, validate_every=20, checkpoint_every=5, threads=1
        ),
        predict=PredictSpec(core_px=32, min_area_um2=0.5, tissue_only=False),
    )
"""
SEARCH = (
    *("--optuna", "loss.alpha=0.05:0.5:log", "--optuna", "data.keep=0.4,0.8", "--trials", "3"),
    *("--seeds", "0", "1", "--choose-by", "sparse"),
)
GRID = ("--grid", "loss.alpha=0.1,0.4", "--seeds", "0", "1", "2")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    for name in ("images", "instances"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        ids = np.zeros((32, 32), np.uint16)
        for k in range(4):
            y, x = 3 + 16 * (k // 2), 4 + 15 * (k % 2)
            ids[y : y + 8, x : x + 8] = k + 1
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (32, 32, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(ids).save(root / "instances" / f"{name}.png")
    (root / "config.py").write_text(CONFIG.format(root=str(root)))
    return root / "config.py"


def start(config, out, arguments):
    """The command on two devices, as a process of its own."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    code = "import sys; from sparseshot_jax import cli; cli.main(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, "ablate", str(config), "--out", str(out), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def how_far(out: Path) -> int:
    """Steps of all trials, up to their newest checkpoints, of 360."""
    newest = dict.fromkeys((path.parent.parent for path in out.glob("*/checkpoints/*")), 0)
    for path in out.glob("*/checkpoints/*"):
        if path.name.isdigit():
            newest[path.parent.parent] = max(newest[path.parent.parent], int(path.name))
    return sum(newest.values())


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("arguments", [GRID, SEARCH], ids=["grid", "optuna"])
def test_three_kills_leave_no_mark(config, tmp_path, arguments):
    if arguments is SEARCH:
        pytest.importorskip("optuna")
    finished(start(config, tmp_path / "whole", arguments))
    rng = np.random.default_rng(0)
    for kill in range(3):
        # Some way into what is left; where within a step, a row or a checkpoint that falls is chance.
        until = how_far(tmp_path / "killed") + rng.integers(1, 90)
        process = start(config, tmp_path / "killed", arguments)
        while process.poll() is None and how_far(tmp_path / "killed") < until:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        assert process.poll() is None, f"it ended before kill {kill + 1}: {process.communicate()[0]}"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    output = finished(start(config, tmp_path / "killed", arguments))
    tables = [(tmp_path / name / "results.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    assert len(tables[0]) == 6
    assert sorted(tables[0]) == sorted(tables[1])
    choices = [json.loads((tmp_path / name / "choice.json").read_text()) for name in ("whole", "killed")]
    assert choices[0] == choices[1]
    assert "training step" in output
