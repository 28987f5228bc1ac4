"""A run whose loss remembers each training pixel goes on as if it had not stopped; and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import experiment, programs, sweep
from sparseshot_jax.ablate import grid
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.experiment import Reporter
from sparseshot_jax.losses import CrossEntropy, EarlyLearning
from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.training import memory as memories
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.sharding import MeshSpec

CANVAS = (32 + 40, 48)  # of the two training images, one below the other
MODELS = {
    "segmentation": UNetSpec(base=2, depth=1),
    "detection": YolloSpec(width=4, depth=1, stride=4, max_objects=4),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "instances"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a", (32, 48)), ("b", (40, 32)), ("c", (32, 32))):
        ids = np.zeros(shape, np.uint16)
        ids[6:16, 8:18] = 1
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (*shape, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(ids).save(root / "instances" / f"{name}.png")
    return root


def make_config(root, task="segmentation", **train):
    options = {"steps": 6, "log_every": 2, "validate_every": 6, "checkpoint_every": 3, **train}
    return ExperimentConfig(
        name="remembering",
        data=FolderSource(root=str(root), train=("a", "b"), validation=("c",), mpp=0.5),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=MODELS[task],
        loss=EarlyLearning(),
        train=TrainSpec(batch_size=4, ema_decay=0.9, threads=1, mesh=MeshSpec(data=1), **options),
        predict=PredictSpec(core_px=32, min_area_um2=0.5, tissue_only=False),
    )


def state_of(folder, config):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(programs.fresh_state(config, canvas_px=CANVAS))


class Stopped(Exception):
    pass


def stop(step, row):
    if step == 4:
        raise Stopped


@pytest.mark.parametrize("task", ["segmentation", pytest.param("detection", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(root, tmp_path, task):
    config = make_config(root, task)
    whole = experiment.train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        experiment.train(config, tmp_path / "parts", reporter=Reporter(on_log=stop))
    began = []
    on_start = Reporter(on_start=lambda step, total: began.append(step))
    experiment.train(config, tmp_path / "parts", reporter=on_start)
    assert began == [3]
    ours, theirs = (state_of(tmp_path / name, config) for name in ("parts", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert ours[1] == theirs[1]

    memory = np.asarray(theirs[0].memory)
    assert memory.shape == (1, *CANVAS)
    assert ((memory > 0) & (memory < 1)).all()
    assert 0.5 < (memory != 0.5).mean() < 1.0
    assert (memory[:, 32:, 32:] == 0.5).all()  # beside the narrower image
    # To evaluate, nobody asks how large the training images were.
    loaded = experiment.load(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, whole.variables)


@pytest.mark.slow
def test_without_its_regulariser_it_is_the_run_of_cross_entropy(root, tmp_path):
    config = make_config(root, steps=3)
    states = []
    for loss in (EarlyLearning(strength=0.0), CrossEntropy()):
        own = dataclasses.replace(config, loss=loss)
        experiment.train(own, tmp_path / type(loss).__name__)
        states.append(state_of(tmp_path / type(loss).__name__, own)[0])
    # The same numbers; the compiler may fuse them otherwise.
    ours, theirs = (jax.tree.leaves(state.params) for state in states)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert states[1].memory is None


@pytest.mark.slow
def test_trials_in_lock_step_remember_each_for_itself(root, tmp_path):
    config = make_config(root, steps=3)
    trials = grid(["loss.beta=0.5,0.9"], [0])
    (group,) = sweep.grouped(config, trials, jax.devices()[:2])
    assert len(group.devices) == 2
    list(sweep.run_group(config, group, tmp_path / "together"))
    found = []
    for trial in trials:
        own = sweep.trial_config(config, trial)
        found.append(np.asarray(state_of(tmp_path / "together" / trial.name, own)[0].memory))
    sweep.run_trial(config, trials[0], tmp_path / "alone")
    alone = state_of(tmp_path / "alone" / trials[0].name, sweep.trial_config(config, trials[0]))[0].memory
    np.testing.assert_allclose(found[0], alone, atol=1e-5)  # another program sums in another order
    assert np.abs(found[0] - found[1]).max() > 1e-2


def test_trials_on_other_images_do_not_share_a_program(root):
    config = make_config(root)
    trials = grid(["data.train=a,b"], [0])
    assert len(sweep.grouped(config, trials, jax.devices()[:2])) == 2
    plain = dataclasses.replace(config, loss=CrossEntropy())
    assert len(sweep.grouped(plain, trials, jax.devices()[:2])) == 1


def test_what_is_not_supported_is_refused(root, tmp_path, monkeypatch):
    config = make_config(root)
    monkeypatch.setattr(memories, "MEMORY_BYTES", 4 * CANVAS[0] * CANVAS[1] - 1)
    with pytest.raises(InputError, match=r"loss elr.*72 x 48 pixels"):
        experiment.train(config, tmp_path / "large")
    assert not (tmp_path / "large").exists()
    monkeypatch.setattr(experiment, "ShardTiles", lambda *_, **__: None)
    with pytest.raises(InputError, match=r"loss elr.*Leave train\.shards out"):
        experiment.train(make_config(root, shards=str(tmp_path / "shards")), tmp_path / "shards_run")
