"""Cells -> trained and scored runs. Everything is resumed where it stands; what is finished is only read."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from reproduction.plan import CONFIGS, DATA_SETS, METHODS, RIVALS, SCHEDULES, TNBC, Budget, Cell
from sparseshot_jax import ablate, experiment, sweep
from sparseshot_jax.config import ExperimentConfig, changed_mathematics, load_config, override
from sparseshot_jax.data.cases import whole_window
from sparseshot_jax.errors import InputError
from sparseshot_jax.run import Run
from sparseshot_jax.training.log import read_rows

Seeds = dict[int, dict[str, Any] | None]  # seed -> evaluation; None: the run diverged
Evaluations = dict[tuple[str, str, float], Seeds]  # data, method, share

_CHECKPOINT_EVERY = 500  # steps that a stopped run may lose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named(ablate.Trial):
    """A trial whose folder is called by its cell."""

    label: str

    @property
    def name(self) -> str:
        """METHOD_keepSHARE_seedN, of letters that every file system takes."""
        plain = "".join(letter if letter.isalnum() else "-" for letter in self.label)
        return f"{plain}_keep{self.values['data.keep']}_seed{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Where the data are, where runs go, how much is trained."""

    root: Path
    runs: Path
    budget: Budget
    together: int
    console: Console

    def config(self, name: str, phase: str) -> ExperimentConfig:
        """The shipped config with the budget's changes and those of a phase.

        Raises:
            InputError: where the budget counts epochs: data that are not there.
        """
        data, budget = DATA_SETS[name], self.budget
        config = load_config(CONFIGS / data.config)
        task = budget.detection if config.model.task == "detection" else budget.segmentation
        changes = {**task, **budget.own.get(name, {}), **data.phases[phase]}
        for field, value in {"data.root": str(self.root / data.folder), **changes}.items():
            config = override(config, field, value)
        if budget.epochs is not None:
            steps = round(budget.epochs * _tiles(config) / config.train.batch_size)
            config = override(config, "train.steps", str(steps))
        steps = config.train.steps
        config = override(config, "train.checkpoint_every", str(min(_CHECKPOINT_EVERY, steps)))
        return override(config, "train.validate_every", str(steps))

    def trained(self, cells: Sequence[Cell]) -> None:
        """Every run that the cells need, the runs of one program together.

        Raises:
            InputError: a folder holds a run of another config.
        """
        for name in dict.fromkeys(cell.data for cell in cells):
            own = [cell for cell in cells if cell.data == name]
            for phase in DATA_SETS[name].phases:
                # A phase that only chooses is left to the first seed.
                chooses = phase != DATA_SETS[name].last
                seeds = {"seeds": self.budget.seeds[:1]} if chooses else {}
                self._train(name, phase, [dataclasses.replace(cell, **seeds) for cell in own])

    def _train(self, name: str, phase: str, cells: list[Cell]) -> None:
        config, folder = self.config(name, phase), self.runs / name / phase
        trials = [trial for cell in cells for trial in trials_of(cell, config)]
        check_unchanged(config, trials, folder, recorded=self.rows(name, phase))
        # Before what is done is left out: a call that goes on runs the same groups.
        groups = sweep.grouped(config, trials, sweep.trial_devices(config, self.together))
        before = experiment.compilations()
        progress = _Told(self.console, f"{name}, {phase}", len(trials))
        ablate.run_trials(
            trials,
            sweep.groups_of(groups, functools.partial(sweep.run_group, config, folder=folder)),
            folder / "results.jsonl",
            on_done=progress.done,
        )
        compiled = experiment.compilations() - before
        self.console.print(f"{name}, {phase}: {len(trials)} runs, {compiled} training steps compiled")

    def rows(self, name: str, phase: str) -> dict[str, dict[str, Any]]:
        """Name of a finished trial -> its row, which has "error" where it diverged."""
        results = self.runs / name / phase / "results.jsonl"
        return {row["trial"]: row for row in read_rows(results, ablate.ROW_KEYS)}

    def scored(self, cells: Iterable[Cell]) -> Evaluations:
        """The evaluation of every run on the test images, made where it is not there yet."""
        found: Evaluations = {}
        for cell in cells:
            chosen = functools.cache(functools.partial(self._chosen, cell))
            seeds = {seed: self._scored(cell, seed, chosen) for seed in cell.seeds}
            found[cell.data, cell.method, cell.keep] = seeds
        return found

    def _scored(
        self, cell: Cell, seed: int, chosen: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any] | None:
        run = self.run(cell, seed, DATA_SETS[cell.data].last)
        if run is None:
            return None
        found = run.recorded()
        if found is None:
            self.console.print(f"scoring {run.folder}")
            found = run.evaluate(**chosen())
        return found

    def _chosen(self, cell: Cell) -> dict[str, Any]:
        """Threshold and c from validation images, by the run of the first seed that chose.

        Nothing where each run has validation images of its own, or where the run that chose diverged.
        """
        data = DATA_SETS[cell.data]
        tuned = None if data.last == "choose" else self.run(cell, self.budget.seeds[0], "choose")
        return {} if tuned is None else dict(tuned.carried_from(tuned.splits().validation))

    def run(self, cell: Cell, seed: int, phase: str) -> Run | None:
        """A finished run, scored and measured as the configs say today; None where it diverged."""
        data, config = DATA_SETS[cell.data], self.config(cell.data, phase)
        (trial,) = trials_of(dataclasses.replace(cell, seeds=(seed,)), config)
        if "error" in self.rows(cell.data, phase)[trial.name]:
            return None
        own = sweep.trial_config(config, trial)
        if data.test and phase == data.last:
            own = override(own, "data.test", data.test)
        run = experiment.load(self.runs / cell.data / phase / trial.name)
        return dataclasses.replace(run, config=own)

    def best_rival(self) -> str:
        """The rival that does best at 0.5 on the validation images of TNBC, both tasks alike.

        Raises:
            InputError: not all of them have been trained.
        """
        scores: dict[str, float] = dict.fromkeys(RIVALS, 0.0)
        for name in TNBC:
            config, rows = self.config(name, "choose"), self.rows(name, "choose")
            for method in RIVALS:
                cell = Cell(data=name, method=method, keep=0.3, seeds=self.budget.seeds[:1])
                row = rows.get(trials_of(cell, config)[0].name)
                if row is None:
                    raise InputError(
                        f"figures 4 and 5 show the best rival, which is chosen on validation images, and "
                        f"{method} has not been trained on {name}. Train all with --rivals first, or give "
                        "--rival NAME or --rival none."
                    )
                scores[method] += float("-inf") if "error" in row else row[DATA_SETS[name].measure]
        return max(scores, key=scores.__getitem__)


