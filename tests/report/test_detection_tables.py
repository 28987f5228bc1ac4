"""What the tables of detection say."""

import copy

import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.report import class_count_table, class_table, comparison_table, results_table
from sparseshot_jax.report.detection_tables import precision_table, shown_point
from sparseshot_jax.report.tables import PARTED, task_of


def texts(table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_results_name_the_gates_and_every_measure(detections):
    table = results_table(detections["sharp"])
    assert [row[0] for row in texts(table)] == [
        "F1 within 3 µm",
        "Precision within 3 µm",
        "Recall within 3 µm",
        "F1 at IoU ≥ 0.5",
        "Precision at IoU ≥ 0.5",
        "Recall at IoU ≥ 0.5",
        "Count error an image",
        "Exclusive recall, round",
    ]
    assert [cell.detail for cell in table.header[1:]] == [
        "fixed",
        "from validation",
        "Elkan\N{EN DASH}Noto\nc = 0.614",
        "oracle",
    ]
    fixed = detections["sharp"]["operating_points"]["fixed"]
    assert table.rows[0][1].text == f"{fixed['f1_distance']['mean']:.3f}"
    assert table.rows[6][1].text == f"{fixed['counts_mae']['mean']:.1f}"


def test_without_classes_there_is_no_exclusive_recall(one_class):
    assert all("Exclusive" not in row[0] for row in texts(results_table(one_class)))
    assert [cell.text for cell in class_table(one_class).header] == ["Class", "F1", "Precision", "Recall"]


def test_comparison_takes_f1_by_distance_and_pairs_the_difference(detections):
    table = comparison_table(detections, baseline="dull <&>")
    sharp, dull = table.rows
    assert table.caption.startswith("F1 within 3 µm.")
    assert sharp[-1].text.startswith("+")
    assert dull[-1].text == "baseline"
    exclusive = comparison_table(detections, measure="exclusive_recall", baseline="dull <&>")
    assert exclusive.rows[0][-1].text[0] in "+-"


def test_captions_say_that_thresholds_are_chosen_by_distance(detections):
    for table in (results_table(detections["sharp"]), comparison_table(detections, measure="f1_iou")):
        assert "chosen by distance, for the IoU too" in table.caption
        assert "an upper bound of F1 by distance alone" in table.caption
        assert "points" not in table.caption


def test_of_points_nothing_is_shown_by_iou(detections):
    points = {name: one | {"extents_known": False} for name, one in detections.items()}
    table = results_table(points["sharp"])
    assert not any("IoU" in row[0] for row in texts(table))
    assert len(table.rows) == 5
    assert table.caption.endswith(
        "All true objects are points: IoU says nothing of their extent, and is left out."
    )
    assert "for the IoU too" not in table.caption
    for other in (class_count_table(points["sharp"]), precision_table(points)):
        assert not any("IoU" in cell.text for cell in other.header)
        assert all(len(row) == len(other.header) for row in other.rows)
    asked = comparison_table(points, measure="f1_iou")
    assert asked.caption.endswith("IoU says nothing of their extent.")


def test_a_remark_begins_the_caption(one_class):
    assert results_table(one_class, remark=PARTED).caption.startswith(
        "Objects are those at predict.threshold;"
    )


def test_other_measures_are_refused_by_name(detections):
    with pytest.raises(InputError, match=r"f1_iou.*got 'dice_pooled'"):
        comparison_table(detections, measure="dice_pooled")


def test_methods_of_different_tasks_are_not_compared(detections, evaluations):
    mixed = {"boxes": detections["sharp"], "pixels": evaluations["sharp"]}
    with pytest.raises(InputError, match=r"boxes \(detection\), pixels \(segmentation\)"):
        comparison_table(mixed)


def test_a_file_without_a_task_is_of_segmentation(evaluations):
    old = copy.deepcopy(evaluations["sharp"])
    old.pop("task", None)
    assert task_of(old) == "segmentation"
    assert results_table(old).rows


def test_classes_have_a_row_each_and_all_of_them_one(detections):
    evaluation = detections["sharp"]
    assert [row[0] for row in texts(class_table(evaluation))] == ["round", "long", "any class"]
    counts = {row[0]: row[1:3] for row in texts(class_count_table(evaluation))}
    assert int(counts["round"][0]) + int(counts["long"][0]) == int(counts["any class"][0]) == 160
    assert int(counts["round"][1]) + int(counts["long"][1]) == int(counts["any class"][1])


def test_the_validation_threshold_is_shown_where_there_is_one(detections):
    assert shown_point(detections["sharp"]) == "carried_over"
    without = copy.deepcopy(detections["sharp"])
    del without["operating_points"]["carried_over"]
    assert shown_point(without) == "fixed"
    assert "p\N{NO-BREAK SPACE}>\N{NO-BREAK SPACE}0.5" in class_table(without).caption


def test_an_average_precision_that_does_not_exist_is_a_dash(detections):
    without = copy.deepcopy(detections)
    without["sharp"]["ap_distance"] = None
    rows = texts(precision_table(without))
    assert rows[0][1] == "-"
    assert rows[1][1] == f"{detections['dull <&>']['ap_distance']:.3f}"
