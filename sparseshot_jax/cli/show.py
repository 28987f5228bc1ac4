"""Numbers as tables in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from sparseshot_jax.console import CONSOLE, say


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
