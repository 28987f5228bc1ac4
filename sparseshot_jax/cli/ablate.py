"""The verb on many runs: ablate."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import tyro

from sparseshot_jax.cli.arguments import config_path, config_with, options_of, stoppable
from sparseshot_jax.cli.show import show_rows, show_spread
from sparseshot_jax.console import CONSOLE, say
from sparseshot_jax.errors import InputError

_Axes = tyro.conf.UseAppendAction[tuple[str, ...]]
# Fields of the config that every trial has of its own.
_OWNED = {"seed": "--seeds", "name": "the values of each trial, and the folder by --out"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablate:
    """Train many settings of a config through steps compiled once, compare them, and choose.

    Settings come from --grid, --random or --optuna; each may be repeated, a field a time. --grid and --random
    together: every combination of the grid with every draw.
    """

    grid: _Axes = ()  # FIELD=VALUE,VALUE: every combination
    random: _Axes = ()  # FIELD=LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int or A,B,C: --trials settings drawn
    optuna: _Axes = ()  # the same, proposed by optuna from what was found (pip install optuna)
    trials: int | None = None  # settings of --random or --optuna; 20 where not given
    search_seed: int | None = None  # of --random and --optuna; 0 where not given
    seeds: tuple[int, ...] = (0,)  # every setting runs once a seed
    set: _Axes = ()  # FIELD=VALUE for all trials
    out: str | None = None  # folder of the sweep, also gs:// or s3://; else runs/NAME_ablation
    together: int = 0  # trials at once, a device each; 0: all devices; 1: one by one over all devices
    # Dense or sparse marks of the validation images decide; both are measured, and how far they agree is
    # told. None: dense truth where there is any, and nothing else is measured.
    choose_by: Literal["dense", "sparse"] | None = None
    # On dense validation images, to choose by or to compare a sparse choice with; dice_pooled or f1_distance
    # where not given.
    measure: str = ""
    score: Literal["validation", "test"] = "validation"  # test: the test part too; look once, at the end

    def __post_init__(self) -> None:
        from sparseshot_jax.ablate import check_once

        if self.optuna and (self.grid or self.random):
            raise InputError(
                "--optuna proposes whole settings, so it takes no --grid and no --random beside it. Give "
                "their fields to --optuna: FIELD=A,B,C."
            )
        for option in ("trials", "search_seed"):
            if getattr(self, option) is not None and not (self.random or self.optuna):
                raise InputError(
                    f"--{option.replace('_', '-')} is of settings that are searched, and neither --random "
                    "nor --optuna is given. Give one of them, or leave it out."
                )
        if self.trials is not None and self.trials < 1:
            raise InputError(f"--trials must be at least 1; got {self.trials}. Try 20.")
        if not self.seeds:
            raise InputError("--seeds must name at least one; got none. Try 0 1 2.")
        check_once([str(seed) for seed in self.seeds], "--seeds")
        fields = {text.partition("=")[0] for text in (*self.grid, *self.random, *self.optuna, *self.set)}
        for field, owner in _OWNED.items():
            if field in fields:
                raise InputError(
                    f"{field} is set by {owner}; leave it out of --grid, --random, --optuna and --set."
                )

    @property
    def count(self) -> int:
        """Settings of a search."""
        return 20 if self.trials is None else self.trials


def ablate(arguments: list[str]) -> None:
    """`sparseshot ablate ...`."""
    from sparseshot_jax import run_folder, sweep
    from sparseshot_jax.ablate import check_once
    from sparseshot_jax.console import sweep_progress
    from sparseshot_jax.experiment import compilations

    path, rest = config_path(arguments, "ablate", fields="for --grid, --random, --optuna and --set")
    chosen = options_of(Ablate, path, rest, "ablate")
    config = config_with(path, chosen.set)
    known = _known_trials(chosen)
    check_once([trial.name for trial in known], "the trials of the sweep")
    devices = sweep.trial_devices(config, chosen.together)
    # A value that no config can hold is found before the first one trains.
    sweep.grouped(config, known, devices)
    folder = run_folder.folder_path(chosen.out or f"runs/{config.name}_ablation")
    # Rows of another config are no answer.
    run_folder.check_folder(folder, config, extend=None, option="--out")
    _check_choice([sweep.trial_config(config, trial) for trial in known], chosen)
    run_folder.record_config(folder, config)
    before = compilations()
    expected = config.train.steps * chosen.count * len(chosen.seeds) if chosen.optuna else 0
    with stoppable(), sweep_progress(config.name, {}, expected=expected) as progress:
        running = _Running(config=config, chosen=chosen, folder=folder, devices=devices, progress=progress)
        trials, rows = running.search() if chosen.optuna else (known, running.run(known))
    fields = list(dict.fromkeys(field for trial in trials for field in trial.values))
    _tell(trials, rows, fields, chosen)
    _conclude(rows, fields, chosen, folder, config.name)
    wanted, made = sweep.programs_expected(config, running.groups), compilations() - before
    say(
        f"{made} training step{'s' * (made != 1)} compiled for {len(trials)} trials; "
        f"at most {wanted} expected, one for each form and set of devices"
    )
    say(folder / "results.jsonl")


@dataclasses.dataclass(kw_only=True, eq=False)
class _Running:
    """A sweep under way."""

    config: Any
    chosen: Ablate
    folder: Any
    devices: Sequence[Any]
    progress: Any
    groups: list[Any] = dataclasses.field(default_factory=list)  # those that ran in this call

    def run(self, trials: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows of the trials; those that results.jsonl holds are not run."""
        from sparseshot_jax import ablate, sweep
        from sparseshot_jax.trial_scores import Scoring

        scoring = Scoring(sparse=self.chosen.choose_by is not None, test=self.chosen.score == "test")
        groups = sweep.grouped(self.config, trials, self.devices)
        self.progress.add({t.name: sweep.trial_config(self.config, t).train.steps for t in trials})

        def rows_of(group: Any) -> Iterator[Mapping[str, Any]]:
            self.groups.append(group)
            options = {"reporter_of": self.progress.reporter_of, "scoring": scoring}
            return sweep.run_group(self.config, group, self.folder, **options)

        return ablate.run_trials(
            trials,
            sweep.groups_of(groups, rows_of),
            self.folder / "results.jsonl",
            on_done=lambda trial, row: self.progress.done(trial.name, row),
            complete=scoring.complete,
        )

    def search(self) -> tuple[list[Any], list[Mapping[str, Any]]]:
        """The trials that optuna proposes, and their rows."""
        from sparseshot_jax import search

        axes = search.axes_of(self.chosen.optuna)
        proposals = search.Proposals(axes, seed=self.chosen.search_seed or 0)
        return search.run_search(
            proposals,
            count=self.chosen.count,
            batch=_recorded_batch(self.folder, self.chosen, len(self.devices)),
            seeds=self.chosen.seeds,
            run=self.run,
            value_of=lambda row: _value(row, self.chosen),
        )


