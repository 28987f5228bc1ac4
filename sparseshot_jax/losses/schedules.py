"""Exclusivity thresholds over time: t -> rho_eff (section 3.2, table 2 of the paper).

A schedule is a pure function of t = step / total_steps, 0 to 1, and of its own parameter `rho`. The
training loop evaluates it on the host and hands the number to the compiled step, so that one
compilation serves every schedule. To add one: a function, and a line in `SCHEDULES`.

They are written with operators alone: Python numbers, NumPy and JAX arrays all pass through.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

from sparseshot_jax.errors import InputError

_EPOCHS = 300  # the authors' code counts epochs, and trains for this many


def fixed(t: Any, rho: float = 0.75) -> Any:
    """rho at all times. Table 2 has 0.75 and 0.5; 1 is plain cross-entropy.

    >>> fixed(0.3, 0.5)
    0.5
    """
    return rho + 0.0 * t  # an array of times gives an array


def linear(t: Any, rho: float = 0.75) -> Any:
    """rho * t (table 2). Starts at 0: at t = 0 every unannotated term is dropped.

    >>> linear(0.5)
    0.375
    """
    return rho * t


def sigmoid(t: Any, rho: float = 0.75) -> Any:
    """sigmoid(rho * t) (table 2, taken literally): from 0.5 up to 0.68. Here rho is a slope.

    >>> round(sigmoid(0.0), 2), round(sigmoid(1.0), 2)
    (0.5, 0.68)
    """
    return _logistic(rho * t)


def official(t: Any, rho: float = 0.5) -> Any:
    """rho * sigmoid((epoch - 50) / 10), epoch = 300 t: the authors' published code.

    In their own loss (`official_exclusive_cross_entropy`) the number is a margin between logits; in
    the paper's loss it is a probability.

    >>> official(50 / 300)
    0.25
    """
    return rho * _logistic((_EPOCHS * t - 50.0) / 10.0)


def power(t: Any, rho: float = 0.5, beta: Callable[[Any], Any] = lambda t: 1.0 - t) -> Any:
    """rho ** beta(t) (eq. 7). The paper leaves beta open; 1 - t takes the threshold from rho to 1.

    >>> power(0.0), power(1.0), power(0.0, 0.25, beta=lambda t: 0.5)
    (0.5, 1.0, 0.5)
    """
    return rho ** beta(t)


SCHEDULES: dict[str, Callable[..., Any]] = {
    "fixed": fixed,
    "linear": linear,
    "sigmoid": sigmoid,
    "official": official,
    "power": power,
}


def sampling_rate(t: Any, rate: float = 0.5) -> Any:
    """rate * sigmoid((epoch - 150) / 10), epoch = 300 t: the share of background the authors keep.

    >>> sampling_rate(0.5)
    0.25
    """
    return rate * _logistic((_EPOCHS * t - 150.0) / 10.0)


def effective_threshold(schedule: str, t: float, rho: float | None = None) -> float:
    """rho_eff(t) of the schedule of that name; `rho` None is the schedule's own default.

    Raises:
        InputError: an unknown name, or t outside [0, 1].

    >>> effective_threshold("linear", 1.0)
    0.75
    """
    if not 0.0 <= t <= 1.0:
        raise InputError(f"t = step / total_steps must lie in [0, 1]; got {t}. Try {min(max(t, 0), 1)}.")
    check_choice("schedule", schedule, SCHEDULES)
    return float(SCHEDULES[schedule](t) if rho is None else SCHEDULES[schedule](t, rho))


def check_schedule(schedule: str, rho: float | None, *, highest: float = 1.0) -> None:
    """Raise InputError unless `schedule` is known and runs within [0, highest]; rho must be > 0."""
    check_choice("schedule", schedule, SCHEDULES)
    if rho is not None:
        check_range("rho", rho, above=0.0, example=0.5)
    for t in (0.0, 0.5, 1.0):
        value = effective_threshold(schedule, t, rho)
        if not 0.0 <= value <= highest:
            raise InputError(
                f"The threshold must stay in [0, {highest}]; schedule {schedule!r} with rho {rho} "
                f"gives {value} at t = {t}. Try rho=None, the schedule's own default."
            )


def check_range(
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    example: float,
) -> None:
    """Raise InputError unless low <= value <= high, value > above, and value is finite."""
    if math.isfinite(value) and low <= value <= high and value > above:
        return
    bounds = [f"> {above}"] * math.isfinite(above) + [f">= {low}"] * math.isfinite(low)
    bounds += [f"<= {high}"] * math.isfinite(high)
    raise InputError(f"{name} must be {' and '.join(bounds)}; got {value}. Try {example}.")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise InputError, with the nearest name there is, unless `value` is among `choices`."""
    known = sorted(choices)
    if value in known:
        return
    nearest = difflib.get_close_matches(value, known, n=1) or known
    raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}. Try {nearest[0]!r}.")


def _logistic(x: Any) -> Any:
    return 1.0 / (1.0 + math.e**-x)
