import numpy as np
import pytest
import scipy.io
from PIL import Image

from sparseshot_jax.data.builders.registry import prepare
from sparseshot_jax.errors import InputError

SIZES = {4: (20, 12), 5: (12, 16)}  # width, height; the others are 16 x 10


def content(number):
    """Pixels and label map of image `number`, which counts from 1."""
    width, height = SIZES.get(number, (16, 10))
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), int)
    labels[1:3, 1 : 3 + number % 5] = 1
    labels[5:9, 4:9] = 2
    return pixels, labels


def as_text(labels, separator="\n"):
    height, width = labels.shape
    return f"{width} {height}\n" + separator.join(str(label) for label in labels.ravel())


def published(root, numbers, *, exchanged=False):
    """The competition's own layout: image, mask as text and a rendering in one folder."""
    root.mkdir(parents=True)
    mask_of = {4: 5, 5: 4} if exchanged else {}
    for number in numbers:
        pixels, _ = content(number)
        Image.fromarray(pixels).save(root / f"image{number:02d}.png")
        Image.fromarray(255 - pixels).save(root / f"image{number:02d}_poly.png")
        labels = content(mask_of.get(number, number))[1]
        (root / f"image{number:02d}_mask.txt").write_text(as_text(labels))


def later_copy(root, numbers, *, exchanged=False, suffix=".mat"):
    """The copy that counts from 0, in folders."""
    for name in ("Images", "Labels", "Overlay"):
        (root / name).mkdir(parents=True)
    mask_of = {4: 5, 5: 4} if exchanged else {}
    for number in numbers:
        pixels, _ = content(number)
        name = f"image_{number - 1:02d}"
        Image.fromarray(pixels).save(root / "Images" / f"{name}.png")
        Image.fromarray(255 - pixels).save(root / "Overlay" / f"{name}.png")
        labels = content(mask_of.get(number, number))[1]
        if suffix == ".mat":
            scipy.io.savemat(root / "Labels" / f"{name}.mat", {"inst_map": labels})
        else:
            (root / "Labels" / f"{name}{suffix}").write_text(as_text(labels))


SPLITS = {"train": [1, 2, 3, 6, 7, 8, 11, 12, 13], "validation": [4, 9, 14], "test": [5, 10, 15]}


def check(builder, splits):
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        split: len(numbers) for split, numbers in splits.items()
    }
    for split, numbers in splits.items():
        for row, number in zip(builder.as_data_source(split), numbers, strict=True):
            pixels, labels = content(number)
            assert row["image_id"].decode() == f"image{number:02d}"
            np.testing.assert_array_equal(row["image"], pixels)
            np.testing.assert_array_equal(row["instances"][..., 0], labels)
            assert row["class_ids"].tolist() == [0, 0]
            assert row["mpp"] == (0.5 if number <= 7 else 0.25)


NOTE = "The label maps of {} and {} had each other's size: exchanged."


@pytest.mark.parametrize("exchanged", [False, True])
def test_as_published(tmp_path, exchanged):
    published(tmp_path / "raw", range(1, 16), exchanged=exchanged)
    builder = prepare("cpm15", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")
    check(builder, SPLITS)
    notes = [NOTE.format("image04.png", "image05.png")] if exchanged else []
    assert builder.notes == [*notes, "The whole data set was published with 2905 objects; found 30."]


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("suffix", [".mat", ".csv"])
def test_the_later_copy(tmp_path, exchanged, suffix):
    later_copy(tmp_path / "raw" / "cpm15", range(1, 16), exchanged=exchanged, suffix=suffix)
    builder = prepare("cpm15", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")
    check(builder, SPLITS)
    assert (NOTE.format("image_03.png", "image_04.png") in builder.notes) == exchanged


def test_another_size_is_no_exchange(tmp_path):
    published(tmp_path / "raw", (1, 4, 5))
    (tmp_path / "raw" / "image04_mask.txt").write_text(as_text(np.ones((3, 4), int)))
    with pytest.raises(InputError, match=r"image04_mask\.txt: .* it is 4 x 3, and the image is 20 x 12"):
        prepare("cpm15", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")


@pytest.mark.parametrize("lost", ["image07_mask.txt", "image*.png"])
def test_missing(tmp_path, lost):
    published(tmp_path / "raw", (7,))
    for path in (tmp_path / "raw").glob(lost):
        path.unlink()
    with pytest.raises(
        InputError, match=r"missing; looked for .*raw[\s\S]*image01_mask\.txt \.\.\.     a line"
    ):
        prepare("cpm15", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")


@pytest.mark.parametrize("lost", ["Labels/image_06.mat"])
def test_missing_in_the_later_copy(tmp_path, lost):
    later_copy(tmp_path / "raw", (7,))
    (tmp_path / "raw" / lost).unlink()
    with pytest.raises(
        InputError, match=r"label map of image_06\.png is missing; looked for .*image_06\.mat"
    ):
        prepare("cpm15", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")


def test_a_name_without_number(tmp_path):
    published(tmp_path / "raw", (7,))
    for suffix in (".png", "_mask.txt"):
        (tmp_path / "raw" / f"image07{suffix}").rename(tmp_path / "raw" / f"tile{suffix}")
    with pytest.raises(InputError, match=r"tile\.png: must be named imageNN\.png"):
        prepare("cpm15", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")


@pytest.mark.parametrize("content_", [b"", b"MATLAB 5.0 cut off"])
def test_broken_matlab(tmp_path, content_):
    later_copy(tmp_path / "raw", (7,))
    (tmp_path / "raw" / "Labels" / "image_06.mat").write_bytes(content_)
    with pytest.raises(InputError, match=r"image_06\.mat: cannot be read as a MATLAB file"):
        prepare("cpm15", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")


def test_matlab_without_a_label_map(tmp_path):
    later_copy(tmp_path / "raw", (7,))
    scipy.io.savemat(tmp_path / "raw" / "Labels" / "image_06.mat", {"type_map": np.ones((3, 3))})
    with pytest.raises(
        InputError, match=r"image_06\.mat: must hold inst_map, a label map; it holds type_map"
    ):
        prepare("cpm15", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")
