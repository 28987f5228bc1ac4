"""Two processes evaluate and predict: what one gives, in the files of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image
from scipy import ndimage

from sparseshot_jax import cli, experiment
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training.sharding import MeshSpec

LAUNCH = Path(__file__).resolve().parents[1] / "scripts" / "launch_local_processes.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Hardly trained: its p is smooth noise about the blobs, and a threshold in its middle finds much."""
    folder = tmp_path_factory.mktemp("shared")
    for name in ("images", "instances"):
        (folder / "data" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in "abcdefg":
        field = ndimage.gaussian_filter(rng.normal(size=(150, 100)), 4.0)
        ids, _ = ndimage.label(field > field.std())
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-30, 30, (150, 100, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / "data" / "images" / f"{name}.png")
        Image.fromarray(ids.astype(np.uint16)).save(folder / "data" / "instances" / f"{name}.png")
    source = FolderSource(
        root=str(folder / "data"), train=("[ab]",), validation=("[cd]",), test=("[efg]",), mpp=0.5
    )
    config = ExperimentConfig(
        name="shared",
        data=source,
        tiles=TileSpec(tile_px=32, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=4, depth=1),
        loss=FocalExclusive(),
        train=TrainSpec(steps=20, batch_size=4, threads=1, mesh=MeshSpec(data=1)),
        predict=PredictSpec(core_px=32, min_area_um2=0.5, tissue_only=False),
    )
    return experiment.train(config, folder / "run")


def two_processes(*arguments):
    """Output of a command as two processes of two devices."""
    launch = [sys.executable, str(LAUNCH), "--processes", "2", "--devices", "2", "--fake", "--"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*launch, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_close(one, many, place=""):
    """Equal but for rounding: a back end may compute batches of other sizes in another order."""
    assert type(one) is type(many), place
    if isinstance(one, dict):
        assert list(one) == list(many), place
        for key in one:
            assert_close(one[key], many[key], f"{place}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(many), place
        for k, (a, b) in enumerate(zip(one, many)):
            assert_close(a, b, f"{place}/{k}")
    elif isinstance(one, float):
        assert one == pytest.approx(many, abs=1e-6, nan_ok=True), place
    else:
        assert one == many, place


def test_evaluation_is_that_of_one_process(run):
    one = run.evaluate()
    (Path(run.folder) / "evaluation.json").unlink()
    output = two_processes("evaluate", run.folder)
    many = json.loads((Path(run.folder) / "evaluation.json").read_text())
    assert_close(json.loads(json.dumps(one)), many)
    assert output.count("evaluation.json") == 1  # the lead alone talks


def test_predictions_are_those_of_one_process(run, tmp_path):
    """Three slides: one for each process, and one that both share."""
    images = [Path(run.config.data.root) / "images" / f"{name}.png" for name in "efg"]
    p = run.probability_map(next(case for case in run.splits().test))
    options = ("--mpp", 0.5, "--threshold", float(np.quantile(p, 0.7).round(3)))
    cli.main([str(a) for a in ("predict", run.folder, *images, *options, "--out", tmp_path / "one")])
    output = two_processes("predict", run.folder, *images, *options, "--out", tmp_path / "many")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == names
    assert output.count(" objects: ") == 3
    for image in images:
        one, many = (
            [
                shapely.geometry.shape(feature["geometry"])
                for feature in json.loads((tmp_path / part / f"{image.stem}.geojson").read_text())["features"]
            ]
            for part in ("one", "many")
        )
        assert len(one) == len(many) > 5
        tree = shapely.STRtree(one)
        for shape in many:
            twin = one[tree.nearest(shape.representative_point())]
            assert shape.symmetric_difference(twin).area <= 1e-2 * twin.area


def test_a_bad_slide_ends_both(run, tmp_path):
    launch = [sys.executable, str(LAUNCH), "--processes", "2", "--devices", "1", "--fake", "--"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*launch, "predict", str(run.folder), str(tmp_path / "none.png")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "none.png" in done.stdout + done.stderr
