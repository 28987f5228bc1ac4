"""Trials of a sweep, each in its own run folder: one after another, or one a device in lock-step."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from sparseshot_jax import rounds
from sparseshot_jax.ablate import Trial
from sparseshot_jax.config import ExperimentConfig, override
from sparseshot_jax.data.cases import Source, Splits
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.experiment import Reporter, layout_of, opened
from sparseshot_jax.losses import Remembers
from sparseshot_jax.programs import form_of, trials_program
from sparseshot_jax.run import load
from sparseshot_jax.run_folder import folder_path
from sparseshot_jax.training import loop, sharding
from sparseshot_jax.training.recorder import Clock
from sparseshot_jax.training.trials import fit_trials, make_trial_layout
from sparseshot_jax.trial_scores import Scoring, score

ReporterOf = Callable[[str], Reporter]  # by the trial's name


def trial_config(config: ExperimentConfig, trial: Trial) -> ExperimentConfig:
    """The config of one trial.

    Raises:
        InputError: a field that is not there, or a value that it cannot hold.
    """
    # A kind ("loss") begins from its defaults: it comes before its fields ("loss.alpha").
    for field in sorted(trial.values, key=lambda field: "." in field):
        try:
            config = override(config, field, trial.values[field])
        except InputError as error:
            raise InputError(f"trial {trial.name}: {error}") from error
    return dataclasses.replace(config, seed=trial.seed, name=trial.name)


def trial_devices(config: ExperimentConfig, together: int) -> list[Any]:
    """The devices that train a trial each; one stands for "one trial after another, over all devices".

    Args:
        config: of the sweep. A trial whose state or tiles are split over devices needs them all.
        together: trials at once; 0: as many as there are devices.

    Raises:
        InputError: more trials than devices, or a sweep in a job of many processes.
    """
    if jax.process_count() > 1:
        raise InputError(
            f"a sweep runs in one process, over its own devices; this job has {jax.process_count()}. Start "
            "one process, or give each a sweep of its own with --out and other values of --grid or --seeds."
        )
    devices, mesh = jax.local_devices(), config.train.mesh
    if not 0 <= together <= len(devices):
        raise InputError(
            f"--together must be 0 (all devices) or at most {len(devices)}, which JAX sees; got {together}."
        )
    if (mesh.fsdp, mesh.space) != (1, 1) or mesh.data not in (-1, 1):
        if together > 1:
            raise InputError(
                f"--together {together} gives each trial one device, and train.mesh asks for several. Leave "
                "one of them out."
            )
        return devices[:1]
    return devices[: together or len(devices)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Trials that train at once, and their devices: one a trial and perhaps one too many, or none named,
    and the one trial has them all."""

    trials: tuple[Trial, ...]
    devices: tuple[Any, ...] = ()


def grouped(config: ExperimentConfig, trials: Sequence[Trial], devices: Sequence[Any]) -> list[Group]:
    """The trials in groups that one program trains, as few as the devices allow and about equally large.

    Raises:
        InputError: a value that no config can hold, or a batch that the devices cannot split.
    """
    alike: dict[Any, list[Trial]] = {}
    for trial in trials:
        alike.setdefault(_form(trial_config(config, trial)), []).append(trial)
    found = []
    for members in alike.values():
        own = trial_config(config, members[0])
        size = _size(own, len(members), len(devices))
        if size == 1:
            layout_of(own)
        # All groups of a form have as many devices: they share a compilation.
        used = tuple(devices[:size]) if size > 1 else ()
        for at in range(0, len(members), size):
            found.append(Group(trials=tuple(members[at : at + size]), devices=used))
    return found


def left_of(groups: Sequence[Group], rest: Collection[Trial]) -> list[Group]:
    """What of the groups is still to be run, each on all of its devices.

    A sweep that goes on runs the programs of one that was never stopped, and gets its numbers.
    """
    names = {trial.name for trial in rest}
    left = [tuple(trial for trial in group.trials if trial.name in names) for group in groups]
    return [dataclasses.replace(group, trials=some) for group, some in zip(groups, left) if some]


def groups_of(
    groups: Sequence[Group], rows_of: Callable[[Group], Iterable[Mapping[str, Any]]]
) -> Callable[[list[Trial]], Iterator[tuple[Sequence[Trial], Iterable[Mapping[str, Any]]]]]:
    """What `ablate.run_trials` asks for: trials still to be run -> their groups, each with its rows.

    Args:
        groups: of all trials, those that are done too.
        rows_of: trains and scores a group; called when its turn comes.
    """
    return lambda rest: ((group.trials, rows_of(group)) for group in left_of(groups, rest))


