"""What several verbs take: a config and its fields, a run that moved, a signal that stops them."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

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


def config_path(arguments: list[str], verb: str) -> tuple[str, list[str]]:
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


def switch_kinds(config: Any, arguments: list[str]) -> tuple[Any, list[str]]:
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


def moved(run: Any, root: str | None) -> Any:
    """The run, its data read from `root` where that is given."""
    return run if root is None else run.with_data_root(root)


def assignment(text: str) -> tuple[str, str]:
    """Field and value of FIELD=VALUE."""
    field, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set reads FIELD=VALUE; got {text!r}. Try --set train.steps=400")
    return field, value
