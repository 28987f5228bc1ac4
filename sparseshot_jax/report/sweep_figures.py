"""The trials of a sweep as one picture: every measure with its spread over the seeds."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sparseshot_jax.report.figures import INK, LINES, MUTED, STYLE
from sparseshot_jax.report.sweep_spread import (
    LOSSES,
    POINTS,
    Row,
    Setting,
    Spread,
    as_number,
    bars_of,
    by_setting,
    is_number,
    measure_title,
    on_lines,
    point_words,
    points_of_test,
    setting_label,
    spreads_of,
    validation_points,
)

_MARKERS = "osD^vP*"
_MOST = len(LINES)  # lines or colours of a panel that can be told apart
_AXES = 4  # numeric axes drawn, those of most values first
_SIDES = (5.2, 3.4)  # inches of a panel
_TICKS = 6  # values of a field that are each named at its axis
_SEEN = 0.01  # of the widest bar: a shorter one has its number beside it
_LOG = 20.0  # a range of this ratio is drawn over a logarithmic axis

Panel = tuple[Callable[[Any], None], float]  # what draws on axes, and their height in inches


def sweep_picture(
    rows: Sequence[Row], fields: Sequence[str], *, title: str, measure: str, sparse: str = ""
) -> dict[str, bytes]:
    """The picture as "png" and "svg"; empty where no row holds the measure.

    Over each numeric field a line for every other setting, or dots where settings were drawn at random; bars
    where a field has no order, at each operating point; of test scores likewise; and the measure
    of sparse marks against the dense one, a dot a trial.

    Args:
        rows: of `results.jsonl`.
        fields: config fields in which settings differ; values are text.
        title: of the sweep.
        measure: key of the rows; more is better, but of `LOSSES`.
        sparse: key of the measure of sparse marks, where there is one.
    """
    good = [row for row in rows if "error" not in row and is_number(row.get(measure))]
    panels = list(_panels(good, fields, measure, sparse))
    return _drawn(panels, title, _caption(good, fields)) if good else {}


def _panels(rows: Sequence[Row], fields: Sequence[str], measure: str, sparse: str) -> Iterator[Panel]:
    varied = [f for f in fields if len({row[f] for row in rows if f in row}) > 1]
    numeric = [f for f in varied if all(as_number(row.get(f)) is not None for row in rows)]
    for field in sorted(numeric, key=lambda f: -len({row[f] for row in rows}))[:_AXES]:
        lines = by_setting(rows, [f for f in varied if f != field], measure)
        drawn = max(len({row[field] for row in rows if _of(row, varied, field) == key}) for key in lines) < 2
        draw = _dots if drawn or len(lines) > _MOST else _lines
        yield _bound(draw, rows=rows, varied=varied, numeric=numeric, field=field, measure=measure), _SIDES[1]
    tested = [m for m in points_of_test(rows, measure) if m != measure]
    ordered = len(numeric) == len(varied) and varied
    for title, points in (
        ("" if ordered else _part(measure), validation_points(rows, measure)),
        ("test", {name: point_words(name) for name in tested}),
    ):
        if title and points:
            bars, note = bars_of(rows, varied, [f for f in varied if f not in numeric], measure)
            height = max(_SIDES[1], 0.5 + len(bars) * (0.12 + 0.17 * len(points)))
            yield _bound(_bars, bars=bars, points=points, title=title + note, measure=measure), height
    if sparse and any(is_number(row.get(sparse)) for row in rows):
        yield _bound(_both, rows=rows, varied=varied, measure=measure, sparse=sparse), _SIDES[1]


def _lines(
    axes: Any, *, rows: Sequence[Row], varied: Sequence[str], numeric: Sequence[str], field: str, measure: str
) -> None:
    """The mean over seeds at each value of a field, a line for each other setting."""
    others = [f for f in varied if f != field]
    xs = [as_number(row[field]) for row in rows]
    log = _logarithmic(xs)
    lines = by_setting(rows, others, measure)
    for k, (other, members) in enumerate(lines.items()):
        spreads = {as_number(v[0]): s for v, s in spreads_of(members, [field], measure).items()}
        x = np.array(sorted(spreads))
        # Intervals at one value would hide one another.
        shift = (k - (len(lines) - 1) / 2) * 0.012
        placed = x * (max(xs) / min(xs)) ** shift if log else x + shift * (max(xs) - min(xs))
        colour, found = LINES[k], [spreads[value] for value in x]
        label = setting_label(others, other) or measure_title(measure)
        axes.plot(placed, [s.mean for s in found], "-", marker=_MARKERS[k], color=colour, label=label, ms=5)
        _whiskers(axes, placed.tolist(), found, colour)
    if log:
        axes.set_xscale("log")
    elif len(set(xs)) <= _TICKS:
        axes.set_xticks(sorted(set(xs)))
    _dress(axes, field, measure, legend=len(lines) > 1)


def _dots(
    axes: Any, *, rows: Sequence[Row], varied: Sequence[str], numeric: Sequence[str], field: str, measure: str
) -> None:
    """Each setting's mean at its value of a field, coloured by the first field without order."""
    kinds = [f for f in varied if f not in numeric][:1]
    spreads = spreads_of(rows, varied, measure)
    at, values = list(varied).index(field), sorted({str(row[kinds[0]]) for row in rows}) if kinds else [""]
    for k, value in enumerate(values[:_MOST]):
        own = [s for s in spreads if not kinds or s[list(varied).index(kinds[0])] == value]
        x, y = [as_number(s[at]) for s in own], [spreads[s].mean for s in own]
        label = setting_label(kinds, (value,)) if kinds else ""
        axes.plot(x, y, _MARKERS[k], color=LINES[k], alpha=0.8, label=label or None, ms=5)
        for one in own:
            single = spreads[one].values
            axes.plot([as_number(one[at])] * len(single), single, ".", color=LINES[k], alpha=0.35, ms=3)
    best = (min if measure in LOSSES else max)(spreads, key=lambda s: spreads[s].mean)
    axes.plot(
        as_number(best[at]), spreads[best].mean, "o", mfc="none", mec=INK, ms=11, label=f"best: {best[at]}"
    )
    if _logarithmic([as_number(s[at]) for s in spreads]):
        axes.set_xscale("log")
    _dress(axes, field, measure, legend=True)


