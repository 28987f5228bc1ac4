"""`sparseshot profile`: the step of a config measured, from the command line."""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CONFIG = """
from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training.sharding import MeshSpec

def get_config():
    return ExperimentConfig(
        name="example",
        data=FolderSource(root={root!r}, mpp=0.5),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=4, depth=1),
        loss=FocalExclusive(),
        train=TrainSpec(steps=2, batch_size=4, threads=1, mesh=MeshSpec(data=2)),
    )
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    for name in ("images", "instances"):
        (folder / "data" / name).mkdir(parents=True)
    ids = np.zeros((32, 32), np.uint16)
    ids[6:16, 8:18] = 1
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(folder / "data" / "images" / "a.png")
    Image.fromarray(ids).save(folder / "data" / "instances" / "a.png")
    (folder / "example.py").write_text(CONFIG.format(root=str(folder / "data")))
    return folder / "example.py"


def test_a_profile_measures_the_step_that_train_runs(call, config, tmp_path):
    out = tmp_path / "out"
    status, output = call("profile", config, "--steps", "4", "--out", out, "--train.batch-size", "8")
    assert status == 0, output
    result = json.loads((out / "profile.json").read_text())
    assert result["devices"] == 2
    assert result["mesh"]["data"] == 2
    assert (result["images"], result["tile_px"], result["steps"]) == (8, 16, 4)

    step = result["step_s"]
    assert 0 < step["p10"] <= step["median"] <= step["p90"]
    assert result["megapixels_per_second"] == pytest.approx(result["images_per_second"] * 256 / 1e6)
    assert 0 <= result["wait_share"] <= 1
    assert result["start"]["compiling"] > 0.05

    # A U-Net of base 4 and depth 1: at least the convolutions at full resolution, forward and backward.
    convolutions = 9 * 2 * 8 * 256 * (3 * 4 + 4 * 4 + 8 * 4 + 4 * 4)
    assert 2 * convolutions < result["flops"]["asked"] < 6 * convolutions
    # the compiler's count differs by what is no product, and by padding
    assert result["flops"]["compiled"] == pytest.approx(result["flops"]["asked"], rel=0.5)
    rate = result["images_per_second"] / 8
    assert result["flops_per_second"] == pytest.approx(result["flops"]["asked"] * rate)
    assert "measured" in result["peak"]["source"]
    assert 0 < result["utilisation"] < 1.5

    assert result["memory"]["bytes"] == sum(result["memory"]["plan"].values()) > 8 * 16 * 16 * 4
    operations = result["operations"]
    assert math.isclose(sum(row["share"] for row in operations), 1.0)
    assert any("conv" in row["origin"] and row["part"] == "backward" for row in operations)

    assert sorted(path.name for path in out.iterdir()) == ["profile.json", "profile.png", "trace"]
    assert str(next(out.rglob("*.trace.json.gz"))) in output.replace("\n", "")
    assert "utilisation" in output
    assert "xprof" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "1"), "steps must be at least 2"),
        (("--train.mesh.data", "3"), "train.batch_size must be divisible by 3"),
        (("--train.batch_size", "x"), "batch"),
    ],
)
def test_a_mistake_is_told_in_words(call, config, tmp_path, arguments, words):
    status, output = call("profile", config, "--out", tmp_path, *arguments)
    assert status == 2
    assert words in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_two_processes_of_one_machine_write_one_trace(config, tmp_path):
    launcher = Path(__file__).resolve().parents[1] / "scripts" / "launch_local_processes.py"
    command = [sys.executable, str(launcher), "--fake", "--processes", "2", "--"]
    given = ["profile", str(config), "--steps", "2", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([*command, *given], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "utilisation" in done.stdout
    assert not re.search(r"^\[1\].*utilisation", done.stdout, re.M)
    assert len(list(tmp_path.rglob("*.trace.json.gz"))) == 1
    result = json.loads((tmp_path / "profile.json").read_text())
    assert result["devices"] == 2
    assert result["operations"]


def test_a_full_disk_is_told(call, config, tmp_path, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    status, output = call("profile", config, "--out", tmp_path)
    assert status == 2
    words = "".join(output.split())
    assert f"cannotwriteto{tmp_path}:" in words
    assert "Chooseanotherfolderwith--out." in words


def test_a_folder_that_cannot_be_made_is_told(call, config, tmp_path):
    (tmp_path / "file").write_text("")
    status, output = call("profile", config, "--out", tmp_path / "file" / "out")
    assert status == 2
    assert "--out" in output
