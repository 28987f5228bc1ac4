"""Segmentation of TNBC with 30 % of the labels: the table of docs/results.md.

    python scripts/results_tnbc.py --root $DATA/tnbc --runs runs/tnbc

Two phases. "choose" trains on patients 01-04 and finds each method's threshold on 05-06; "report" trains
on 01-06 and scores 07-08 once, at 0.5, at the threshold carried over from "choose", and at the best one
(an oracle). Every run is resumed where it stands; finished ones are only read. Patients absent from the
folder are absent from the result.
"""

import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import tyro
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from sparseshot_jax import experiment, metrics
from sparseshot_jax.config import ExperimentConfig, load_config
from sparseshot_jax.losses import CrossEntropy, Exclusive, Focal, FocalExclusive, Loss, Official

CONFIG = Path(__file__).parents[1] / "configs" / "unet_tnbc.py"
BASELINE, DEFAULT, FULL = "cross-entropy", "focal ECE", "cross-entropy, all labels"
METHODS: dict[str, Loss] = {
    BASELINE: CrossEntropy(),
    "cross-entropy, w = 0.2": CrossEntropy(background_weight=0.2),
    "focal": Focal(),
    "ECE": Exclusive(),
    DEFAULT: FocalExclusive(),
    "official": Official(),
    FULL: CrossEntropy(),
}
PHASES = {
    "choose": {"train": ("0[1-4]_*",), "validation": ("0[56]_*",), "test": ()},
    "report": {"train": ("0[1-6]_*",), "validation": (), "test": ("0[78]_*",)},
}
POINTS = ("fixed", "carried_over", "oracle")


@dataclasses.dataclass(frozen=True)
class Args:
    """Segmentation of TNBC with a share of the labels."""

    root: str  # folder with images/ and instances/ of TNBC, named PATIENT_IMAGE
    runs: Path = Path("runs/tnbc")  # run folders are made here
    seeds: tuple[int, ...] = (0, 1, 2)
    choose_seeds: tuple[int, ...] = (0,)  # a report run takes the threshold of its seed, else the first's
    keep: float = 0.3  # share of the annotated nuclei that training sees
    train_only: bool = False  # leave scoring to a second call


def config_of(args: Args, method: str, phase: str, seed: int) -> ExperimentConfig:
    """The shipped config with this method's loss, this phase's patients and this seed."""
    config = load_config(CONFIG)
    keep = 1.0 if method == FULL else args.keep
    data = dataclasses.replace(config.data, root=args.root, keep=keep, **PHASES[phase])  # pyright: ignore
    name = f"{phase}/{method.replace(', ', '_').replace(' ', '')}/seed{seed}"
    return dataclasses.replace(config, name=name, data=data, loss=METHODS[method], seed=seed)


def trained(args: Args, method: str, phase: str, seed: int, console: Console) -> experiment.Run:
    """The finished run, trained as far as it is not."""
    config = config_of(args, method, phase, seed)
    folder = args.runs / config.name
    console.print(f"{phase}: {method}, seed {seed}")
    splits = config.data.load(config.labels, config.seed)
    # Scoring comes after: a run that is only trained needs no validation.
    return experiment.train(config, folder, splits=dataclasses.replace(splits, validation=()))


def score(args: Args, method: str, seed: int, console: Console) -> dict:
    """evaluation.json of a report run, made where it is not there yet."""
    run = trained(args, method, "report", seed, console)
    if not (run.folder / "evaluation.json").is_file():
        chooser = seed if seed in args.choose_seeds else args.choose_seeds[0]
        tuned = trained(args, method, "choose", chooser, console)
        threshold = tuned.choose_threshold(tuned.splits().validation)
        run.evaluate(threshold_carried=threshold)
    return json.loads((run.folder / "evaluation.json").read_text())


def table(scores: dict[str, list[dict]], measure: str) -> Table:
    """One measure: mean and standard deviation over the seeds at each operating point."""
    shown = Table("method", "p > 0.5", "carried over", "oracle", box=MARKDOWN)
    for method, evaluations in scores.items():
        cells = []
        for point in POINTS:
            points = [e["operating_points"][point] for e in evaluations]
            values = [p[measure]["mean"] for p in points]
            at = ", ".join(f"{p['threshold']:.2f}" for p in points)
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} +- {spread:.3f}" + f" ({at})" * (point != "fixed"))
        shown.add_row(method, *cells)
    return shown


def main() -> None:
    args, console = tyro.cli(Args), Console(width=140)
    for phase, seeds in (("choose", args.choose_seeds), ("report", args.seeds)):
        for seed in seeds:
            for method in METHODS:
                trained(args, method, phase, seed, console)
    if args.train_only:
        return
    scores = {m: [score(args, m, seed, console) for seed in args.seeds] for m in METHODS}
    for measure in ("dice_image", "dice_pooled", "object_f1"):
        console.print(f"\n{measure}, mean and standard deviation over the seeds (thresholds):\n")
        console.print(table(scores, measure))
    for seed, ours, theirs in zip(args.seeds, scores[DEFAULT], scores[BASELINE]):
        console.print(f"seed {seed}: {DEFAULT} at 0.5 minus {BASELINE} carried over, paired bootstrap:")
        console.print(_crossed(ours, theirs))


def _crossed(ours: dict, theirs: dict) -> dict:
    """Difference of pooled Dice, ours at 0.5 and theirs at its carried-over threshold."""
    first, second = (
        np.array([image["points"][point]["pixels"] for image in evaluation["per_image"]])
        for evaluation, point in ((ours, "fixed"), (theirs, "carried_over"))
    )
    return dict(metrics.paired_difference(first, second, metrics.dice_of, seed=0))


if __name__ == "__main__":
    main()
