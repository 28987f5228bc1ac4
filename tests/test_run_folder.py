"""Run folders on a disk and on an object store: what they record, refuse, and give back."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from sparseshot_jax import experiment
from sparseshot_jax.config import ExperimentConfig, TrainSpec, to_json
from sparseshot_jax.data import storage
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.run_folder import (
    check_data,
    check_folder,
    folder_path,
    has_checkpoint,
    read_json,
    record_config,
    write_json,
)


def config_of(root="", **train):
    return ExperimentConfig(
        name="small",
        data=FolderSource(root=str(root), mpp=0.5, train=("0*",), validation=("1*",), test=("2*",)),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=4, depth=1),
        loss=FocalExclusive(),
        train=TrainSpec(**{"steps": 4, "batch_size": 8, "checkpoint_every": 2, "threads": 1} | train),
    )


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    if request.param == "disk":
        return folder_path(tmp_path / "run")
    request.getfixturevalue("object_store")
    return folder_path("s3://bucket/runs/small")


def pretend_checkpoint(folder, step, *, whole=True):
    """As has_checkpoint sees one."""
    storage.write_bytes(folder / "checkpoints" / str(step) / "state", b"")
    if whole:
        storage.write_bytes(folder / "checkpoints" / str(step) / "commit_success.txt", b"")


def test_paths_and_urls_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_path("~/runs") == epath.Path(tmp_path) / "runs"
    assert str(folder_path(f"file://{tmp_path}/a")) == f"{tmp_path}/a"
    assert str(folder_path("gs://bucket/a") / "b") == "gs://bucket/a/b"
    assert str(folder_path(epath.Path("s3://bucket/a")).parent) == "s3://bucket"
    with pytest.raises(InputError, match=r"local path, or on gs:// or s3://; got az://a/b"):
        folder_path("az://a/b")
    with pytest.raises(InputError, match=r"must be given as text.*pathlib made gs:/bucket/a of it"):
        folder_path(Path("gs://bucket/a"))


def test_json_is_there_or_not(folder):
    assert read_json(folder / "a.json") is None
    write_json(folder / "a.json", {"a": [1, 2.5]})
    assert read_json(folder / "a.json") == {"a": [1, 2.5]}
    storage.write_bytes(folder / "a.json", b"{")
    with pytest.raises(InputError, match=r"a\.json is not JSON"):
        read_json(folder / "a.json")


def test_another_config_is_refused_once_there_is_a_checkpoint(folder):
    config = config_of()
    check_folder(folder, config, extend=False)
    record_config(folder, config)
    other = dataclasses.replace(config, seed=1)
    check_folder(folder, other, extend=False)  # nothing came of the first
    pretend_checkpoint(folder, 2)
    assert has_checkpoint(folder)
    check_folder(folder, config, extend=False)
    with pytest.raises(InputError, match=r"holds a run of another config: seed: 0 -> 1"):
        check_folder(folder, other, extend=False)
    longer = config_of(steps=8)
    with pytest.raises(InputError, match=r"add --extend"):
        check_folder(folder, longer, extend=False)
    check_folder(folder, longer, extend=True)
    # A caller without the option, and a run that is to be shorter.
    for other, extend in ((longer, None), (config_of(steps=3), False)):
        with pytest.raises(InputError, match=r"name another folder with --out\.$"):
            check_folder(folder, other, extend=extend, option="--out")


def test_other_data_are_refused(folder):
    write_json(folder / "data.json", {"a": {"objects": 3, "hash": "x"}})
    changed = {"a": {"objects": 4, "hash": "y"}}
    check_data(folder, changed)
    pretend_checkpoint(folder, 2)
    with pytest.raises(InputError, match=r"other images or marks: a \(3 objects -> 4 objects\)"):
        check_data(folder, changed)


def test_a_stranger_s_folder_is_refused(folder):
    storage.write_bytes(folder / "thesis.txt", b"")
    with pytest.raises(InputError, match=r"holds no run"):
        check_folder(folder, config_of(), extend=False)


def test_a_save_that_was_cut_off_is_no_checkpoint(object_store):
    folder = folder_path("s3://bucket/run")
    pretend_checkpoint(folder, 2, whole=False)
    assert not has_checkpoint(folder)
    pretend_checkpoint(folder, 1)
    assert has_checkpoint(folder)


def test_tensorboard_on_a_store_is_refused_before_anything_is_read(object_store):
    with pytest.raises(InputError, match=r"train\.tensorboard needs a local run folder"):
        check_folder("s3://bucket/run", config_of(tensorboard=True), extend=False)


def test_a_run_of_before_the_mesh_goes_on(folder):
    """Its config.json has train.devices, and not what came later."""
    values = to_json(config_of())
    for name in ("mesh", "remat", "prefetch", "log_tiles"):
        del values["train"][name]
    values["train"]["devices"] = 1
    write_json(folder / "config.json", values)
    pretend_checkpoint(folder, 2)
    check_folder(folder, config_of(), extend=False)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "instances"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for k in range(3):
        ids = np.zeros((32, 32), np.uint16)
        ids[4 + k : 14 + k, 6:16], ids[18:28, 15 + k : 25 + k] = 1, 2
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (32, 32, 3))
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "data" / "images" / f"{k}.png")
        Image.fromarray(ids).save(tmp_path / "data" / "instances" / f"{k}.png")
    return tmp_path / "data"


@pytest.mark.slow
def test_the_whole_path_on_an_object_store(object_store, images, call):
    """Trained, extended, evaluated, predicted, reported: no local folder is touched."""
    run = "s3://bucket/runs/small"
    trained = experiment.train(config_of(images), run)
    assert (trained.step, str(trained.folder)) == (4, run)
    assert experiment.train(config_of(images, steps=6), run, extend=True).step == 6
    steps = [row["step"] for row in experiment.load(run).rows() if row["event"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6
    for command in (
        ("evaluate", run),
        ("predict", run, images / "images" / "2.png", "--mpp", 0.5),
        ("report", run),
    ):
        status, output = call(*command)
        assert status == 0, output
    found = {name.removeprefix("/bucket/runs/small/") for name in object_store.find(run)}
    assert found >= {
        *("config.json", "data.json", "log.jsonl", "evaluation.json", "report.html"),
        *("predictions/2.geojson", "predictions/2_overlay.png"),
        *("checkpoints/6/commit_success.txt", "checkpoints/4/commit_success.txt"),
    }
    assert json.loads(object_store.cat_file(f"{run}/predictions/2.geojson"))["type"] == "FeatureCollection"
    status, output = call("train", run, "--run", run, "--seed", "3", "--data.root", images)
    assert status == 2
    assert "seed: 0 -> 3" in output
