"""Charts: what is drawn, what is left out, and that drawing is repeatable."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sparseshot_jax.report import figures


def test_training_charts_show_what_the_log_holds(log):
    charts = {chart.title: chart for chart in figures.training_charts(log)}
    assert list(charts) == [
        "Loss",
        "Mean p and threshold of the mask",
        "Share of unannotated ground kept",
        "Validation",
        "Learning rate",
        "Images a second (waiting for data: 25%)",
    ]
    assert [line.label for line in charts["Loss"].lines] == ["loss", "capped loss"]
    assert [line.label for line in charts["Validation"].lines] == ["dice pooled", "threshold"]


def test_absent_and_empty_keys_give_no_chart():
    rows = [{"event": "train", "step": 0, "loss": 1.0, "keep_rate": None}]
    assert [chart.title for chart in figures.training_charts(rows)] == ["Loss"]
    assert figures.training_charts([]) == []


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_values_that_are_not_finite_leave_a_gap(bad):
    rows = [{"event": "train", "step": s, "loss": bad if s == 1 else 1.0} for s in range(3)]
    (chart,) = figures.training_charts(rows)
    assert [math.isfinite(v) for v in chart.lines[0].y] == [True, False, True]
    ET.fromstring(chart.svg())


def test_long_curves_are_averaged_not_sampled():
    y = np.tile([0.0, 2.0], 5000)
    line = figures.Line(label="", x=np.arange(10_000.0).tolist(), y=y.tolist())
    x, thin = figures._thinned(line)
    assert len(x) <= figures.POINTS
    np.testing.assert_allclose(thin, 1.0, atol=0.05)  # blocks of 25 hold 12 or 13 of either


def test_drawing_twice_gives_the_same_bytes(log):
    first, second = (figures.training_charts(log)[0].svg() for _ in range(2))
    assert first == second


def test_comparison_has_a_curve_for_each_method(log, evaluations):
    charts = figures.comparison_charts({"a": log, "b": log})
    assert all([line.label for line in chart.lines] == ["a", "b"] for chart in charts)
    assert charts[-1].title == "Validation: dice pooled"
    reliability = figures.reliability_chart(evaluations)
    assert [line.label.split(" (")[0] for line in reliability.lines] == ["sharp", "dull <&>", "calibrated"]
    ET.fromstring(reliability.svg())
    curves = figures.threshold_chart(evaluations)
    assert [line.label for line in curves.lines] == list(evaluations)
    ET.fromstring(curves.svg())


def test_of_one_run_the_operating_points_lie_on_its_curve(evaluations):
    chart = figures.threshold_chart({"this run": evaluations["sharp"]})
    curve, *dots = chart.lines
    assert [dot.label.split(",")[0] for dot in dots] == [
        "fixed",
        "from validation",
        "Elkan\N{EN DASH}Noto",
        "oracle",
    ]
    for dot in dots:
        # the curve has a value every 0.01 and is smooth
        assert np.interp(dot.x[0], curve.x, curve.y) == pytest.approx(dot.y[0], abs=0.02)
    ET.fromstring(chart.svg())
