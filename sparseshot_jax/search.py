"""Settings that come from no grid: drawn at random from ranges, or proposed by optuna from what was found.

Both are a pure function of the axes, the seed and, of optuna, the values it was told: a search that was
killed asks again for what it asked before, finds those rows done, and goes on as if nothing had happened.
"""

import dataclasses
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparseshot_jax.ablate import Trial, check_once
from sparseshot_jax.errors import InputError

_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_RANGE = re.compile(rf"{_NUMBER}:{_NUMBER}(?::(log|int))?")
_CORNERS = 256  # combinations of choices that are tried on the config
_PATIENCE = 100  # draws a wanted setting, before the distinct ones are taken to be all there are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """What one field of the config may be: one of `choices`, or a number from `low` to `high`."""

    field: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    scale: str = ""  # of a range: "" even, "log" even in its logarithm, "int" whole numbers, both ends in

    def at(self, share: float) -> str:
        """The value at a share of the way through, [0, 1), as text.

        >>> axis("loss.rho=0.5:0.9").at(0.5), axis("x=1:100:log").at(0.5), axis("x=2:3:int").at(0.99)
        ('0.7', '10', '3')
        """
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        if self.scale == "int":
            return str(int(self.low + math.floor(share * (self.high - self.low + 1))))
        if self.scale == "log":
            return as_text(self.low * (self.high / self.low) ** share)
        return as_text(self.low + share * (self.high - self.low))


def as_text(value: float) -> str:
    """A number as it stands in a trial's name: five digits.

    >>> as_text(0.00123456789), as_text(2.0)
    ('0.0012346', '2')
    """
    return f"{value:.5g}"


def axis(text: str) -> Axis:
    """The axis of FIELD=LOW:HIGH, FIELD=LOW:HIGH:log, FIELD=LOW:HIGH:int or FIELD=A,B,C.

    Raises:
        InputError: none of these, a range without an inside, or a choice named twice.
    """
    field, _, values = text.partition("=")
    listed = tuple(value for value in values.split(",") if value)
    if not field or not listed:
        raise InputError(
            "an axis of a search reads FIELD=LOW:HIGH, FIELD=LOW:HIGH:log, FIELD=LOW:HIGH:int or "
            f"FIELD=A,B,C; got {text!r}. Try optimizer.learning_rate=1e-4:1e-2:log."
        )
    found = _RANGE.fullmatch(values)
    if not found:
        check_once(listed, f"the axis {text!r}")
        return Axis(field=field, choices=listed)
    low, high, scale = float(found[1]), float(found[2]), found[3] or ""
    if not low < high or (scale == "log" and low <= 0):
        lowest = " and LOW above 0" if scale == "log" else ""
        raise InputError(f"a range needs LOW below HIGH{lowest}; got {text!r}. Try {field}=0.1:0.5.")
    if scale == "int" and not (low.is_integer() and high.is_integer()):
        raise InputError(f"a range of whole numbers has whole ends; got {text!r}. Try {field}=2:8:int.")
    return Axis(field=field, low=low, high=high, scale=scale)


def axes_of(texts: Sequence[str]) -> list[Axis]:
    """The axes of a search.

    Raises:
        InputError: as of `axis`, or a field named twice.
    """
    axes = [axis(text) for text in texts]
    check_once([one.field for one in axes], "the axes of the search", "Join its values in one axis.")
    return axes


def random_settings(axes: Sequence[Axis], count: int, *, seed: int) -> list[dict[str, str]]:
    """`count` settings drawn at random, no two alike; fewer where there are no more.

    The first of a longer search are those of a shorter one.

    >>> random_settings([axis("loss.alpha=0.05:0.5:log"), axis("loss=a,b")], 2, seed=0)
    [{'loss.alpha': '0.21674', 'loss': 'a'}, {'loss.alpha': '0.38789', 'loss': 'b'}]
    """
    found: dict[tuple[str, ...], None] = {}
    for number in range(_PATIENCE * count):
        shares = np.random.default_rng([seed, number]).random(len(axes))
        found[tuple(one.at(float(share)) for one, share in zip(axes, shares))] = None
        if len(found) == count:
            break
    return [dict(zip((one.field for one in axes), values)) for values in found]


