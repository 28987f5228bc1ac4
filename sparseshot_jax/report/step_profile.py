"""What `profile` measured, as tables and as a picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from sparseshot_jax.report.figures import LINES, STYLE

SHOWN = 12  # kinds of operations
_PARTS = {"forward": LINES[0], "backward": LINES[1], "again": LINES[3], "rest": LINES[2], "untold": "#9aa5b1"}
_WORDS = {  # in a table, in a picture
    "forward": ("forward", "forward pass"),
    "backward": ("backward", "backward pass"),
    "again": ("forward again", "forward pass, computed again"),
    "rest": ("other", "augmentation, optimiser, other"),
    "untold": ("", "not said: the compiler's own"),
}
_NAMES = {"conv_general_dilated": "convolution", "dot_general": "product", "convert_element_type": "convert"}


def profile_tables(result: Mapping[str, Any]) -> list[Table]:
    """What a step costs, and what it spends its time with; for a terminal."""
    tables = [_costs(result)]
    if result["operations"]:
        tables.append(_operations(result))
    return tables


def _costs(result: Mapping[str, Any]) -> Table:
    step, start, peak = result["step_s"], result["start"], result["peak"]
    memory, work = result["memory"], result["flops"]
    limit = f" of {_bytes(memory['limit'])}" if memory["limit"] else ""
    rows = {
        "devices": (f"{result['devices']} x {result['device']}", _mesh(result)),
        "batch": (
            f"{result['images']} x {result['tile_px']}² px",
            f"model in {result['dtype']}",
        ),
        "first batch": (_seconds(start["first_batch"]), ""),
        "compilation": (_seconds(start["compiling"]), f"after {_seconds(start['tracing'])} of tracing"),
        "step": (
            _seconds(step["median"]),
            f"median of {result['steps']}; 10 to 90 %: {_seconds(step['p10'])} to {_seconds(step['p90'])}",
        ),
        "speed": (
            f"{result['images_per_second']:.4g} images/s",
            f"{result['megapixels_per_second']:.3g} megapixels/s",
        ),
        "waiting for input": (f"{result['wait_share']:.1%}", "of the time"),
        "work a step": (
            f"{_si(work['asked'])}FLOP",
            f"convolutions and products; the compiler counts {_si(work['compiled'])}FLOP in all",
        ),
        "utilisation": (
            f"{result['utilisation']:.1%}",
            f"{_si(result['flops_per_second'])}FLOP/s of {_si(peak['flops_per_second'])}FLOP/s "
            f"({peak['source']})",
        ),
        "memory": (f"{_bytes(memory['bytes'])}", f"a device{limit}; {memory['source']}"),
    }
    return _table({"A training step": "left", result["name"]: "right", "": "left"}, _rows(rows))


def _operations(result: Mapping[str, Any]) -> Table:
    rows = result["operations"][:SHOWN]
    rest = 1.0 - sum(row["share"] for row in rows)
    lines = [
        (_name(row["instruction"]), _name(row["origin"]), _WORDS[row["part"]][0], f"{row['share']:.1%}")
        for row in rows
    ]
    if len(result["operations"]) > SHOWN:
        others = len(result["operations"]) - SHOWN
        lines.append((f"{others} other kinds", "", "", f"{rest:.1%}"))
    return _table(
        {"Operation": "left", "made for": "left", "in": "left", "share": "right"},
        lines,
        caption="Shares of the time of all compiled operations in the trace.",
    )


def profile_chart(result: Mapping[str, Any]) -> bytes:
    """A PNG: the kinds of operations that take longest, a bar each, coloured by the part of the step."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = result["operations"][:SHOWN][::-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.8 + 0.32 * max(len(rows), 3)), dpi=150, layout="constrained")
        axes = figure.subplots()
        colours = [_PARTS[row["part"]] for row in rows]
        bars = axes.barh(range(len(rows)), [100 * row["share"] for row in rows], color=colours)
        axes.bar_label(bars, fmt="%.1f %%", padding=3, fontsize=8)
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set(
            title=f"{result['name']}: where a step of {_seconds(result['step_s']['median'])} goes "
            f"({result['devices']} x {result['device']})",
            xlabel="share of the time of all operations, %",
        )
        there = [part for part in _PARTS if any(row["part"] == part for row in rows)]
        if there:
            axes.legend(
                handles=[Patch(color=_PARTS[p], label=_WORDS[p][1]) for p in there], loc="lower right"
            )
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def _rows(values: Mapping[str, tuple[str, str]]) -> list[tuple[str, ...]]:
    return [(name, *texts) for name, texts in values.items()]


def _table(header: Mapping[str, Any], rows: Sequence[Sequence[str]], caption: str | None = None) -> Table:
    """`header`: how each column is justified, by its title."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False, caption=caption, caption_justify="left")
    for title, justify in header.items():
        table.add_column(escape(title), justify=justify)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _label(row: Mapping[str, Any]) -> str:
    name, made_for = _name(row["instruction"]), _name(row["origin"])
    return f"{name} ({made_for})" if made_for not in ("", name) else name


def _name(operation: str) -> str:
    return _NAMES.get(operation, operation)


def _mesh(result: Mapping[str, Any]) -> str:
    return "mesh " + " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())


def _seconds(value: float | int) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _bytes(value: float | int) -> str:
    return f"{value / 2**30:.3g} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB"


def _si(value: float | int) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