def programs_expected(config: ExperimentConfig, groups: Sequence[Group]) -> int:
    """How many training steps the groups compile: one for each form and set of devices."""
    configs = [trial_config(config, group.trials[0]) for group in groups]
    return len({(_form(own), group.devices) for own, group in zip(configs, groups)})


def _form(own: ExperimentConfig) -> Any:
    """Equal for trials that one compiled program trains."""
    # Beside the form, what decides the shapes of a state and of a batch, and where they lie.
    shapes = (own.train.ema_decay > 0, own.train.batch_size, own.tiles.tile_px, own.train.mesh)
    # A memory is as large as the training cases, however few of their objects are marked.
    cases = (_whole(own.data), own.tiles.mpp) if isinstance(own.loss, Remembers) else ()
    return (form_of(own), *shapes, *cases, _alone(own))


def _whole(data: Any) -> Any:
    shares = {name: 1.0 for name in ("keep", "train_keep") if hasattr(data, name)}
    return dataclasses.replace(data, **shares) if shares else data


def _size(own: ExperimentConfig, members: int, devices: int) -> int:
    """Trials of a form in a group."""
    return 1 if _alone(own) else -(-members // -(-members // devices))


def _alone(own: ExperimentConfig) -> bool:
    """Whether a trial has more to do than one training, and no other can keep step with it."""
    return own.relabel.rounds > 0


def run_group(
    config: ExperimentConfig,
    group: Group,
    folder: epath.PathLike,
    *,
    reporter_of: ReporterOf = lambda name: Reporter(),
    scoring: Scoring | None = None,
) -> Iterator[dict[str, Any]]:
    """Train and score the trials of a group in `folder`/NAME; gives the row of each as it is there.

    A trial's folder is that of the same config trained alone.

    Yields:
        `trial_scores.score` of each trial; {"error": why} of one that diverged.

    Raises:
        InputError: bad data, a folder that cannot be written.
        loop.Interrupted: a signal came; every trial's state is saved.
    """
    folder = folder_path(folder)
    if not group.devices:
        for trial in group.trials:
            yield run_trial(config, trial, folder, reporter=reporter_of(trial.name), scoring=scoring)
        return
    configs = [trial_config(config, trial) for trial in group.trials]
    failures = _train_together(configs, folder, group.devices, reporter_of)
    for at, own in enumerate(configs):
        if at in failures:
            yield {"error": failures[at]}
        else:
            yield score(load(folder / own.name), splits_of(own), scoring)


def run_trial(
    config: ExperimentConfig,
    trial: Trial,
    folder: epath.PathLike,
    *,
    reporter: Reporter | None = None,
    scoring: Scoring | None = None,
) -> dict[str, Any]:
    """Train and score one trial over all devices; returns what `run_group` yields."""
    config = trial_config(config, trial)
    splits = splits_of(config)
    try:
        place = folder_path(folder) / trial.name
        run = rounds.train(config, place, extend=None, splits=splits, reporter=reporter)
    except loop.Diverged as error:
        return {"error": str(error)}
    return score(run, splits, scoring)


def _train_together(
    configs: Sequence[ExperimentConfig],
    folder: epath.Path,
    devices: Sequence[Any],
    reporter_of: ReporterOf,
) -> dict[int, str]:
    """Each config to its last step in `folder`/NAME; those that diverged, by number, and why."""
    layout, clock = make_trial_layout(devices), Clock()
    with contextlib.ExitStack() as stack:
        states, runs = [], []
        for config, device in zip(configs, devices):
            own = sharding.make_layout(devices=[device])
            sharding.check_batch_size(config.train.batch_size, own, config.train.micro_batches)
            run = opened(
                config,
                folder / config.name,
                own,
                extend=None,
                splits=splits_of(config),
                reporter=reporter_of(config.name),
                clock=clock,
            )
            state, recorder = stack.enter_context(run)
            states.append(state)
            runs.append(recorder)
        step = trials_program(form_of(configs[0]), layout)
        failures = fit_trials(states, runs, layout=layout, step=step)
    return {at: str(error) for at, error in failures.items()}


def splits_of(config: ExperimentConfig) -> Splits:
    """The data of a trial."""
    return _splits(config.data, config.labels, config.seed)


@functools.lru_cache(maxsize=16)  # shares x seeds, which follow each other in a grid
def _splits(data: Source, labels: LabelSpec, seed: int) -> Splits:
    """The trials of a sweep that share their data read it once."""
    return data.load(labels, seed)
