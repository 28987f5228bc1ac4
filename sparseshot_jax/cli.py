"""The verbs of the command line. Each is a thin caller of `experiment`, `ablate` and `report`."""

import contextlib
import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from sparseshot_jax.console import CONSOLE, ERRORS, say
from sparseshot_jax.errors import InputError

_RUN = Annotated[Path, tyro.conf.Positional]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: one verb, then its arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _overview()
        return
    try:
        _verb(arguments[0])(arguments[1:])
    except InputError as error:
        if debug:
            raise
        ERRORS.print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        say("stopped")
        sys.exit(130)


def _train(arguments: list[str]) -> None:
    from sparseshot_jax import config as configs
    from sparseshot_jax import experiment
    from sparseshot_jax.console import training_progress

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Train:
        """Train a model, or go on with a run that was stopped."""

        config: Annotated[configs.ExperimentConfig, tyro.conf.arg(name="")]
        run: Path | None = None  # run folder; runs/NAME where it is not given
        extend: bool = False  # let a finished run go on to more train.steps; its schedules are stretched

    path, rest = _config_path(arguments, "train")
    default, rest = _switch_kinds(configs.load_config(path), rest)
    chosen = tyro.cli(
        Train,
        prog=f"sparseshot train {path}",
        args=rest,
        default=Train(config=default),
        config=(tyro.conf.AvoidSubcommands,),
    )
    with _stoppable(), training_progress(chosen.config.name) as reporter:
        run = experiment.train(chosen.config, chosen.run, extend=chosen.extend, reporter=reporter)
    say(f"trained to step {run.step}: {run.folder}")
    say(f"next: sparseshot evaluate {run.folder}")


def _evaluate(arguments: list[str]) -> None:
    from sparseshot_jax import experiment

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Evaluate:
        """Measure a run on its test part: Dice, IoU, object F1, calibration, with intervals."""

        run: _RUN  # run folder
        data_root: str | None = None  # the data, where it has moved

    chosen = tyro.cli(Evaluate, prog="sparseshot evaluate", args=arguments)
    run = _moved(experiment.load(chosen.run), chosen.data_root)
    with CONSOLE.status("evaluating"):
        result = run.evaluate()
    show_evaluation(result)
    say(run.folder / "evaluation.json")


def _predict(arguments: list[str]) -> None:
    from sparseshot_jax import experiment
    from sparseshot_jax.console import tile_progress
    from sparseshot_jax.data.formats.geojson import read_geojson
    from sparseshot_jax.data.slides import open_slide
    from sparseshot_jax.predict import overlay_png, write_predictions

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Predict:
        """Find the objects of images or slides: a GeoJSON for QuPath and an overlay picture of each."""

        run: _RUN  # run folder
        images: Annotated[tuple[Path, ...], tyro.conf.Positional]  # images or slides
        out: Path | None = None  # folder of the results; RUN/predictions where it is not given
        region: Path | None = None  # GeoJSON: only objects inside its polygons
        mpp: float | None = None  # micrometres a full-resolution pixel, where the file does not say
        threshold: float | None = None  # in place of the run's predict.threshold

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
    folder = chosen.out or run.folder / "predictions"
    region = read_geojson(chosen.region) if chosen.region else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error}. Choose another folder with --out.") from error
    # All are opened before the first is computed: a wrong name shows at once.
    for image, slide in [(image, open_slide(image, mpp=chosen.mpp)) for image in chosen.images]:
        target = folder / f"{image.stem}.geojson"
        with tile_progress(image.name) as on_progress:
            stream = run.predict_stream(
                slide, region=region, threshold=chosen.threshold, on_progress=on_progress
            )
            count = write_predictions(target, stream)
        overlay_png(slide, target, folder / f"{image.stem}_overlay.png")
        say(f"{count} objects: {target}, {folder / f'{image.stem}_overlay.png'}")


def _ablate(arguments: list[str]) -> None:
    from sparseshot_jax import ablate, experiment, run_folder
    from sparseshot_jax import config as configs

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ablate:
        """Train a grid of trials through steps compiled once, and compare them in a table."""

        grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # FIELD=VALUE,VALUE; may be repeated
        seeds: tuple[int, ...] = (0,)  # every combination runs once a seed
        set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # FIELD=VALUE for all trials
        out: Path | None = None  # folder of the sweep; runs/NAME_ablation where it is not given

    path, rest = _config_path(arguments, "ablate")
    chosen = tyro.cli(Ablate, prog=f"sparseshot ablate {path}", args=rest)
    config = configs.load_config(path)
    for assignment in chosen.set:
        config = configs.override(config, *_assignment(assignment))
    trials = ablate.grid(chosen.grid, chosen.seeds)
    for trial in trials:  # a value that no config can hold is found before the first one trains
        experiment.trial_config(config, trial)
    folder = chosen.out or Path("runs") / f"{config.name}_ablation"
    run_folder.check_folder(folder, config, extend=False)  # rows of another config are no answer
    run_folder.record_config(folder, config)
    with _stoppable():
        rows = ablate.run_trials(
            trials,
            lambda trial: experiment.run_trial(config, trial, folder),
            folder / "results.jsonl",
            on_done=lambda trial, row: say(f"{trial.name}: {row.get('dice_pooled', row)}"),
        )
    show_rows(rows)
    say(f"{experiment.compilations()} training steps compiled for {len(trials)} trials")
    say(folder / "results.jsonl")