def _known_trials(chosen: Ablate) -> list[Any]:
    """The trials of a grid, of random draws or of both; of --optuna the corners of what it may propose."""
    from sparseshot_jax import ablate, search

    if chosen.optuna:
        corners = search.corners(search.axes_of(chosen.optuna))
        return [ablate.Trial(values=values, seed=chosen.seeds[0]) for values in corners]
    trials = ablate.grid(chosen.grid, chosen.seeds)
    if not chosen.random:
        return trials
    axes = search.axes_of(chosen.random)
    gridded = dict.fromkeys(field for trial in trials for field in trial.values)
    ablate.check_once([*gridded, *(axis.field for axis in axes)], "--grid and --random")
    drawn = search.random_settings(axes, chosen.count, seed=chosen.search_seed or 0)
    return [
        ablate.Trial(values={**trial.values, **values}, seed=trial.seed)
        for values in drawn
        for trial in trials
    ]


def _check_choice(configs: Sequence[Any], chosen: Ablate) -> None:
    """Refuse, before anything is written, what the images cannot decide; the first trial's are read.

    Raises:
        InputError: says what is missing.
    """
    from sparseshot_jax import choice, search, sweep
    from sparseshot_jax.evaluate import by_truth

    if chosen.measure:
        choice.check_measure(chosen.measure, {config.model.task for config in configs})
    if chosen.optuna:
        search.optuna_version()
    searched = chosen.optuna or chosen.choose_by is not None
    if not (searched or chosen.measure or chosen.score == "test"):
        return
    splits = sweep.splits_of(configs[0])
    dense, sparse = by_truth(splits.validation)
    if searched and not dense and not sparse:
        raise InputError(
            "--optuna and --choose-by need validation images; data.validation names none. Give some with "
            "--set data.validation=PATTERN."
        )
    wanted = "--choose-by dense" if chosen.choose_by == "dense" else "--measure" if chosen.measure else ""
    if wanted and not dense:
        raise InputError(
            f"{wanted} needs validation images with dense truth; here there is none. Give some, or choose by "
            "sparse marks: --choose-by sparse, without --measure."
        )
    if chosen.score == "test" and not splits.test:
        raise InputError(
            "--score test needs test images; data.test names none. Give some with --set data.test=PATTERN, "
            "or leave --score out."
        )


