"""Choosing by dense truth and by sparse marks, on tables small enough to see the answer."""

import json

import numpy as np
import pytest
from scipy import stats

from sparseshot_jax.choice import check_measure, choose, dense_measure, kendall_tau, words
from sparseshot_jax.errors import InputError


def rows_of(table, measures=("dice_pooled", "lee_liu"), **condition):
    """`table`: setting -> a pair of measures for each seed."""
    return [
        {"trial": f"{name}{seed}", **condition, "loss": name, "seed": seed} | dict(zip(measures, pair))
        for name, pairs in table.items()
        for seed, pair in enumerate(pairs)
    ]


TABLE = {
    "focal": [(0.70, 4.0), (0.72, 4.5)],
    "huber": [(0.60, 6.0), (0.62, 4.4)],
    "cross_entropy": [(0.10, 1.0), (0.12, 1.0)],
}


def test_the_best_by_each_measure_and_what_the_sparse_one_loses():
    found = choose(rows_of(TABLE), fields=["loss"])
    assert found["by"] == "dense"
    assert found["measures"] == {"dense": "dice_pooled", "sparse": "lee_liu"}
    (one,) = found["conditions"]
    assert one["chosen"]["dense"]["values"] == {"loss": "focal"}
    assert one["chosen"]["sparse"] == {
        "values": {"loss": "huber"},
        "scores": {"dice_pooled": pytest.approx(0.61), "lee_liu": pytest.approx(5.2)},
        "sd": {"dice_pooled": pytest.approx(0.02 / 2**0.5), "lee_liu": pytest.approx(1.6 / 2**0.5)},
        "n": 2,
        "tied": [],
        "runner_up": {
            "values": {"loss": "focal"},
            # 6.0 - 4.0 and 4.4 - 4.5: seed by seed
            "difference": {"mean": pytest.approx(0.95), "sd": pytest.approx(2.1 / 2**0.5), "n": 2},
        },
    }
    assert one["regret"] == pytest.approx(0.71 - 0.61)
    # Alone, seed 0 would choose huber and seed 1 focal.
    assert one["agreement"]["over"] == "seeds"
    assert (one["agreement"]["share"], one["agreement"]["times"]) == (0.5, 2)
    assert one["agreement"]["mean_regret"] == pytest.approx(0.05)
    pairs = np.array([pair for of_seed in TABLE.values() for pair in of_seed])
    assert one["kendall_tau"] == pytest.approx(stats.kendalltau(*pairs.T).statistic)
    json.dumps(found)


def test_what_is_asked_for_chooses():
    assert choose(rows_of(TABLE), fields=["loss"], by="sparse")["by"] == "sparse"
    text = words(choose(rows_of(TABLE), fields=["loss"], by="sparse"))
    assert text[2:4] == [
        "best by sparse marks (chosen): loss huber; dice_pooled 0.6100 ± 0.0141, lee_liu 5.2000 ± 1.1314 "
        "(2 seeds)",
        "next: loss focal; 0.9500 ± 1.4849 lee_liu behind (paired over 2 seeds)",
    ]
    assert "loses 0.1000 dice_pooled to the dense one" in text[4]
    assert "alike in 50% of 2 seeds" in text[4]


def test_sparse_marks_choose_where_there_is_nothing_else():
    rows = rows_of({"a": [(1.0,)], "b": [(2.0,)]}, ("lee_liu",))
    found = choose(rows, fields=["loss"])
    assert found["by"] == "sparse"
    assert found["conditions"][0]["chosen"]["sparse"] == {
        **{"values": {"loss": "b"}, "scores": {"lee_liu": 2.0}, "sd": {"lee_liu": None}, "n": 1},
        "tied": [],
        "runner_up": {"values": {"loss": "a"}, "difference": {"mean": 1.0, "sd": None, "n": 1}},
    }
    assert words(found) == [
        "best by sparse marks (chosen): loss b; lee_liu 2.0000",
        "next: loss a; 1.0000 lee_liu behind (one seed: no spread)",
    ]
    alone = choose(rows[:1], fields=["loss"])
    assert alone["conditions"][0]["chosen"]["sparse"]["runner_up"] is None
    assert len(words(alone)) == 1
    assert "regret" not in found["conditions"][0]
    with pytest.raises(InputError, match=r"no row holds a dense measure.*dense truth"):
        choose(rows, fields=["loss"], by="dense")


def test_another_measure_may_choose():
    rows = rows_of({"a": [(0.5, 0.2)], "b": [(0.4, 0.9)]}, ("dice_pooled", "dice_pooled_best"))
    found = choose(rows, fields=["loss"], measure="dice_pooled_best")
    assert found["conditions"][0]["chosen"]["dense"]["values"] == {"loss": "b"}
    with pytest.raises(InputError, match=r"'f1_iou'. There are: dice_pooled, dice_pooled_best"):
        choose(rows, fields=["loss"], measure="f1_iou")
    assert dense_measure([{"error": "x"}], "f1_iou") == "f1_iou"  # nothing says that it is wrong


