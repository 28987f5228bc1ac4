"""The charts of detection."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from sparseshot_jax.report.detection_figures import (
    FALSE,
    MISSED,
    confusion_chart,
    f1_chart,
    precision_recall_chart,
)


def test_charts_are_whole_drawings_and_the_same_twice(detections):
    for chart in (f1_chart(detections), precision_recall_chart(detections)):
        ElementTree.fromstring(chart.svg())
        assert chart.svg() == chart.svg()


def test_every_method_has_its_curve_and_its_place_at_one_half(detections):
    chart = precision_recall_chart(detections)
    assert [line.label.split(" (AP")[0] for line in chart.lines] == list(detections)
    fixed = detections["sharp"]["operating_points"]["fixed"]
    assert chart.lines[0].dot == (fixed["recall_distance"]["mean"], fixed["precision_distance"]["mean"])
    assert chart.lines[0].dot[0] in chart.lines[0].x  # 0.5 is a threshold of the curve


def test_thresholds_without_a_prediction_have_no_precision(detections):
    for line in precision_recall_chart(detections).lines:
        assert min(line.x) > 0


def test_the_confusion_chart_names_missed_and_false(detections):
    chart = confusion_chart(detections["sharp"], "fixed")
    assert list(chart.rows) == ["round", "long", FALSE]
    assert list(chart.columns) == ["round", "long", MISSED]
    counts = detections["sharp"]["operating_points"]["fixed"]["confusion"]["distance"]
    assert np.array_equal(chart.counts, counts)
    ElementTree.fromstring(chart.svg())
