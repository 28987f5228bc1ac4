"""Which setting of a sweep is the best: by dense truth, by sparse marks, and what the second costs.

A setting is compared with those of the same data only: what begins with "data." is a condition, within which
one is chosen (60 % of the labels are no better idea than 30 %).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sparseshot_jax.errors import InputError

SPARSE = "lee_liu"  # see `trial_scores.lee_liu`
DENSE = ("dice_pooled", "f1_distance")  # what a sweep chooses by where there is dense truth
# By the model's task, what a validation row says of dense images of which more is better.
MEASURES = {
    "segmentation": ("dice_pooled", "dice_image", "dice_pooled_best"),
    "detection": ("f1_distance", "f1_iou", "f1_distance_best"),
}
_RESAMPLES = 1000
_SAME = 1e-12  # between means of which neither is the better
_CONDITION = "data."

Row = Mapping[str, Any]
Setting = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Measures of the settings of one condition that gave a number with every seed."""

    settings: list[Setting]
    dense: np.ndarray | None  # [settings, seeds]
    sparse: np.ndarray | None


def check_measure(wanted: str, tasks: Iterable[str] = MEASURES) -> None:
    """Refuse a measure that is none of a validation part with dense truth.

    Args:
        wanted: key of a trial's row.
        tasks: of the models that are compared.

    Raises:
        InputError: a score of the test part, a loss, sparse marks, or a word that is no measure.
    """
    lists = [MEASURES[task] for task in tasks]
    if any(wanted not in names for names in lists):
        there = dict.fromkeys(name for names in lists for name in names)
        raise InputError(
            f"a choice is made on validation, by a measure that the models have: {', '.join(there)}; got "
            f"{wanted!r}. Sparse marks choose with --choose-by sparse."
        )


def dense_measure(rows: Iterable[Row], wanted: str = "") -> str | None:
    """The measure on dense truth that the rows hold: `wanted`, or else the first of `DENSE`.

    Raises:
        InputError: `wanted` is in no row, or is nothing to choose by.
    """
    good = [row for row in rows if "error" not in row]
    there = [name for name in DENSE if any(name in row for row in good)]
    if not wanted:
        return there[0] if there else None
    if all(wanted not in names for names in MEASURES.values()):
        check_measure(wanted)
    names = [name for own in MEASURES.values() for name in own if any(name in row for row in good)]
    if good and wanted not in names:
        there = f"There are: {', '.join(names)}." if names else _MISSING["dense"]
        raise InputError(f"no row holds the measure {wanted!r}. {there}")
    return wanted


def choose(rows: Sequence[Row], *, fields: Sequence[str], by: str = "", measure: str = "") -> dict[str, Any]:
    """What FOLDER/choice.json holds.

    Args:
        rows: of the trials.
        fields: the config fields in which settings differ.
        by: "dense" or "sparse"; "": dense where there is dense truth.
        measure: the dense one, higher is better; "": `DENSE`.

    Returns:
        by; measures, the name of each kind that the rows hold; conditions, for each its values
        (`condition`), the number of `settings`, the `seeds`, the settings `left_out` because a trial of
        theirs failed or lacks a measure, and what is `chosen` by each kind: see `_best`. Of both kinds:
        `regret`, how much of the dense measure is lost by the sparse choice; `kendall_tau` of the two over
        trials; and `agreement`, how often both choose alike (see `_agreement`).

    Raises:
        InputError: `by` is not measured in any row.
    """
    names = {"dense": dense_measure(rows, measure), "sparse": SPARSE}
    kinds = {kind: name for kind, name in names.items() if name and _measured(rows, name)}
    if by and by not in kinds and any("error" not in row for row in rows):
        raise InputError(f"no row holds a {by} measure to choose by. {_MISSING[by]}")
    conditions: dict[Setting, list[Row]] = {}
    for row in rows:
        conditions.setdefault(_part(row, fields, condition=True), []).append(row)
    by = by or ("dense" if "dense" in kinds else "sparse")
    return {
        "by": by,
        "measures": kinds,
        "conditions": [
            {"condition": dict(condition), **_chosen(members, fields, kinds)}
            for condition, members in conditions.items()
        ],
    }


_MISSING = {
    "dense": "Give validation images dense truth, or choose by sparse marks.",
    "sparse": "Give data.validation, and --choose-by sparse in the call that trains.",
}


