"""The evaluation of a detector: its ends (perfect, empty), its invariances, JSON, paired comparison."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics import (
    ImageObjects,
    best_detection_threshold,
    detection_difference,
    dice_of,
    summarise_detections,
)
from sparseshot_jax.metrics.detection import pool_objects

CLASSES = ("tumour", "inflammatory", "stroma")
POINT_MEASURES = [f"{m}_{gate}" for gate in ("distance", "iou") for m in ("f1", "precision", "recall")]


def truth_of(n: int, seed: int = 0, unknown: bool = False) -> ImageObjects:
    """Nuclei on a jittered lattice, 4 um apart at least: nearer ones of two classes are rivals even for a
    perfect predictor."""
    generator = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n)))
    lattice = np.stack(np.divmod(np.arange(n), side), axis=1) * 8.0
    xy = lattice + generator.uniform(0, 4, (n, 2))
    half = generator.uniform(2, 5, (n, 2))
    label = generator.integers(0 if unknown else 1, 4, n)
    return boxed(xy, half, label, np.ones(n))


def boxed(xy, half, label, score) -> ImageObjects:
    return ImageObjects(
        xy_um=xy, boxes_um=np.concatenate([xy - half, xy + half], axis=1), label=label, score=score
    )


def found_in(truth: ImageObjects, seed: int = 0, noise_um: float = 1.2) -> ImageObjects:
    """Predictions with errors of every kind; true ones tend to score higher."""
    generator = np.random.default_rng(seed)
    n, extra = len(truth), len(truth) // 3
    side = truth.xy_um.max() if n else 10.0
    xy = np.concatenate(
        [truth.xy_um + generator.normal(size=(n, 2)) * noise_um, generator.random((extra, 2)) * side]
    )
    half = generator.uniform(2, 5, (n + extra, 2))
    half[:n] = (truth.boxes_um[:, 2:] - truth.boxes_um[:, :2]) / 2
    label = np.where(generator.random(n + extra) < 0.8, np.append(truth.label, np.ones(extra, int)), 2)
    score = np.concatenate([generator.beta(3, 2, n), generator.beta(2, 4, extra)])
    return boxed(xy, half, np.maximum(label, 1), score)


def split(images: int = 5, n: int = 20, noise_um: float = 1.2, unknown: bool = True):
    truths = [truth_of(n + k, k, unknown) for k in range(images)]
    return truths, [found_in(truth, k, noise_um) for k, truth in enumerate(truths)]


def summarised(truths, predictions, **changes):
    settings = {"names": [f"image {k}" for k in range(len(truths))], "class_names": CLASSES, "split": "test"}
    return summarise_detections(truths, predictions, **{**settings, "seed": 0, **changes})


def every_measure(point) -> dict[str, float]:
    """Name -> value of everything that is 1 for a perfect predictor."""
    values = {name: point[name]["mean"] for name in POINT_MEASURES}
    for name, of_class in point["per_class"].items():
        values |= {f"{name} {measure}": of_class[measure]["mean"] for measure in POINT_MEASURES}
    for name, exclusive in point["exclusive_recall"].items():
        values |= {f"{name} {m}": exclusive[m]["mean"] for m in ("recall", "exclusive_recall")}
    return values


@pytest.mark.parametrize("n", [5, 5000])
def test_a_perfect_predictor_scores_one_on_everything(n):
    truth = truth_of(n)
    found = summarised([truth], [truth], exclusive_class="inflammatory", threshold_carried=0.3)
    assert set(found["operating_points"]) == {"fixed", "carried_over", "oracle"}
    for point in found["operating_points"].values():
        assert set(every_measure(point).values()) == {1.0}
        assert {e["other_recall"]["mean"] for e in point["exclusive_recall"].values()} == {0.0}
        assert point["counts_mae"]["mean"] == 0.0
        sizes = np.bincount(truth.label, minlength=4)[1:]
        for table in point["confusion"].values():
            np.testing.assert_array_equal(table, np.diag([*sizes, 0]))
    assert found["ap_iou"] == found["ap_distance"] == 1.0
    present = {CLASSES[k - 1] for k in truth.label}
    assert {v for name in present for v in found["ap_per_class"][name].values()} == {1.0}
    assert {v for name, values in found["curve"].items() if name != "threshold" for v in values} == {1.0}


@pytest.mark.parametrize("n", [5, 5000])
def test_an_empty_predictor_scores_zero_on_everything(n):
    truth = truth_of(n)
    nothing = truth.take(np.zeros(n, bool))
    found = summarised([truth], [nothing])
    for point in found["operating_points"].values():
        present = {k: v for k, v in every_measure(point).items() if "stroma" not in k or 3 in truth.label}
        assert set(present.values()) == {0.0}
        assert point["counts_mae"]["mean"] == n
        assert np.array(point["confusion"]["distance"])[:, -1].sum() == n
    assert found["ap_iou"] == found["ap_distance"] == 0.0
    assert {v for name, values in found["curve"].items() if name != "threshold" for v in values} == {0.0}


def test_nothing_there_and_nothing_said_is_right():
    none = truth_of(4).take(np.zeros(4, bool))
    point = summarised([none], [none])["operating_points"]["fixed"]
    assert {point[name]["mean"] for name in POINT_MEASURES} == {1.0}


def test_points_their_sources_and_json():
    truths, predictions = split()
    carried = best_detection_threshold(truths, predictions)
    carry = {"threshold_carried": 0.35, "elkan_noto_c": 0.4472}
    found = summarised(truths, predictions, exclusive_class="inflammatory", **carry)
    points = found["operating_points"]
    assert {name: (p["threshold"], p["source"]) for name, p in points.items()} == {
        "fixed": (0.5, "fixed"),
        "carried_over": (0.35, "validation"),
        "elkan_noto": (0.224, "validation positives"),
        "oracle": (carried, "this split"),
    }
    assert {name: p["c"] for name, p in points.items() if "c" in p} == {"elkan_noto": 0.4472}
    assert found["task"] == "detection"
    for point in points.values():
        for measure in POINT_MEASURES:
            assert point[measure]["low"] <= point[measure]["mean"] <= point[measure]["high"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(summarised(truths, predictions)["operating_points"]) == ["fixed", "oracle"]
    assert "exclusive" not in summarised(truths, predictions)["per_image"][0]["points"]["fixed"]


def test_the_curve_is_matched_anew_at_each_threshold_and_gives_the_oracle():
    truths, predictions = split()
    found = summarised(truths, predictions)
    pool = pool_objects(truths, predictions, distance_um=3.0, iou=0.5)
    curve = found["curve"]
    for k in (0, 24, 49, 73, 98):
        threshold = curve["threshold"][k]
        for gate in ("distance", "iou"):
            kept = [p.take(p.score.astype(np.float32) > np.float32(threshold)) for p in predictions]
            alone = pool_objects(truths, kept, distance_um=3.0, iou=0.5)
            rows = alone.confusion(gate, np.ones(len(alone.score), bool))
            np.testing.assert_array_equal(rows, pool.confusion(gate, pool.above(threshold)))
            assert curve[f"f1_{gate}"][k] == dice_of(rows.sum(0))
    oracle = found["operating_points"]["oracle"]
    assert oracle["f1_distance"]["mean"] == max(curve["f1_distance"])
    assert oracle["f1_distance"]["mean"] > found["operating_points"]["fixed"]["f1_distance"]["mean"]


def test_what_is_stored_of_images_gives_the_pooled_measures():
    truths, predictions = split()
    found = summarised(truths, predictions, exclusive_class="tumour")
    for name, point in found["operating_points"].items():
        stored = [image["points"][name] for image in found["per_image"]]
        for gate in ("distance", "iou"):
            pooled = np.sum([image[gate] for image in stored], axis=0)
            assert point[f"f1_{gate}"]["mean"] == dice_of(pooled)
        errors = [abs(a - b) for a, b in (image["counts"] for image in stored)]
        assert point["counts_mae"]["mean"] == pytest.approx(np.mean(errors), abs=1e-12)
        hit, objects, other, others = np.sum([image["exclusive"] for image in stored], axis=0)
        expected = hit / objects * (1 - other / others)
        assert point["exclusive_recall"]["tumour"]["exclusive_recall"]["mean"] == pytest.approx(expected)
        for gate, table in point["confusion"].items():
            unknown_missed_or_hit = sum(t.label.tolist().count(0) for t in truths)
            assert np.sum(table[:-1]) + unknown_missed_or_hit == sum(len(t) for t in truths), gate


def values_of(evaluation) -> list[float]:
    points = [list(every_measure(point).values()) for point in evaluation["operating_points"].values()]
    return [evaluation["ap_iou"], evaluation["ap_distance"], *np.ravel(points)]


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.25, 3.0, 100.0]))
def test_order_and_scale_change_nothing(seed, scale):
    generator = np.random.default_rng(seed)
    truths, predictions = split(images=3, n=15)
    before = summarised(truths, predictions, threshold_carried=0.3)
    mixed = [
        [one.take(generator.permutation(len(one))) for one in images] for images in (truths, predictions)
    ]
    assert values_of(summarised(*mixed, threshold_carried=0.3)) == values_of(before)
    scaled = [
        [
            ImageObjects(
                xy_um=one.xy_um * scale, boxes_um=one.boxes_um * scale, label=one.label, score=one.score
            )
            for one in images
        ]
        for images in (truths, predictions)
    ]
    found = summarised(*scaled, threshold_carried=0.3, distance_um=3.0 * scale)
    assert values_of(found) == values_of(before)


def test_the_best_threshold_is_the_one_nearest_to_a_half():
    truth = truth_of(9)
    sure = boxed(truth.xy_um, 3.0 * np.ones((9, 2)), truth.label, np.full(9, 0.8))
    assert best_detection_threshold([truth], [sure]) == 0.5
    faint = boxed(truth.xy_um, 3.0 * np.ones((9, 2)), truth.label, np.full(9, 0.205))
    assert best_detection_threshold([truth], [faint]) == 0.2
    # unweighted cross-entropy with a tenth of the labels: every p is below 0.02
    faintest = boxed(truth.xy_um, 3.0 * np.ones((9, 2)), truth.label, np.full(9, 0.0055))
    assert best_detection_threshold([truth], [faintest]) == 0.005


def test_the_best_threshold_takes_no_look_at_boxes(monkeypatch):
    truths, predictions = split()
    expected = summarised(truths, predictions)["operating_points"]["oracle"]["threshold"]
    monkeypatch.setattr("sparseshot_jax.metrics.detection.box_pairs", None)
    assert best_detection_threshold(truths, predictions) == expected
    with pytest.raises(InputError, match="at least one image"):
        best_detection_threshold([], [])


def test_paired_differences_also_between_points():
    truths, predictions = split(images=8)
    _, worse = split(images=8, noise_um=3.0)
    one = summarised(truths, predictions, threshold_carried=0.3, exclusive_class="tumour")
    other = summarised(truths, worse, threshold_carried=0.3, exclusive_class="tumour")
    for measure in ("f1_distance", "recall_iou", "counts_mae", "exclusive_recall"):
        gain = detection_difference(one, other, measure=measure, seed=0)
        values = []
        for evaluation in (one, other):
            point = evaluation["operating_points"]["carried_over"]
            whole = point if measure != "exclusive_recall" else point["exclusive_recall"]["tumour"]
            values.append(whole[measure]["mean"])
        assert gain["mean"] == pytest.approx(values[0] - values[1], abs=1e-12)
        assert gain["low"] <= gain["mean"] <= gain["high"]
    assert detection_difference(one, other, seed=0)["low"] > 0
    both = [summarised(truths, said, elkan_noto_c=0.5) for said in (predictions, worse)]
    gain = detection_difference(*both, point="elkan_noto", seed=0)
    means = [one["operating_points"]["elkan_noto"]["f1_distance"]["mean"] for one in both]
    assert gain["mean"] == pytest.approx(means[0] - means[1], abs=1e-12)
    across = detection_difference(one, one, point="oracle", baseline_point="fixed", seed=0)
    points = one["operating_points"]
    expected = points["oracle"]["f1_distance"]["mean"] - points["fixed"]["f1_distance"]["mean"]
    assert across["mean"] == pytest.approx(expected, abs=1e-12)


def test_comparisons_that_mean_nothing_are_refused():
    truths, predictions = split(images=2)
    one = summarised(truths, predictions)
    for other, asked, message in (
        (summarised(truths, predictions, names=["a", "b"]), {}, "same images"),
        (summarised(truths, predictions, distance_um=2.0), {}, "one distance_um; got 3.0 and 2.0"),
        (one, {"measure": "dice_pooled"}, "measure must be one of f1_distance"),
        (one, {}, "no f1_distance at the operating point 'carried_over'"),
        (one, {"point": "fixed", "measure": "exclusive_recall"}, "no exclusive_recall"),
    ):
        with pytest.raises(InputError, match=message):
            detection_difference(one, other, seed=0, **asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["one"]}, "needs a name"),
        ({"class_names": ("a", "b")}, r"true object must lie in 0 \.\. 2 \(a, b\); got 3"),
        ({"class_names": ("a", "a", "b")}, "different names"),
        ({"threshold_carried": 1.5}, "threshold_carried"),
        ({"exclusive_class": "lymphocyte"}, "exclusive_class must be one of tumour"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    truths, predictions = split(images=2)
    with pytest.raises(InputError, match=message):
        summarised(truths, predictions, **changes)


def test_a_prediction_needs_a_class():
    truth = truth_of(9, unknown=True)
    with pytest.raises(InputError, match=r"prediction must lie in 1 \.\. 3"):
        summarised([truth], [boxed(truth.xy_um, np.ones((9, 2)), np.zeros(9, int), truth.score)])


def test_thirty_seven_images_take_seconds():
    truths, predictions = split(images=37, n=40)
    start = time.perf_counter()
    summarised(truths, predictions, threshold_carried=0.3, exclusive_class="tumour")
    assert time.perf_counter() - start < 5
