import dataclasses
import os
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.loop import Cadence, Diverged, Interrupted, fit
from sparseshot_jax.training.recorder import Recorder
from sparseshot_jax.types import Batch, Hyper, Measures, TrainState


@dataclasses.dataclass
class World:
    """Everything that `fit` is given, fake, with one list of what happened in which order."""

    events: list = dataclasses.field(default_factory=list)
    rows: list = dataclasses.field(default_factory=list)
    saved: list = dataclasses.field(default_factory=list)
    warnings: list = dataclasses.field(default_factory=list)
    position: int = 0
    loss: object = lambda step: float(step)
    keep: object = lambda step: 0.5
    params: object = lambda step: 1.0
    on_event: object = lambda name, step: None

    def note(self, name, step):
        self.events.append((name, step))
        self.on_event(name, step)

    def next_batch(self):
        self.position += 1
        self.note("batch", self.position)
        empty = np.zeros((2, 4, 4), np.uint8)
        return Batch(
            image=np.zeros((2, 4, 4, 3), np.uint8), ground=empty, label=empty, valid=np.ones(2, bool)
        )

    def step(self, state, batch, hyper):
        done = int(state.step) + 1
        self.note("step", done)
        # weight, unannotated and annotated differ from step to step: means are not means of means
        sums = Measures(
            loss=jnp.float32(self.loss(done) * done),
            capped=jnp.float32(2 * done),
            weight=jnp.float32(done),
            unannotated=jnp.float32(100 * done),
            kept=jnp.float32(self.keep(done) * 100 * done),
            annotated=jnp.float32(10),
            p_unannotated=jnp.float32(25 * done),
            p_annotated=jnp.float32(done),
        )
        params = {"w": jnp.float32(self.params(done))}
        return dataclasses.replace(state, step=jnp.asarray(done, jnp.int32), params=params), sums

    def fit(self, start=0, **cadence):
        state = TrainState(
            step=jnp.asarray(start, jnp.int32), params={"w": jnp.ones(())}, stats={}, opt_state=(), ema=None
        )
        recorder = Recorder(
            done=start,
            batches=FakeBatches(self),
            hyper_at=lambda step: Hyper(
                loss={"rho": 0.1 * step, "alpha": 0.2}, learning_rate=float(step), ema_decay=0.0, seed=0
            ),
            validate=lambda state: self.note("validate", int(state.step)) or {"dice": 0.5},
            checkpoints=FakeCheckpoints(self),
            log=FakeLog(self),
            cadence=Cadence(**cadence),
            on_log=lambda step, row: self.note("on_log", step),
            warn=self.warnings.append,
        )
        return fit(state, recorder, step=self.step)


class FakeBatches:
    def __init__(self, world):
        self.world = world

    def next(self):
        batch = self.world.next_batch()
        return batch, len(batch.valid)

    def get_state(self):
        return {"next_batch": self.world.position}

    def set_state(self, state):
        raise AssertionError("the loop does not move the data")


class FakeLog:
    def __init__(self, world):
        self.world = world

    def write(self, event, step, **values):
        self.world.note(event, step)
        self.world.rows.append({"event": event, "step": step, **values})

    def flush(self):
        pass


class FakeCheckpoints(Checkpoints):
    def __init__(self, world):
        self.world = world

    @property
    def latest_step(self):
        return self.world.saved[-1][0] if self.world.saved else None

    def save(self, state, position):
        self.world.note("save", int(state.step))
        self.world.saved.append((int(state.step), position))

    def wait(self):
        self.world.note("wait", self.latest_step)


def test_the_order_of_events():
    world = World()
    state = world.fit(total=4, log=2, validate=4, checkpoint=3)
    assert int(state.step) == 4
    assert world.events == [
        *(("batch", 1), ("step", 1)),
        *(("batch", 2), ("step", 2), ("train", 2), ("on_log", 2)),
        *(("batch", 3), ("step", 3), ("train", 3), ("on_log", 3), ("save", 3)),
        *(("batch", 4), ("step", 4), ("train", 4), ("on_log", 4)),
        *(("validate", 4), ("validation", 4), ("save", 4), ("wait", 4)),
    ]
    assert world.saved == [(3, {"next_batch": 3}), (4, {"next_batch": 4})]


def test_a_run_goes_on_where_its_state_stands():
    world = World(position=3)
    world.fit(start=3, total=5, log=10, validate=10, checkpoint=10)
    assert [event for event in world.events if event[0] == "step"] == [("step", 4), ("step", 5)]
    world = World()
    world.fit(start=5, total=5)
    assert world.events == [("wait", None)]


