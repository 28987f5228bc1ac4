"""Scores at several numbers of labels to a curve, its spread over resamples, and what it foretells."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from sparseshot_jax.efficiency.power import Powers, fit_power, fit_powers
from sparseshot_jax.efficiency.steps import Steps, fit_steps
from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics.bootstrap import resamples
from sparseshot_jax.metrics.overlap import dice_of

LEVELS = (0.8, 0.95)  # of the intervals
LEAST = 4  # fractions that a law of three parameters is fitted to
FAR = 4.0  # times the labels measured, beyond which a forecast carries a warning
_FLAT = 1e-4  # a rise over all that was measured that is none
_EQUAL, _FALLING = "all scores are equal", "the scores do not rise with the labels"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A number and where it lies over the resamples."""

    value: float  # nan: not known; inf: never
    intervals: dict[float, tuple[float, float]]  # level -> low, high; empty where nothing scatters

    def json(self) -> dict[str, Any]:
        """As JSON values: None where the number is not known or never reached."""
        pairs = {f"{level:.0%}": [_plain(v) for v in pair] for level, pair in self.intervals.items()}
        return {"value": _plain(self.value), **pairs}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Score over annotated objects: the curve, and the same through resampled scores.

    Intervals are of the mean score of trainings; a single one scatters by `scatter` round it.
    """

    objects: Float64[np.ndarray, "m"]  # annotated objects of each training
    scores: Float64[np.ndarray, "m"]
    fractions: Float64[np.ndarray, "m"]
    best: Powers | Steps  # one row
    spread: Powers | Steps | None  # a row a resample; None: nothing to resample
    why: str  # why there is no law; "" where there is one
    scatter: float | None  # standard deviation of a training round the curve
    images: int  # that were resampled; 0: trainings alone

    @property
    def is_law(self) -> bool:
        """Whether it may be extended beyond what was measured."""
        return isinstance(self.best, Powers)

    @property
    def flat(self) -> bool:
        """Whether there were enough fractions for a law, and it would not rise."""
        return self.why in (_EQUAL, _FALLING)

    @property
    def measured(self) -> float:
        """The most objects that a training had."""
        return float(self.objects.max())

    def at(self, n: float | int) -> Estimate:
        """Score expected with n objects."""
        return self._estimate(lambda of: of.at(np.array([float(n)]))[:, 0])

    def gain(self, n: float | int, more: float | int) -> Estimate:
        """What `more` objects beside n are expected to add."""
        both = np.array([float(n), float(n + more)])
        return self._estimate(lambda of: np.diff(of.at(both), axis=1)[:, 0])

    def plateau(self) -> Estimate:
        """Score of endless labels; not known without a law."""
        return self._estimate(lambda of: of.a if isinstance(of, Powers) else np.full(len(of.levels), np.nan))

    def needed(self, score: float) -> Estimate:
        """Objects that reach a score; inf: never, by this curve."""
        return self._estimate(lambda of: of.needed(np.full(_rows(of), float(score))))

    def needed_share(self, share: float) -> Estimate:
        """Objects that reach a share of the plateau, each resample's own."""
        return self._estimate(
            lambda of: of.needed(share * of.a) if isinstance(of, Powers) else np.full(_rows(of), np.nan)
        )

    def _estimate(self, of_curve: Callable[[Powers | Steps], np.ndarray]) -> Estimate:
        value = float(of_curve(self.best)[0])
        if self.spread is None or np.isnan(value):
            return Estimate(value=value, intervals={})
        rows = of_curve(self.spread)
        pairs = {}
        for level in LEVELS:
            # Of numbers that are there: between a finite and an infinite one is none.
            low, high = np.quantile(rows, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
            pairs[level] = (min(float(low), value), max(float(high), value))
        return Estimate(value=value, intervals=pairs)


def fit_curve(
    objects: Sequence[float] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    fractions: Sequence[float] | np.ndarray,
    counts: Int64[np.ndarray, "m images 3"] | None = None,
    *,
    seed: int = 0,
    draws: int = 2000,
) -> Curve:
    """The curve through the scores of trainings.

    The law is a - b n^-g by least squares. Its resamples add to the curve residuals drawn from all
    trainings, enlarged by sqrt(m / (m - parameters)) and by a draw of their unknown size, as Student's t
    has it: with a handful of trainings percentiles would be far too narrow without. Where counts are
    given, every resample also draws the images anew, the same for all trainings.

    Args:
        objects: annotated objects of each training, > 0.
        scores: of each.
        fractions: of the labels, of each; trainings of one fraction differ in seed.
        counts: TP, FP, FN of each image in each training, whose pooled Dice or F1 the scores are.
        seed: of the resamples.
        draws: number of resamples.

    Raises:
        InputError: no training; a score that is not finite; no object.
    """
    n, y, f = (np.asarray(values, float) for values in (objects, scores, fractions))
    if not len(n) or not np.isfinite(y).all() or not (n > 0).all():
        raise InputError(
            "a curve needs at least one training with a finite score and an annotated object; got scores "
            f"{y.tolist()} of {n.tolist()} objects."
        )
    law, why = fit_power(n, y), ""
    distinct = min(len(np.unique(f)), len(np.unique(n)))
    if distinct < LEAST:
        why = f"a power law needs {LEAST} fractions or more, and there {_are(distinct)}"
    elif np.ptp(law.at(n)[0]) <= _FLAT:
        why = _EQUAL if np.ptp(y) <= _FLAT else _FALLING
    best = fit_steps(n, y[None], f) if why else law
    parameters = best.levels.shape[1] if isinstance(best, Steps) else 3
    freedom = len(n) - parameters
    fitted = best.at(n)[0] if isinstance(best, Powers) else _levels_of(n, y, f)
    images = 0 if counts is None or counts.shape[1] < 2 else counts.shape[1]
    noise = np.zeros((draws, len(n)))
    if freedom > 0:
        noise += _residuals(y - fitted, freedom, np.random.default_rng(seed), draws)
    if counts is not None and images:
        drawn = resamples(images, seed=seed, n=draws)
        noise += np.stack([dice_of(drawn @ one) - dice_of(one.sum(0)) for one in counts], axis=1)
    spread = None
    if freedom > 0 or images:
        spread = fit_steps(n, fitted + noise, f) if why else fit_powers(n, fitted + noise)
    return Curve(
        objects=n,
        scores=y,
        fractions=f,
        best=best,
        spread=spread,
        why=why,
        scatter=float(np.sqrt(((y - fitted) ** 2).sum() / freedom)) if freedom > 0 else None,
        images=images,
    )


def _residuals(residual: np.ndarray, freedom: int, generator: np.random.Generator, draws: int) -> np.ndarray:
    """Residuals drawn with replacement, of the size that so few of them leave open; [draws, m]."""
    m = len(residual)
    size = np.sqrt(m / freedom) * np.sqrt(freedom / generator.chisquare(freedom, draws))
    return residual[generator.integers(0, m, (draws, m))] * size[:, None]


def _levels_of(n: np.ndarray, y: np.ndarray, f: np.ndarray) -> np.ndarray:
    """The monotone level of every training: of its fraction, whatever its own number of objects."""
    steps = fit_steps(n, y[None], f)
    means = np.array([n[f == one].mean() for one in f])
    return steps.levels[0][np.searchsorted(steps.objects, means)]


def _rows(of: Powers | Steps) -> int:
    return len(of.a) if isinstance(of, Powers) else len(of.levels)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _are(count: int) -> str:
    return f"is {count}" if count == 1 else f"are {count}"
