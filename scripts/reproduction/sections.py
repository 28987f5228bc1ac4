"""The generated parts of docs/results.md, each between its marks; the text round them is written by hand."""

import datetime
import importlib.metadata
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduction import examples, pictures
from reproduction.plan import CE, DATA_SETS, DEFAULT, FOCAL_ECE, TNBC, Cell
from reproduction.runs import Bench, Evaluations, only
from reproduction.tables import (
    MEASURES,
    against_full,
    at_points,
    by_share,
    differences,
    table_1,
    table_2,
    table_3,
)
from sparseshot_jax.data import storage

_TABLES = {"table 1": table_1, "table 2": table_2, "table 3": table_3}
_SHOWN = {**pictures.POINTS, "oracle": "the best threshold on the scored images (oracle)"}
_SPREAD = (
    "x ± s: mean and standard deviation over n seeds. x (a to b): 95 % bootstrap interval over images, one "
    "seed. [t]: the thresholds."
)


def of(
    found: Evaluations, parts: Mapping[str, Sequence[Cell]], bench: Bench, folder: Path, *, rival: str
) -> dict[str, str]:
    """Name of a part -> its text; pictures are written beside.

    Args:
        found: of all cells of the parts.
        parts: whole ones alone.
        bench: of the runs.
        folder: of the pictures; made where it does not exist.
        rival: shown in figures 4 and 5; "none" where none is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for name, cells in parts.items():
        option = "--rivals" if name == "rivals" else f"--{name}"
        text = _text(name, only(found, cells), cells, bench, folder)
        # Figure 3 stands at 0.5.
        under = "" if name == "figure 3" else _origin(cells, bench)
        texts[name] = _about(option, cells, bench, rival) + text + under
    if {"figure 4", "figure 5"} <= set(parts):
        cells = [*parts["figure 4"], *parts["figure 5"]]
        text = against_full(only(found, cells), bench.budget)
        texts["all labels"] = _about("--figure 4 5", cells, bench, rival) + text + _origin(cells, bench)
    return texts


def _text(name: str, found: Evaluations, cells: Sequence[Cell], bench: Bench, folder: Path) -> str:
    if name in _TABLES:
        return _TABLES[name](found, bench.budget)
    if name == "figure 3":
        shown = examples.examples(found, bench, cells, folder)
        return "\n".join(f"![{words}]({path.name})\n" for path, words in shown.items())
    if name == "rivals":
        return "\n".join(
            f"**{DATA_SETS[data].title}: {MEASURES[DATA_SETS[data].measure]}, 30 % of the labels**\n\n"
            + at_points(found, data, 0.3, DATA_SETS[data].measure)
            for data in TNBC
        )
    path = folder / f"{name.replace(' ', '_')}.png"
    pictures.curves(found, int(name[-1]), bench.budget, path)
    return _figure_text(found, cells, bench.budget.figures, path.name)


def _about(option: str, cells: Sequence[Cell], bench: Bench, rival: str) -> str:
    """How the part was made, and what its numbers mean; a line."""
    words = ["python", "scripts/reproduce_tables.py", "--root", "$DATA", *option.split()]
    words += ["--budget", bench.budget.name]
    # Runs of several devices and of one differ in the last digits, and then in the third of a score.
    words += ["--together", str(bench.together)] if bench.together != 1 else []
    command = " ".join(words) + (f" --rival {shlex.quote(rival)}" if option[-1] in "45" else "")
    steps = []
    for data in dict.fromkeys(cell.data for cell in cells):
        lengths = [bench.config(data, phase).train.steps for phase in DATA_SETS[data].phases]
        steps.append(f"{DATA_SETS[data].title} {' and '.join(map(str, dict.fromkeys(lengths)))}")
    version, today = importlib.metadata.version("jax"), datetime.date.today()
    line = f"`{command}`; training steps: {', '.join(steps)}; jax {version}; {today}."
    return f"{line}{'' if option == '--figure 3' else ' ' + _SPREAD}\n\n"


def _origin(cells: Sequence[Cell], bench: Bench) -> str:
    """Where thresholds come from; a line under the tables."""
    sets = [DATA_SETS[data] for data in dict.fromkeys(cell.data for cell in cells)]
    what, lines = "the carried-over threshold and Elkan and Noto's c", []
    if two := [data.title for data in sets if data.last != "choose"]:
        lines.append(
            f"{'; '.join(two)}: {what} of a method at a share come from one run, of seed "
            f"{bench.budget.seeds[0]}, on the validation patients, and stand for all seeds."
        )
    if one := [data.title for data in sets if data.last == "choose"]:
        lines.append(f"{'; '.join(one)}: {what} of each run are its own, from the validation images.")
    return f"\n{' '.join(lines)}\n"


def _figure_text(found: Evaluations, cells: Sequence[Cell], methods: Sequence[str], picture: str) -> str:
    measure = " and ".join(dict.fromkeys(MEASURES[DATA_SETS[cell.data].measure] for cell in cells))
    titles = " and ".join(dict.fromkeys(DATA_SETS[cell.data].title for cell in cells))
    axes = "over the share of the labels, a line a method, at p > 0.5 and at the threshold carried over"
    parts = [f"![{measure}, {axes}: {titles}.]({picture})\n"]
    for data in dict.fromkeys(cell.data for cell in cells):
        title, measure = DATA_SETS[data].title, MEASURES[DATA_SETS[data].measure]
        for point, words in _SHOWN.items():
            parts.append(f"**{title}: {measure}, {words}**\n\n{by_share(found, data, methods, point)}")
    alike = [("fixed", "fixed"), ("carried_over", "carried_over")]
    parts.append(differences(found, FOCAL_ECE, DEFAULT, alike))
    parts.append(differences(found, DEFAULT, CE, [("fixed", "carried_over")]))
    return "\n".join(part for part in parts if part)


def write(texts: Mapping[str, str], path: Path) -> None:
    """Each text between <!-- NAME --> and <!-- end NAME --> of a page; at its end where they lack."""
    page = path.read_text() if path.is_file() else ""
    for name, text in texts.items():
        start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        if start not in page:
            page += f"\n{start}\n{end}\n"
        before, _, rest = page.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{path}: {start} has no {end} after it. Add it, and run this again.")
        page = f"{before}{start}\n\n{text.strip()}\n\n{end}{after}"
    storage.write_bytes(path, page.encode())
