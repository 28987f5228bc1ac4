import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparseshot_jax.errors import InputError
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training import processes, sharding
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.optimizer import OptimizerSpec, make_optimizer
from sparseshot_jax.training.sharding import MeshSpec
from sparseshot_jax.training.step import init_state


def make_state(*, base=2, ema=True, step=3, seed=0):
    """A state as after some steps: no two leaves alike, moments and averages included."""
    model = UNetSpec(base=base, depth=1).build(classes=1, rngs=nnx.Rngs(0))
    _, state = init_state(model, make_optimizer(OptimizerSpec()), ema=ema)
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(state)
    drawn = [jnp.asarray(rng.normal(size=x.shape) * 7, x.dtype) for x in leaves]
    return dataclasses.replace(jax.tree.unflatten(tree, drawn), step=jnp.asarray(step, jnp.int32))


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype


@pytest.fixture
def zeros():
    return jax.tree.map(jnp.zeros_like, make_state())


def test_a_round_trip_is_bit_identical(tmp_path, zeros):
    state = make_state()
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step is None
        checkpoints.save(state, {"next_batch": 17})
        checkpoints.wait()
        assert checkpoints.latest_step == 3
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored, position = checkpoints.restore(zeros)
    assert_same(restored, state)
    assert position == {"next_batch": 17}


def test_a_checkpoint_records_the_config(tmp_path):
    with Checkpoints(tmp_path / "c", config={"loss": {"alpha": 0.2}}) as checkpoints:
        checkpoints.save(make_state(), {})
    (record,) = [
        path
        for path in (tmp_path / "c/3/config").rglob("*")
        if path.is_file() and "alpha" in path.read_text()
    ]
    assert json.loads(record.read_text()) == {"loss": {"alpha": 0.2}}


def test_saving_does_not_see_what_happens_to_the_state_later(tmp_path, zeros):
    """The next step donates the state's buffers while it is written."""
    state = make_state()
    expected = jax.tree.map(np.array, state)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(state, {})
        for _ in range(3):
            state = step(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(zeros)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_the_newest_is_restored_and_old_ones_go(tmp_path, zeros):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step=step, seed=step), {"next_batch": step})
        checkpoints.save(make_state(step=3, seed=9), {"next_batch": 9})  # there already: not again
        checkpoints.wait()
        restored, position = checkpoints.restore(zeros)
        assert_same(restored, make_state(step=3, seed=3))
        assert position == {"next_batch": 3}
        assert_same(checkpoints.restore(zeros, step=2)[0], make_state(step=2, seed=2))
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == ["2", "3"]


def test_restored_leaves_lie_where_the_given_ones_do(tmp_path, zeros):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(make_state(), {})
        checkpoints.wait()
        layout = sharding.make_layout(sharding.MeshSpec(data=4))
        restored, _ = checkpoints.restore(layout.place_state(zeros))
    assert all(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(restored))
    jax.tree.map(np.testing.assert_array_equal, restored, make_state())


@pytest.mark.parametrize("other", [{"base": 4}, {"ema": False}])
def test_another_model_is_refused(tmp_path, other):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(make_state(), {})
        checkpoints.wait()
        with pytest.raises(InputError, match=r"does not fit the model of this config"):
            checkpoints.restore(make_state(**other))


def test_nothing_there(tmp_path, zeros):
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(InputError, match="Train first"):
        checkpoints.restore(zeros)


def test_a_save_that_was_killed_is_ignored(tmp_path, zeros):
    """What a kill in mid-save leaves: the temporary folder that is renamed when it is whole."""
    folder = tmp_path / "c"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(make_state(step=1, seed=1), {"next_batch": 1})
        checkpoints.wait()
    half = folder / "2.orbax-checkpoint-tmp"
    shutil.copytree(folder / "1", half)
    next(p for p in half.rglob("*") if p.is_file() and p.stat().st_size > 100).write_bytes(b"")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step == 1
        assert_same(checkpoints.restore(zeros)[0], make_state(step=1, seed=1))
        checkpoints.save(make_state(step=2, seed=2), {"next_batch": 2})
        checkpoints.wait()
        assert_same(checkpoints.restore(zeros)[0], make_state(step=2, seed=2))


