"""What the tables say, in HTML and in the terminal."""

import copy
import io

from rich.console import Console

from sparseshot_jax.report import comparison_table, results_table


def text_of(table) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table.terminal())
    return console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_results_name_every_operating_point_and_every_measure(evaluations):
    text = text_of(results_table(evaluations["sharp"]))
    words = ("p > 0.5", "p > 0.4", "from validation", "p > 0.307", "Elkan\N{EN DASH}Noto", "c = 0.614")
    for word in (*words, "oracle", "Object F1", "upper", "p > c / 2"):
        assert word in text
    point = evaluations["sharp"]["operating_points"]["fixed"]["dice_pooled"]
    assert f"{point['mean']:.3f}" in text
    assert f"{point['low']:.3f}\N{EN DASH}{point['high']:.3f}" in text
    assert "…" not in text  # nothing is cut at 80 columns


def test_results_without_validation_or_objects_have_no_such_column_or_row(evaluations):
    bare = copy.deepcopy(evaluations["sharp"])
    del bare["operating_points"]["carried_over"], bare["operating_points"]["elkan_noto"]
    for point in bare["operating_points"].values():
        del point["object_f1"]
    text = text_of(results_table(bare))
    assert "validation" not in text
    assert "Object F1" not in text


def test_files_without_the_elkan_noto_point_are_shown_without_it(evaluations):
    old = copy.deepcopy(evaluations["sharp"])
    del old["operating_points"]["elkan_noto"]
    assert "Elkan" not in text_of(results_table(old))
    assert [cell.text for cell in comparison_table({"old": old}).header][-1] == "Oracle threshold"
    beside = comparison_table({"old": old, "sharp": evaluations["sharp"]})
    at = [cell.text for cell in beside.header].index("Elkan\N{EN DASH}Noto threshold")
    assert [row[at].text == "-" for row in beside.rows] == [True, False]


def test_comparison_shows_the_paired_difference_with_its_sign(evaluations):
    table = comparison_table(evaluations, baseline="dull <&>")
    sharp, dull = table.rows
    assert sharp[-1].text.startswith("+")
    assert dull[-1].text == "baseline"
    backward = comparison_table(evaluations, baseline="sharp")
    assert backward.rows[1][-1].text == "-" + sharp[-1].text[1:]
    assert len(comparison_table(evaluations).header) == 5


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
