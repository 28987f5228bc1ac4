"""Foreground against held-out marks: recall beside area, and the threshold that marks alone give."""

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.evaluate import carried_from_pixels, measure_sparse
from sparseshot_jax.evaluate.windows import tissue_windows

SIDE, MPP = 120, 0.5
TILES = TileSpec(tile_px=60, mpp=MPP, min_tissue=0.0)
# Squares x0, y0, x1, y1 and their p; the last is not marked.
SQUARES = {(10, 10, 20, 20): 0.4, (60, 30, 80, 40): 0.2, (30, 80, 40, 90): 0.04, (90, 90, 110, 110): 0.3}
GROUND = 0.01


def shown() -> np.ndarray:
    """p of every pixel."""
    p = np.full((SIDE, SIDE), GROUND)
    for (x0, y0, x1, y1), value in SQUARES.items():
        p[y0:y1, x0:x1] = value
    return p


def probability(images: np.ndarray) -> np.ndarray:
    """p as the colour says, in hundredths; what lies beyond the slide is ground."""
    p = images[..., :1].astype(np.float32) / 100
    return np.where(p > 1, np.float32(GROUND), p)


def case(marks: int) -> Case:
    """Of the squares the first ones held out."""
    image = np.repeat(np.round(shown()[..., None] * 100), 3, axis=2).astype(np.uint8)
    rings = [[[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]] for x0, y0, x1, y1 in list(SQUARES)[:marks]]
    return Case(
        name="squares",
        slide=ArraySlide(image, MPP, path="/squares.png"),
        mpp=MPP,
        given=Annotations.empty(),
        truth=None,
        held_out=Annotations.from_polygons(rings) if marks else Annotations.empty(),
        labels=LabelSpec(),
    )


def measured(marks: int, **options) -> dict:
    return measure_sparse(probability, [case(marks)], tiles=TILES, multiple=16, **options)


def test_marks_are_enough_for_the_elkan_noto_threshold():
    result = measured(3)
    assert (result["held_out"], result["recall"], result["recall_area"]) == (3, 0.0, 0.0)
    corrected = result["elkan_noto"]
    pixels = np.array([100, 200, 100])
    c = (pixels * [0.4, 0.2, 0.04]).sum() / pixels.sum()
    assert corrected["c"] == pytest.approx(c, abs=0.5 / 1000)  # pixels pooled, not objects
    assert corrected["threshold"] == 0.105
    assert corrected["recall"] == pytest.approx(2 / 3)
    assert corrected["recall_area"] == pytest.approx(3 / 4)
    seen = [
        shown()[int(w.y_px) : int(w.y_px) + w.height, int(w.x_px) : int(w.x_px) + w.width]
        for w in tissue_windows([case(3)], TILES)[0]
    ]
    area = np.mean([p > 0.105 for p in seen])
    assert corrected["predicted_area"] == pytest.approx(area)
    assert result["predicted_area"] == 0.0


@pytest.mark.parametrize("threshold", [0.105, 0.3, 0.0371])
def test_both_points_are_measured_alike(threshold):
    """At the threshold given, on the grid or off it, all is as at the estimated one."""
    asked, corrected = measured(3, threshold=threshold), measured(3)["elkan_noto"]
    above = np.array([0.4, 0.2, 0.04]) > threshold
    assert asked["recall"] == pytest.approx(above.mean())
    assert asked["recall_area"] == pytest.approx((above * [100, 200, 100]).sum() / 400)
    assert asked["elkan_noto"] == corrected
    if threshold == corrected["threshold"]:
        assert {name: asked[name] for name in corrected if name != "c"} == {
            name: value for name, value in corrected.items() if name != "c"
        }


def test_without_marks_there_is_neither_recall_nor_the_point():
    result = measured(0)
    assert result["recall"] is None
    assert result["held_out"] == 0
    assert "elkan_noto" not in result


def test_dense_truth_gives_the_threshold_and_c_in_one_pass():
    passes = []

    def probability_map(of: Case) -> np.ndarray:
        passes.append(of.name)
        return shown().astype(np.float32)

    one = case(4)
    dense = Case(**(vars(one) | {"truth": one.held_out, "held_out": None}))
    carried = carried_from_pixels(probability_map, [dense], mpp=MPP)
    assert passes == ["squares"]
    assert 0.01 <= carried["threshold_carried"] < 0.04
    c = shown()[shown() != GROUND].mean()
    assert carried["elkan_noto_c"] == pytest.approx(c, abs=0.5 / 1000)
    empty = Case(**(vars(one) | {"truth": Annotations.empty(), "held_out": None}))
    assert carried_from_pixels(probability_map, [empty], mpp=MPP)["elkan_noto_c"] is None
