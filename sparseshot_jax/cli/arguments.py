"""What several verbs take: a config and its fields, a run that moved, a signal that stops them."""

import contextlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tyro

from sparseshot_jax.console import CONSOLE, say
from sparseshot_jax.errors import InputError


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C, once the state is saved, end the program with the usual status."""
    from sparseshot_jax.training.loop import Interrupted

    try:
        yield
    except Interrupted as stopped:
        say(f"{stopped}. The same command goes on from there.")
        sys.exit(128 + stopped.signum)


_RECIPE = (
    "A folder or slides are trained on as the shipped configs are: cross-entropy with the weight of unmarked "
    "ground by the share of the objects that is marked. Say that share, --labels.share 0.3; without it the "
    "annotations of a folder are taken for complete, and slides are refused. --model yollo detects."
)


def config_path(
    arguments: list[str], verb: str, what: str = "CONFIG", fields: str = ""
) -> tuple[str, list[str]]:
    """The config (or SOURCE) path, which comes first, and the rest.

    Args:
        arguments: of the verb.
        verb: its name.
        what: it is called; SOURCE where the loss does not matter.
        fields: how the verb takes those of the config; "" where each is an option, and a folder or a slide
            will do.
    """
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if {"-h", "--help"} & set(arguments):
        also = "" if fields else ", a folder with images/, a slide, or a folder of slides"
        how = fields or "each an option"
        CONSOLE.print(
            f"usage: sparseshot {verb} {what} [OPTIONS]\n\n{what} is a Python file such as "
            f"configs/unet_tnbc.py{also}. `sparseshot {verb} {what} --help` lists its fields, {how}."
        )
        if not fields and what == "CONFIG":
            CONSOLE.print(f"\n{_RECIPE}")
        sys.exit(0)
    raise InputError(
        f"sparseshot {verb} needs a {what.lower()} first. Try: sparseshot {verb} configs/unet_tnbc.py"
    )


def source_config(path: str, arguments: list[str]) -> tuple[Any, list[str]]:
    """The config of a SOURCE: a config file, or one made for a run, a folder of images or slides, a slide.

    `--loss NAME` (model, data likewise) is taken out of the arguments: it exchanges the whole spec.

    Returns:
        The config, and the other arguments.

    Raises:
        InputError: nothing is there, or the config is wrong.
    """
    from sparseshot_jax.config import override

    kinds, rest = _kinds(arguments)
    config = _config_of(path, kinds.get("model", "unet"))
    for field, kind in kinds.items():
        config = override(config, field, kind)
    return config, rest


def _config_of(path: str, model: str) -> Any:
    """The config of a file or a run; else one made for that kind of model."""
    from sparseshot_jax.config import load_config
    from sparseshot_jax.data import storage
    from sparseshot_jax.data.sources import FolderSource, SlideSource
    from sparseshot_jax.data.sources.annotation_files import MARK_SUFFIXES
    from sparseshot_jax.data.sources.folder import image_folder

    if not storage.is_local(path):
        return load_config(path if path.endswith(".json") else storage.join(path, "config.json"))
    place = Path(path)
    if place.is_file() and place.name.lower().endswith(MARK_SUFFIXES) and place.suffix != ".json":
        raise InputError(
            f"{path}: holds annotations. Give their slide, or the folder with images/ beside them."
        )
    if (place / "config.json").is_file():
        return load_config(place / "config.json")
    if not place.exists() or place.suffix in (".py", ".json"):
        return load_config(place)
    if image_folder(place).is_dir():
        data = FolderSource(root=path)
    else:
        data = SlideSource(slides=(str(place / "*") if place.is_dir() else path,))
    return _recipe(place.stem, data, model)


def _recipe(name: str, data: Any, model: str) -> Any:
    """The config of data without one: that of the shipped configs (unet_tnbc, unet_slide and yollo_...)."""
    from sparseshot_jax.codec import check_kind
    from sparseshot_jax.config import ExperimentConfig, TrainSpec
    from sparseshot_jax.data.sources import SlideSource
    from sparseshot_jax.data.tiles import TileSpec
    from sparseshot_jax.losses import CrossEntropy
    from sparseshot_jax.models import MODELS

    spec: Any = MODELS[check_kind("model", model, MODELS)]()
    slides, detects = isinstance(data, SlideSource), spec.task == "detection"
    # On a slide few places are marked, and few tiles drawn anywhere would hold a mark.
    share = 0.5 if slides or not detects else 0.0
    return ExperimentConfig(
        name=name,
        data=data,
        tiles=TileSpec(annotated_share=share),
        model=spec,
        loss=CrossEntropy(background_weight=None, decision=0.125 if detects else 0.4),
        train=TrainSpec(ema_decay=0.99 if slides else 0.98),
    )


def _kinds(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The kinds named by `--loss NAME` and its like, and the other arguments."""
    from sparseshot_jax.config import REGISTRIES

    kinds, rest = {}, []
    pending = iter(arguments)
    for argument in pending:
        field, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and field in REGISTRIES:
            kinds[field] = value if equals else next(pending, "")
        else:
            rest.append(argument)
    return kinds, rest


