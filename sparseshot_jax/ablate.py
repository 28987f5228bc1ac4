"""The trials of a sweep, in groups that share a compiled step, to one table.

Trials of a grid are made here; `search` draws them at random, or asks optuna.
"""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from sparseshot_jax.data import storage
from sparseshot_jax.errors import InputError
from sparseshot_jax.training.log import read_rows

ROW_KEYS = {"trial": str, "seed": int}  # what every row of results.jsonl has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting and seed."""

    values: Mapping[str, str]  # dotted config field -> value as text
    seed: int

    @property
    def name(self) -> str:
        """Folder name: the values that differ, and the seed."""
        parts = [f"{field}={value}" for field, value in self.values.items()]
        return "_".join([*parts, f"seed={self.seed}"]).replace("/", "-")


def grid(axes: Sequence[str], seeds: Sequence[int]) -> list[Trial]:
    """Every combination of the axes and seeds.

    Args:
        axes: "field=value,value,...", the field dotted as in `--loss.alpha`.
        seeds: each combination runs once a seed.

    Raises:
        InputError: an axis without "=" or without values; a field or a value named twice.

    >>> [trial.name for trial in grid(["loss.alpha=0.1,0.2"], [0])]
    ['loss.alpha=0.1_seed=0', 'loss.alpha=0.2_seed=0']
    """
    fields, choices = [], []
    for axis in axes:
        field, _, values = axis.partition("=")
        listed = [value for value in values.split(",") if value]
        if not field or not listed:
            raise InputError(f"a grid axis reads FIELD=VALUE,VALUE; got {axis!r}. Try loss.alpha=0.1,0.2.")
        check_once(listed, f"the grid axis {axis!r}")
        fields.append(field)
        choices.append(listed)
    check_once(fields, "--grid")
    return [
        Trial(values=dict(zip(fields, combination)), seed=seed)
        for combination in itertools.product(*choices)
        for seed in seeds
    ]


def check_once(names: Sequence[str], where: str, remedy: str = "Leave one of them out.") -> None:
    """Refuse what is named twice: two trials of one name would share a folder and a row.

    Raises:
        InputError: says which, where, and what to do.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{', '.join(twice)}: named twice in {where}. {remedy}")


def run_trials(
    trials: Sequence[Trial],
    groups_of: Callable[[list[Trial]], Iterable[tuple[Sequence[Trial], Iterable[Mapping[str, Any]]]]],
    results: epath.PathLike,
    *,
    on_done: Callable[[Trial, Mapping[str, Any]], None] = lambda trial, row: None,
    complete: Callable[[Mapping[str, Any]], bool] = lambda row: True,
) -> list[dict[str, Any]]:
    """Run what `results` does not hold yet; return all rows, in the order of the trials.

    A row is appended when its trial is finished, so a killed sweep goes on with the same call. A row
    with "error" is one too: what diverged once would do so again. A row that is made once more keeps what
    an earlier call found and this one did not ask for.

    Args:
        trials: all of the sweep.
        groups_of: the trials still to be run, in groups, each with the rows of its trials as they come.
        results: a JSONL file, made where it does not exist.
        on_done: told of every trial, those found done first.
        complete: whether a row found there holds all that is asked for; the trial of another is run again,
            which only scores where it was trained.

    Raises:
        InputError: two trials of one name; `results` cannot be written, or a row in it is damaged.
    """
    check_once([trial.name for trial in trials], "the trials of the sweep")
    kept = {row["trial"]: row for row in read_rows(results, ROW_KEYS)}
    done = {name: row for name, row in kept.items() if "error" in row or complete(row)}
    for trial in trials:
        if trial.name in done:
            on_done(trial, done[trial.name])
    for group, found in groups_of([trial for trial in trials if trial.name not in done]):
        for trial, values in zip(group, found):
            own = {"trial": trial.name, **trial.values, "seed": trial.seed}
            # An axis may have the name of a measure ("loss"); the setting is what tells rows apart.
            row = own | {name: value for name, value in values.items() if name not in own}
            earlier = kept.pop(trial.name, {})
            row = row if "error" in row else earlier | row
            _append(results, list(kept.values()), row)
            kept[trial.name] = done[trial.name] = row
            on_done(trial, row)
    return [done[trial.name] for trial in trials]


def over_seeds(trials: Sequence[Trial], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation of every measure over the seeds of each setting.

    Args:
        trials: of the sweep.
        rows: theirs, in the same order.

    Returns:
        A row a setting: its values, `seeds` (how many gave numbers), `failed` where some did not, and
        NAME and NAME_sd of each measure; no spread of a single number.

    >>> trials = grid(["loss.alpha=0.1"], [0, 1])
    >>> over_seeds(trials, [{"dice": 0.5}, {"dice": 0.5}])
    [{'loss.alpha': '0.1', 'seeds': 2, 'dice': 0.5, 'dice_sd': 0.0}]
    """
    settings: dict[tuple, list[Mapping[str, Any]]] = {}
    for trial, row in zip(trials, rows):
        settings.setdefault(tuple(trial.values.items()), []).append(row)
    table = []
    for values, members in settings.items():
        good = [row for row in members if "error" not in row]
        summary: dict[str, Any] = {**dict(values), "seeds": len(good)}
        if len(good) < len(members):
            summary["failed"] = len(members) - len(good)
        for name in dict.fromkeys(name for row in good for name in row):
            numbers = [row[name] for row in good if isinstance(row.get(name), float)]
            if numbers:
                summary[name] = statistics.fmean(numbers)
            if len(numbers) > 1:
                summary[f"{name}_sd"] = statistics.stdev(numbers)
        table.append(summary)
    return table


def _append(path: epath.PathLike, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Whole or not at all: a line that a killed process left half is not carried on."""
    try:
        storage.write_bytes(path, "".join(json.dumps(each) + "\n" for each in [*rows, row]).encode())
    except InputError as error:
        raise InputError(
            f"cannot write {path}: {error}. Free some space, then give the same command again: finished "
            "trials are not run twice."
        ) from error
