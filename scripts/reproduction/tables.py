"""Evaluations -> the tables of docs/results.md, the paper's number beside ours where it prints one."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from reproduction.plan import (
    CE,
    DATA_SETS,
    DEFAULT,
    ECE,
    FOCAL,
    HUBER,
    PAPER_ECE,
    WEAK,
    Budget,
    figure,
    table,
)
from reproduction.runs import Evaluations, Seeds, pairs
from sparseshot_jax import metrics
from sparseshot_jax.errors import InputError

# F1 at 30 % and 60 % of TNBC; exclusive recall on the authors' own data.
PAPER_1 = {
    CE: (0.65, 0.70),
    WEAK[0.75]: (0.64, 0.68),
    WEAK[0.5]: (0.62, 0.64),
    FOCAL: (0.36, 0.49),
    ECE: (0.70, 0.75),
    PAPER_ECE: (0.74, 0.80),
}
PAPER_2 = {
    "fixed, rho = 0.75": (0.68, 0.70),
    "fixed, rho = 0.5": (0.66, 0.71),
    "linear": (0.71, 0.73),
    "sigmoid": (0.74, 0.80),
}
PAPER_3 = {CE: 0.85, FOCAL: 0.81, HUBER: 0.69, ECE: 0.88}
MEASURES = {"dice_image": "Dice, mean over images", "f1_distance": "F1 within 3 µm"}
POINTS = {
    "fixed": "p > 0.5",
    "carried_over": "carried over",
    "elkan_noto": "Elkan-Noto",
    "oracle": "oracle",
}


def value_of(evaluation: dict[str, Any], point: str, measure: str) -> float:
    """A measure at an operating point, over all images."""
    return _interval(evaluation, point, measure)["mean"]


def _interval(evaluation: dict[str, Any], point: str, measure: str) -> dict[str, Any]:
    measured = evaluation["operating_points"][point][measure]
    return measured[evaluation["exclusive_class"]][measure] if measure == "exclusive_recall" else measured


def at_point(seeds: Seeds, point: str) -> list[dict[str, Any]]:
    """The evaluations of the runs that did not diverge; none where one lacks the point.

    There is no Elkan-Noto threshold where a detector finds no positive, and none is carried over where
    the run that chose diverged.
    """
    good = [evaluation for evaluation in seeds.values() if evaluation is not None]
    return good if all(point in evaluation["operating_points"] for evaluation in good) else []


def cell_text(seeds: Seeds, point: str, measure: str) -> str:
    """Mean and standard deviation over the seeds; of one seed the interval over images."""
    evaluations, lost = at_point(seeds, point), sum(one is None for one in seeds.values())
    parts = [f"diverged ({lost} of {len(seeds)} seeds)"] if lost else []
    if len(evaluations) > 1:
        values = [value_of(evaluation, point, measure) for evaluation in evaluations]
        parts.insert(0, f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
    elif evaluations:
        parts.insert(0, _interval_text(_interval(evaluations[0], point, measure), ".3f"))
    return ", ".join(parts)


def _interval_text(interval: dict[str, Any], form: str) -> str:
    """The mean alone where there is but one image."""
    mean, low, high = (interval[name] for name in ("mean", "low", "high"))
    return f"{mean:{form}}" if low is None else f"{mean:{form}} ({low:{form}} to {high:{form}})"


def thresholds_text(seeds: Seeds, point: str) -> str:
    """The thresholds of a point, each once."""
    found = [e["operating_points"][point]["threshold"] for e in at_point(seeds, point)]
    values = [f"{t:.2f}" if 0.01 <= t <= 0.99 else f"{t:.3f}" for t in found]
    return f" [{', '.join(dict.fromkeys(values))}]" if values else ""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def at_points(found: Evaluations, data: str, keep: float, measure: str) -> str:
    """A measure at the operating points, a row a method; the thresholds in square brackets."""
    rows = [
        [method, *_points(seeds, measure)]
        for (name, method, share), seeds in found.items()
        if (name, share) == (data, keep)
    ]
    return markdown(["method", *POINTS.values()], rows)


def _points(seeds: Seeds, measure: str) -> list[str]:
    return [
        cell_text(seeds, point, measure) + (thresholds_text(seeds, point) if point != "fixed" else "")
        for point in POINTS
    ]


def table_1(found: Evaluations, budget: Budget) -> str:
    """Weak supervision, focal weights and ECE: detection of TNBC."""
    return _two_shares(found, 1, budget, PAPER_1)


def table_2(found: Evaluations, budget: Budget) -> str:
    """Schedules of the threshold: detection of TNBC."""
    about = (
        "Focal ECE with the weight alpha by the share of the labels, where the paper has 0.2 at any share."
    )
    return f"{_two_shares(found, 2, budget, PAPER_2)}\n{about}\n"


def _two_shares(
    found: Evaluations, number: int, budget: Budget, paper: dict[str, tuple[float, float]]
) -> str:
    parts = []
    for k, keep in enumerate((0.3, 0.6)):
        rows = []
        for cell in table(number, budget):
            if cell.keep == keep:
                printed = f"{paper[cell.method][k]:.2f}" if cell.method in paper else ""
                seeds = found[cell.data, cell.method, keep]
                rows.append([cell.method, *_points(seeds, "f1_distance"), printed])
        head = ["method", *POINTS.values(), "paper"]
        parts.append(f"**F1 within 3 µm, {keep:.0%} of the labels**\n\n{markdown(head, rows)}")
    return "\n".join(parts)


def table_3(found: Evaluations, budget: Budget) -> str:
    """Exclusive recall of "inflammatory" on CRCHistoPhenotypes, in place of the paper's own data."""
    rows = []
    for cell in table(3, budget):
        seeds = found[cell.data, cell.method, cell.keep]
        f1 = cell_text(seeds, "carried_over", "f1_distance")
        printed = f"{PAPER_3[cell.method]:.2f}" if cell.method in PAPER_3 else ""
        rows.append([cell.method, *_points(seeds, "exclusive_recall"), f1, printed])
    return markdown(["method", *POINTS.values(), "F1, carried over", "paper (its own data)"], rows)


