"""The whole path on embedded data: a slide with 30 % of its cells marked, a U-Net and a detector, several
losses, two reports."""

import dataclasses
import os
from pathlib import Path

from sparseshot_jax import experiment, pictures
from sparseshot_jax.config import ExperimentConfig, TrainSpec, to_json
from sparseshot_jax.console import CONSOLE, say, tile_progress, training_progress
from sparseshot_jax.data.cases import Splits
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import SyntheticSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import CrossEntropy, FocalExclusive, Loss
from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.predict import overlay_png, write_predictions
from sparseshot_jax.report import comparison_table, write_comparison
from sparseshot_jax.run import Run

BASELINE, SHOWN, MASKED = "cross-entropy, w = 1", "cross-entropy, w by share", "focal ECE"
ABOUT = (
    "Train, validation and test are three synthetic slides; 30 % of the tumour nuclei of the first are "
    "marked. Truth is complete on the other two."
)


def demo_config() -> ExperimentConfig:
    """A U-Net on a synthetic slide: small enough for two cores, the same path as a real one."""
    return ExperimentConfig(
        name="unet_demo",
        data=SyntheticSource(cache="runs/synthetic"),
        labels=LabelSpec(classes=("tumour",), unused=("lymphocyte", "fibroblast")),
        tiles=TileSpec(tile_px=128, mpp=0.5, annotated_share=0.5),
        model=UNetSpec(base=8, depth=3),
        loss=CrossEntropy(background_weight=None, decision=0.4),
        train=TrainSpec(steps=400, batch_size=8, validate_every=400, checkpoint_every=200),
    )


def detector_config() -> ExperimentConfig:
    """A detector on the same slides."""
    return dataclasses.replace(
        demo_config(),
        name="yollo_demo",
        model=YolloSpec(width=8, depth=2, stride=8),
        loss=CrossEntropy(background_weight=None, decision=0.125),
        train=TrainSpec(steps=300, batch_size=8, validate_every=300, checkpoint_every=150, ema_decay=0.98),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Comparison:
    """Losses for one model on one slide, and the files that come of it."""

    title: str
    methods: dict[str, Loss]
    measures: tuple[str, ...]  # a table each
    reading: str  # what the tables show, in words
    prefix: str  # of the runs' folders
    predictions: str  # file names
    overlay: str
    report: str

    @property
    def made(self) -> tuple[str, str, str]:
        return self.predictions, self.overlay, self.report


SEGMENTATION = _Comparison(
    title="Sparse annotation: three losses for a U-Net on one synthetic slide",
    methods={
        BASELINE: CrossEntropy(),
        SHOWN: demo_config().loss,
        MASKED: FocalExclusive(),
    },
    measures=("dice_pooled", "object_f1"),
    reading=(
        "Cross-entropy with w = 1 ranks the pixels well and calls none of them foreground at p > 0.5: it "
        "learnt that most such cells are background. A background weight that follows the share of the marks "
        "repairs that; the exclusive mask with a weight of 0.2 does as well on this easy slide. Touching "
        "nuclei count as one object here, hence the low object F1; predict.instances parts them."
    ),
    prefix="",
    predictions="predictions.geojson",
    overlay="overlay.png",
    report="report.html",
)
DETECTION = _Comparison(
    title="Sparse annotation: three losses for a detector on one synthetic slide",
    methods={BASELINE: CrossEntropy(), SHOWN: detector_config().loss, MASKED: FocalExclusive()},
    measures=("f1_distance",),
    reading=(
        "The detector gives a box for each nucleus, touching or not. Cross-entropy with w = 1 finds next to "
        "nothing at a score of 0.5, and does well at a threshold from validation, for which every nucleus "
        "of the validation slide had to be marked."
    ),
    prefix="detector_",
    predictions="detections.geojson",
    overlay="detections_overlay.png",
    report="detections.html",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Draw a slide, train a U-Net and a detector on 30 % of its cells, compare losses on an unseen slide."""

    out: Path = Path("runs/demo")  # folder of everything that is made
    steps: int = 400  # training steps of the U-Net, for each loss
    detector_steps: int = 300  # of the detector; 0: train none


def run(options: Demo) -> None:
    """Run what is not there yet; print the tables and where the results lie."""
    unet, detector = demo_config(), detector_config()
    data = dataclasses.replace(unet.data, cache=str(options.out / "slides"))  # pyright: ignore
    with CONSOLE.status("drawing the slides"):
        splits = data.load(unet.labels, unet.seed)
    made = []
    for comparison, config, steps in (
        (SEGMENTATION, unet, options.steps),
        (DETECTION, detector, options.detector_steps),
    ):
        if steps:
            train = dataclasses.replace(config.train, steps=steps)
            config = dataclasses.replace(config, data=data, train=train)
            _compare(comparison, config, options.out, splits)
            made += comparison.made
    for name in made:
        say(options.out / name)


def _compare(comparison: _Comparison, base: ExperimentConfig, out: Path, splits: Splits) -> None:
    runs, evaluations = {}, {}
    compiled = experiment.compilations()
    for method, loss in comparison.methods.items():
        name = comparison.prefix + method.replace(", ", "_").replace(" ", "")
        config = dataclasses.replace(base, loss=loss, name=name)
        with training_progress(method) as reporter:
            trained = experiment.train(config, out / name, extend=None, splits=splits, reporter=reporter)
        runs[method] = trained
        evaluations[method] = trained.evaluation_of(splits)
    for measure in comparison.measures:
        CONSOLE.print(comparison_table(evaluations, measure=measure).terminal())
    say(comparison.reading)
    _write(comparison, out, runs, evaluations, splits)
    compiled = experiment.compilations() - compiled
    say(f"{compiled} training steps were compiled for {len(comparison.methods)} losses")


def _write(
    comparison: _Comparison, out: Path, runs: dict[str, Run], evaluations: dict, splits: Splits
) -> None:
    """Predictions of the test slide, their overlay, and the report; not again where they are there."""
    scored = max(os.stat(run.folder / "evaluation.json").st_mtime for run in runs.values())
    files = [out / name for name in comparison.made]
    if all(path.is_file() and path.stat().st_mtime >= scored for path in files):
        return
    predictions, overlay, report = files
    case, shown = splits.test[0], runs[SHOWN]
    with tile_progress("predicting the test slide") as on_progress:
        write_predictions(predictions, shown.predict_stream(case.slide, on_progress=on_progress))
    overlay_png(case.slide, predictions, overlay, class_names=shown.config.labels.names)
    with CONSOLE.status("writing the report"):
        write_comparison(
            report,
            title=comparison.title,
            evaluations=evaluations,
            logs={method: run.rows() for method, run in runs.items()},
            panels=pictures.panels(runs, splits),
            configs={method: to_json(run.config) for method, run in runs.items()},
            notes=(ABOUT, comparison.reading),
            versions=pictures.versions(),
            baseline=BASELINE,
        )
