"""Checkpoints on an object store: bit for bit, whole or not there, and plain errors."""

import dataclasses
import functools
import importlib
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparseshot_jax.errors import InputError
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training import checkpoint_s3, sharding
from sparseshot_jax.training.checkpoint import Checkpoints, whole_steps
from sparseshot_jax.training.optimizer import OptimizerSpec, make_optimizer
from sparseshot_jax.training.step import init_state

FOLDER = "s3://bucket/runs/unet/checkpoints"


@functools.cache
def fresh():
    model = UNetSpec(base=2, depth=1).build(classes=1, rngs=nnx.Rngs(0))
    return init_state(model, make_optimizer(OptimizerSpec()), ema=True)[1]


def make_state(step):
    leaves, tree = jax.tree.flatten(fresh())
    rng = np.random.default_rng(step)
    drawn = jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=x.shape) * 7, x.dtype) for x in leaves])
    return dataclasses.replace(drawn, step=jnp.asarray(step, jnp.int32))


def assert_newest(step):
    with Checkpoints(FOLDER) as checkpoints:
        assert checkpoints.latest_step == step
        restored, position = checkpoints.restore(jax.eval_shape(fresh))
    assert position == {"next_batch": step}
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(step))


def save(*steps):
    with Checkpoints(FOLDER, config={"loss": {"alpha": 0.2}}) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step), {"next_batch": step})


def test_the_newest_two_are_kept_and_come_back(object_store):
    save(1, 2, 3)
    assert whole_steps(FOLDER) == [2, 3]
    assert_newest(3)
    record = object_store.cat_file(f"{FOLDER}/3/config/metadata")
    assert json.loads(record) == {"loss": {"alpha": 0.2}}
    save(4)
    assert_newest(4)
    assert not [name for name in object_store.find("s3://bucket") if "tmp" in name]


def test_a_save_that_was_cut_off_is_none(object_store):
    """Every object of it but the marker, which comes last."""
    save(1, 2)
    object_store.rm_file(f"{FOLDER}/2/commit_success.txt")
    assert whole_steps(FOLDER) == [1]
    assert_newest(1)
    save(2)
    assert_newest(2)


def test_saved_in_parts_and_brought_back_on_another_mesh(object_store):
    split = sharding.make_layout(sharding.MeshSpec(data=1, fsdp=4, shard_from=1))
    with Checkpoints(FOLDER) as checkpoints:
        checkpoints.save(split.place_state(make_state(5)), {"next_batch": 5})
    assert_newest(5)


def test_an_orbax_that_cannot_be_taught(object_store, monkeypatch):
    place = importlib.import_module(checkpoint_s3._BUILDER)
    monkeypatch.setattr(place, "build_kvstore_tspec", lambda directory, **_: {"driver": "file"})
    with pytest.raises(InputError, match=r"checkpoints on s3:// need another orbax"):
        Checkpoints(FOLDER)


def test_an_orbax_that_knows_s3_is_left_alone(monkeypatch):
    def knows(directory, **_):
        return {"base": {"driver": "s3"}}

    place = importlib.import_module(checkpoint_s3._BUILDER)
    monkeypatch.setattr(place, "build_kvstore_tspec", knows)
    checkpoint_s3.teach_orbax()
    assert place.build_kvstore_tspec is knows


def test_a_store_that_cannot_be_reached(object_store, monkeypatch):
    def deny(*_, **__):
        raise PermissionError(13, "Forbidden")

    monkeypatch.setattr(type(object_store), "exists", deny)
    with pytest.raises(InputError, match=r"s3://bucket/runs/unet/checkpoints: cannot be listed: Forbidden"):
        Checkpoints(FOLDER)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's other writes
def test_arrays_that_the_store_does_not_take(object_store, monkeypatch):
    """Small objects go through fsspec, arrays through tensorstore: its errors are told as well."""
    monkeypatch.setattr(type(object_store), "read_only", True)
    with pytest.raises(InputError, match=r"cannot write a checkpoint to s3://.*same command"):
        save(1)
    assert whole_steps(FOLDER) == []
    time.sleep(2.0)  # the other writes fail here, and not in the test after this one
