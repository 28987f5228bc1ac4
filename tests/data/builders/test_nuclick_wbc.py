import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.builders.registry import prepare
from sparseshot_jax.errors import InputError


def save(root, part, name, mask):
    for folder in ("images", "masks"):
        (root / part / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / part / "images" / f"{name}.png")
    Image.fromarray(mask).save(root / part / "masks" / f"{name}_mask.png")
    return pixels


def two_cells(first, second):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 3:9], mask[2:6, 9:12] = first, second  # they touch
    mask[10:12, 20:25] = second
    return mask


@pytest.fixture
def root(tmp_path):
    return tmp_path / "Hemato_Data"


def test_round_trip(root, tmp_path):
    pixels = save(root, "Train", "img (10)", two_cells(1, 2))
    save(root, "Train", "img (2)", two_cells(255, 255))
    save(root, "Validation", "img (2)", np.zeros((20, 30), np.uint8))
    builder = prepare("nuclick_wbc", manual_dir=tmp_path, data_dir=tmp_path / "built")
    second, tenth = builder.as_data_source("train")
    (empty,) = builder.as_data_source("validation")
    assert [row["image_id"] for row in (second, tenth)] == [b"Train img (2)", b"Train img (10)"]
    assert empty["image_id"] == b"Validation img (2)"
    np.testing.assert_array_equal(tenth["image"], pixels)
    np.testing.assert_array_equal(tenth["instances"][..., 0], two_cells(1, 2))  # a label map as it is
    parts = np.zeros((20, 30), np.uint16)
    parts[2:6, 3:12], parts[10:12, 20:25] = 1, 2
    np.testing.assert_array_equal(second["instances"][..., 0], parts)  # black and white: connected parts
    assert [len(row["class_ids"]) for row in (second, tenth, empty)] == [2, 2, 0]
    assert np.isnan(second["mpp"])
    assert "Split 'train' was published with 1213 images; found 2." in builder.notes


def test_what_is_missing_is_named_with_the_layout(root, tmp_path):
    save(root, "Train", "img (1)", two_cells(1, 2))
    with pytest.raises(InputError, match=r"Validation/images(.|\n)*Hemato_Data/"):
        prepare("nuclick_wbc", manual_dir=tmp_path, data_dir=tmp_path / "built")
    save(root, "Validation", "img (1)", two_cells(1, 2))
    (root / "Train/masks/img (1)_mask.png").unlink()
    with pytest.raises(InputError, match=r"img \(1\)_mask\.png is missing"):
        prepare("nuclick_wbc", manual_dir=tmp_path, data_dir=tmp_path / "built")
    save(root, "Train", "img (1)", np.zeros((20, 31), np.uint8))
    with pytest.raises(InputError, match=r"img \(1\)_mask\.png.*31 x 20"):
        prepare("nuclick_wbc", manual_dir=tmp_path, data_dir=tmp_path / "built")
