"""What is written of one run while it trains: log rows, warnings, validation rows, checkpoints.

A `Recorder` knows neither the step nor the other runs: `loop.fit` drives one of them, `trials.fit_trials`
several in lock-step, and what happens to a run is the same.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from sparseshot_jax.errors import InputError
from sparseshot_jax.training import processes
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.types import Batch, Hyper, Measures, TrainState

# Below this share of kept background the mask starves the model.
_STARVED = 0.02


@runtime_checkable
class PlacedBatches(Protocol):
    """Batches in a fixed order, on the devices already, with a position that a checkpoint can hold."""

    def next(self) -> tuple[Batch, int]:
        """The next batch, and how many tiles it has over all processes."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Where it stands after the last batch that was given out, as JSON values."""
        ...


@runtime_checkable
class Log(Protocol):
    """Where rows go; `NoLog` in the processes that write none."""

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one row."""
        ...

    def flush(self) -> None:
        """Until all rows are kept."""
        ...


class NoLog:
    """Takes rows and writes nothing."""

    def write(self, event: str, step: int, **values: Any) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


class Diverged(InputError):
    """The loss is not finite any more; the last good checkpoint is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cadence:
    """How often what happens, in steps."""

    total: int  # steps of the whole run
    log: int = 20
    validate: int = 500
    checkpoint: int = 500


class Clock:
    """Seconds of training: it stands still while somebody validates."""

    def __init__(self) -> None:
        self._left_out = 0.0

    def __call__(self) -> float:
        """Seconds, from anywhere."""
        return time.perf_counter() - self._left_out

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        begin = time.perf_counter()
        yield
        self._left_out += time.perf_counter() - begin


class Recorder:
    """How far one run is, what its next step is told, and all that is written of it.

    Every process of a job has one and calls it at the same steps: saving and validating are work of all.
    """

    def __init__(
        self,
        *,
        done: int,
        batches: PlacedBatches,
        hyper_at: Callable[[int], Hyper],
        validate: Callable[[TrainState], dict[str, Any]],
        checkpoints: Checkpoints,
        log: Log,
        cadence: Cadence,
        on_log: Callable[[int, dict[str, float]], None] = lambda step, row: None,
        warn: Callable[[str], None] = lambda message: None,
        clock: Clock | None = None,
    ):
        """`done`: steps that its state has behind it. `clock`: shared by runs that wait for each other."""
        self.done = done
        self._batches, self._hyper_at = batches, hyper_at
        self._validate, self._checkpoints = validate, checkpoints
        self._log, self._cadence = log, cadence
        self._on_log, self._warn = on_log, warn
        self._clock = clock or Clock()
        self._meter = _Meter(self._clock)
        self._starved = 0

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self._cadence.total

    def inputs(self) -> tuple[Batch, Hyper]:
        """What the next step is given; the time until the batch is there is logged as waiting."""
        with self._meter.waiting():
            batch, self._images = self._batches.next()
        self._hyper = self._hyper_at(self.done)
        return batch, self._hyper

    def record(self, measures: Measures, state: Callable[[], TrainState], *, stopping: bool = False) -> None:
        """Write what is due after one more step.

        Args:
            measures: of the step; each a single number, replicated, fetched only when a row is due.
            state: gives the state after it; called where it is needed.
            stopping: there will be no other step: a row and a checkpoint are due.

        Raises:
            Diverged: the loss or the model is NaN or infinite; nothing after the last checkpoint is kept.
            InputError: the disk is full or the run folder not writable.
        """
        self.done += 1
        self._meter.add(measures, images=self._images)
        done, every = self.done, self._cadence
        saving = done % every.checkpoint == 0 or self.finished or stopping
        if done % every.log == 0 or saving:
            self._write_row()
        if stopping:  # who asks to stop may not wait for a validation
            self._save(state)
        if done % every.validate == 0 or self.finished:
            with self._clock.paused():
                with self._kept(state):
                    row = self._validate(state())
                self._log.write("validation", done, **row)
        if saving and not stopping:
            self._save(state)

    def _save(self, state: Callable[[], TrainState]) -> None:
        """Begin a checkpoint of this step."""
        whole = state()
        if not bool(_all_finite((whole.params, whole.stats))):
            raise self._diverged("model", self.done)
        self._log.flush()
        self._checkpoints.save(whole, self._batches.get_state())

    def wait(self) -> None:
        """Until the checkpoint that was begun is on disk."""
        self._checkpoints.wait()

    def _write_row(self) -> None:
        fetched = self._meter.fetch()
        for at, one in enumerate(fetched, start=self.done - len(fetched) + 1):
            if not math.isfinite(one.loss):
                raise self._diverged("loss", at)
        row = self._meter.row(fetched)
        row |= {"learning_rate": float(self._hyper.learning_rate)} | _numbers(self._hyper.loss)
        self._log.write("train", self.done, **row)
        self._on_log(self.done, row)
        self._starved = self._starved + 1 if row["keep_rate"] < _STARVED else 0
        if self._starved == 3:
            self._warn(_starving(row["keep_rate"], self.done))

    @contextlib.contextmanager
    def _kept(self, state: Callable[[], TrainState]) -> Iterator[None]:
        """An error inside costs no step: the state is saved first.

        Not in a job of many processes: the others may know of no error, and a save needs all of them.
        """
        try:
            yield
        except Exception:
            if processes.joined():
                raise
            self._checkpoints.save(state(), self._batches.get_state())
            self._checkpoints.wait()
            raise

    def _diverged(self, what: str, step: int) -> Diverged:
        kept = self._checkpoints.latest_step
        return Diverged(
            f"the {what} is not finite at step {step}. "
            + (f"The checkpoint of step {kept} is kept. " if kept else "No checkpoint was written yet. ")
            + "Try a lower optimizer.learning_rate, a lower optimizer.clip_norm, or model.dtype=float32."
        )


