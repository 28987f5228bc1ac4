"""The verbs on data: convert, validate, sparsify, tile."""

from sparseshot_jax.cli.verbs import Verbs, asks_for_help, find, overview

VERBS: Verbs = {}


def run(arguments: list[str]) -> None:
    """`sparseshot data VERB ...`."""
    if asks_for_help(arguments):
        overview(VERBS, "sparseshot data")
        return
    find(VERBS, arguments[0])(arguments[1:])
