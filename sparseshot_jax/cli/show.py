"""Numbers as tables in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table

from sparseshot_jax.console import CONSOLE, say


def show_evaluation(result: dict[str, Any], *, remark: str = "") -> None:
    """The numbers of an evaluation as a table; `remark` begins its caption."""
    from sparseshot_jax.report import PARTED, class_count_table, class_table, extents_known, results_table

    if "operating_points" in result:
        CONSOLE.print(results_table(result, remark=remark).terminal())  # pyright: ignore[reportArgumentType]
    if len(result.get("class_names", ())) > 1:
        for table in (class_table, class_count_table):
            CONSOLE.print(table(result).terminal())  # pyright: ignore[reportArgumentType]
    elif result.get("ap_distance") is not None:
        by_iou = f", {result['ap_iou']:.3f} at IoU {result['iou']:g}" if extents_known(result) else ""
        say(
            f"average precision {result['ap_distance']:.3f} within {result['distance_um']:g} µm{by_iou}; "
            "no limit on detections."
        )
    if "objects" in result:
        say("Separate objects:")
        show_evaluation(result["objects"], remark=PARTED)
    if "held_out" in result:
        say(held_out_words(result["held_out"]))


def held_out_words(held: dict[str, Any]) -> str:
    """What was measured on held-out marks, in a sentence or two."""
    cannot = "no Dice and no F1" if "predicted_area" in held else "no precision and no F1"
    said = f"recall on {held['held_out']} held-out marked objects: {_recall_words(held)}. "
    if corrected := held.get("elkan_noto"):
        said += f"Elkan\N{EN DASH}Noto, c = {corrected['c']:.3g}: {_recall_words(corrected)}. "
    return f"{said}Sparse marks support {cannot}."


def _recall_words(point: dict[str, Any]) -> str:
    """The recall at a threshold, and how much is predicted there."""
    recall = "unknown" if point["recall"] is None else f"{point['recall']:.3f}"
    if "predicted_area" in point:
        part = point["predicted_area"]
        beside = f"{'none' if part is None else f'{part:.1%}'} of the tissue called foreground"
    else:
        rate = point["predicted_per_mm2"]
        beside = f"{'no' if rate is None else f'{rate:.0f}'} objects predicted in a mm² of tissue"
    return f"{recall}, with {beside} (p > {point['threshold']})"


def show_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Plain rows as a table, a column a key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = Table(*(Column(name, overflow="fold") for name in columns))
    for row in rows:
        # Of an error what happened; what to do was said when it did.
        cells = row | ({"error": row["error"].partition(". ")[0]} if "error" in row else {})
        shown.add_row(*(_short(cells.get(key, "")) for key in columns))
    CONSOLE.print(shown)


def show_spread(rows: Sequence[dict[str, Any]]) -> None:
    """Rows of `ablate.over_seeds` as a table, NAME and NAME_sd in one column."""

    def joined(row: dict[str, Any]) -> dict[str, Any]:
        spreads = {f"{name}_sd" for name in row} & set(row)
        return {
            name: f"{_short(value)} ± {_short(row[f'{name}_sd'])}" if f"{name}_sd" in spreads else value
            for name, value in row.items()
            if name not in spreads
        }

    show_rows([joined(row) for row in rows])


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