def _recorded_batch(folder: Any, chosen: Ablate, devices: int) -> int:
    """Settings proposed at once, as search.json has it from the first call.

    Raises:
        InputError: the folder holds a search of other axes, seeds or measure, or by another optuna.
    """
    from sparseshot_jax import search
    from sparseshot_jax.run_folder import read_json, write_json

    asked = {
        "optuna": list(chosen.optuna),
        "search_seed": chosen.search_seed or 0,
        "seeds": list(chosen.seeds),
        "choose_by": chosen.choose_by,
        "measure": chosen.measure,
        "optuna_version": search.optuna_version(),
    }
    path = folder / "search.json"
    held = read_json(path)
    if held is None:
        held = asked | {"batch": max(1, devices // len(chosen.seeds))}
        write_json(path, held)
    changed = [
        f"{name}: {held[name]} -> {asked[name]}"
        for name in asked
        if held.get(name, asked[name]) != asked[name]
    ]
    if changed:
        raise InputError(
            f"{folder} holds another search: {'; '.join(changed)}. Its trials followed from what was found "
            "so far: give these their old values (of optuna: install that version), or name another folder "
            "with --out."
        )
    return held["batch"]


def _value(row: Mapping[str, Any], chosen: Ablate) -> float | None:
    """What a search is told of a trial."""
    from sparseshot_jax.choice import SPARSE, dense_measure

    if "error" in row:
        return None
    dense = None if chosen.choose_by == "sparse" else dense_measure([row], chosen.measure)
    return row.get(dense or SPARSE)


_SHOWN = (
    *("dice_pooled", "dice_pooled_best", "f1_distance", "f1_distance_best", "recall", "predicted_area"),
    *("predicted_per_mm2", "sparse_exclusive_recall", "lee_liu", "loss", "error"),
)


def _tell(
    trials: Sequence[Any], rows: Sequence[Mapping[str, Any]], fields: Sequence[str], chosen: Ablate
) -> None:
    """The rows as a table, and over seeds; results.jsonl holds more columns."""
    from sparseshot_jax.ablate import over_seeds

    names = (*fields, "seed", *_SHOWN, chosen.measure)
    shown = [{name: row[name] for name in row if name in names or name.startswith("test_")} for row in rows]
    show_rows(shown)
    if len(chosen.seeds) > 1:
        say(f"over {len(chosen.seeds)} seeds, mean ± standard deviation:")
        show_spread(over_seeds(trials, shown))


def _conclude(
    rows: Sequence[Mapping[str, Any]], fields: Sequence[str], chosen: Ablate, folder: Any, name: str
) -> None:
    """choice.json, the picture, and what they say."""
    from sparseshot_jax import choice as choosing
    from sparseshot_jax.data import storage
    from sparseshot_jax.report.sweep_figures import sweep_picture
    from sparseshot_jax.run_folder import write_json

    tested = [key for row in rows for key in row if key.startswith("test_") and key.endswith("_fixed")]
    choice = choosing.choose(rows, fields=fields, by=chosen.choose_by or "", measure=chosen.measure)
    kinds = choice["measures"]
    # Without a choice there is still a picture: of what was measured at all.
    measure = kinds.get("dense") or kinds.get("sparse") or next(iter(tested), "train_loss")
    if kinds:
        write_json(folder / "choice.json", choice)
        for line in choosing.words(choice) if fields else ():
            say(line)
        say(folder / "choice.json")
    elif all("error" in row for row in rows):
        say("nothing to choose by: every trial failed")
    else:
        say(
            "nothing to choose by, so no setting is called the best: no trial measured validation images. "
            "Name some with data.validation."
        )
    both = kinds.get("sparse", "") if "dense" in kinds else ""
    with CONSOLE.status("drawing"):
        pictures = sweep_picture(rows, fields, title=name, measure=measure, sparse=both)
    for kind, content in pictures.items():
        storage.write_bytes(folder / f"sweep.{kind}", content)
    if pictures:
        say(folder / "sweep.png")
