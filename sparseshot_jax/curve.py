"""Trials with a part of the labels each, to the points of an annotation-efficiency curve."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath

from sparseshot_jax import efficiency, sweep
from sparseshot_jax.ablate import Trial, check_once
from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.data.cases import Splits
from sparseshot_jax.data.labels import wanted
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate import by_truth
from sparseshot_jax.run import Run, load

Kind = Literal["validation", "test", "held_out"]  # dense validation or test images, or marks held out

# Fields of the data that say which share of the marks training is told of; the first that is there.
_KEEP = ("train_keep", "keep")
_OFF = 0.1  # of a score, lost to a threshold of 0.5, from which it is said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The trials of a curve."""

    config: ExperimentConfig
    fractions: tuple[float, ...]  # of the labels that the config trains on, ascending, (0, 1]
    seeds: tuple[int, ...]
    kind: Kind
    field: str  # the config's, that says which share of the marks is used
    today: int  # annotated objects of the config as it is

    @property
    def trials(self) -> list[Trial]:
        """A trial for every fraction and seed."""
        return [
            Trial(values={self.field: self._keep(fraction)}, seed=seed)
            for fraction in self.fractions
            for seed in self.seeds
        ]

    def fraction_of(self, trial: Trial) -> float:
        """The part of the labels that a trial has."""
        (value,) = trial.values.values()
        return {self._keep(fraction): fraction for fraction in self.fractions}[value]

    @property
    def measures(self) -> tuple[str, str]:
        """What the curve is of, and what is shown beside it."""
        detects = self.config.model.task == "detection"
        if self.kind == "held_out":
            return "recall", "predicted_per_mm2" if detects else "predicted_area"
        name = "f1_distance" if detects else "dice_pooled"
        return name, f"{name}_best"

    def _keep(self, fraction: float) -> str:
        return f"{fraction * getattr(self.config.data, self.field.removeprefix('data.')):.6g}"


def plan(
    config: ExperimentConfig, fractions: Sequence[float], seeds: Sequence[int], score: str = "validation"
) -> Plan:
    """Which trials a curve needs; the data are read, so that nothing trains in vain.

    Args:
        config: of every trial, but for its labels and seed.
        fractions: of the labels that it trains on, (0, 1]; subsets are nested.
        seeds: every fraction is trained once a seed.
        score: on the "validation" or the "test" part.

    Raises:
        InputError: fractions or seeds out of range or twice; data without a share to set, or with nothing
            to score on.
    """
    names = [f"{one:g}" for one in fractions]
    if not fractions or not all(0.0 < one <= 1.0 for one in fractions):
        raise InputError(
            f"--fractions must be parts of your labels in (0, 1]; got {' '.join(names) or 'none'}. Try "
            "--fractions 0.125 0.25 0.5 1."
        )
    if not seeds:
        raise InputError("--seeds must be whole numbers; got none. Try --seeds 0 1 2.")
    check_once(names, "--fractions")
    check_once([str(seed) for seed in seeds], "--seeds")
    if config.train.shards:
        raise InputError(
            f"train.shards must be empty for a curve: {config.train.shards} holds tiles cut with all their "
            "marks. Give --set train.shards= and the data's own folder."
        )
    splits = sweep.splits_of(dataclasses.replace(config, seed=seeds[0]))
    today = objects_of(splits)
    if today < 1:
        raise InputError("a curve needs annotated training objects; there is none. See labels.classes.")
    return Plan(
        config=config,
        fractions=tuple(sorted(fractions)),
        seeds=tuple(seeds),
        kind=_kind(splits, score),
        field=_field(config),
        today=today,
    )


def objects_of(splits: Splits) -> int:
    """Annotated objects that training is told of."""
    return sum(int(wanted(case.given, case.labels).sum()) for case in splits.train)


def rows(plan: Plan, group: sweep.Group, folder: epath.Path, **options: Any) -> Iterator[dict[str, Any]]:
    """Train the trials of a group; of each the row of results.jsonl.

    Yields:
        fraction, objects, both of `Plan.measures`, and where there is dense truth "images": TP, FP, FN of
        each at the threshold of either; {"error": why} of a trial that diverged.
    """
    found = sweep.run_group(plan.config, group, folder, **options)
    for trial, row in zip(group.trials, found):
        if "error" in row:
            yield row
            continue
        splits = sweep.splits_of(sweep.trial_config(plan.config, trial))
        known = {"fraction": plan.fraction_of(trial), "objects": objects_of(splits)}
        if plan.kind == "held_out":
            names = (*plan.measures, "held_out", "threshold")
            yield known | {name: row[name] for name in names}
        else:
            yield known | _dense_row(load(folder / trial.name), splits, plan)