def test_a_full_disk_is_one_clear_error_and_older_checkpoints_stay(tmp_path, zeros, monkeypatch):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(make_state(step=1), {})
        checkpoints.wait()
        full = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(InputError, match=r"needs 1 MiB, and 0 are free.*same command"):
            checkpoints.save(make_state(step=2), {})
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert int(checkpoints.restore(zeros)[0].step) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED")])
def test_a_save_that_fails_later_is_reported_by_the_next(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    checkpoints = Checkpoints(tmp_path / "c")
    for method, use in (
        ("save", lambda: checkpoints.save(make_state(), {})),
        ("wait_until_finished", checkpoints.wait),
        ("close", lambda: checkpoints.__exit__(None)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, method, fail)
            with pytest.raises(InputError, match=r"cannot write a checkpoint.*same command"):
                use()
    monkeypatch.setattr(checkpoints._manager, "close", fail)
    with pytest.raises(KeyError, match="first"), checkpoints:
        raise KeyError("first")
    monkeypatch.undo()
    checkpoints.__exit__(None)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write a checkpoint"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_a_damaged_checkpoint_names_itself(tmp_path, zeros):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(make_state(), {})
        checkpoints.wait()
    (tmp_path / "c" / "3" / "position" / "metadata").write_text("{")
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(InputError, match=r"c/3 cannot be read"):
        checkpoints.restore(zeros)


MESHES = {
    "data 8": MeshSpec(),
    "fsdp 2": MeshSpec(data=1, fsdp=2, shard_from=1),
    "fsdp 8": MeshSpec(data=1, fsdp=8, shard_from=1),
    "one device": MeshSpec(data=1),
}


@pytest.fixture(scope="module")
def saved_in_parts(tmp_path_factory):
    """A checkpoint of a state that lay on 2 x 4 devices, its larger arrays split over 4."""
    layout = sharding.make_layout(MeshSpec(data=2, fsdp=4, shard_from=1))
    state = layout.place_state(make_state(base=4))
    assert sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state)) > 10
    folder = tmp_path_factory.mktemp("parts") / "c"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, {"next_batch": 5})
    return folder


@pytest.mark.parametrize("mesh", MESHES)
def test_a_state_saved_in_parts_comes_back_on_any_mesh(saved_in_parts, mesh):
    layout = sharding.make_layout(MESHES[mesh])
    like = layout.place_state(jax.tree.map(jnp.zeros_like, make_state(base=4)))
    with Checkpoints(saved_in_parts) as checkpoints:
        restored, position = checkpoints.restore(like)
    assert_same(restored, make_state(base=4))
    assert position == {"next_batch": 5}
    for leaf, asked in zip(jax.tree.leaves(restored), jax.tree.leaves(layout.state(like))):
        assert leaf.sharding.is_equivalent_to(asked, leaf.ndim)


def test_shapes_alone_bring_whole_arrays_to_one_device(saved_in_parts):
    with Checkpoints(saved_in_parts) as checkpoints:
        restored, _ = checkpoints.restore(jax.eval_shape(lambda: make_state(base=4)))
    assert_same(restored, make_state(base=4))
    assert {leaf.device for leaf in jax.tree.leaves(restored)} == {jax.local_devices()[0]}


def test_the_room_is_that_of_whole_arrays(tmp_path, monkeypatch):
    layout = sharding.make_layout(MeshSpec(data=1, fsdp=8, shard_from=1))
    state = layout.place_state(make_state(base=64))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(make_state(base=64)))
    tight = shutil.disk_usage(tmp_path)._replace(free=whole)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: tight)
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(InputError, match="are free"):
        checkpoints.save(state, {})


def test_a_folder_that_not_all_processes_see(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "gather", lambda value: [value, False, value])
    with pytest.raises(InputError, match=r"one folder for all processes; process 1 does not see"):
        Checkpoints(tmp_path / "c")
