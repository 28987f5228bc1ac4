"""The order of events: batch, step, log, evaluate, checkpoint. It receives callables and knows no loss."""

import signal
from collections.abc import Callable

from sparseshot_jax.training.processes import Stop
from sparseshot_jax.training.recorder import Cadence as Cadence
from sparseshot_jax.training.recorder import Diverged as Diverged
from sparseshot_jax.training.recorder import Recorder
from sparseshot_jax.types import Batch, Hyper, Measures, TrainState


class Interrupted(Exception):
    """SIGTERM or Ctrl-C came; the state was saved."""

    def __init__(self, signum: int, step: int):
        self.signum, self.step = signum, step
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}; state saved")


def fit(
    state: TrainState,
    run: Recorder,
    *,
    step: Callable[[TrainState, Batch, Hyper], tuple[TrainState, Measures]],
    stop: Stop | None = None,
) -> TrainState:
    """Train from `state` to the last step of `run`.

    In a job of many processes every one calls it; only the lead's recorder has a log that writes.

    Raises:
      Interrupted: a signal came; a checkpoint was written first. In every process at the same step.
      Diverged: the loss is NaN or infinite; nothing after the last checkpoint is kept.
      InputError: the disk is full or the run folder not writable.
    """
    stop = stop or Stop()
    with stop:
        while not run.finished:
            batch, hyper = run.inputs()
            state, measures = step(state, batch, hyper)
            # Asked once: a signal that comes later waits for the next step.
            signum = stop.at(run.done + 1)
            run.record(measures, lambda state=state: state, stopping=signum is not None)
            if signum is not None:
                run.wait()
                raise Interrupted(signum, run.done)
    run.wait()
    return state
