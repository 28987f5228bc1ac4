"""The command line. Each verb is a thin caller of `experiment`, `ablate`, `data` or `report`."""

import sys
from collections.abc import Sequence

from rich.markup import escape

from sparseshot_jax.cli import data, runs
from sparseshot_jax.cli.verbs import Verbs, asks_for_help, find, overview
from sparseshot_jax.console import ERRORS, say
from sparseshot_jax.errors import InputError

VERBS: Verbs = {
    "demo": (
        runs.demo,
        "draw a slide, train a U-Net and a detector on 30 % of its cells, compare: the whole path",
    ),
    "train": (runs.train, "train CONFIG, or go on with a run that was stopped"),
    "evaluate": (runs.evaluate, "measure RUN on its test part"),
    "predict": (runs.predict, "find the objects of images or slides with RUN; GeoJSON for QuPath"),
    "ablate": (runs.ablate, "train a grid of trials through steps compiled once"),
    "report": (runs.report, "write RUN/report.html: curves, results, pictures"),
    "data": (data.run, "check, convert, thin and cut data: data VERB"),
    "doctor": (runs.doctor, "say what this machine and installation can do"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: one verb, then its arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if asks_for_help(arguments):
        overview(VERBS, "sparseshot")
        return
    try:
        find(VERBS, arguments[0])(arguments[1:])
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
