"""The order of events: batch, step, log, evaluate, checkpoint. It receives callables and knows no loss."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.log import JsonlLog
from sparseshot_jax.types import Batch, Hyper, Measures, TrainState

# Below this share of kept background the mask starves the model.
_STARVED = 0.02


@runtime_checkable
class BatchIterator(Protocol):
    """Batches in a fixed order, with a position that a checkpoint can hold."""

    def __next__(self) -> Batch:
        """The next batch of this process."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Where it stands, as JSON values."""
        ...


class Interrupted(Exception):
    """SIGTERM or Ctrl-C came; the state was saved."""

    def __init__(self, signum: int, step: int):
        self.signum, self.step = signum, step
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}; state saved")


class Diverged(InputError):
    """The loss is not finite any more; the last good checkpoint is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cadence:
    """How often what happens, in steps."""

    total: int  # steps of the whole run
    log: int = 20
    validate: int = 500
    checkpoint: int = 500


def fit(
    state: TrainState,
    *,
    step: Callable[[TrainState, Batch, Hyper], tuple[TrainState, Measures]],
    batches: BatchIterator,
    place: Callable[[Batch], Batch],
    hyper_at: Callable[[int], Hyper],
    validate: Callable[[TrainState], dict[str, Any]],
    checkpoints: Checkpoints,
    log: JsonlLog,
    cadence: Cadence,
    on_log: Callable[[int, dict[str, float]], None] = lambda step, row: None,
    warn: Callable[[str], None] = lambda message: None,
) -> TrainState:
    """Train from `state` to `cadence.total` steps.

    Raises:
      Interrupted: a signal came; a checkpoint was written first.
      Diverged: the loss is NaN or infinite; nothing after the last checkpoint is kept.
      InputError: the disk is full or the run folder not writable.
    """
    done = int(state.step)
    meter = _Meter()
    starved = 0
    with _signals() as received:
        while done < cadence.total:
            with meter.waiting():
                batch = place(next(batches))
            hyper = hyper_at(done)
            state, measures = step(state, batch, hyper)
            done += 1
            meter.add(measures, images=len(batch.valid))
            stopping = bool(received)  # asked once: a signal that comes later waits for the next step
            last = done == cadence.total or stopping
            if done % cadence.log == 0 or done % cadence.checkpoint == 0 or last:
                row = meter.row(done, checkpoints)
                row |= {"learning_rate": float(hyper.learning_rate)} | _numbers(hyper.loss)
                log.write("train", done, **row)
                on_log(done, row)
                starved = starved + 1 if row["keep_rate"] < _STARVED else 0
                if starved == 3:
                    warn(_starving(row["keep_rate"], done))
            if done % cadence.validate == 0 or (done == cadence.total):
                with meter.paused(), _kept(state, batches, checkpoints):
                    log.write("validation", done, **validate(state))
            if done % cadence.checkpoint == 0 or last:
                _check_finite(state, done, checkpoints)
                checkpoints.save(state, batches.get_state())
            if stopping:
                checkpoints.wait()
                raise Interrupted(received[0], done)
    checkpoints.wait()
    return state


class _Meter:
    """Measures and times between two log rows. Values are fetched when a row is made, not before."""

    def __init__(self) -> None:
        self._measures: list[Measures] = []
        self._images = 0
        self._wait = 0.0
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._wait += time.perf_counter() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin

    def add(self, measures: Measures, *, images: int) -> None:
        self._measures.append(measures)
        self._images += images

    def row(self, step: int, checkpoints: Checkpoints) -> dict[str, float]:
        fetched = jax.device_get(self._measures)
        for at, one in enumerate(fetched, start=step - len(fetched) + 1):
            if not math.isfinite(one.loss):
                raise _diverged("loss", at, checkpoints)
        row = jax.tree.map(lambda *sums: sum(map(float, sums)), *fetched).ratios()
        seconds = time.perf_counter() - self._since
        row |= {
            "images_per_second": self._images / seconds,
            "wait_share": min(self._wait / seconds, 1.0),
        }
        self.__init__()
        return row


def _numbers(loss: Any) -> dict[str, float]:
    """The loss's hyper-parameters as logged; `rho` is rho_eff at this step."""
    return {name: float(value) for name, value in loss.items()}


@contextlib.contextmanager
def _kept(state: TrainState, batches: BatchIterator, checkpoints: Checkpoints) -> Iterator[None]:
    """An error inside costs no step: the state is saved first."""
    try:
        yield
    except Exception:
        checkpoints.save(state, batches.get_state())
        checkpoints.wait()
        raise


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in place of dying from them; a second one is let through."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        signal.signal(signum, previous[signum])

    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            previous[signum] = signal.signal(signum, handle)
    except ValueError:  # not the main thread: signals go where Python sends them
        previous.clear()
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _check_finite(state: TrainState, step: int, checkpoints: Checkpoints) -> None:
    """A finite loss may have a gradient that is not: such a state is no checkpoint."""
    finite = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), (state.params, state.stats))
    if not all(jax.device_get(jax.tree.leaves(finite))):
        raise _diverged("model", step, checkpoints)


def _diverged(what: str, step: int, checkpoints: Checkpoints) -> Diverged:
    kept = checkpoints.latest_step
    return Diverged(
        f"the {what} is not finite at step {step}. "
        + (f"The checkpoint of step {kept} is kept. " if kept else "No checkpoint was written yet. ")
        + "Try a lower optimizer.learning_rate, a lower optimizer.clip_norm, or model.dtype=float32."
    )


def _starving(keep_rate: float, step: int) -> str:
    return (
        f"the mask keeps only {keep_rate:.1%} of what is unannotated at step {step}: the model may "
        "call everything foreground. Start with a lower model.prior (0.01 to 0.05), or a schedule whose "
        "rho starts above it (sigmoid)."
    )