def corners(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Every combination of the choices, with all ranges at their low and at their high ends.

    If a config can hold these it can hold what lies between.

    >>> corners([axis("loss=a,b"), axis("x=1:2")])
    [{'loss': 'a', 'x': '1'}, {'loss': 'a', 'x': '2'}, {'loss': 'b', 'x': '1'}, {'loss': 'b', 'x': '2'}]
    """
    found: dict[tuple[str, ...], None] = {}
    for picked in itertools.islice(itertools.product(*(one.choices or ("",) for one in axes)), _CORNERS):
        for share in (0.0, 1.0 - 1e-9):
            found[tuple(choice or one.at(share) for choice, one in zip(picked, axes))] = None
    return [dict(zip((one.field for one in axes), values)) for values in found]


def optuna_version() -> str:
    """Of the optuna that would propose; another one may propose otherwise.

    Raises:
        InputError: optuna is not installed.
    """
    return str(_optuna().__version__)


class Proposals:
    """Settings proposed by optuna's TPE sampler: asked for in batches, told how each did.

    Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011. The study lives in memory:
    whoever resumes tells it again, in the same batches, and gets the same proposals.
    """

    def __init__(self, axes: Sequence[Axis], *, seed: int, maximise: bool = True):
        """Begin a study.

        Raises:
            InputError: optuna is not installed.
        """
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant_liar is called experimental
            # Of several asked at once each counts as bad until it is told: they keep apart.
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._axes, self._failed = list(axes), optuna.trial.TrialState.FAIL
        direction = "maximize" if maximise else "minimize"
        self._study = optuna.create_study(sampler=sampler, direction=direction)
        self._asked: list[Any] = []

    def ask(self, count: int) -> list[dict[str, str]]:
        """`count` settings to try next; two may be alike."""
        self._asked = [self._study.ask() for _ in range(count)]
        return [{one.field: _suggested(trial, one) for one in self._axes} for trial in self._asked]

    def tell(self, values: Sequence[float | None]) -> None:
        """How the settings asked for last did, in their order; None: it failed."""
        for trial, value in zip(self._asked, values, strict=True):
            if value is None or not math.isfinite(value):
                self._study.tell(trial, state=self._failed)
            else:
                self._study.tell(trial, value)


def run_search(
    proposals: "Proposals | Any",
    *,
    count: int,
    batch: int,
    seeds: Sequence[int],
    run: Callable[[list[Trial]], Sequence[Mapping[str, Any]]],
    value_of: Callable[[Mapping[str, Any]], float | None],
) -> tuple[list[Trial], list[Mapping[str, Any]]]:
    """Propose, run and tell until `count` settings were tried; all trials, none twice, and their rows.

    Args:
        proposals: a study that was told nothing yet.
        count: settings, each run with every seed.
        batch: settings asked for at once, those that train together. Another number gives another search.
        seeds: of each setting; its value is their mean, and it fails where one of them does.
        run: trials to their rows in order; those done before are only read.
        value_of: what a row is judged by; None of one that failed.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    trials: dict[str, Trial] = {}
    for begin in range(0, count, batch):
        settings = proposals.ask(min(batch, count - begin))
        asked = [[Trial(values=values, seed=seed) for seed in seeds] for values in settings]
        fresh = {trial.name: trial for members in asked for trial in members if trial.name not in rows}
        trials |= fresh
        rows |= dict(zip(fresh, run(list(fresh.values()))))
        proposals.tell([_mean([value_of(rows[one.name]) for one in members]) for members in asked])
    return list(trials.values()), list(rows.values())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _suggested(trial: Any, one: Axis) -> str:
    if one.choices:
        return trial.suggest_categorical(one.field, one.choices)
    if one.scale == "int":
        return str(trial.suggest_int(one.field, int(one.low), int(one.high)))
    return as_text(trial.suggest_float(one.field, one.low, one.high, log=one.scale == "log"))


def _optuna() -> Any:
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "--optuna needs the package optuna, which is not installed. Run: pip install "
            '"sparseshot-jax[search]". Or draw settings with --random, which needs nothing.'
        ) from error
    return optuna