def _bars(
    axes: Any, *, bars: Mapping[str, Sequence[Row]], points: Mapping[str, str], title: str, measure: str
) -> None:
    """A bar for each setting and operating point, its trials as dots; the number where no bar can be seen."""
    known = list(POINTS.values())  # a point has one colour in all panels
    thick, spare = 0.8 / len(points), max(0.0, (3 - len(bars)) / 2)  # few bars are no thicker than three
    widest = max(r[name] for own in bars.values() for r in own for name in points if is_number(r.get(name)))
    for k, (name, words) in enumerate(points.items()):
        y = np.arange(len(bars)) + (k - (len(points) - 1) / 2) * thick
        found = [
            Spread(values=tuple(float(r[name]) for r in own if is_number(r.get(name))))
            for own in bars.values()
        ]
        there = [(place, one) for place, one in zip(y, found) if one.values]
        places, kept = [place for place, _ in there], [one for _, one in there]
        colour = LINES[known.index(words) if words in known else k]
        axes.barh(places, [s.mean for s in kept], thick * 0.9, color=colour, alpha=0.75, label=words)
        _whiskers(axes, places, kept, INK, upright=False)
        for place, one in zip(places, kept):
            if one.mean <= _SEEN * widest:
                axes.text(
                    max(one.values), place, f"  {one.mean:.2g}", va="center", fontsize=7.5, color=colour
                )
    axes.set_yticks(np.arange(len(bars)), [on_lines(name) for name in bars], fontsize=8, color=INK)
    axes.set_ylim(len(bars) - 0.5 + spare, -0.5 - spare)  # the first on top
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel=measure_title(measure), xlim=(0, None))
    _legend(axes)