def test_logged_values_are_means_over_the_steps_since_the_last_row():
    world = World()
    world.fit(total=5, log=2, validate=9, checkpoint=9)
    rows = [row for row in world.rows if row["event"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 5]
    steps = [(1, 2), (3, 4), (5,)]
    for row, these in zip(rows, steps):
        weight = sum(these)
        assert row["loss"] == pytest.approx(sum(s * s for s in these) / weight)
        assert row["capped_loss"] == pytest.approx(2.0)
        assert row["keep_rate"] == pytest.approx(0.5)
        assert row["p_unannotated"] == pytest.approx(0.25)
        assert row["p_annotated"] == pytest.approx(weight / (10 * len(these)))
        # the numbers that the row's last step was given, in force before it
        assert row["learning_rate"] == these[-1] - 1
        assert row["rho"] == pytest.approx(0.1 * (these[-1] - 1))
        assert row["alpha"] == 0.2
        assert row["images_per_second"] > 0


def test_the_share_of_time_spent_waiting_for_data():
    def slow(name, step):
        time.sleep({"batch": 0.06, "step": 0.02, "validate": 0.5}.get(name, 0.0))

    world = World(on_event=slow)
    world.fit(total=6, log=3, validate=3, checkpoint=9)
    for row in (row for row in world.rows if row["event"] == "train"):
        # 0.75 if the machine is idle; validation is no part of it
        assert 0.4 < row["wait_share"] < 0.95
        assert row["images_per_second"] > 2 / 0.25


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(bad):
    world = World(loss=lambda step: bad if step >= 5 else 1.0)
    with pytest.raises(Diverged, match=r"loss is not finite at step 5\..*step 3 is kept.*learning_rate"):
        world.fit(total=20, log=100, validate=100, checkpoint=3)
    assert [step for step, _ in world.saved] == [3]
    assert issubclass(Diverged, InputError)


def test_a_finite_loss_with_a_broken_gradient_is_not_saved_either():
    """The loss of a step is that of the parameters before its update."""
    world = World(params=lambda step: float("nan") if step == 4 else 1.0)
    with pytest.raises(Diverged, match=r"model is not finite at step 4.*step 2 is kept"):
        world.fit(total=20, log=100, validate=100, checkpoint=2)
    assert [step for step, _ in world.saved] == [2]


def test_divergence_before_the_first_checkpoint():
    world = World(loss=lambda step: float("nan"))
    with pytest.raises(Diverged, match="No checkpoint was written yet"):
        world.fit(total=20, log=1, validate=100, checkpoint=100)
    assert not world.saved
    assert not world.rows


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("during", ["batch", "step", "validate", "train", "save"])
def test_a_signal_saves_and_then_leaves(signum, during):
    """Whatever it interrupts, the last thing saved is the state that the error names."""
    before = signal.getsignal(signum)

    def send(name, step):
        if (name, step) == (during, 4):
            os.kill(os.getpid(), signum)

    world = World(on_event=send)
    with pytest.raises(Interrupted, match=r"SIG(TERM|INT) at step .; state saved") as caught:
        world.fit(total=50, log=4, validate=4, checkpoint=4)
    assert caught.value.signum == signum
    assert world.saved[-1] == (caught.value.step, {"next_batch": caught.value.step})
    assert world.events[-1] == ("wait", caught.value.step)
    assert caught.value.step <= 5
    assert world.rows[-1]["step"] == caught.value.step
    assert signal.getsignal(signum) is before


def test_a_second_signal_is_let_through():
    def send(name, step):
        if (name, step) == ("batch", 2):
            collecting = signal.getsignal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is collecting:  # else both may arrive as one
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            World(on_event=send).fit(total=9)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_warning_when_the_mask_starves_the_model():
    world = World(keep=lambda step: 0.001)
    world.fit(total=8, log=1, validate=100, checkpoint=100)
    assert len(world.warnings) == 1
    assert "0.1%" in world.warnings[0]
    assert "step 3" in world.warnings[0]
    assert "prior" in world.warnings[0]


def test_no_warning_where_the_keep_rate_recovers():
    world = World(keep=lambda step: 0.0 if step % 3 else 0.5)
    world.fit(total=12, log=1, validate=100, checkpoint=100)
    assert world.warnings == []


def test_an_error_in_validation_costs_no_step():
    world = World()

    def fail(name, step):
        if name == "validate":
            raise InputError("a slide went away")

    world.on_event = fail
    with pytest.raises(InputError, match="went away"):
        world.fit(total=20, log=100, validate=7, checkpoint=100)
    assert world.events[-2:] == [("save", 7), ("wait", 7)]
