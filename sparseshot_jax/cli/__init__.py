"""The command line. Each verb is a thin caller of `experiment`, `ablate`, `data` or `report`."""

import os
import sys
from collections.abc import Callable, Sequence

from rich.markup import escape

from sparseshot_jax import compile_cache
from sparseshot_jax.cli import ablate, curve, data, profile, runs
from sparseshot_jax.cli.verbs import Verbs, asks_for_help, find, overview
from sparseshot_jax.console import CONSOLE, ERRORS, say
from sparseshot_jax.errors import InputError
from sparseshot_jax.training import processes
from sparseshot_jax.training.process_environment import ProcessSpec, split_flags

VERBS: Verbs = {
    "demo": (
        runs.demo,
        "draw a slide, train a U-Net and a detector on 30 % of its cells, compare: the whole path",
    ),
    "train": (runs.train, "train CONFIG, or go on with a run that was stopped"),
    "evaluate": (runs.evaluate, "measure RUN on its test part"),
    "predict": (runs.predict, "find the objects of images or slides with RUN; GeoJSON for QuPath"),
    "ablate": (ablate.ablate, "train trials of CONFIG through steps compiled once, compare, choose"),
    "curve": (curve.curve, "train CONFIG with parts of its labels: what would more labels give?"),
    "profile": (profile.profile, "time the training step of CONFIG, and say where the time goes"),
    "report": (runs.report, "write RUN/report.html: curves, results, pictures"),
    "data": (data.run, "check, convert, thin and cut data: data VERB"),
    "doctor": (runs.doctor, "say what this machine and installation can do"),
}

# Verbs whose work many processes share (--coordinator HOST:PORT --processes N --process K, or Slurm, ...).
SHARED = ("train", "evaluate", "predict", "ablate", "curve", "report", "profile")

# Verbs that find again what an earlier process compiled. Not `profile`: it times the compiler.
COMPILING = ("demo", "train", "evaluate", "predict", "ablate", "curve", "report")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: one verb, then its arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if asks_for_help(arguments):
        overview(VERBS, "sparseshot")
        return
    try:
        _, words = split_flags(arguments, {})
        name = words[0] if words else ""
        verb = find(VERBS, name)
        if words != arguments and name not in SHARED:
            raise InputError(
                f"{name} runs as one process; --coordinator, --processes and --process are for "
                f"{', '.join(SHARED)}. Leave them out."
            )
        helping = bool({"-h", "--help"} & set(words))
        if name in COMPILING and not helping:
            compile_cache.enable()
        if name in SHARED and not helping:
            spec, _ = split_flags(arguments, os.environ)
            _shared(verb, words[1:], spec)
        else:
            verb(words[1:])
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


def _shared(verb: Callable[[list[str]], None], arguments: list[str], spec: ProcessSpec) -> None:
    """Run a verb as one process of its job, which is the only one where nothing says otherwise."""
    processes.start(spec)
    with processes.guarded():
        if not processes.is_lead():
            CONSOLE.quiet = True  # the lead talks; errors are told by whoever has them
        verb(arguments)
