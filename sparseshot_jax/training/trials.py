"""Several runs at once, one a device, in lock-step through one compiled program.

The program is the plain step of one device under `shard_map` over an axis "trial": no convolution is
vmapped (that would make grouped ones, which are slow), and no device hears of another. States and
hyper-parameters lie along a leading axis, element d on device d; batches one behind the other.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparseshot_jax.training.loop import Interrupted
from sparseshot_jax.training.processes import Stop
from sparseshot_jax.training.recorder import Diverged, Recorder
from sparseshot_jax.types import Batch, Hyper, Measures, TrainState

Step = Callable[[TrainState, Batch, Hyper], tuple[TrainState, Measures]]
_AXIS = PartitionSpec("trial")


@dataclasses.dataclass(frozen=True)
class TrialLayout:
    """The devices of the trials. Hashable: a program is compiled once for each."""

    mesh: Mesh

    @property
    def devices(self) -> list[Any]:
        """Device d is that of trial d."""
        return list(self.mesh.devices)

    @property
    def sharding(self) -> NamedSharding:
        """The leading axis over the trials."""
        return NamedSharding(self.mesh, _AXIS)

    def program(self, step: Step) -> Callable[..., Any]:
        """Jitted (states, batches, hypers) -> (states, measures) of all trials; the states are donated."""

        def one(state: TrainState, batch: Batch, hyper: Hyper) -> tuple[TrainState, Measures]:
            state, hyper = jax.tree.map(lambda leaf: leaf[0], (state, hyper))
            return jax.tree.map(lambda leaf: leaf[None], step(state, batch, hyper))

        # Nothing is exchanged, so there is nothing about replication to check.
        mapped = jax.shard_map(one, mesh=self.mesh, in_specs=_AXIS, out_specs=_AXIS, check_vma=False)
        return jax.jit(
            mapped, donate_argnums=0, in_shardings=(self.sharding,) * 3, out_shardings=self.sharding
        )

    def stacked(self, states: Iterable[TrainState]) -> TrainState:
        """The states along a leading axis; they are donated. A device too many starts from the first one's.

        A state comes from wherever it is, not through the host; the next is asked for when it has gone.
        """
        parts = []
        for state, device in zip(states, self.devices):
            parts.append(jax.device_put(_with_axis(state), device))
        parts += [jax.device_put(parts[0], device) for device in self.devices[len(parts) :]]
        return self._joined(parts)

    def joined(self, batches: Sequence[Batch]) -> Batch:
        """The batches one behind the other; batch d lies on device d."""
        return self._joined(batches)

    def state_of(self, states: TrainState, trial: int) -> TrainState:
        """The state of one trial, brought to the first device.

        Whatever is done with single states is compiled for that device alone, once for all trials.
        """
        return _without_axis(jax.device_put(self._part(states, trial), self.devices[0]))

    def measures_of(self, measures: Measures, trial: int) -> Measures:
        """The measures of one trial, each an array of one number on its device."""
        return self._part(measures, trial)

    def _joined(self, parts: Sequence[Any]) -> Any:
        def join(*leaves: jax.Array) -> jax.Array:
            shape = (len(leaves) * leaves[0].shape[0], *leaves[0].shape[1:])
            shards = [leaf.addressable_shards[0].data for leaf in leaves]
            return jax.make_array_from_single_device_arrays(shape, self.sharding, shards)

        return jax.tree.map(join, *parts)

    def _part(self, tree: Any, trial: int) -> Any:
        device = self.devices[trial]
        return jax.tree.map(
            lambda leaf: next(shard.data for shard in leaf.addressable_shards if shard.device == device), tree
        )


def make_trial_layout(devices: Sequence[Any]) -> TrialLayout:
    """One trial on each of this process's `devices`."""
    return TrialLayout(Mesh(np.array(devices), ("trial",), axis_types=(AxisType.Auto,)))


@jax.jit
def _without_axis(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _add_axis(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], tree)


_with_axis = jax.jit(_add_axis, donate_argnums=0)


def fit_trials(
    states: Iterable[TrainState],
    runs: Sequence[Recorder],
    *,
    layout: TrialLayout,
    step: Callable[..., Any],
    stop: Stop | None = None,
) -> dict[int, Diverged]:
    """Train every run to its own last step, one step of all at a time.

    Runs may stand at different steps and end at different ones: each counts its own, and is told its own
    hyper-parameters. What a device computes whose run has ended is thrown away.

    Args:
        states: of the runs, in their order.
        runs: at most as many as the layout has devices; their batches are on their devices.
        layout: which trial where.
        step: `layout.program` of the step they share.
        stop: what is asked whether to stop.

    Returns:
        The runs that diverged, by number, and why; the others went on without them.

    Raises:
        Interrupted: a signal came; a checkpoint of every run was written first.
        InputError: data or a folder of one run is bad; the runs go on from their last checkpoints.
    """
    stacked = layout.stacked(states)
    running = {trial: run for trial, run in enumerate(runs) if not run.finished}
    given: dict[int, tuple[Batch, Hyper]] = {}
    failures: dict[int, Diverged] = {}
    stop, rounds = stop or Stop(), 0
    with stop:
        while running:
            given |= {trial: run.inputs() for trial, run in running.items()}
            stacked, measures = step(stacked, *_gathered(given, layout))
            rounds += 1
            signum = stop.at(rounds)
            for trial, run in list(running.items()):
                try:
                    run.record(
                        layout.measures_of(measures, trial),
                        lambda states=stacked, trial=trial: layout.state_of(states, trial),
                        stopping=signum is not None,
                    )
                except Diverged as error:
                    failures[trial] = error
                if trial in failures or run.finished:
                    del running[trial]
            if signum is not None:
                _wait(runs)
                raise Interrupted(signum, min((run.done for run in running.values()), default=runs[0].done))
    _wait(runs)
    return failures


def _gathered(given: dict[int, tuple[Batch, Hyper]], layout: TrialLayout) -> tuple[Batch, Hyper]:
    """What every device is given: its own last batch, or where it never had one a copy of another's."""
    some, hyper = next(iter(given.values()))
    for trial, device in enumerate(layout.devices):
        if trial not in given:
            given[trial] = (jax.device_put(some, device), hyper)
    batches, hypers = zip(*(given[trial] for trial in range(len(layout.devices))))
    return layout.joined(batches), jax.tree.map(lambda *numbers: np.stack(numbers), *hypers)


def _wait(runs: Sequence[Recorder]) -> None:
    """Until the checkpoints that were begun are on disk."""
    for run in runs:
        run.wait()