def with_config(kind: Any, arguments: list[str], verb: str) -> Any:
    """The arguments of a verb that takes a CONFIG first, and every field of it as an option.

    `kind`: a dataclass whose field `config` is an `ExperimentConfig`; returns one.
    """
    path, rest = config_path(arguments, verb)
    default, rest = source_config(path, rest)
    return tyro.cli(
        kind,
        prog=f"sparseshot {verb} {path}",
        args=rest,
        default=kind(config=default),
        config=(tyro.conf.AvoidSubcommands,),
    )


def options_of(kind: Any, path: str, arguments: list[str], verb: str) -> Any:
    """The options of a verb that takes a CONFIG first and its fields by name; --help lists these."""
    from sparseshot_jax.config import load_config, to_json
    from sparseshot_jax.fields import listed

    about = None
    if {"-h", "--help"} & set(arguments):
        lead = f"Fields of {path}, each PART.NAME (`sparseshot train {path} --help` says what they mean):"
        about = "\n\n".join([inspect.getdoc(kind) or "", lead, *listed(to_json(load_config(path)))])
    return tyro.cli(kind, prog=f"sparseshot {verb} {path}", args=arguments, description=about)


def config_with(path: str, assignments: Iterable[str]) -> Any:
    """The config of a file with every FIELD=VALUE of `--set` in it.

    Raises:
        InputError: the file or a field is not there, or a value cannot be held.
    """
    from sparseshot_jax.config import load_config, override

    config = load_config(path)
    # A kind ("loss") begins from its defaults: it comes before its fields ("loss.alpha").
    for field, value in sorted(map(assignment, assignments), key=lambda pair: "." in pair[0]):
        config = override(config, field, value)
    return config


def moved(run: Any, root: str | None) -> Any:
    """The run, its data read from `root` where that is given."""
    return run if root is None else run.with_data_root(root)


def threshold_of(run: Any, asked: str) -> float:
    """A threshold given as a number, or as the name of an operating point that `evaluate` has recorded.

    Raises:
        InputError: no number in [0, 1); or evaluation.json has no such point, or is of another step.
    """
    with contextlib.suppress(ValueError):
        if not 0.0 <= (number := float(asked)) < 1.0:
            raise InputError(f"--threshold must be in [0, 1); got {asked}. Try 0.5.")
        return number
    evaluation = run.recorded()
    path, first = run.folder / "evaluation.json", f"Run sparseshot evaluate {run.folder} first."
    if evaluation is None:
        raise InputError(
            f"--threshold {asked}: {path} is not there, or not of step {run.step} with the options of this "
            f"run. {first}"
        )
    held_out = evaluation.get("held_out", {})
    points = {name: held_out[name] for name in ("elkan_noto",) if name in held_out}
    points |= evaluation.get("operating_points", {})
    if asked not in points:
        there = f"it has {', '.join(points)}" if points else "it has none"
        raise InputError(
            f"--threshold must be a number or an operating point of {path}; got {asked!r}, and {there}. "
            f"One is absent where validation gives none, and from files of earlier versions. {first}"
        )
    # Of a detector nothing below its floor was measured.
    return max(points[asked]["threshold"], run.floor if run.detects else 0.0)


def assignment(text: str) -> tuple[str, str]:
    """Field and value of FIELD=VALUE."""
    field, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set reads FIELD=VALUE; got {text!r}. Try --set train.steps=400")
    return field, value
