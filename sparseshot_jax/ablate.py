"""A grid of trials, one after another through compiled steps that they share, to one table."""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.log import read_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of the grid."""

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
        InputError: an axis without "=" or without values.

    >>> [trial.name for trial in grid(["loss.alpha=0.1,0.2"], [0])]
    ['loss.alpha=0.1_seed=0', 'loss.alpha=0.2_seed=0']
    """
    fields, choices = [], []
    for axis in axes:
        field, _, values = axis.partition("=")
        listed = [value for value in values.split(",") if value]
        if not field or not listed:
            raise InputError(f"a grid axis reads FIELD=VALUE,VALUE; got {axis!r}. Try loss.alpha=0.1,0.2.")
        fields.append(field)
        choices.append(listed)
    return [
        Trial(values=dict(zip(fields, combination)), seed=seed)
        for combination in itertools.product(*choices)
        for seed in seeds
    ]


def run_trials(
    trials: Sequence[Trial],
    run_one: Callable[[Trial], Mapping[str, Any]],
    results: Path,
    *,
    on_done: Callable[[Trial, Mapping[str, Any]], None] = lambda trial, row: None,
) -> list[dict[str, Any]]:
    """Run what `results` does not hold yet; return all rows, in the order of the trials.

    A row is appended when its trial is finished, so a killed sweep goes on with the same call.
    """
    done = {row["trial"]: row for row in read_rows(results)}
    results.parent.mkdir(parents=True, exist_ok=True)
    for trial in trials:
        if trial.name not in done:
            row = {"trial": trial.name, **trial.values, "seed": trial.seed, **run_one(trial)}
            _append(results, list(done.values()), row)
            done[trial.name] = row
        on_done(trial, done[trial.name])
    return [done[trial.name] for trial in trials]


def _append(path: Path, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Whole or not at all: a line that a killed process left half is not carried on."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text("".join(json.dumps(each) + "\n" for each in [*rows, row]))
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error}. Free some space, then give the same command again: finished "
            "trials are not run twice."
        ) from error
