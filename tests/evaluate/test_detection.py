"""Detections against truth: what is true, what counts, and that a perfect finder scores 1."""

import dataclasses

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate import (
    carried_from_detections,
    found_objects,
    image_objects,
    measure_detections,
    true_objects,
)
from sparseshot_jax.evaluate.detection import ignored_at
from sparseshot_jax.metrics import ImageObjects
from sparseshot_jax.predict.detections import DetectionPart

MPP = 0.5
LABELS = LabelSpec(classes=("a", "b"), unknown_class=("?",), point_radius_um=3.0)
TRIANGLE = [[[10.0, 10.0], [22.0, 10.0], [10.0, 22.0]]]


def case(truth: Annotations | None, name: str = "one") -> Case:
    return Case(
        name=name,
        slide=ArraySlide(np.full((200, 200, 3), 220, np.uint8), MPP, path=f"/{name}.png"),
        mpp=MPP,
        given=Annotations.empty(),
        truth=truth,
        held_out=None,
        labels=LABELS,
    )


def truth() -> Annotations:
    """An "a" polygon, a "b" point, a point of unknown class, and one inside an ignored region."""
    return Annotations.concatenate(
        [
            Annotations.from_polygons([TRIANGLE], "a"),
            Annotations.from_points([[60.0, 60.0]], "b"),
            Annotations.from_points([[100.0, 60.0]], "?"),
            Annotations.from_points([[160.0, 160.0]], "a"),
            Annotations.from_polygons([[[[140, 140], [190, 140], [190, 190], [140, 190]]]], "Ignore*"),
        ]
    )


def perfect(of: Case) -> ImageObjects:
    """The truth, with class "b" where nobody knows."""
    true = true_objects(of)
    return dataclasses.replace(true, label=np.where(true.label == 0, 2, true.label))


def test_truth_is_in_micrometres_with_centroid_box_and_class():
    true = true_objects(case(truth()))
    assert true.label.tolist() == [1, 2, 0, 1]
    assert true.xy_um[:2].tolist() == [[7.0, 7.0], [30.0, 30.0]]  # a third of the legs; the point
    assert true.boxes_um[:2].tolist() == [[5.0, 5.0, 11.0, 11.0], [27.0, 27.0, 33.0, 33.0]]
    assert (true.score == 1).all()


def test_a_perfect_finder_scores_one_and_ignored_regions_count_nowhere():
    seen = []
    result = measure_detections(
        perfect,
        [case(truth()), case(truth(), "two")],
        class_names=LABELS.names,
        split="test",
        threshold_carried=0.3,
        elkan_noto_c=0.62,
        seed=0,
        exclusive_class="a",
        on_case=seen.append,
    )
    assert result["task"] == "detection"
    assert seen == ["one", "two"]
    assert list(result["operating_points"]) == ["fixed", "carried_over", "elkan_noto", "oracle"]
    for point in result["operating_points"]:
        values = result["operating_points"][point]
        assert values["f1_distance"]["mean"] == values["f1_iou"]["mean"] == 1.0
        assert values["exclusive_recall"]["a"]["exclusive_recall"]["mean"] == 1.0
    # three of four objects an image: the fourth is ignored, and so is what is found there
    assert result["per_image"][0]["points"]["fixed"]["counts"] == [3, 3]


def test_predictions_in_ignored_regions_are_no_false_alarms():
    one = case(truth())

    def find(of: Case) -> ImageObjects:
        found, ignored = perfect(of), np.array([[75.0, 82.0]])
        return ImageObjects(
            xy_um=np.concatenate([found.xy_um, ignored]),
            boxes_um=np.concatenate([found.boxes_um, np.concatenate([ignored - 1, ignored + 1], 1)]),
            label=np.append(found.label, 1),
            score=np.append(found.score, 0.9),
        )

    result = measure_detections(
        find, [one], class_names=LABELS.names, split="test", threshold_carried=None, seed=0
    )
    assert result["per_image"][0]["points"]["fixed"]["distance"] == [3, 0, 0]
    assert list(result["operating_points"]) == ["fixed", "oracle"]


@pytest.mark.parametrize(("chosen", "known"), [([0, 1], True), ([1, 2], False), ([], True)])
def test_an_evaluation_says_whether_all_true_objects_are_points(chosen, known):
    some = truth().take(np.array(chosen, np.int64))
    result = measure_detections(
        perfect, [case(some)], class_names=LABELS.names, split="test", threshold_carried=None, seed=0
    )
    assert result["extents_known"] is known


def test_points_in_ignored_regions_are_told():
    regions = truth()
    inside = ignored_at(np.array([[150.0, 150.0], [60.0, 60.0]]), regions, LABELS, mpp=MPP)
    assert inside.tolist() == [True, False]
    nothing = ignored_at(np.zeros((0, 2)), regions, LABELS, mpp=MPP)
    assert nothing.tolist() == []
    none = regions.take(np.arange(3))
    assert ignored_at(np.array([[150.0, 150.0]]), none, LABELS, mpp=MPP).tolist() == [False]


def test_the_threshold_to_carry_over_parts_true_from_false():
    def find(of: Case) -> ImageObjects:
        found = perfect(of)
        far = dataclasses.replace(found, xy_um=found.xy_um + 9, boxes_um=found.boxes_um + 9)
        both = [np.concatenate([getattr(found, k), getattr(far, k)]) for k in ("xy_um", "boxes_um", "label")]
        score = np.repeat([0.8, 0.7], len(found))
        return ImageObjects(xy_um=both[0], boxes_um=both[1], label=both[2], score=score)

    carried = carried_from_detections(find, [case(truth()), case(truth(), "two")])
    assert 0.7 <= carried["threshold_carried"] < 0.8
    assert carried["elkan_noto_c"] == pytest.approx(0.8)  # what is ignored is no positive


def test_what_a_slide_wide_prediction_gives_is_measured_uncut():
    boxes = np.array([[-4.0, 10.0, 8.0, 30.0]])
    part = DetectionPart(
        objects=Annotations.from_boxes(np.clip(boxes, 0, None), "a"),
        boxes_xyxy_px=boxes,
        score=np.array([0.75], np.float32),
        class_p=np.array([[0.25, 0.75]], np.float32),
    )
    found = found_objects(part, mpp=MPP)
    assert found.xy_um.tolist() == [[1.0, 10.0]]
    assert found.boxes_um.tolist() == [[-2.0, 5.0, 4.0, 15.0]]
    assert found.label.tolist() == [2]
    assert found.score.tolist() == [0.75]


def test_outlines_with_a_probability_are_measured_likewise():
    outlines = Annotations.from_polygons([TRIANGLE], "a")
    found = image_objects(outlines, label=np.array([1]), score=np.array([0.6]), spec=LABELS, mpp=MPP)
    assert found.xy_um.tolist() == [[7.0, 7.0]]
    assert found.score.tolist() == [0.6]


def test_no_dense_truth_is_one_clear_error():
    with pytest.raises(InputError, match="one: precision, recall and F1 need dense truth"):
        true_objects(case(None))
