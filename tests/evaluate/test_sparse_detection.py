"""Detections against held-out marks: recall one to one, and the density of predictions."""

import dataclasses

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.evaluate import measure_sparse_detections, objects_of
from sparseshot_jax.evaluate.windows import tissue_windows
from sparseshot_jax.types import Detections, Window

SIDE = 240
TILES = TileSpec(tile_px=60, mpp=0.5, min_tissue=0.0)
DARK = np.array([80, 40, 120], np.uint8)
SPOTS = np.array([[20.0, 20.0], [70.0, 40.0], [150.0, 90.0], [200.0, 200.0], [40.0, 220.0]])  # x, y


def slide() -> ArraySlide:
    """Squares of 5 pixels round the spots on pink."""
    image = np.full((SIDE, SIDE, 3), (230, 170, 200), np.uint8)
    for x, y in SPOTS.astype(int):
        image[y - 2 : y + 3, x - 2 : x + 3] = DARK
    return ArraySlide(image, 0.5, path="/spots.png")


def detect(images: np.ndarray) -> Detections:
    """Every dark pixel that is the middle of a spot."""
    found = []
    for image in images:
        dark = (image == DARK).all(-1)
        middle = dark.copy()
        for axis, step in ((0, 2), (0, -2), (1, 2), (1, -2)):
            middle &= np.roll(dark, step, axis)
        y, x = np.nonzero(middle)
        found.append(np.stack([y - 2, x - 2, y + 3, x + 3], axis=1))
    most = max(map(len, found)) + 1  # one place is always empty
    boxes = np.zeros((len(images), most, 4), np.float32)
    valid = np.zeros((len(images), most), bool)
    for k, one in enumerate(found):
        boxes[k, : len(one)], valid[k, : len(one)] = one, True
    return Detections(
        boxes_yxyx_px=boxes,
        score=np.where(valid, np.float32(0.8), np.float32(0.0)),
        classes=np.ones((len(images), most, 1), np.float32),
        valid=valid,
    )


def case(given: Annotations, held_out: Annotations | None, labels: LabelSpec | None = None) -> Case:
    return Case(
        name="spots",
        slide=slide(),
        mpp=0.5,
        given=given,
        truth=None,
        held_out=held_out,
        labels=labels or LabelSpec(),
    )


def measured(*cases: Case, **options) -> dict:
    return measure_sparse_detections(detect, list(cases), tiles=TILES, multiple=16, **options)


def test_held_out_objects_are_found_beside_the_density_of_all():
    held_out = Annotations.from_points([*(SPOTS[:2] + 0.5), [120.0, 150.0]])  # nothing at the last
    result = measured(case(Annotations.from_points(SPOTS[3:]), held_out))
    assert result["held_out"] == 3
    assert result["recall"] == pytest.approx(2 / 3)
    assert result["tissue_mm2"] == pytest.approx(16 * (60 * 0.5e-3) ** 2)  # four by four tiles, that overlap
    # (70, 40) lies in two of them, (150, 90) and (200, 200) in one, the others too near the slide's border
    assert result["predicted_per_mm2"] * result["tissue_mm2"] == pytest.approx(4)
    assert result["threshold"] == 0.5
    assert measured(case(Annotations.empty(), held_out), threshold=0.9)["recall"] == 0.0


