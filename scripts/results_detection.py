"""Detection of TNBC or CRCHisto with a share of the labels: the tables of docs/results.md.

    python scripts/results_detection.py tnbc --root $DATA/tnbc --runs runs/yollo_tnbc --keep 0.3 0.6
    python scripts/results_detection.py crchisto --root $DATA/crchisto --runs runs/yollo_crchisto --keep 0.3

TNBC has two phases: "choose" trains on patients 01-04 and finds each method's threshold on 05-06; "report"
trains on 01-06 and scores 07-08 once. CRCHisto has one: trained on the training images, the threshold from
the validation images, the test images scored once. Scores stand at 0.5, at the threshold carried over from
validation, and at the best one (an oracle). Every run is resumed where it stands; finished ones are only
read. Patients and images absent from the folder are absent from the result.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from sparseshot_jax import experiment, metrics
from sparseshot_jax.config import ExperimentConfig, load_config
from sparseshot_jax.losses import CrossEntropy, Exclusive, Focal, FocalExclusive, Huber, Loss

CONFIGS = Path(__file__).parents[1] / "configs"
BASELINE, DEFAULT, FULL = "cross-entropy", "focal ECE", "cross-entropy, all labels"
WEIGHTED = "cross-entropy, w = alpha"
METHODS: dict[str, Loss] = {
    BASELINE: CrossEntropy(),
    WEIGHTED: CrossEntropy(),
    "focal": Focal(),
    "Huber": Huber(),
    "ECE": Exclusive(),
    DEFAULT: FocalExclusive(share_factor=0.25),
    FULL: CrossEntropy(),
}
TNBC_PHASES = {
    "choose": {"train": ("0[1-4]_*",), "validation": ("0[56]_*",), "test": ()},
    "report": {"train": ("0[1-6]_*",), "validation": (), "test": ("0[78]_*",)},
}
POINTS = ("fixed", "carried_over", "oracle")
MEASURES = {
    "tnbc": ("f1_distance", "f1_iou", "precision_distance", "recall_distance"),
    "crchisto": ("f1_distance", "precision_distance", "recall_distance", "exclusive_recall"),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Detection with a share of the labels."""

    dataset: tyro.conf.Positional[Literal["tnbc", "crchisto"]]
    root: str  # folder of the data set
    runs: Path  # run folders are made here
    keep: tuple[float, ...] = (0.3,)  # shares of the annotated objects that training sees
    seeds: tuple[int, ...] = (0, 1, 2)
    choose_seeds: tuple[int, ...] = (
        0,
    )  # TNBC: a report run takes the threshold of its seed, else the first's
    methods: tuple[str, ...] = tuple(METHODS)
    train_only: bool = False  # leave scoring to a second call


def config_of(args: Args, method: str, keep: float, phase: str, seed: int) -> ExperimentConfig:
    """The shipped config with this method's loss, this share of the labels, this phase and this seed."""
    config = load_config(CONFIGS / f"yollo_{args.dataset}.py")
    parts = TNBC_PHASES[phase] if args.dataset == "tnbc" else {}
    data = dataclasses.replace(config.data, root=args.root, keep=keep, **parts)  # pyright: ignore
    name = f"{phase}/{method.replace(', ', '_').replace(' ', '')}/keep{keep}/seed{seed}"
    return dataclasses.replace(config, name=name, data=data, loss=loss_of(method, keep), seed=seed)


def loss_of(method: str, keep: float) -> Loss:
    """The method's loss; the weight of focal ECE follows the share of the labels, for all data sets alike."""
    ours = FocalExclusive(share=keep, share_factor=0.25) if keep < 1.0 else FocalExclusive()
    if method == WEIGHTED:
        return CrossEntropy(background_weight=ours.hyper(0.0)["alpha"])
    return ours if method == DEFAULT else METHODS[method]


def trained(args: Args, method: str, keep: float, phase: str, seed: int, console: Console) -> experiment.Run:
    """The finished run, trained as far as it is not."""
    config = config_of(args, method, keep, phase, seed)
    console.print(f"{phase}: {method}, {keep:.0%}, seed {seed}")
    splits = config.data.load(config.labels, config.seed)
    # Scoring comes after: a run that is only trained needs no validation.
    return experiment.train(
        config, args.runs / config.name, splits=dataclasses.replace(splits, validation=())
    )


def score(args: Args, method: str, keep: float, seed: int, console: Console) -> dict[str, Any]:
    """evaluation.json of a report run, made where it is not there yet."""
    run = trained(args, method, keep, "report", seed, console)
    if not (run.folder / "evaluation.json").is_file():
        threshold = None  # the validation images of the run itself
        if args.dataset == "tnbc":
            chooser = seed if seed in args.choose_seeds else args.choose_seeds[0]
            tuned = trained(args, method, keep, "choose", chooser, console)
            threshold = tuned.choose_threshold(tuned.splits().validation)
        run.evaluate(threshold_carried=threshold)
    return json.loads((run.folder / "evaluation.json").read_text())


def value_of(evaluation: Mapping[str, Any], point: str, measure: str) -> float:
    """The mean of a measure at an operating point."""
    measured = evaluation["operating_points"][point]
    if measure == "exclusive_recall":
        return measured[measure][evaluation["exclusive_class"]][measure]["mean"]
    return measured[measure]["mean"]


def table(
    scores: Mapping[str, list[dict[str, Any]]], value: Callable[[Mapping[str, Any], str], float]
) -> Table:
    """One measure: mean and standard deviation over the seeds at each operating point."""
    shown = Table("method", "p > 0.5", "carried over", "oracle", box=MARKDOWN)
    for method, evaluations in scores.items():
        cells = []
        for point in POINTS:
            values = [value(evaluation, point) for evaluation in evaluations]
            at = ", ".join(f"{e['operating_points'][point]['threshold']:.2f}" for e in evaluations)
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} +- {spread:.3f}" + f" ({at})" * (point != "fixed"))
        shown.add_row(method, *cells)
    return shown


def main() -> None:
    args, console = tyro.cli(Args), Console(width=150)
    shares = {m: (1.0,) if m == FULL else args.keep for m in args.methods}
    phases = [("report", args.seeds)]
    if args.dataset == "tnbc":
        phases.insert(0, ("choose", args.choose_seeds))
    for phase, seeds in phases:
        for seed in seeds:
            for method in args.methods:
                for keep in shares[method]:
                    trained(args, method, keep, phase, seed, console)
    if args.train_only:
        return
    for keep in args.keep:
        scores = {
            m: [score(args, m, keep if m != FULL else 1.0, seed, console) for seed in args.seeds]
            for m in args.methods
        }
        for measure in MEASURES[args.dataset]:
            console.print(f"\n{keep:.0%} of the labels, {measure}, mean and deviation (thresholds):\n")
            console.print(table(scores, lambda e, point, m=measure: value_of(e, point, m)))
        if not {DEFAULT, BASELINE} <= set(args.methods):
            continue
        for seed, ours, theirs in zip(args.seeds, scores[DEFAULT], scores[BASELINE]):
            for point, other in (("fixed", "fixed"), ("fixed", "carried_over")):
                pair: Any = (ours, theirs)  # read from JSON
                about = {"point": point, "baseline_point": other, "measure": "f1_distance"}
                difference = metrics.detection_difference(*pair, **about, seed=0)
                console.print(f"seed {seed}: {DEFAULT} {point} - {BASELINE} {other}: {dict(difference)}")


if __name__ == "__main__":
    main()
