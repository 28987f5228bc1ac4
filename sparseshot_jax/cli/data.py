"""The verbs on data: formats, convert, validate, sparsify, tile."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from sparseshot_jax.cli.arguments import config_path, source_config, stoppable
from sparseshot_jax.cli.verbs import Verbs, asks_for_help, find, overview
from sparseshot_jax.config import ModelSpec, SourceSpec
from sparseshot_jax.console import CONSOLE, say
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dataset:
    """The fields of a config that a data verb looks at."""

    data: SourceSpec
    labels: LabelSpec
    tiles: TileSpec
    seed: int  # of subsets and tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tiled(_Dataset):
    """The fields that decide what a training tile holds."""

    model: ModelSpec


_PATH = Annotated[Path, tyro.conf.Positional]
_PARTS = Annotated[_Dataset, tyro.conf.arg(name="")]
_TILED = Annotated[_Tiled, tyro.conf.arg(name="")]


def run(arguments: list[str]) -> None:
    """`sparseshot data VERB ...`."""
    if asks_for_help(arguments):
        overview(VERBS, "sparseshot data")
        return
    find(VERBS, arguments[0])(arguments[1:])


def formats(arguments: list[str]) -> None:
    """`sparseshot data formats`."""
    from sparseshot_jax.data.formats import FORMATS

    @dataclasses.dataclass(frozen=True)
    class Formats:
        """List the annotation formats: suffixes, reading and writing, what a round trip keeps."""

    tyro.cli(Formats, prog="sparseshot data formats", args=arguments)
    table = Table("name", "format", "suffixes", "written", "keeps", "origin")
    for name, one in FORMATS.items():
        written = "yes" if one.write else "no"
        table.add_row(name, one.title, " ".join(one.suffixes), written, one.keeps, one.origin)
    CONSOLE.print(table)


def convert(arguments: list[str]) -> None:
    """`sparseshot data convert ...`."""
    from sparseshot_jax.data.convert import convert as convert_annotations

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Convert:
        """Annotations of one format to another; says what the target cannot hold."""

        source: _PATH  # a file, or a folder of files of one format
        target: _PATH  # a file, or a folder for one file an image
        source_format: str | None = None  # see `sparseshot data formats`; found out where it is not given
        target_format: str | None = None  # likewise; needed for a folder
        images: Path | None = None  # the picture or the folder of pictures, where a format needs sizes
        overwrite: bool = False  # replace files that exist

    chosen = tyro.cli(Convert, prog="sparseshot data convert", args=arguments)
    with CONSOLE.status("converting"):
        said = convert_annotations(
            chosen.source,
            chosen.target,
            source_format=chosen.source_format,
            target_format=chosen.target_format,
            images=chosen.images,
            overwrite=chosen.overwrite,
        )
    for sentence in said:
        say(sentence)
    say(chosen.target)


def validate(arguments: list[str]) -> None:
    """`sparseshot data validate ...`."""
    from sparseshot_jax.data.checks.findings import Severity
    from sparseshot_jax.data.checks.source import unchecked
    from sparseshot_jax.data.checks.validate import validate_subjects
    from sparseshot_jax.pictures import versions
    from sparseshot_jax.report.validation import class_table, findings_table, ground_table, write_validation

    path, parts, rest = _source(arguments, "validate")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Validate:
        """Say and draw how each area will be treated, and what looks wrong in the annotations."""

        source: _PARTS = parts
        out: Path = Path("validation") / Path(path).stem  # folder of index.html and the pictures
        pictures: int = 24  # images that are drawn, the worst first

    chosen = _parsed(Validate, path, rest, "validate")
    source = chosen.source
    with CONSOLE.status("reading"):
        subjects = unchecked(source.data, source.labels, source.seed)
    with CONSOLE.status(f"checking {len(subjects)} images"):
        found = validate_subjects(subjects)
    for table in (class_table(found), ground_table(found), findings_table(found)):
        CONSOLE.print(table.terminal())
    with CONSOLE.status("drawing"):
        page = write_validation(
            chosen.out,
            list(zip(subjects, found)),
            title=f"Check of {path}",
            mpp=source.tiles.mpp,
            pictures=chosen.pictures,
            versions=versions(),
        )
    say(page)
    if any(one.worst == Severity.ERROR for one in found):
        sys.exit(1)


def sparsify(arguments: list[str]) -> None:
    """`sparseshot data sparsify ...`."""
    from sparseshot_jax.data.thin import Thinning, write_subset

    path, parts, rest = _source(arguments, "sparsify")
    out, rest = _out(rest, "sparsify")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Sparsify:
        """Write a nested subset of the annotations: the same data with fewer marked objects."""

        source: _PARTS = parts
        keep: float = 0.3  # share of the marked objects of each image, (0, 1]
        regime: Literal["uniform", "clustered", "per-field", "class-biased"] = "uniform"  # which ones
        field_um: float = 64.0  # per-field: side of a field, micrometres
        cluster_objects: int = 20  # clustered: mean number of objects a cluster
        class_ratio: float = 2.0  # class-biased: share of a class over that of the next more frequent one

    chosen = _parsed(Sparsify, f"{path} OUT", rest, "sparsify")
    thinning = Thinning(
        keep=chosen.keep,
        regime=chosen.regime,
        seed=chosen.source.seed,
        field_um=chosen.field_um,
        cluster_objects=chosen.cluster_objects,
        class_ratio=chosen.class_ratio,
    )
    with CONSOLE.status("thinning"):
        record = write_subset(chosen.source.data, out, thinning, chosen.source.labels)
    images = record["images"].values()
    kept, objects = (sum(one[key] for one in images) for key in ("kept", "objects"))
    say(f"{kept} of {objects} objects of {len(images)} images stay marked: {out}")


def tile(arguments: list[str]) -> None:
    """`sparseshot data tile ...`."""
    from sparseshot_jax.console import shard_progress
    from sparseshot_jax.data.shards.writer import SHARD_TILES, cut_shards

    path, parts, rest = _source(arguments, "tile", _Tiled)
    out, rest = _out(rest, "tile")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Tile:
        """Cut the training tiles of a config into ArrayRecord shards; a stopped call is gone on with."""

        source: _TILED = parts
        workers: int = 0  # processes; 0: this one
        shard_tiles: int = SHARD_TILES  # tiles a shard
        jpeg_quality: int | None = 95  # [1, 100]; None: PNG, without loss

    chosen = _parsed(Tile, f"{path} OUT", rest, "tile")
    source = chosen.source
    splits = source.data.load(source.labels, source.seed)
    for note in splits.notes:
        say(f"note: {note}")
    with stoppable(), shard_progress(out) as on_progress:
        summary = cut_shards(
            splits.train,
            source.tiles,
            out,
            shard_tiles=chosen.shard_tiles,
            workers=chosen.workers,
            jpeg_quality=chosen.jpeg_quality,
            seed=source.seed,
            needs=source.model.needs,
            on_progress=on_progress,
        )
    for fault in summary.faults:
        say(f"warning: {fault.tiles} tiles of {fault.case} are left out: {fault.message}")
    say(
        f"{summary.tiles} tiles, {summary.annotated} with a marked object, in {summary.shards} shards of "
        f"{summary.bytes / 1e6:.0f} MB in all: {out}"
    )
    say(f"next: sparseshot train {shlex.join([path, *_of_data(arguments[2:]), '--train.shards', out])}")
    if summary.faults:
        say("Repair what could not be read and run the same command again.")
        sys.exit(1)


VERBS: Verbs = {
    "formats": (formats, "list the annotation formats and what each keeps"),
    "convert": (convert, "annotations of one format to another: SOURCE TARGET"),
    "validate": (validate, "say and draw what the program makes of the labels of SOURCE"),
    "sparsify": (sparsify, "write SOURCE with a nested share of its marked objects to OUT"),
    "tile": (tile, "cut the training tiles of SOURCE into shards at OUT"),
}


def _source(arguments: list[str], verb: str, kind: type[_Dataset] = _Dataset) -> tuple[str, Any, list[str]]:
    """SOURCE, which comes first (a config, a run, a folder, a slide); its data; the other arguments."""
    path, rest = config_path(arguments, f"data {verb}", "SOURCE")
    config, rest = source_config(path, rest)
    parts = kind(**{field.name: getattr(config, field.name) for field in dataclasses.fields(kind)})
    return path, parts, rest


def _out(arguments: list[str], verb: str) -> tuple[str, list[str]]:
    """OUT, which comes next (else an option of several values would take it), and the rest."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if {"-h", "--help"} & set(arguments):
        return "OUT", arguments
    raise InputError(f"sparseshot data {verb} needs OUT after SOURCE. Try: sparseshot data {verb} SOURCE OUT")


def _of_data(arguments: list[str]) -> list[str]:
    """The options that say what is trained on, and for what model, with their values."""
    kept, keep = [], False
    for argument in arguments:
        if argument.startswith("--"):
            keep = argument.partition("=")[0].partition(".")[0] in (
                "--data",
                "--labels",
                "--tiles",
                "--seed",
                "--model",
            )
        if keep:
            kept.append(argument)
    return kept


def _parsed(kind: type[Any], path: str, rest: list[str], verb: str) -> Any:
    program = f"sparseshot data {verb} {path}"
    return tyro.cli(kind, prog=program, args=rest, config=(tyro.conf.AvoidSubcommands,))
