"""The whole path on embedded data: a slide with 30 % of its cells marked, three losses, one report."""

import dataclasses
from pathlib import Path

from sparseshot_jax import experiment, pictures
from sparseshot_jax.config import ExperimentConfig, TrainSpec, to_json
from sparseshot_jax.console import CONSOLE, say, tile_progress, training_progress
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import SyntheticSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import CrossEntropy, FocalExclusive, Loss
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.predict import overlay_png, write_predictions
from sparseshot_jax.report import comparison_table, write_comparison
from sparseshot_jax.run import Run

METHODS: dict[str, Loss] = {
    "cross-entropy, w = 1": CrossEntropy(),
    "cross-entropy, w = 0.2": CrossEntropy(background_weight=0.2),
    "focal ECE": FocalExclusive(),
}
BASELINE, SHOWN = "cross-entropy, w = 1", "focal ECE"
MADE = ("predictions.geojson", "overlay.png", "report.html")
READING = (
    "Cross-entropy with w = 1 ranks the pixels well and calls none of them foreground at p > 0.5: it learnt "
    "that most such cells are background. A smaller background weight or the exclusive mask repairs that; "
    "on this easy slide the weight alone does as well as the mask. Touching nuclei come out as one object, "
    "hence the low object F1."
)


def demo_config() -> ExperimentConfig:
    """Focal ECE on a synthetic slide: small enough for two cores, the same path as a real one."""
    return ExperimentConfig(
        name="unet_demo",
        data=SyntheticSource(cache="runs/synthetic"),
        labels=LabelSpec(classes=("tumour",), unused=("lymphocyte", "fibroblast")),
        tiles=TileSpec(tile_px=128, mpp=0.5, annotated_share=0.5),
        model=UNetSpec(base=8, depth=3),
        loss=FocalExclusive(),
        train=TrainSpec(steps=400, batch_size=8, validate_every=400, checkpoint_every=200),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Draw a slide, train three losses on 30 % of its cells, compare them on an unseen slide."""

    out: Path = Path("runs/demo")  # folder of everything that is made
    steps: int = 400  # training steps a loss


def run(options: Demo) -> None:
    """Run what is not there yet; print the table and where the results lie."""
    base = demo_config()
    data = dataclasses.replace(base.data, cache=str(options.out / "slides"))  # pyright: ignore
    base = dataclasses.replace(base, data=data, train=dataclasses.replace(base.train, steps=options.steps))
    with CONSOLE.status("drawing the slides"):
        splits = base.data.load(base.labels, base.seed)
    runs, evaluations = {}, {}
    for method, loss in METHODS.items():
        name = method.replace(", ", "_").replace(" ", "")
        config = dataclasses.replace(base, loss=loss, name=name)
        with training_progress(method) as reporter:
            trained = experiment.train(config, options.out / name, splits=splits, reporter=reporter)
        runs[method] = trained
        evaluations[method] = trained.evaluation_of(splits)
    for measure in ("dice_pooled", "object_f1"):
        CONSOLE.print(comparison_table(evaluations, measure=measure).terminal())
    say(READING)
    _write(options.out, runs, evaluations, splits)
    say(f"{experiment.compilations()} training steps were compiled for {len(METHODS)} losses")
    for made in MADE:
        say(options.out / made)


def _write(out: Path, runs: dict[str, Run], evaluations: dict, splits) -> None:
    """Predictions of the test slide, their overlay, and the report; not again where they are there."""
    scored = max((run.folder / "evaluation.json").stat().st_mtime for run in runs.values())
    if all((out / made).is_file() and (out / made).stat().st_mtime >= scored for made in MADE):
        return
    case = splits.test[0]
    with tile_progress("predicting the test slide") as on_progress:
        stream = runs[SHOWN].predict_stream(case.slide, on_progress=on_progress)
        write_predictions(out / "predictions.geojson", stream)
    overlay_png(
        case.slide,
        out / "predictions.geojson",
        out / "overlay.png",
        class_names=runs[SHOWN].config.labels.names,
    )
    with CONSOLE.status("writing the report"):
        write_comparison(
            out / "report.html",
            title="Sparse annotation: three losses on one synthetic slide",
            evaluations=evaluations,
            logs={method: run.rows() for method, run in runs.items()},
            panels=pictures.panels(runs, splits),
            configs={method: to_json(run.config) for method, run in runs.items()},
            notes=(
                "Train, validation and test are three synthetic slides; 30 % of the tumour nuclei of the "
                "first are marked. Truth is complete on the other two.",
                READING,
            ),
            versions=pictures.versions(),
            baseline=BASELINE,
        )