def test_windows_are_seen_with_their_surroundings_and_only_what_they_hold_is_counted():
    """The detector knows nothing near the border of what it is shown: with its reach as halo, it is as if
    it had seen the slide at once."""
    reach = 20
    seen = []

    def blind_at_borders(images: np.ndarray) -> Detections:
        seen.append(images.shape[1:3])
        found = detect(images)
        middle = (found.boxes_yxyx_px[..., :2] + found.boxes_yxyx_px[..., 2:]) / 2
        sides = np.array(images.shape[1:3])
        found.valid[:] &= ((middle >= reach) & (middle < sides - reach)).all(-1)
        return found

    one = case(Annotations.empty(), Annotations.from_points(SPOTS[:2] + 0.5))
    centres = SPOTS + 0.5
    expected = 0
    for window in tissue_windows([one], TILES)[0]:
        corner = np.array([window.x_px, window.y_px])
        expected += int(((centres >= corner) & (centres < corner + TILES.tile_px)).all(-1).sum())
    assert expected > 2

    def counted(halo_px: int) -> float:
        result = measure_sparse_detections(blind_at_borders, [one], tiles=TILES, multiple=16, halo_px=halo_px)
        assert result["recall"] == 1.0
        return result["predicted_per_mm2"] * result["tissue_mm2"]

    assert counted(reach) == pytest.approx(expected)
    assert all(side % 16 == 0 for shape in seen for side in shape)
    assert counted(0) < expected


def faint(images: np.ndarray) -> Detections:
    """The same spots, those in the left half of what is shown at a score of 0.3, the others at 0.1."""
    found = detect(images)
    left = found.boxes_yxyx_px[..., 1] < images.shape[2] / 2
    return dataclasses.replace(found, score=np.where(left, 0.3, 0.1).astype(np.float32) * found.valid)


def test_marks_are_enough_for_the_elkan_noto_threshold():
    held_out = Annotations.from_points([*(SPOTS[:2] + 0.5), [120.0, 150.0]])  # nothing at the last
    one = case(Annotations.empty(), held_out)
    result = measure_sparse_detections(faint, [one], tiles=TILES, multiple=16)
    assert result["recall"] == result["predicted_per_mm2"] == 0.0
    corrected = result["elkan_noto"]
    # An object lies in the middle of its window: a box there begins left of it. A third is missed.
    assert corrected["c"] == pytest.approx(2 * 0.3 / 3)
    assert corrected["threshold"] == 0.1
    assert corrected["recall"] == pytest.approx(2 / 3)
    there = measure_sparse_detections(faint, [one], tiles=TILES, multiple=16, threshold=0.1)
    for name in ("recall", "predicted_per_mm2", "threshold"):
        assert corrected[name] == there[name]
    assert there["predicted_per_mm2"] > 0
    unseen = case(Annotations.empty(), held_out.take(np.array([2])))
    assert "elkan_noto" not in measure_sparse_detections(faint, [unseen], tiles=TILES, multiple=16)


def test_one_prediction_does_not_stand_for_two_objects():
    near = Annotations.from_points(SPOTS[:1] + 0.5)
    beside = Annotations.from_points(SPOTS[:1] + np.array([[3.0, 0.5]]))  # 1.25 um away, no spot of its own
    assert measured(case(near, beside))["recall"] == 0.0
    assert measured(case(Annotations.empty(), beside))["recall"] == 1.0


def test_ignored_regions_have_neither_area_nor_predictions():
    everything = Annotations.from_polygons([[[[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]]]], "Ignore*")
    result = measured(case(everything, Annotations.from_points(SPOTS[:1] + 0.5)))
    assert result["tissue_mm2"] == 0.0
    assert result["predicted_per_mm2"] is None
    assert result["recall"] == 1.0


def test_without_marks_there_is_no_recall():
    assert measured(case(Annotations.empty(), Annotations.empty()))["recall"] is None


def test_detections_of_a_window_lie_where_the_window_lies():
    window = Window(x_px=100.0, y_px=40.0, width=64, height=64, scale=2.0)
    detections = Detections(
        boxes_yxyx_px=np.array([[[0, 10, 4, 20], [0, 0, 0, 0]]], np.float32),
        score=np.array([[0.5, 0.0]], np.float32),
        classes=np.array([[[0.1, 0.9], [0.5, 0.5]]], np.float32),
        valid=np.array([[True, False]]),
    )
    (found,) = objects_of(detections, window, mpp=0.25)
    assert found.boxes_um.tolist() == [[30.0, 10.0, 35.0, 12.0]]
    assert found.xy_um.tolist() == [[32.5, 11.0]]
    assert found.label.tolist() == [2]