def words(choice: Mapping[str, Any]) -> list[str]:
    """A choice in sentences, some for each condition."""
    lines = []
    for found in choice["conditions"]:
        where = f"{_named(found['condition'])}: " if found["condition"] else ""
        for kind, chosen in found["chosen"].items():
            name = choice["measures"][kind]
            if chosen["scores"][name] == 0.0 or len(chosen["tied"]) + 1 == found["settings"] > 1:
                lines.append(f"{where}{_no_choice(chosen, kind, name)}")
                continue
            mark = " (chosen)" if kind == choice["by"] else ""
            lines.append(f"{where}best by {kind} marks{mark}: {_named(chosen['values'])}; {_scores(chosen)}")
            if chosen["tied"]:
                others = "; ".join(map(_named, chosen["tied"]))
                lines.append(f"{where}as good, and no worse a choice: {others}")
            elif chosen["runner_up"]:
                lines.append(f"{where}{_behind(chosen, name)}")
        if found["left_out"]:
            names = " or ".join(choice["measures"].values())
            lacks = f" or lacks {names}" if names else ""
            settings = "; ".join(map(_named, found["left_out"]))
            lines.append(f"{where}left out, for a trial failed{lacks}: {settings}")
        if "regret" not in found:
            continue
        tau, agreed = found["kendall_tau"], found["agreement"]
        lost = f"{found['regret']:.4f} {choice['measures']['dense']}"
        text = f"{where}the sparse choice loses {lost} to the dense one; "
        if tau is None:
            lines.append(text + "one of the two measures is the same for all trials: it chooses nothing")
            continue
        lines.append(
            f"{text}Kendall's tau of the two over {found['trials']} trials: {tau:.2f}; they choose alike in "
            f"{agreed['share']:.0%} of {agreed['times']} {agreed['over']}"
        )
    return lines


def _chosen(rows: Sequence[Row], fields: Sequence[str], kinds: Mapping[str, str]) -> dict[str, Any]:
    table, seeds, left_out = _table(rows, fields, kinds)
    values = {kind: getattr(table, kind) for kind in kinds if getattr(table, kind) is not None}
    result: dict[str, Any] = {
        "settings": len(table.settings),
        "seeds": seeds,
        "left_out": [dict(setting) for setting in left_out],
        "chosen": {},
    }
    named = {kinds[kind]: numbers for kind, numbers in values.items()}
    for kind in values:
        result["chosen"][kind] = _best(table.settings, named, kinds[kind])
    if len(values) == 2:
        dense, sparse = values["dense"], values["sparse"]
        means = dense.mean(axis=1)
        result["regret"] = float(means.max() - means[sparse.mean(axis=1).argmax()])
        result["trials"] = int(dense.size)
        result["kendall_tau"] = kendall_tau(dense.ravel(), sparse.ravel())
        result["agreement"] = _agreement(dense, sparse)
    return result


def _best(settings: Sequence[Setting], measures: Mapping[str, np.ndarray], by: str) -> dict[str, Any]:
    """The best setting by one of the measures, [settings, seeds] each, and how sure that is.

    Returns:
        values; tied, those of other settings with the same mean; scores and sd, the mean and the sample
        standard deviation of each measure over the `n` seeds (sd None of one seed); runner_up, None where
        there is no other setting: its values, and the difference of the measure by which is chosen, paired
        over the seeds: mean, sd and n.
    """
    numbers = measures[by]
    means = numbers.mean(axis=1)
    first, *others = np.argsort(-means, kind="stable").tolist()
    runner_up = None
    if others:
        lead = numbers[first] - numbers[others[0]]
        difference = {"mean": float(lead.mean()), "sd": _sd(lead), "n": len(lead)}
        runner_up = {"values": dict(settings[others[0]]), "difference": difference}
    return {
        "values": dict(settings[first]),
        "tied": [dict(settings[k]) for k in others if means[first] - means[k] <= _SAME],
        "scores": {name: float(of[first].mean()) for name, of in measures.items()},
        "sd": {name: _sd(of[first]) for name, of in measures.items()},
        "n": int(numbers.shape[1]),
        "runner_up": runner_up,
    }