def _both(axes: Any, *, rows: Sequence[Row], varied: Sequence[str], measure: str, sparse: str) -> None:
    """What sparse marks say against what dense truth says, a dot a trial."""
    conditions = [f for f in varied if f.startswith("data.")]
    groups = by_setting(rows, conditions, sparse)
    for k, (value, members) in enumerate(list(groups.items())[:_MOST]):
        x, y = [float(r[measure]) for r in members], [float(r[sparse]) for r in members]
        axes.plot(
            x, y, _MARKERS[k], color=LINES[k], alpha=0.8, ms=5, label=setting_label(conditions, value) or None
        )
    axes.set(
        title="Sparse marks against dense truth",
        xlabel=measure_title(measure),
        ylabel=measure_title(sparse),
    )
    if len(groups) > 1:
        _legend(axes)


def _whiskers(
    axes: Any, places: Sequence[float], found: Sequence[Spread], colour: str, upright: bool = True
) -> None:
    """Several trials as dots, and the interval of their mean where there are enough."""
    for place, one in zip(places, found):
        if len(one.values) < 2:
            continue
        single = ([place] * len(one.values), one.values)
        axes.plot(*(single if upright else single[::-1]), ".", color=colour, alpha=0.45, ms=4)
        if one.half is not None:
            middle = (place, one.mean) if upright else (one.mean, place)
            error = {"yerr" if upright else "xerr": one.half}
            axes.errorbar(*middle, **error, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5)


def _of(row: Row, varied: Sequence[str], field: str) -> Setting:
    return tuple(str(row.get(f, "")) for f in varied if f != field)


def _part(measure: str) -> str:
    """The part of the data that a measure is of."""
    return "test" if measure.startswith("test_") else "training" if measure in LOSSES else "validation"


def _caption(rows: Sequence[Row], fields: Sequence[str]) -> str:
    seeds = max((len(s.values) for s in spreads_of(rows, fields, "seed").values()), default=1)
    if seeds >= 3:
        return (
            f"Up to {seeds} seeds: dots are trials; whiskers the 95 % interval of their mean (Student's t)."
        )
    if seeds == 2:
        return "2 seeds a setting: too few for an interval; dots are trials."
    return "1 seed a setting: too few for an interval."


def _dress(axes: Any, field: str, measure: str, *, legend: bool) -> None:
    axes.set(title=f"{measure_title(measure)} over {field}", xlabel=field, ylabel=measure_title(measure))
    if legend:
        _legend(axes)


def _legend(axes: Any) -> None:
    entries = len(axes.get_legend_handles_labels()[1])
    if entries:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2 if entries > 3 else 1, fontsize=7.5
        )


def _drawn(panels: Sequence[Panel], title: str, caption: str) -> dict[str, bytes]:
    """Panels two by two, under a title."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    lines = [panels[k : k + columns] for k in range(0, len(panels), columns)]
    heights = [max(height for _, height in line) for line in lines]
    found = {}
    style: dict[Any, Any] = STYLE | {"savefig.facecolor": "white"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_SIDES[0] * columns, sum(heights) + 0.9), layout="constrained", dpi=130)
        grid = figure.subplots(len(lines), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes in grid.ravel()[len(panels) :]:
            axes.set_visible(False)
        for (draw, _), axes in zip(panels, grid.ravel()):
            draw(axes)
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
        figure.supxlabel(caption, fontsize=8, color=MUTED)
        for kind in ("png", "svg"):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
            found[kind] = stream.getvalue()
    return found


def _bound(draw: Callable[..., None], **options: Any) -> Callable[[Any], None]:
    return lambda axes: draw(axes, **options)


def _logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _LOG
