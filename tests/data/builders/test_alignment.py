import io

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from sparseshot_jax.data.builders.alignment import Alignment

ROWS, COLUMNS = np.mgrid[0:120, 0:150]


def discs(dx=0.0, dy=0.0, step=18):
    """Label map of 30 to 40 discs, moved by (dx, dy)."""
    labels = np.zeros(ROWS.shape, np.int32)
    centres = [(y + 0.5 * x % 3, x) for y in range(12, 110, step) for x in range(12, 140, step)]
    for k, (y, x) in enumerate(centres, 1):
        labels[(ROWS - y - dy) ** 2 + (COLUMNS - x - dx) ** 2 < 25 + k % 9] = k
    return labels


def picture(labels, contrast=90, seed=0):
    """Dark, blurred discs on light noise, as PNG."""
    grey = scipy.ndimage.gaussian_filter(200.0 - contrast * (labels > 0), 1.0)
    grey = grey + np.random.default_rng(seed).normal(0, 6, labels.shape)
    buffer = io.BytesIO()
    pixels = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def measured(labels, **options):
    found = Alignment()
    for seed in range(3):
        found.add(picture(discs(), seed=seed, **options), labels)
    return found.offset_px()


@pytest.mark.parametrize("offset", [(0, 0), (1, 0), (0, 1), (-1, 0), (1, -1), (0, -2)])
def test_whole_pixels(offset):
    """The label map lies `offset` from the image's discs, right and down positive."""
    np.testing.assert_allclose(measured(np.roll(discs(), offset[::-1], axis=(0, 1))), offset, atol=0.15)


def test_half_a_pixel():
    np.testing.assert_allclose(measured(discs(dx=0.5, dy=-0.5)), (0.5, -0.5), atol=0.2)


def test_few_objects_say_nothing():
    found = Alignment()
    found.add(picture(discs()), discs())
    assert found.offset_px() is None


def test_no_edges_say_nothing():
    assert measured(discs(), contrast=0) is None


def test_nothing_at_all():
    assert Alignment().offset_px() is None


@pytest.mark.parametrize(("name", "suffix"), [("tnbc", ".jpg"), ("kumar", ".png")])
def test_real_images(shared_data, name, suffix):
    """TNBC's maps lie on the edges; these maps of Kumar were drawn half a pixel too far right and down."""
    found = Alignment()
    for path in sorted((shared_data / name / "instances").glob("*.png"))[:10]:
        image = shared_data / name / "images" / f"{path.stem}{suffix}"
        with Image.open(path) as labels:
            found.add(image.read_bytes(), np.asarray(labels).astype(np.int32))
    offset = found.offset_px()
    assert offset is not None
    if name == "tnbc":
        np.testing.assert_allclose(offset, 0, atol=0.25)
    else:
        assert 0.25 < offset[0] < 1
        assert 0.1 < offset[1] < 1
