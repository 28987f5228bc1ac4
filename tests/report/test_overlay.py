"""Where the outlines lie, and what they leave alone."""

import numpy as np
import pytest

from sparseshot_jax.report.overlay import CASING, COLOURS, Layer, outlines, overlay, resized

WHITE = np.full((12, 12, 3), 255, np.uint8)


def square() -> np.ndarray:
    mask = np.zeros((12, 12), bool)
    mask[4:9, 4:9] = True
    return mask


def test_the_outline_is_the_inner_rim():
    rim = outlines(square())
    inner = np.zeros((12, 12), bool)
    inner[5:8, 5:8] = True
    assert np.array_equal(rim, square() & ~inner)


def test_touching_objects_stay_apart_and_the_image_rim_is_no_outline():
    labels = np.repeat([[1, 1, 1, 2, 2, 2]], 6, axis=0)
    assert outlines(labels).tolist() == [[False, False, True, True, False, False]] * 6


def test_line_casing_fill_and_untouched_ground():
    colour = COLOURS["false"]
    picture = overlay(WHITE, [Layer(labels=square(), colour=colour, fill=0.5, line_px=1)])
    assert tuple(picture[4, 6]) == colour
    assert tuple(picture[3, 6]) == (round(255 * CASING),) * 3
    assert np.allclose(picture[6, 6], (255 + np.array(colour)) / 2, atol=0.5)  # rounded to 8 bits
    assert tuple(picture[0, 0]) == (255, 255, 255)
    assert picture.dtype == np.uint8


def test_later_layers_lie_on_top_and_the_image_is_not_changed():
    layers = [Layer(labels=square(), colour=COLOURS[name], line_px=2) for name in ("truth", "missed")]
    image = WHITE.copy()
    assert tuple(overlay(image, layers)[4, 4]) == COLOURS["missed"]
    assert (image == 255).all()


def test_no_layers_and_empty_layers_give_the_image_back():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    empty = Layer(labels=np.zeros((7, 9), np.int32), colour=(1, 2, 3), fill=0.5)
    assert np.array_equal(overlay(image, []), image)
    assert np.array_equal(overlay(image, [empty]), image)


@pytest.mark.parametrize("side", [6, 24, 30])
def test_resizing_keeps_the_shape_and_invents_no_labels(side):
    labels = np.arange(8 * 12).reshape(8, 12)
    picture, (small,) = resized(np.zeros((8, 12, 3), np.uint8), [labels], side)
    assert picture.shape == (round(side * 8 / 12), side, 3)
    assert small.shape == picture.shape[:2]
    assert set(small.ravel()) <= set(labels.ravel())
    if side == 24:
        assert np.array_equal(small, labels.repeat(2, 0).repeat(2, 1))
