"""What the pictures of a report take from runs and cases."""

import types

import numpy as np
import pytest

from sparseshot_jax import pictures
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.report import DetectionPanel, Panel
from sparseshot_jax.types import Detections

SIDE = 40
HALO = 16  # of the run below: its reach, rounded up to its multiple


class Run:
    """Finds an object at every black pixel; p is high there."""

    def __init__(self, task: str):
        self.detects = task == "detection"
        self.config = types.SimpleNamespace(
            model=types.SimpleNamespace(multiple=8, receptive_radius_px=13),
            tiles=types.SimpleNamespace(mpp=0.5),
            measure=types.SimpleNamespace(distance_um=2.0),
            predict=types.SimpleNamespace(threshold=0.5),
        )

    def probability(self, images: np.ndarray) -> np.ndarray:
        return (images[..., :1] == 0).astype(np.float32)

    def detect(self, images: np.ndarray) -> Detections:
        (image,) = images
        y, x = np.nonzero((image == 0).all(-1))
        boxes = np.stack([y - 3, x - 3, y + 4, x + 4], 1).astype(np.float32)
        return Detections(
            boxes_yxyx_px=np.concatenate([boxes, np.zeros((1, 4), np.float32)])[None],
            score=np.append(np.full(len(boxes), 0.9), 0)[None],
            classes=np.ones((1, len(boxes) + 1, 1)),
            valid=np.append(np.ones(len(boxes), bool), False)[None],
        )


def case(name: str, marks: Annotations, dense: bool) -> Case:
    image = np.full((SIDE, SIDE, 3), 200, np.uint8)
    image[10, 20] = image[30, 5] = 0
    return Case(
        name=name,
        slide=ArraySlide(image, 0.5, path=f"/{name}.png"),
        mpp=0.5,
        given=marks,
        truth=marks if dense else None,
        held_out=None,
        labels=LabelSpec(point_radius_um=2.0),
    )


POINTS = Annotations.from_points([[20.5, 10.5], [5.5, 30.5]])
BOXES = Annotations.from_boxes([[17.0, 7.0, 24.0, 14.0]])


def splits(marks: Annotations = POINTS) -> Splits:
    return Splits(train=(case("a", marks, False),), validation=(), test=(case("b", marks, True),))


def test_a_detector_is_shown_with_boxes_where_they_lie():
    training, test = pictures.panels({"ours": Run("detection")}, splits())
    assert isinstance(training, DetectionPanel)
    assert training.truth is None
    assert training.given.tolist() == [[6.5, 16.5, 14.5, 24.5], [26.5, 1.5, 34.5, 9.5]]
    assert test.given is None
    assert np.array_equal(test.truth, training.given)
    found = test.predictions["ours"]
    assert found.boxes_yxyx_px.tolist() == [[7, 17, 14, 24], [27, 2, 34, 9]]
    assert (test.mpp, test.distance_um) == (0.5, 2.0)


@pytest.mark.parametrize(("marks", "circles"), [(POINTS, True), (BOXES, False)])
def test_points_are_drawn_as_circles_and_boxes_as_boxes(marks, circles):
    shown = pictures.panels({"ours": Run("detection")}, splits(marks))
    assert [panel.circles for panel in shown] == [circles, circles]
    assert pictures.truth_is_points(splits(marks)) == circles


def test_segmentation_is_shown_with_maps():
    training, test = pictures.panels({"ours": Run("segmentation")}, splits())
    assert isinstance(training, Panel)
    assert np.argwhere(test.predictions["ours"] > 0.5).tolist() == [[10, 20], [30, 5]]
    assert set(np.unique(test.truth)) == {0, 1, 2}
