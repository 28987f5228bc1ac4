"""The verbs on a run: train, evaluate, predict, report; and demo and doctor."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from sparseshot_jax.cli.arguments import moved, stoppable, threshold_of, with_config
from sparseshot_jax.cli.show import show_evaluation
from sparseshot_jax.console import CONSOLE, say
from sparseshot_jax.errors import InputError

_RUN = Annotated[str, tyro.conf.Positional]  # text: pathlib makes gs:/ of gs://


def train(arguments: list[str]) -> None:
    """`sparseshot train ...`."""
    from sparseshot_jax import config as configs
    from sparseshot_jax import rounds
    from sparseshot_jax.console import training_progress

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Train:
        """Train a model, or go on with a run that was stopped."""

        config: Annotated[configs.ExperimentConfig, tyro.conf.arg(name="")]
        run: str | None = None  # run folder, also gs:// or s3://; runs/NAME where it is not given
        extend: bool = False  # let a finished run go on to more train.steps; its schedules are stretched

    chosen = with_config(Train, arguments, "train")
    with stoppable(), training_progress(chosen.config.name) as reporter:
        run = rounds.train(chosen.config, chosen.run, extend=chosen.extend, reporter=reporter)
    say(f"trained to step {run.step}: {run.folder}")
    say(f"next: sparseshot evaluate {run.folder}")


def evaluate(arguments: list[str]) -> None:
    """`sparseshot evaluate ...`."""
    from sparseshot_jax import experiment

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Evaluate:
        """Measure a run on its test part: Dice or F1 and their kin, with intervals."""

        run: _RUN  # run folder
        data_root: str | None = None  # the data, where it has moved

    chosen = tyro.cli(Evaluate, prog="sparseshot evaluate", args=arguments)
    run = moved(experiment.load(chosen.run), chosen.data_root)
    with CONSOLE.status("evaluating"):
        result = run.evaluate()
    show_evaluation(result)
    say(run.folder / "evaluation.json")


def predict(arguments: list[str]) -> None:
    """`sparseshot predict ...`."""
    from sparseshot_jax import experiment
    from sparseshot_jax.cli.slides import predict_slides
    from sparseshot_jax.data import storage
    from sparseshot_jax.data.formats.geojson import read_geojson
    from sparseshot_jax.data.slides.slide import open_slide

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Predict:
        """Find the objects of images or slides: a GeoJSON for QuPath and an overlay picture of each."""

        run: _RUN  # run folder
        images: Annotated[tuple[Path, ...], tyro.conf.Positional]  # images or slides
        out: str | None = None  # folder of the results; RUN/predictions where it is not given
        region: Path | None = None  # GeoJSON: only objects inside its polygons
        mpp: float | None = None  # micrometres a full-resolution pixel, where the file does not say
        threshold: str | None = None  # number or point (elkan_noto, carried_over); else predict.threshold

    chosen = tyro.cli(Predict, prog="sparseshot predict", args=arguments)
    if not chosen.images:
        raise InputError("sparseshot predict needs images after the run folder. Try: predict RUN slide.svs")
    stems = [image.stem for image in chosen.images]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise InputError(
            f"results are named by the images' names, and {', '.join(twice)} comes twice. Predict them in "
            "separate calls with --out."
        )
    run = experiment.load(chosen.run)
    threshold = None if chosen.threshold is None else threshold_of(run, chosen.threshold)
    folder = chosen.out or storage.join(run.folder, "predictions")
    region = read_geojson(chosen.region) if chosen.region else None
    storage.make_folder(folder)
    # All are opened before the first is computed: a wrong name shows at once.
    slides = [(image, open_slide(image, mpp=chosen.mpp)) for image in chosen.images]
    predict_slides(run, slides, folder, region=region, threshold=threshold)


def report(arguments: list[str]) -> None:
    """`sparseshot report ...`."""
    from sparseshot_jax import experiment

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Report:
        """Write report.html: curves, results, pictures, config."""

        run: _RUN  # run folder
        data_root: str | None = None  # the data, where it has moved

    chosen = tyro.cli(Report, prog="sparseshot report", args=arguments)
    with CONSOLE.status("drawing"):
        path = experiment.report(moved(experiment.load(chosen.run), chosen.data_root))
    say(path)


def demo(arguments: list[str]) -> None:
    """`sparseshot demo ...`."""
    from sparseshot_jax import demo as demonstration

    options = tyro.cli(demonstration.Demo, prog="sparseshot demo", args=arguments)
    with stoppable():
        demonstration.run(options)


def doctor(arguments: list[str]) -> None:
    """`sparseshot doctor ...`."""
    from sparseshot_jax import doctor as checks

    @dataclasses.dataclass(frozen=True)
    class Doctor:
        """Say what this machine and installation can do, and what to do where they cannot."""

    tyro.cli(Doctor, prog="sparseshot doctor", args=arguments)
    if not checks.check():
        sys.exit(1)
