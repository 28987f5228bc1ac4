"""Trials on devices of their own end as they would alone, whatever becomes of the others."""

import dataclasses
import functools
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparseshot_jax import losses
from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.loop import Cadence, Interrupted, fit
from sparseshot_jax.training.optimizer import OptimizerSpec, make_optimizer
from sparseshot_jax.training.recorder import Recorder
from sparseshot_jax.training.sharding import make_layout
from sparseshot_jax.training.step import init_state, make_train_step
from sparseshot_jax.training.tasks import TASKS
from sparseshot_jax.training.trials import fit_trials, make_trial_layout
from sparseshot_jax.types import Hyper, Measures, Objects, TrainState

MODELS = {
    "unet": UNetSpec(base=4, depth=1),
    "yollo": YolloSpec(width=4, depth=1, stride=4, max_objects=3),
}


DETECTOR = {"ignore_iou": 0.6, "box_weight": 1.0, "class_weight": 1.0}


@functools.cache
def build(name):
    """A fresh state of a seed, and the pure step."""
    spec, optimizer = MODELS[name], make_optimizer(OptimizerSpec())

    def fresh(seed):
        return init_state(spec.build(classes=1, rngs=nnx.Rngs(seed)), optimizer, ema=True)

    step = make_train_step(
        graphdef=fresh(0)[0],
        objective=TASKS[spec.task].objective(spec, losses.FocalExclusive().terms),
        optimizer=optimizer,
        augmentation=AugmentSpec(),
    )
    return lambda seed: fresh(seed)[1], step


@dataclasses.dataclass
class Trial:
    """One run with its own seed, length and numbers, and a list in place of every file."""

    make_batch: object
    device: object
    seed: int = 0
    start: int = 0
    total: int = 4
    rate: object = lambda step: 1e-2
    model: dict = dataclasses.field(default_factory=dict)
    on_batch: object = lambda number: None
    given: int = 0
    rows: list = dataclasses.field(default_factory=list)
    saved: dict = dataclasses.field(default_factory=dict)

    def recorder(self):
        self.given = self.start
        return Recorder(
            done=self.start,
            batches=FakeBatches(self),
            hyper_at=self.hyper_at,
            validate=lambda state: {"step_of_state": int(state.step)},
            checkpoints=FakeCheckpoints(self),
            log=FakeLog(self),
            cadence=Cadence(total=self.total, log=2, validate=3, checkpoint=3),
        )

    def hyper_at(self, step):
        return Hyper(
            loss={"rho": np.float32(0.6), "alpha": np.float32(0.3), "gamma": np.float32(0.2)},
            learning_rate=np.float32(self.rate(step)),
            ema_decay=np.float32(0.9),
            seed=np.uint32(self.seed),
            model=self.model,
        )

    def numbers(self):
        return [
            {k: v for k, v in row.items() if k not in ("images_per_second", "wait_share")}
            for row in self.rows
        ]


class FakeBatches:
    def __init__(self, trial):
        self.trial, self.layout = trial, make_layout(devices=[trial.device])

    def next(self):
        self.trial.on_batch(self.trial.given)
        batch = self.trial.make_batch(seed=100 * self.trial.seed + self.trial.given, tiles=4)
        self.trial.given += 1
        return self.layout.place(batch), 4

    def get_state(self):
        return {"next": self.trial.given}


class FakeCheckpoints(Checkpoints):
    def __init__(self, trial):
        self.saved = trial.saved

    @property
    def latest_step(self):
        return max(self.saved, default=None)

    def save(self, state, position):
        self.saved[int(state.step)] = (jax.device_get(state), position)

    def wait(self):
        pass


class FakeLog:
    def __init__(self, trial):
        self.rows = trial.rows

    def write(self, event, step, **values):
        self.rows.append({"event": event, "step": step, **values})

    def flush(self):
        pass


def plain_state(step=0):
    return TrainState(
        step=jnp.asarray(step, jnp.int32), params={"w": jnp.ones(2)}, stats={}, opt_state=(), ema=None
    )


def plain_step(state, batch, hyper):
    """Compiled in no time: the parameters follow the batch."""
    w = state.params["w"] + hyper.learning_rate * batch.image.astype(jnp.float32).mean()
    ones = dict.fromkeys([field.name for field in dataclasses.fields(Measures)][:8], jnp.ones(()))
    measures = Measures(**ones | {"loss": w.sum()})
    return dataclasses.replace(state, step=state.step + 1, params={"w": w}), measures


@functools.cache
def plain(devices):
    """A layout and its program, compiled once."""
    layout = make_trial_layout(jax.devices()[:devices])
    return layout, layout.program(plain_step)


def train_together(trials, devices=4):
    layout, program = plain(devices)
    states = (plain_state(trial.start) for trial in trials)
    return fit_trials(states, [trial.recorder() for trial in trials], layout=layout, step=program)


def train_alone(trial):
    fit(plain_state(trial.start), trial.recorder(), step=jax.jit(plain_step))


@pytest.fixture
def trials(make_batch):
    def make(*changes):
        return [
            Trial(**{"make_batch": make_batch, "device": jax.devices()[at], "seed": at} | change)
            for at, change in enumerate(changes)
        ]

    return make


