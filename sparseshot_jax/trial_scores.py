"""What a trained trial is judged by: its last validation row, sparse marks beside it, the test part."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparseshot_jax.choice import SPARSE
from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.labels import wanted
from sparseshot_jax.data.sources.sparse_case import sparse_case
from sparseshot_jax.data.sparsify import without
from sparseshot_jax.evaluate import by_truth
from sparseshot_jax.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """What of a trial's data is looked at."""

    sparse: bool = False  # validation once more as sparse marks would have it, beside the dense truth
    test: bool | None = None  # the test part too; None: only where there is no validation part

    def complete(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of an earlier call has all of this."""
        tested = any(name.startswith("test_") for name in row)
        return (SPARSE in row or not self.sparse) and (tested or not self.test)


def score(run: Run, splits: Splits, scoring: Scoring | None = None) -> dict[str, Any]:
    """The row of a trial.

    Returns:
        The last validation row: of dense truth the scores at the fixed and at the best threshold, of sparse
        marks the recall beside how much is predicted, and `lee_liu`. With `scoring.sparse` dense images are
        also measured by what sparse marks support: "sparse_..." and `lee_liu`. With `scoring.test`
        test_MEASURE_POINT of each operating point; MEASURE_POINT where there is no validation. Beside
        them `train_loss`, the last of the log; `loss` where there is nothing else.
    """
    scoring = scoring or Scoring()
    logged = [row for row in run.rows() if row["event"] == "train"]
    row: dict[str, Any] = {"train_loss": logged[-1]["loss"]} if logged else {}
    dense, sparse = by_truth(splits.validation)
    if splits.validation:
        last = [row for row in run.rows() if row["event"] == "validation"][-1]
        row |= {key: value for key, value in last.items() if key not in ("event", "step")}
    if sparse:
        row |= {SPARSE: lee_liu(row)}
    elif dense and scoring.sparse:
        row |= sparse_row(run, dense)
    if splits.test and (scoring.test or (scoring.test is None and not splits.validation)):
        row |= _test_row(run, splits, prefix="test_" if scoring.test else "")
    return row if len(row) > 1 or not logged else row | {"loss": row["train_loss"]}


def sparse_row(run: Run, cases: Sequence[Case]) -> dict[str, Any]:
    """What the marks of `thinned` cases support, by the names of `Run.measure_held_out` after "sparse_"."""
    config = run.config
    marked = thinned(cases, keep_of(config), seed=config.seed)
    found = run.measure_held_out(marked)
    numbers = {name: value for name, value in found.items() if not isinstance(value, dict)}
    row = {f"sparse_{name}": numbers[name] for name in numbers if name not in ("threshold", "distance_um")}
    if run.detects and len(config.labels.names) > 1:
        row["sparse_exclusive_recall"] = _exclusive_recall(run, marked)
    return row | {SPARSE: lee_liu(found)}


def lee_liu(row: Mapping[str, Any]) -> float | None:
    """recall^2 / Pr(predicted positive), the criterion that needs no negative label; None without marks.

    Lee and Liu, Learning with Positive and Unlabeled Examples Using Weighted Logistic Regression, ICML 2003:
    precision times recall over the prevalence, so that it ranks models as F1 nearly does. Where no precision
    is known, neither is the factor: values of different data cannot be compared.

    Args:
        row: of `Run.measure_held_out`. A segmentation is judged pixel by pixel; of a detector
            Pr is the share of the tissue within the matching distance of a prediction.

    >>> lee_liu({"recall": 0.9, "recall_area": 0.5, "predicted_area": 0.125})
    2.0
    """
    if "predicted_area" in row:
        recall, positive = row.get("recall_area", row["recall"]), row["predicted_area"]
    else:
        recall, per_mm2 = row["recall"], row["predicted_per_mm2"]
        disc_mm2 = math.pi * (row["distance_um"] / 1000.0) ** 2
        positive = None if per_mm2 is None else per_mm2 * disc_mm2
    if recall is None or positive is None:
        return None
    return recall**2 / positive if positive > 0 else 0.0


def thinned(cases: Sequence[Case], keep: float, *, seed: int) -> list[Case]:
    """Dense cases as if only the share `keep` of their objects had ever been marked, for measuring alone.

    The subset is that of `data.keep` in training, drawn by the same rule and seed. What is marked is held
    out: nothing of these images was trained on.
    """
    found = []
    for case in cases:
        marked = sparse_case(case, keep, seed=seed, image=case.name).given
        objects = wanted(marked, case.labels)
        rest = without(marked, objects, case.labels)
        found.append(dataclasses.replace(case, given=rest, truth=None, held_out=marked.take(objects)))
    return found


def keep_of(config: ExperimentConfig) -> float:
    """The share of the training objects that are annotated, as far as the data's spec thins them."""
    return getattr(config.data, "keep", 1.0)


def _exclusive_recall(run: Run, cases: Sequence[Case]) -> float:
    """Of `measure.exclusive_class`, or the mean over all classes; the marks stand for the truth."""
    as_truth = [dataclasses.replace(case, truth=case.held_out, held_out=None) for case in cases]
    found = run.measure(as_truth, threshold_carried=None, split="validation", seed=0)
    of_class = found["operating_points"]["fixed"]["exclusive_recall"]
    wanted_class = run.config.measure.exclusive_class
    values = [of_class[name]["exclusive_recall"]["mean"] for name in of_class if wanted_class in ("", name)]
    return sum(values) / len(values)


def _test_row(run: Run, splits: Splits, *, prefix: str) -> dict[str, Any]:
    points = run.evaluate(splits)["operating_points"]
    measure = "f1_distance" if run.detects else "dice_pooled"
    return {f"{prefix}{measure}_{name}": point[measure]["mean"] for name, point in points.items()}
