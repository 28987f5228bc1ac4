"""The picture of a sweep: which panels, with which lines, bars and intervals."""

import io
import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from sparseshot_jax.report import sweep_figures
from sparseshot_jax.report.sweep_spread import Spread, bars_of


def rows_of(seeds=3, **axes):
    rows = []
    for number, values in enumerate(itertools.product(*axes.values())):
        for seed in range(seeds):
            dice = 0.4 + 0.01 * number + 0.003 * seed**2
            rows.append(
                dict(zip(axes, values))
                | {"seed": seed, "dice_pooled": dice, "dice_pooled_best": dice + 0.1, "lee_liu": 3 * dice}
            )
    return rows


def panels_of(rows, fields, sparse="", measure="dice_pooled"):
    """The drawn axes."""
    found = []
    for draw, _ in sweep_figures._panels(rows, fields, measure, sparse):
        axes = Figure().subplots()
        draw(axes)
        found.append(axes)
    return found


def test_a_numeric_axis_has_a_line_for_each_other_setting():
    fields = {"data.keep": ("0.1", "0.3", "0.6"), "loss": ("focal", "huber")}
    rows = rows_of(**fields)
    over_keep, bars, sparse = panels_of(rows, list(fields), "lee_liu")
    assert over_keep.get_xlabel() == "data.keep"
    lines = [line for line in over_keep.get_lines() if line.get_label() in ("loss focal", "loss huber")]
    for name, line in zip(("focal", "huber"), lines):
        means = [
            np.mean([r["dice_pooled"] for r in rows if r["loss"] == name and r["data.keep"] == keep])
            for keep in fields["data.keep"]
        ]
        np.testing.assert_allclose(line.get_ydata(), means)
        np.testing.assert_allclose(line.get_xdata(), [0.1, 0.3, 0.6], atol=0.01)
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 2
    assert bars.get_yticklabels()[0].get_text() == "keep 0.1, loss focal"
    assert sum(len(line.get_xdata()) for line in sparse.get_lines()) == len(rows)
    assert len(sparse.get_lines()) == 3  # one colour for each share of the labels


def test_of_a_loss_less_is_better():
    """What is drawn where there is no validation."""
    rows = [
        {"loss.alpha": str(a), "loss": kind, "seed": 0, "train_loss": float(a)}
        for a in (1, 2, 3)
        for kind in "ab"
    ]
    rows = [row | {"train_loss": row["train_loss"] + (row["loss"] == "b")} for row in rows]
    axes = Figure().subplots()
    sweep_figures._dots(
        axes,
        rows=rows,
        varied=["loss.alpha", "loss"],
        numeric=["loss.alpha"],
        field="loss.alpha",
        measure="train_loss",
    )
    assert axes.get_lines()[-1].get_label() == "best: 1"
    assert panels_of(rows, ["loss.alpha", "loss"], measure="train_loss")[1].get_title() == "training"
    many = [{"x": str(k), "seed": 0, "train_loss": float(k)} for k in range(30)]
    bars, _ = bars_of(many, ["x"], [], "train_loss")
    assert next(iter(bars)) == "x 0"


def test_intervals_are_students_and_need_three_seeds():
    values = (0.5, 0.6, 0.64, 0.7)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert Spread(values=values).half == pytest.approx((high - low) / 2)
    assert Spread(values=values[:2]).half is None
    for seeds, bars in ((2, 0), (3, 2)):
        (axes,) = panels_of(rows_of(seeds, rho=("0.5", "0.75")), ["rho"])
        assert len(axes.containers) == bars
        assert (
            sum(len(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == ".") == 2 * seeds
        )


def test_an_axis_without_order_has_bars_at_each_operating_point():
    rows = [
        row
        | {f"test_dice_pooled_{point}": 0.5 for point in ("fixed", "carried_over", "oracle", "elkan_noto")}
        for row in rows_of(loss=("cross_entropy", "focal", "huber"))
    ]
    validation, test = panels_of(rows, ["loss"])
    for axes, points in ((validation, 2), (test, 4)):
        assert len(axes.patches) == 3 * points
        assert axes.get_xlim()[0] == 0
    words = [text.get_text() for text in test.get_legend().get_texts()]
    assert words == [
        "at the fixed threshold",
        "threshold carried over from validation",
        "at the best threshold (oracle)",
        "at the Elkan-Noto threshold",
    ]
    oracle = [
        axes.get_legend_handles_labels()[0][k][0].get_facecolor() for axes, k in ((validation, 1), (test, 2))
    ]
    assert oracle[0] == oracle[1]
    assert not validation.texts


def test_a_bar_too_short_to_see_has_its_number():
    rows = [
        {"loss": loss, "seed": 0, "dice_pooled": dice}
        for loss, dice in (("focal", 0.7), ("huber", 0.0), ("nnpu", 0.5))
    ]
    (axes,) = panels_of(rows, ["loss"])
    assert [(text.get_text().strip(), text.get_position()) for text in axes.texts] == [("0", (0.0, 1.0))]
    assert not axes.get_lines()  # a dot of the only seed would say nothing more
    (axes,) = panels_of([row | {"dice_pooled": 0.0} for row in rows], ["loss"])
    assert len(axes.texts) == 3


def test_settings_drawn_at_random_are_dots_and_a_wide_range_is_logarithmic():
    rng = np.random.default_rng(0)
    rows = [
        {"lr": f"{10 ** rng.uniform(-4, -1):.5g}", "alpha": f"{0.2 + rng.random():.5g}", "loss": "ab"[k % 2]}
        | {"seed": 0, "dice_pooled": float(rng.random())}
        for k in range(12)
    ]
    by_rate, by_alpha, bars = panels_of(rows, ["lr", "alpha", "loss"])
    assert (by_rate.get_xscale(), by_alpha.get_xscale()) == ("log", "linear")
    best = max(rows, key=lambda row: row["dice_pooled"])
    assert f"best: {best['lr']}" in [text.get_text() for text in by_rate.get_legend().get_texts()]
    assert len(bars.patches) == 12


def test_too_many_settings_for_bars_leave_the_best_of_each_kind():
    rows = rows_of(1, lr=[str(k) for k in range(15)], loss=("a", "b"))
    chosen, note = bars_of(rows, ["lr", "loss"], ["loss"], "dice_pooled")
    assert list(chosen) == ["lr 14, loss b", "lr 14, loss a"]
    assert note == ", the best setting of each"


def test_the_picture_is_there_and_the_same_again():
    rows = [*rows_of(loss=("focal", "huber")), {"loss": "nnpu", "seed": 0, "error": "not finite"}]
    options = {"title": "a <sweep>", "measure": "dice_pooled"}
    first, second = (sweep_figures.sweep_picture(rows, ["loss"], **options) for _ in range(2))
    assert first == second
    ET.fromstring(first["svg"])
    assert Image.open(io.BytesIO(first["png"])).width > 600
    assert sweep_figures.sweep_picture(rows[-1:], ["loss"], **options) == {}
    assert set(sweep_figures.sweep_picture(rows[:1], [], **options)) == {"png", "svg"}