@functools.lru_cache(maxsize=16)
def _tiles(config: ExperimentConfig) -> int:
    """Training tiles of an epoch: as many as the images hold side by side, overlaps not counted."""
    wholes = [whole_window(case, config.tiles.mpp) for case in sweep.splits_of(config).train]
    return sum(max(1, round(one.width * one.height / config.tiles.tile_px**2)) for one in wholes)


def check_unchanged(
    config: ExperimentConfig,
    trials: Iterable[ablate.Trial],
    folder: Path,
    *,
    recorded: Mapping[str, Any],
) -> None:
    """Refuse to take runs of other configs for these trials.

    Raises:
        InputError: names the folder, and the fields that differ.
    """
    for trial in trials:
        place = folder / trial.name
        if not (place / "config.json").is_file():
            if trial.name in recorded:
                raise InputError(
                    f"{folder / 'results.jsonl'} has a row of {trial.name}, and {place} holds no run. Put it "
                    "back, remove that row, or give another folder with --runs."
                )
            continue
        changes = changed_mathematics(load_config(place / "config.json"), sweep.trial_config(config, trial))
        if changes:
            raise InputError(
                f"{place} holds a run of another config: {'; '.join(changes)}. Remove it and its row in "
                f"{folder / 'results.jsonl'}, or give another folder with --runs."
            )


def trials_of(cell: Cell, config: ExperimentConfig) -> list[Named]:
    """A trial a seed. A method that asks for the weight of the config's own loss is given its decision."""
    decision = str(getattr(config.loss, "decision", 0.5))
    changes = (METHODS | SCHEDULES)[cell.method]
    values = {field: value.replace("{decision}", decision) for field, value in changes.items()}
    values = {"data.keep": str(cell.keep), **values}
    return [Named(label=cell.method, values=values, seed=seed) for seed in cell.seeds]


def merged(cells: Iterable[Cell]) -> list[Cell]:
    """The cells, each method and share once, with the seeds of all that ask for it."""
    seeds: dict[tuple[str, str, float], set[int]] = {}
    for cell in cells:
        seeds.setdefault((cell.data, cell.method, cell.keep), set()).update(cell.seeds)
    return [
        Cell(data=data, method=method, keep=keep, seeds=tuple(sorted(some)))
        for (data, method, keep), some in seeds.items()
    ]


class _Told:
    """A line for every finished run."""

    def __init__(self, console: Console, title: str, total: int):
        self._console, self._title, self._total, self._count = console, title, total, 0

    def done(self, trial: ablate.Trial, row: Mapping[str, Any]) -> None:
        """A run is there."""
        self._count += 1
        measure = row.get("error") or row.get("f1_distance", row.get("dice_image", row.get("train_loss")))
        self._console.print(f"{self._title} {self._count}/{self._total}: {trial.name} {measure}")


def only(found: Evaluations, cells: Iterable[Cell]) -> Evaluations:
    """The evaluations of these cells, and of their seeds: a table is the same whatever else is made."""
    return {
        (cell.data, cell.method, cell.keep): {
            seed: found[cell.data, cell.method, cell.keep][seed] for seed in cell.seeds
        }
        for cell in cells
    }


def pairs(found: Evaluations, data: str, method: str) -> Iterator[tuple[float, Seeds]]:
    """Share and evaluations of a method on a data set, by share."""
    keys = sorted(key for key in found if key[:2] == (data, method))
    return ((key[2], found[key]) for key in keys)
