"""A table of verbs: how one is found, and how they are listed."""

import difflib
from collections.abc import Callable, Mapping

from rich.table import Table

from sparseshot_jax.console import CONSOLE
from sparseshot_jax.errors import InputError

Verbs = Mapping[str, tuple[Callable[[list[str]], None], str]]  # name -> (what runs it, one line on it)


def find(verbs: Verbs, name: str) -> Callable[[list[str]], None]:
    """What runs a verb.

    Raises:
        InputError: no such verb, with the nearest one.
    """
    if name in verbs:
        return verbs[name][0]
    near = difflib.get_close_matches(name, verbs, n=1)
    raise InputError(
        f"no verb {name!r}. " + (f"Did you mean {near[0]}?" if near else f"There are: {', '.join(verbs)}.")
    )


def overview(verbs: Verbs, program: str) -> None:
    """Print every verb with its line."""
    CONSOLE.print(f"usage: {program} VERB [ARGUMENTS] [--help] [--debug]\n")
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, (_, summary) in verbs.items():
        table.add_row(f"  {name}", summary)
    CONSOLE.print(table)
    CONSOLE.print(f"\n{program} VERB --help tells a verb's arguments; --debug shows tracebacks.")


def asks_for_help(arguments: list[str]) -> bool:
    """True where no verb was given, or help instead of one."""
    return not arguments or arguments[0] in ("-h", "--help", "help")
