"""The rows of a sweep by setting, their spread over the seeds, and what settings and measures are called."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

BARS = 20  # settings of a bar chart
LOSSES = ("train_loss", "loss")  # measures of which less is better
_TITLES = {
    "dice_pooled": "pooled Dice",
    "dice_image": "Dice, mean of images",
    "f1_distance": "F1 by distance",
    "lee_liu": "recall² / Pr(predicted positive)",
}
POINTS = {
    "fixed": "at the fixed threshold",
    "carried_over": "threshold carried over from validation",
    "oracle": "at the best threshold (oracle)",
    "elkan_noto": "at the Elkan-Noto threshold",
}

Row = Mapping[str, Any]
Setting = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """The values of one setting, a number a seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return float(np.mean(self.values))

    @property
    def half(self) -> float | None:
        """Half of the 95 % interval of the mean by Student's t; None of fewer than three seeds.

        >>> round(Spread(values=(1.0, 2.0, 3.0)).half, 3)
        2.484
        """
        n = len(self.values)
        if n < 3:
            return None
        return float(stats.t.ppf(0.975, n - 1) * np.std(self.values, ddof=1) / math.sqrt(n))


def bars_of(
    rows: Sequence[Row], varied: Sequence[str], kinds: Sequence[str], measure: str
) -> tuple[dict[str, list[Row]], str]:
    """The settings that get bars, best first where they are too many; and a word on which they are."""
    settings = by_setting(rows, varied, measure)
    sign = -1.0 if measure in LOSSES else 1.0
    mean = {key: sign * Spread(values=tuple(r[measure] for r in own)).mean for key, own in settings.items()}
    if len(settings) <= BARS:
        return {setting_label(varied, key) or "the config": own for key, own in settings.items()}, ""
    best: dict[Setting, Setting] = {}
    for key in sorted(settings, key=lambda key: -mean[key]):
        best.setdefault(tuple(key[list(varied).index(f)] for f in kinds), key)
    note = ", the best setting of each" if kinds else f", the best {BARS}"
    chosen = list(best.values()) if kinds else sorted(settings, key=lambda key: -mean[key])
    return {setting_label(varied, key): settings[key] for key in chosen[:BARS]}, note


def by_setting(rows: Sequence[Row], fields: Sequence[str], measure: str) -> dict[Setting, list[Row]]:
    """Rows that hold the measure, by their values of the fields."""
    found: dict[Setting, list[Row]] = {}
    for row in rows:
        if is_number(row.get(measure)):
            found.setdefault(tuple(str(row.get(f, "")) for f in fields), []).append(row)
    return found


def spreads_of(rows: Sequence[Row], fields: Sequence[str], measure: str) -> dict[Setting, Spread]:
    """The measure of each setting over its rows."""
    found = by_setting(rows, fields, measure)
    return {key: Spread(values=tuple(float(row[measure]) for row in own)) for key, own in found.items()}


def validation_points(rows: Sequence[Row], measure: str) -> dict[str, str]:
    """Keys of the measure on validation at the operating points that the rows hold, and their words."""
    names = {measure: POINTS["fixed"], f"{measure}_best": POINTS["oracle"]}
    there = {name: words for name, words in names.items() if any(is_number(row.get(name)) for row in rows)}
    return there if len(there) > 1 else dict.fromkeys(there, measure_title(measure))


def points_of_test(rows: Sequence[Row], measure: str) -> list[str]:
    """Keys of the measure on the test part, one for each operating point."""
    return list(dict.fromkeys(k for row in rows for k in row if k.startswith(f"test_{measure}_")))


def point_words(name: str) -> str:
    """What the operating point is called that a key ends with.

    >>> point_words("test_dice_pooled_elkan_noto"), point_words("test_f1_distance_fixed")
    ('at the Elkan-Noto threshold', 'at the fixed threshold')
    """
    point = next((p for p in POINTS if name.endswith(p)), None)
    return POINTS[point] if point else re.sub(r"^test_(dice_pooled|f1_distance)_", "", name).replace("_", " ")


def measure_title(measure: str) -> str:
    """What a measure is called at an axis."""
    return _TITLES.get(measure, measure.replace("_", " "))


def on_lines(label: str) -> str:
    """A long label on several lines."""
    return label if len(label) <= 28 else label.replace(", ", "\n")


def setting_label(fields: Sequence[str], values: Setting) -> str:
    """A setting in words, each field by its last name."""
    return ", ".join(f"{f.rpartition('.')[2]} {v}" for f, v in zip(fields, values))


def as_number(value: Any) -> Any:
    """The value of a field as a number; None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def is_number(value: Any) -> bool:
    """Whether a value of a row is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
