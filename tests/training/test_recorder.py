"""What `loop.fit` and `trials.fit_trials` share; the order of events is tested with the first of them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.training import recorder as recorder_module
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.recorder import Cadence, Clock, Diverged, NoLog, Recorder
from sparseshot_jax.training.sharding import MeshSpec, make_layout
from sparseshot_jax.types import Batch, Hyper, Measures, TrainState


class Batches:
    def next(self):
        empty = np.zeros((2, 4, 4), np.uint8)
        image = np.zeros((2, 4, 4, 3), np.uint8)
        return Batch(image=image, ground=empty, label=empty, valid=np.ones(2, bool)), 2

    def get_state(self):
        return {}


class Saved(Checkpoints):
    def __init__(self):
        self.steps = []

    @property
    def latest_step(self):
        return self.steps[-1] if self.steps else None

    def save(self, state, position):
        self.steps.append(int(state.step))


class Rows(list):
    def write(self, event, step, **values):
        self.append(values)

    def flush(self):
        pass


def recorder(**changes):
    hyper = Hyper(loss={"rho": 0.5}, learning_rate=0.1, ema_decay=0.0, seed=0)
    parts = {"done": 0, "batches": Batches(), "hyper_at": lambda step: hyper, "validate": lambda state: {}}
    parts |= {"checkpoints": Saved(), "log": NoLog(), "cadence": Cadence(total=9, log=1)}
    return Recorder(**parts | changes)


def measures(value=1.0):
    number = jnp.float32(value)
    return Measures(
        **{"loss": number, "capped": number, "weight": number, "unannotated": number, "kept": number},
        **{"annotated": number, "p_unannotated": number, "p_annotated": number},
    )


def state(step, w):
    return TrainState(step=jnp.asarray(step, jnp.int32), params={"w": w}, stats={}, opt_state=(), ema=None)


def test_validation_of_one_run_is_no_time_of_another(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(recorder_module, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def take(seconds):
        now[0] += seconds

    clock, rows, begun = Clock(), Rows(), jnp.ones(2)
    slow = recorder(
        clock=clock,
        cadence=Cadence(total=9, log=9, validate=1, checkpoint=9),
        validate=lambda state: take(100.0) or {},
    )
    other = recorder(clock=clock, log=rows)
    for run in (slow, other):
        take(3.0)
        run.inputs()
        take(1.0)
        run.record(measures(), lambda: state(1, begun))
    assert rows[0]["images_per_second"] == pytest.approx(2 / 8)


def test_a_state_is_made_only_where_it_is_needed():
    asked = []

    def at(step):
        return lambda: asked.append(step) or state(step, jnp.ones(2))

    saved = Saved()
    run = recorder(checkpoints=saved, cadence=Cadence(total=5, log=1, validate=3, checkpoint=4))
    while not run.finished:
        run.inputs()
        run.record(measures(), at(run.done + 1))
    assert asked == [3, 4, 5, 5]
    assert saved.steps == [4, 5]


@pytest.mark.parametrize("bad", [False, True])
def test_a_state_that_is_split_over_devices_is_looked_through_whole(bad):
    layout = make_layout(MeshSpec(data=2, fsdp=4, shard_from=1))
    w = np.ones((8, 2), np.float32)
    w[5, 1] = np.nan if bad else 1.0
    split = layout.place_state(state(1, w))
    assert not split.params["w"].is_fully_replicated
    saved = Saved()
    run = recorder(checkpoints=saved, cadence=Cadence(total=1, validate=9))
    run.inputs()
    one = jax.device_put(measures(), layout.replicated)
    if bad:
        with pytest.raises(Diverged, match="model is not finite at step 1"):
            run.record(one, lambda: split)
    else:
        run.record(one, lambda: split)
    assert saved.steps == ([] if bad else [1])