def by_share(found: Evaluations, data: str, methods: Sequence[str], point: str) -> str:
    """The measure of a data set, a row a method and a column a share of the labels."""
    measure = DATA_SETS[data].measure
    own = {key: seeds for key, seeds in found.items() if key[0] == data and key[1] in methods}
    count = {key[2]: len(seeds) for key, seeds in own.items()}
    rows = []
    for method in methods:
        cells = dict(pairs(own, data, method))
        if cells:
            texts = [
                cell_text(cells[share], point, measure) if share in cells else "" for share in sorted(count)
            ]
            rows.append([method, *texts])
    return markdown(["method", *(f"{share:.0%} (n = {count[share]})" for share in sorted(count))], rows)


def against_full(found: Evaluations, budget: Budget) -> str:
    """The default at p > 0.5 over what all labels give, on every data set: the promise of the project."""
    rows = []
    for data in dict.fromkeys(cell.data for number in (4, 5) for cell in figure(number, budget)):
        measure = DATA_SETS[data].measure
        full = {
            point: _mean(found.get((data, method, 1.0)), point, measure)
            for method, point in ((CE, "fixed"), (CE, "carried_over"))
        } | {"default": _mean(found.get((data, DEFAULT, 1.0)), "fixed", measure)}
        best = max((value for value in full.values() if value is not None), default=None)
        for keep, seeds in pairs(found, data, DEFAULT):
            own = _mean(seeds, "fixed", measure)
            if keep < 1.0 and own is not None and best:
                shown = [f"{value:.3f}" if value is not None else "" for value in full.values()]
                rows.append([DATA_SETS[data].title, f"{keep:.0%}", f"{own:.3f}", *shown, f"{own / best:.3f}"])
    head = ["data", "labels", "default at 0.5", "all labels: cross-entropy at 0.5", "carried over"]
    return markdown([*head, "default at 0.5", "over the best of these"], rows)


def _mean(seeds: Seeds | None, point: str, measure: str) -> float | None:
    values = [value_of(evaluation, point, measure) for evaluation in at_point(seeds or {}, point)]
    return statistics.mean(values) if values else None


def differences(found: Evaluations, method: str, baseline: str, points: Sequence[tuple[str, str]]) -> str:
    """Method less baseline, paired over images, a row a seed, wherever both are there.

    Args:
        found: evaluations.
        method: at the first of each two points.
        baseline: at the second.
        points: a column each.

    Raises:
        InputError: the two have other seeds.
    """
    rows = []
    for data, own, keep in found:
        if own != method or (data, baseline, keep) not in found:
            continue
        ours, theirs = found[data, method, keep], found[data, baseline, keep]
        if ours.keys() != theirs.keys():
            raise InputError(
                f"{data}, {keep:.0%}: a paired difference needs the same seeds; got {sorted(ours)} of "
                f"{method} and {sorted(theirs)} of {baseline}. Ask for both over the same seeds."
            )
        where = [DATA_SETS[data].title, f"{keep:.0%}"]
        gaps = {
            seed: [_gap(ours[seed], theirs[seed], *two, DATA_SETS[data].measure) for two in points]
            for seed in ours
        }
        rows += [[*where, str(seed), *map(_gap_text, own)] for seed, own in gaps.items()]
        if len(gaps) > 1:
            rows.append(
                [*where, "mean", *(_mean_text(column) for column in zip(*gaps.values(), strict=True))]
            )
    names = [f"{POINTS[one]} less {POINTS[other]}" for one, other in points]
    table_text = markdown(["data", "labels", "seed", *names], rows)
    return f"**{method} less {baseline}, paired over images**\n\n{table_text}" if rows else ""


_Gap = dict[str, Any] | str  # an interval, or why there is none


def _gap(ours: Any, theirs: Any, point: str, baseline_point: str, measure: str) -> _Gap:
    if ours is None or theirs is None:
        return "diverged"
    if point not in ours["operating_points"] or baseline_point not in theirs["operating_points"]:
        return ""
    if ours["task"] == "segmentation":
        values = _image_values(ours, point), _image_values(theirs, baseline_point)
        return dict(metrics.paired_difference(*values, seed=0))
    gap = metrics.detection_difference(
        ours, theirs, point=point, baseline_point=baseline_point, measure=measure, seed=0
    )
    return dict(gap)


def _image_values(evaluation: dict[str, Any], point: str) -> np.ndarray:
    return np.array([image["points"][point]["dice"] for image in evaluation["per_image"]])


def _gap_text(gap: _Gap) -> str:
    return gap if isinstance(gap, str) else _interval_text(gap, "+.3f")


def _mean_text(gaps: Sequence[_Gap]) -> str:
    """Over the seeds that have one."""
    values = [gap["mean"] for gap in gaps if not isinstance(gap, str)]
    if len(values) < 2:
        return ""
    return f"{statistics.mean(values):+.3f} ± {statistics.stdev(values):.3f}"