def curves(
    plan: Plan, found: Sequence[Mapping[str, Any]], *, draws: int = 2000
) -> dict[str, efficiency.Curve]:
    """The curve of each measure that is a share of what could be found.

    Args:
        plan: the trials.
        found: their rows; those of trials that diverged are left out.
        draws: resamples of the intervals.

    Raises:
        InputError: every trial diverged, or found nothing to score on.
    """
    first, beside = plan.measures
    good = [row for row in found if row.get(first) is not None]
    if not good:
        raise InputError(
            "no trial gave a score: all diverged, or had no marks held out. See the table above; try more "
            "marks, a larger data.hold_out or a smaller optimizer.learning_rate."
        )
    names = (first,) if plan.kind == "held_out" else (first, beside)
    return {
        name: efficiency.fit_curve(
            np.array([row["objects"] for row in good], float),
            np.array([row[name] for row in good], float),
            np.array([row["fraction"] for row in good], float),
            _counts(good, name),
            draws=draws,
        )
        for name in names
    }


def doubts(plan: Plan, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the trainings themselves say against the curve, a sentence each."""
    said = []
    failed = sum("error" in row for row in found)
    if failed:
        said.append(f"Warning: {failed} of {len(found)} trainings diverged and are left out.")
    fixed, best = plan.measures
    off = [row for row in found if "best_threshold" in row and row[best] - row[fixed] > _OFF]
    if off:
        worst = max(off, key=lambda row: row[best] - row[fixed])
        said.append(
            f"Warning: with {worst['objects']} objects the score is {worst[fixed]:.3f} at p > 0.5, and "
            f"{worst[best]:.3f} at p > {worst['best_threshold']:.2f}. There the threshold is what is wrong, "
            "and the curve at 0.5 rises as it comes right: leave that fraction out, or go by the best one."
        )
    return said


def _dense_row(run: Run, splits: Splits, plan: Plan) -> dict[str, Any]:
    if plan.kind == "test":
        result = run.evaluation_of(splits)
    else:
        dense, _ = by_truth(splits.validation)
        result = run.measure(dense, threshold_carried=None, split="validation", seed=0)
    name = plan.measures[0]
    kind = "distance" if run.detects else "pixels"
    row: dict[str, Any] = {}
    images: dict[str, list[list[int]]] = {}
    for measure, point in zip(plan.measures, ("fixed", "oracle")):
        row[measure] = float(result["operating_points"][point][name]["mean"])
        images[measure] = [one["points"][point][kind] for one in result["per_image"]]
    row["best_threshold"] = float(result["operating_points"]["oracle"]["threshold"])
    return row | {"images": images}


def _counts(good: Sequence[Mapping[str, Any]], name: str) -> np.ndarray | None:
    """TP, FP, FN of each image in each trial; None where no image is known, or not the same ones."""
    images = [row["images"][name] for row in good if "images" in row]
    if len(images) < len(good) or len({len(one) for one in images}) != 1:
        return None
    return np.array(images, np.int64)


def _kind(splits: Splits, score: str) -> Kind:
    if score == "test":
        if splits.test:
            return "test"
        raise InputError(
            "--score test needs a test part with dense truth; the data have none. Name one with "
            "--set data.test=PATTERN (data.truth of slides), or leave --score out."
        )
    dense, sparse = by_truth(splits.validation)
    if dense:
        return "validation"
    if sparse:
        return "held_out"
    raise InputError(
        "a curve needs something to score on; the data have no validation part. Name one with --set "
        "data.validation=PATTERN (of slides: data.hold_out above 0), or give --score test."
    )


def _field(config: ExperimentConfig) -> str:
    for name in _KEEP:
        if hasattr(config.data, name):
            return f"data.{name}"
    raise InputError(
        f"the data must have a field keep, the share of the marks that is used; {type(config.data).__name__} "
        "has none. Add one, or use a folder, slides or a TFDS data set."
    )