def _no_choice(chosen: Mapping[str, Any], kind: str, name: str) -> str:
    """Where all settings are alike, or the best of them found nothing: that, and no winner."""
    settings = len(chosen["tied"]) + 1
    whose = f"all {settings} settings have" if settings > 1 else "the only setting has"
    lead = f"nothing chosen by {kind} marks: {whose}"
    if chosen["scores"][name] > 0.0:
        return f"{lead} the same mean, {_scores(chosen)}"
    if name == SPARSE or name.endswith("_best"):
        where = "above predict.threshold" if name == SPARSE else "at any threshold"
        return f"{lead} {name} 0: nothing was found {where}. Train longer."
    best = "dice_pooled_best" if name.startswith("dice") else "f1_distance_best"
    return f"{lead} {name} 0: nothing was found at p > 0.5. Train longer, or choose by --measure {best}."


def _scores(chosen: Mapping[str, Any]) -> str:
    """The measures of a setting in words."""
    sd = chosen["sd"]
    text = ", ".join(f"{name} {_with_spread(value, sd[name])}" for name, value in chosen["scores"].items())
    return f"{text} ({chosen['n']} seeds)" if chosen["n"] > 1 else text


def _sd(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _behind(chosen: Mapping[str, Any], name: str) -> str:
    """The runner-up in words."""
    difference = chosen["runner_up"]["difference"]
    lead = _with_spread(difference["mean"], difference["sd"])
    how = f"paired over {difference['n']} seeds" if difference["n"] > 1 else "one seed: no spread"
    return f"next: {_named(chosen['runner_up']['values'])}; {lead} {name} behind ({how})"


def _with_spread(value: float, sd: float | None) -> str:
    return f"{value:.4f}" if sd is None else f"{value:.4f} ± {sd:.4f}"


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float | None:
    """Kendall's tau-b: 1 the same order, -1 the opposite; None where one of them has no order.

    >>> kendall_tau(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])).__round__(3)
    0.333
    """
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return None
    found: Any = stats.kendalltau(a, b)  # no stubs tell what is in it
    return float(found.statistic)


def _agreement(dense: np.ndarray, sparse: np.ndarray) -> dict[str, Any]:
    """How often the two choose the same setting, [settings, seeds] each, and the regret where they do not.

    Each seed is an experiment of its own, with its own marks. With a single seed: resamples of the
    settings with replacement, from each of which both choose; that says how much hangs on which were tried.
    """
    if dense.shape[1] > 1:
        pairs = [(dense[:, k].argmax(), sparse[:, k].argmax()) for k in range(dense.shape[1])]
        lost = [dense[a, k] - dense[b, k] for k, (a, b) in enumerate(pairs)]
        over = "seeds"
    else:
        rng, one, other = np.random.default_rng(0), dense[:, 0], sparse[:, 0]
        drawn = [rng.integers(len(one), size=len(one)) for _ in range(_RESAMPLES)]
        pairs = [(some[one[some].argmax()], some[other[some].argmax()]) for some in drawn]
        lost = [one[a] - one[b] for a, b in pairs]
        over = "resamples of the settings"
    return {
        "over": over,
        "times": len(pairs),
        "share": float(np.mean([a == b for a, b in pairs])),
        "mean_regret": float(np.mean(lost)),
    }


def _table(
    rows: Sequence[Row], fields: Sequence[str], kinds: Mapping[str, str]
) -> tuple[Table, list[int], list[Setting]]:
    """Numbers of the settings that have all of them, the seeds, and the settings that do not."""
    members: dict[Setting, dict[int, Row]] = {}
    for row in rows:
        members.setdefault(_part(row, fields, condition=False), {})[row["seed"]] = row
    seeds = sorted({row["seed"] for row in rows})
    good = {
        setting: of_seed
        for setting, of_seed in members.items()
        if kinds
        and all(k in of_seed and all(_is_number(of_seed[k].get(n)) for n in kinds.values()) for k in seeds)
    }
    values = {
        kind: np.array([[of_seed[k][name] for k in seeds] for of_seed in good.values()], np.float64)
        for kind, name in kinds.items()
        if good
    }
    table = Table(settings=list(good), dense=values.get("dense"), sparse=values.get("sparse"))
    return table, seeds, [setting for setting in members if setting not in good]


def _part(row: Row, fields: Sequence[str], *, condition: bool) -> Setting:
    return tuple((f, str(row[f])) for f in fields if f in row and f.startswith(_CONDITION) == condition)


def _measured(rows: Sequence[Row], name: str) -> bool:
    return any(_is_number(row.get(name)) for row in rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _named(values: Mapping[str, str]) -> str:
    return ", ".join(f"{field} {value}" for field, value in values.items()) or "the config as it is"