def _report(arguments: list[str]) -> None:
    from sparseshot_jax import experiment

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Report:
        """Write report.html: curves, results, pictures, config."""

        run: _RUN  # run folder
        data_root: str | None = None  # the data, where it has moved

    chosen = tyro.cli(Report, prog="sparseshot report", args=arguments)
    with CONSOLE.status("drawing"):
        path = experiment.report(_moved(experiment.load(chosen.run), chosen.data_root))
    say(path)


def _demo(arguments: list[str]) -> None:
    from sparseshot_jax import demo

    options = tyro.cli(demo.Demo, prog="sparseshot demo", args=arguments)
    with _stoppable():
        demo.run(options)


def _doctor(arguments: list[str]) -> None:
    from sparseshot_jax import doctor

    @dataclasses.dataclass(frozen=True)
    class Doctor:
        """Say what this machine and installation can do, and what to do where they cannot."""

    tyro.cli(Doctor, prog="sparseshot doctor", args=arguments)
    if not doctor.check():
        sys.exit(1)


VERBS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "demo": (_demo, "draw a slide, train three losses on 30 % of its cells, compare: the whole path"),
    "train": (_train, "train CONFIG, or go on with a run that was stopped"),
    "evaluate": (_evaluate, "measure RUN on its test part"),
    "predict": (_predict, "find the objects of images or slides with RUN; GeoJSON for QuPath"),
    "ablate": (_ablate, "train a grid of trials through steps compiled once"),
    "report": (_report, "write RUN/report.html: curves, results, pictures"),
    "doctor": (_doctor, "say what this machine and installation can do"),
}


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C, once the state is saved, end the program with the usual status."""
    from sparseshot_jax.training.loop import Interrupted

    try:
        yield
    except Interrupted as stopped:
        say(f"{stopped}. The same command goes on from there.")
        sys.exit(128 + stopped.signum)


def _overview() -> None:
    CONSOLE.print("usage: sparseshot VERB [ARGUMENTS] [--help] [--debug]\n")
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, (_, summary) in VERBS.items():
        table.add_row(f"  {name}", summary)
    CONSOLE.print(table)
    CONSOLE.print("\nsparseshot VERB --help tells a verb's arguments; --debug shows tracebacks.")


def _verb(name: str) -> Callable[[list[str]], None]:
    if name in VERBS:
        return VERBS[name][0]
    near = difflib.get_close_matches(name, VERBS, n=1)
    raise InputError(
        f"no verb {name!r}. " + (f"Did you mean {near[0]}?" if near else f"There are: {', '.join(VERBS)}.")
    )


def _config_path(arguments: list[str], verb: str) -> tuple[str, list[str]]:
    """The config path, which comes first, and the rest."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if {"-h", "--help"} & set(arguments):
        CONSOLE.print(
            f"usage: sparseshot {verb} CONFIG [OPTIONS]\n\nCONFIG is a Python file such as "
            f"configs/unet_tnbc.py. `sparseshot {verb} CONFIG --help` lists its fields, each an option."
        )
        sys.exit(0)
    raise InputError(f"sparseshot {verb} needs a config first. Try: sparseshot {verb} configs/unet_tnbc.py")


def _switch_kinds(config: Any, arguments: list[str]) -> tuple[Any, list[str]]:
    """Take `--loss NAME` (model, data likewise) out of the arguments: it exchanges the whole spec."""
    from sparseshot_jax.config import REGISTRIES, override

    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        field, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and field in REGISTRIES:
            config = override(config, field, value if equals else next(pending, ""))
        else:
            rest.append(argument)
    return config, rest


def _moved(run: Any, root: str | None) -> Any:
    """The run, its data read from `root` where that is given."""
    return run if root is None else run.with_data_root(root)


def _assignment(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set reads FIELD=VALUE; got {text!r}. Try --set train.steps=400")
    return field, value


def show_evaluation(result: dict[str, Any]) -> None:
    """The numbers of an evaluation as a table."""
    from sparseshot_jax.report import results_table

    if "operating_points" in result:
        CONSOLE.print(results_table(result).terminal())  # pyright: ignore[reportArgumentType]
    if "held_out" in result:
        held = result["held_out"]
        say(
            f"recall on {held['held_out']} held-out marked objects: {held['recall']:.3f}, with "
            f"{held['predicted_area']:.1%} of the tissue called foreground (p > {held['threshold']}). "
            "Sparse marks support no Dice and no F1."
        )


def show_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Plain rows as a table, a column a key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = Table(*columns)
    for row in rows:
        shown.add_row(*(_short(row.get(key, "")) for key in columns))
    CONSOLE.print(shown)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
