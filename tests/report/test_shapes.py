"""Outlines of boxes and circles: where they lie, in which colour, over which others."""

import numpy as np
import pytest

from sparseshot_jax.report.shapes import Shapes, draw_shapes

WHITE = np.full((50, 50, 3), 255, np.uint8)
RED, BLUE = (213, 94, 0), (0, 114, 178)
BOX = np.array([[10.0, 20.0, 30.0, 40.0]])


def drawn(*layers: Shapes, **options) -> np.ndarray:
    return draw_shapes(WHITE, layers, side_px=100, **options)


def test_a_box_is_drawn_on_its_border_at_the_scale_of_the_picture():
    picture = drawn(Shapes(boxes_yxyx_px=BOX, colour=RED))
    assert picture.shape == (100, 100, 3)
    assert np.array_equal(picture[40, 40], RED)  # left edge: x 20 of 50
    assert np.array_equal(picture[20, 60], RED)  # top
    assert np.array_equal(picture[59, 79], RED)  # the lower right corner
    assert np.array_equal(picture[40, 60], (255, 255, 255))  # the inside
    assert picture[40, 38].max() < 255  # the casing


def test_a_circle_leaves_the_corners():
    picture = drawn(Shapes(boxes_yxyx_px=BOX, colour=RED), circles=True)
    assert np.array_equal(picture[20, 60], RED)
    assert np.array_equal(picture[20, 40], (255, 255, 255))


@pytest.mark.parametrize("circles", [False, True])
def test_dashes_have_gaps_and_less_colour(circles):
    whole, dashed = (
        drawn(Shapes(boxes_yxyx_px=BOX * 1.2, colour=RED, dashed=d), circles=circles) for d in (False, True)
    )
    counts = [int((picture == RED).all(-1).sum()) for picture in (whole, dashed)]
    assert 0.3 * counts[0] < counts[1] < 0.9 * counts[0]


def test_later_layers_lie_on_top():
    picture = drawn(Shapes(boxes_yxyx_px=BOX, colour=RED), Shapes(boxes_yxyx_px=BOX, colour=BLUE))
    assert np.array_equal(picture[40, 40], BLUE)


def test_boxes_without_extent_or_beyond_the_image_do_no_harm():
    odd = np.array([[5.0, 5.0, 5.0, 5.0], [-30.0, -30.0, 90.0, 90.0], [60.0, 60.0, 70.0, 70.0]])
    for circles in (False, True):
        for dashed in (False, True):
            drawn(Shapes(boxes_yxyx_px=odd, colour=RED, dashed=dashed), circles=circles)
    assert np.array_equal(drawn(Shapes(boxes_yxyx_px=np.zeros((0, 4)), colour=RED)), drawn())