@pytest.mark.parametrize(
    "wanted",
    [
        "test_dice_pooled_fixed",
        "dice_pooled_fixed",
        "seed",
        "train_loss",
        "loss",
        "lee_liu",
        "best_threshold",
    ],
)
def test_a_choice_is_made_on_validation(wanted):
    rows = [row | {wanted: 0.5} for row in rows_of(TABLE)]
    with pytest.raises(InputError, match=rf"made on validation, by a measure .* got '{wanted}'"):
        choose(rows, fields=["loss"], measure=wanted)


def test_a_measure_is_of_all_models_that_are_compared():
    check_measure("f1_iou", ["detection"])
    with pytest.raises(InputError, match=r"dice_pooled, dice_image, dice_pooled_best; got 'f1_iou'"):
        check_measure("f1_iou", ["segmentation"])
    with pytest.raises(InputError, match="got 'f1_iou'"):
        check_measure("f1_iou", ["detection", "segmentation"])


def test_settings_are_compared_within_the_same_data():
    turned = {name: [(1 - dice, sparse) for dice, sparse in pairs] for name, pairs in TABLE.items()}
    rows = [*rows_of(TABLE, **{"data.keep": "0.3"}), *rows_of(turned, **{"data.keep": "0.6"})]
    found = choose(rows, fields=["data.keep", "loss"])["conditions"]
    assert [one["condition"] for one in found] == [{"data.keep": "0.3"}, {"data.keep": "0.6"}]
    chosen = [one["chosen"]["dense"]["values"]["loss"] for one in found]
    assert chosen == ["focal", "cross_entropy"]
    assert found[1]["kendall_tau"] == pytest.approx(-found[0]["kendall_tau"])


def test_a_setting_with_a_failed_trial_is_left_out():
    rows = rows_of(TABLE)
    rows[1] = {"trial": "x", "loss": "focal", "seed": 1, "error": "not finite"}
    (found,) = choose(rows, fields=["loss"])["conditions"]
    assert found["left_out"] == [{"loss": "focal"}]
    assert found["chosen"]["dense"]["values"] == {"loss": "huber"}
    assert any(
        "left out, for a trial failed or lacks dice_pooled or lee_liu: loss focal" in line
        for line in words(choose(rows, fields=["loss"]))
    )
    none = choose([row | {"error": "no"} for row in rows_of(TABLE, ())], fields=["loss"], by="dense")
    assert none["measures"] == {}
    assert words(none) == ["left out, for a trial failed: loss focal; loss huber; loss cross_entropy"]


def test_with_one_seed_agreement_is_over_resampled_settings():
    """Three settings, of which the two measures prefer different ones: alike only where one is not drawn."""
    rows = rows_of({name: pairs[:1] for name, pairs in TABLE.items()})
    (found,) = choose(rows, fields=["loss"])["conditions"]
    agreement = found["agreement"]
    assert (agreement["over"], agreement["times"]) == ("resamples of the settings", 1000)
    # Both are drawn in 1 - 2 (2/3)^3 + (1/3)^3 of the resamples: 0.444; six sigma of 1000 draws.
    assert agreement["share"] == pytest.approx(1 - 0.444, abs=0.095)
    assert agreement["mean_regret"] == pytest.approx(0.1 * (1 - agreement["share"]))


@pytest.mark.parametrize(
    ("measure", "where"),
    [
        (
            "dice_pooled",
            "nothing was found at p > 0.5. Train longer, or choose by --measure dice_pooled_best.",
        ),
        ("f1_iou", "nothing was found at p > 0.5. Train longer, or choose by --measure f1_distance_best."),
        ("dice_pooled_best", "nothing was found at any threshold. Train longer."),
        ("lee_liu", "nothing was found above predict.threshold. Train longer."),
    ],
)
def test_where_nothing_was_found_nothing_is_called_chosen(measure, where):
    for names, whose in (("ab", "all 2 settings have"), ("a", "the only setting has")):
        rows = rows_of({name: [(0.0,), (0.0,)] for name in names}, (measure,))
        found = choose(rows, fields=["loss"], measure="" if measure == "lee_liu" else measure)
        kind = "sparse" if measure == "lee_liu" else "dense"
        assert words(found) == [f"nothing chosen by {kind} marks: {whose} {measure} 0: {where}"]


def test_settings_that_tie_are_said_to():
    rows = rows_of({"a": [(0.5,), (0.7,)], "b": [(0.7,), (0.5,)]}, ("dice_pooled",))
    found = choose(rows, fields=["loss"])
    assert found["conditions"][0]["chosen"]["dense"]["tied"] == [{"loss": "b"}]
    (line,) = words(found)
    assert line.startswith(
        "nothing chosen by dense marks: all 2 settings have the same mean, dice_pooled 0.6000"
    )
    rows += rows_of({"c": [(0.1,), (0.1,)]}, ("dice_pooled",))
    lines = words(choose(rows, fields=["loss"]))
    assert lines[0].startswith("best by dense marks (chosen): loss a; dice_pooled 0.6000")
    assert lines[1:] == ["as good, and no worse a choice: loss b"]


def test_measures_without_an_order():
    assert kendall_tau(np.ones(3), np.arange(3.0)) is None
    rows = rows_of({"a": [(0.5, 0.0)], "b": [(0.7, 0.0)]})
    found = choose(rows, fields=["loss"])
    assert found["conditions"][0]["kendall_tau"] is None
    assert "the same for all trials: it chooses nothing" in words(found)[-1]
