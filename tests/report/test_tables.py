"""What the tables say, in HTML and in the terminal."""

import copy
import io

from rich.console import Console

from sparseshot_jax.report import comparison_table, results_table


def text_of(table) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table.terminal())
    return console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_results_name_the_three_operating_points_and_every_measure(evaluations):
    text = text_of(results_table(evaluations["sharp"]))
    for word in ("p > 0.5", "p > 0.4", "from validation", "oracle", "Object F1", "upper"):
        assert word in text
    point = evaluations["sharp"]["operating_points"]["fixed"]["dice_pooled"]
    assert f"{point['mean']:.3f}" in text
    assert f"{point['low']:.3f}\N{EN DASH}{point['high']:.3f}" in text
    assert "…" not in text  # nothing is cut at 80 columns


def test_results_without_validation_or_objects_have_no_such_column_or_row(evaluations):
    bare = copy.deepcopy(evaluations["sharp"])
    del bare["operating_points"]["carried_over"]
    for point in bare["operating_points"].values():
        del point["object_f1"]
    text = text_of(results_table(bare))
    assert "validation" not in text
    assert "Object F1" not in text


def test_comparison_shows_the_paired_difference_with_its_sign(evaluations):
    table = comparison_table(evaluations, baseline="dull <&>")
    sharp, dull = table.rows
    assert sharp[-1].text.startswith("+")
    assert dull[-1].text == "baseline"
    backward = comparison_table(evaluations, baseline="sharp")
    assert backward.rows[1][-1].text == "-" + sharp[-1].text[1:]
    assert len(comparison_table(evaluations).header) == 4


def test_comparison_of_another_measure(evaluations):
    table = comparison_table(evaluations, measure="object_f1")
    value = evaluations["sharp"]["operating_points"]["fixed"]["object_f1"]["mean"]
    assert table.rows[0][1].text == f"{value:.3f}"
    assert table.caption.startswith("Object F1")


def test_a_method_without_a_validation_threshold_leaves_its_cell_empty(evaluations):
    partial = copy.deepcopy(evaluations)
    del partial["sharp"]["operating_points"]["carried_over"]
    assert comparison_table(partial).rows[0][2].text == "-"


def test_html_escapes_names(evaluations):
    page = comparison_table(evaluations).html()
    assert "dull &lt;&amp;&gt;" in page
    assert "<&>" not in page


def test_one_image_has_a_value_without_an_interval(evaluations):
    single = copy.deepcopy(evaluations["sharp"])
    single["images"] = 1
    for point in single["operating_points"].values():
        point["dice_pooled"] |= {"low": None, "high": None}
    assert results_table(single).rows[1][1].detail == ""
    assert "one image, hence no intervals" in results_table(single).caption