class _Meter:
    """Measures and times between two log rows. Values are fetched when a row is made, not before."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._restart()

    def _restart(self) -> None:
        self._measures: list[Measures] = []
        self._images = 0
        self._wait = 0.0
        self._since = self._clock()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        begin = self._clock()
        yield
        self._wait += self._clock() - begin

    def add(self, measures: Measures, *, images: int) -> None:
        self._measures.append(measures)
        self._images += images

    def fetch(self) -> list[Measures]:
        """The steps' measures as numbers, oldest first."""
        return jax.tree.map(lambda leaf: leaf.item(), jax.device_get(self._measures))

    def row(self, fetched: list[Measures]) -> dict[str, float]:
        """Means over `fetched`, speed and waiting since the last row; begins the next."""
        row = jax.tree.map(lambda *sums: sum(sums), *fetched).ratios()
        seconds = self._clock() - self._since
        row |= {
            "images_per_second": self._images / seconds,
            "wait_share": min(self._wait / seconds, 1.0),
        }
        self._restart()
        return row


@jax.jit
def _all_finite(tree: Any) -> Bool[Array, ""]:
    """A finite loss may have a gradient that is not: such a state is no checkpoint.

    One program, so that its one number can be fetched in every process of a job.
    """
    finite = (jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
    return functools.reduce(jnp.logical_and, finite, jnp.array(True))


def _numbers(loss: Any) -> dict[str, float]:
    """The loss's hyper-parameters as logged; `rho` is rho_eff at this step."""
    return {name: float(value) for name, value in loss.items()}


def _starving(keep_rate: float, step: int) -> str:
    return (
        f"the mask keeps only {keep_rate:.1%} of what is unannotated at step {step}: the model may "
        "call everything foreground. Start with a lower model.prior (0.01 to 0.05), or a schedule whose "
        "rho starts above it (sigmoid)."
    )