def compiled(layout, step, trial, state):
    """The program of the layout's trials, ahead of time: as `layout.program`, with a text to read."""
    size = len(layout.devices)
    stacked = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * size), (state, trial.hyper_at(0)))
    batch = jax.tree.map(lambda leaf: np.concatenate([leaf] * size), trial.make_batch(seed=0, tiles=4))
    return layout.program(step).lower(stacked[0], batch, stacked[1]).compile()


def assert_apart(text):
    """No grouped convolution, which vmap would make of the trials; and nothing exchanged between them."""
    assert "convolution" in text
    assert {int(n) for n in re.findall(r"(?:feature|batch)_group_count=(\d+)", text)} <= {1}
    assert not re.findall(r"\b(?:all-(?:reduce|gather|to-all)|collective-\w+|reduce-scatter)\b", text)


@pytest.mark.parametrize("name", ["unet", pytest.param("yollo", marks=pytest.mark.slow)])
def test_a_trial_ends_as_it_would_alone(trials, make_batch, name):
    """Two on three devices, of different seeds and rates: logs, checkpoints, averages and all.

    The same operations, compiled in another program, so that sums may be taken in another order: of
    float32's 6e-8 a few are allowed, relative to a leaf's largest entry, after four steps of Adam.
    """
    fresh, step = build(name)
    changes = [{"rate": lambda step, at=at: 1e-3 * (at + 1)} for at in range(2)]
    if name == "yollo":
        changes = [change | {"make_batch": with_objects(make_batch), "model": DETECTOR} for change in changes]
    together, alone = trials(*changes), trials(*changes)
    layout = make_trial_layout(jax.devices()[:3])
    program = compiled(layout, step, together[0], fresh(0))
    assert_apart(program.as_text())
    failures = fit_trials(
        (fresh(trial.seed) for trial in together),
        [trial.recorder() for trial in together],
        layout=layout,
        step=program,
    )
    assert failures == {}
    jitted = jax.jit(step)
    for ours, single in zip(together, alone):
        single.device = jax.devices()[0]
        fit(fresh(single.seed), single.recorder(), step=jitted)
        assert list(ours.saved) == list(single.saved) == [3, 4]
        for saved in (3, 4):
            (state, position), (expected, where) = ours.saved[saved], single.saved[saved]
            assert position == where
            jax.tree.map(assert_near, state, expected)
        for row, like in zip(ours.numbers(), single.numbers(), strict=True):
            assert row.pop("event") == like.pop("event")
            assert row == pytest.approx(like, rel=1e-5)
    leaves = [jax.tree.leaves(trial.saved[4][0].params) for trial in together]
    assert any((a != b).any() for a, b in zip(leaves[0], leaves[1]))


def assert_near(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert np.abs(ours - theirs).max(initial=0) <= 1e-5 * max(np.abs(theirs).max(initial=0), 1e-3)


def with_objects(make_batch):
    def make(seed, tiles):
        rng = np.random.default_rng(seed)
        corner = rng.uniform(0, 8, (tiles, 3, 2)).astype(np.float32)
        return dataclasses.replace(
            make_batch(seed=seed, tiles=tiles),
            objects=Objects(
                boxes_yxyx_px=np.concatenate([corner, corner + 6], -1),
                label=np.ones((tiles, 3), np.uint8),
                present=np.ones((tiles, 3), bool),
                left_out=np.zeros(tiles, np.int32),
            ),
        )

    return make


def test_trials_begin_and_end_where_they_like(trials):
    changes = ({"start": 2, "total": 5}, {"total": 7}, {"start": 4, "total": 4})
    together, alone = trials(*changes), trials(*changes)
    assert train_together(together) == {}
    for ours, single in zip(together, alone):
        train_alone(single)
        assert ours.numbers() == single.numbers()
        assert list(ours.saved) == list(single.saved)
        assert ours.given == single.given
    assert [max(trial.saved, default=None) for trial in together] == [5, 7, None]


def test_one_that_diverges_leaves_the_others_alone(trials):
    broken = {"rate": lambda step: np.nan if step >= 4 else 1e-2}
    together, alone = trials({"total": 8}, broken | {"total": 8}), trials({"total": 8})
    failures = train_together(together)
    assert list(failures) == [1]
    assert re.search(r"not finite at step 5\..*step 3 is kept", str(failures[1]))
    assert list(together[1].saved) == [3]
    train_alone(alone[0])
    assert together[0].numbers() == alone[0].numbers()
    assert list(together[0].saved) == [3, 6, 8]


def test_a_signal_saves_every_trial_where_it_stands(trials):
    def send(number):
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    together = trials({"total": 50, "on_batch": send}, {"start": 1, "total": 50}, {"total": 2})
    with pytest.raises(Interrupted, match="SIGTERM at step 5; state saved"):
        train_together(together)
    assert [max(trial.saved) for trial in together] == [5, 6, 2]
    assert together[1].saved[6][1] == {"next": 6}


def test_a_state_of_its_own_comes_to_the_first_device(trials):
    layout, _ = plain(4)
    states = layout.stacked(plain_state(step) for step in (5, 6))
    assert [int(layout.state_of(states, at).step) for at in range(4)] == [5, 6, 5, 5]
    assert layout.state_of(states, 1).params["w"].devices() == {jax.devices()[0]}
    assert [shard.device for shard in states.step.addressable_shards] == jax.devices()[:4]
