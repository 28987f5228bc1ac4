import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.builders.pictures import read_pixels
from sparseshot_jax.data.builders.registry import prepare
from sparseshot_jax.errors import InputError


def save_pair(root, patient, number, truth, kind="PNG"):
    """One image and its ground truth in the original layout; the image's pixels as they decode."""
    pixels = np.random.default_rng(100 * patient + number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    name = f"{patient:02d}_{number}.png"
    for folder in (f"Slide_{patient:02d}", f"GT_{patient:02d}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / f"Slide_{patient:02d}" / name, format=kind)
    Image.fromarray(truth).save(root / f"GT_{patient:02d}" / name)
    return read_pixels(root / f"Slide_{patient:02d}" / name)


def mask(value=255):
    """Two nuclei: one of two squares that touch at a corner, one apart from it."""
    array = np.zeros((32, 40), np.uint8)
    array[3:6, 4:9] = array[6:9, 9:12] = value
    array[20:24, 30:33] = value
    return array


def two():
    labels = np.zeros((32, 40), np.uint16)
    labels[3:6, 4:9] = labels[6:9, 9:12] = 1
    labels[20:24, 30:33] = 2
    return labels


@pytest.fixture
def root(tmp_path):
    return tmp_path / "raw" / "TNBC_NucleiSegmentation"


def test_round_trip(root, tmp_path):
    touching = np.zeros((32, 40), np.uint16)
    touching[2:6, 2:6], touching[2:6, 6:9], touching[10, 10] = 700, 3, 41
    images = {
        "train": [save_pair(root, 1, 2, mask()), save_pair(root, 1, 10, mask(1), "JPEG")],
        "validation": [save_pair(root, 6, 1, touching)],
        "test": [save_pair(root, 11, 1, np.zeros((32, 40), np.uint8))],
    }
    (root / "Slide_01" / "._01_2.png").write_bytes(b"not an image")
    save_pair(root, 12, 1, mask())  # brain: left out
    dense = np.zeros((32, 40), np.uint16)
    dense[2:6, 2:6], dense[2:6, 6:9], dense[10, 10] = 3, 1, 2
    truths = {"train": [two(), two()], "validation": [dense], "test": [np.zeros((32, 40), np.uint16)]}

    builder = prepare("tnbc", manual_dir=root.parent, data_dir=tmp_path / "built")
    assert set(builder.info.splits) == set(images)
    for split in images:
        rows = list(builder.as_data_source(split))
        assert len(rows) == len(images[split])
        for row, image, truth in zip(rows, images[split], truths[split], strict=True):
            np.testing.assert_array_equal(row["image"], image)
            np.testing.assert_array_equal(row["instances"][..., 0], truth)
            np.testing.assert_array_equal(row["class_ids"], np.zeros(truth.max(), np.int32))
            assert row["mpp"] == 0.25
    first, second = builder.as_data_source("train")
    assert (first["image_id"], second["image_id"], second["patient"]) == (b"01_2", b"01_10", b"01")
    assert "Split 'train' was published with 23 images; found 2." in builder.notes


@pytest.mark.parametrize("channels", ["grey", "RGB", "RGBA"])
def test_masks_of_several_channels(root, tmp_path, channels):
    truth = mask()
    if channels != "grey":
        truth = np.repeat(truth[..., None], 3, axis=2)
    if channels == "RGBA":
        truth = np.concatenate([truth, np.full((32, 40, 1), 255, np.uint8)], axis=2)
    save_pair(root, 2, 1, truth)
    builder = prepare("tnbc", manual_dir=root, data_dir=tmp_path / "built")
    np.testing.assert_array_equal(builder.as_data_source("train")[0]["instances"][..., 0], two())


def test_a_jpeg_under_a_png_name_keeps_its_bytes(root, tmp_path):
    save_pair(root, 3, 1, mask(), "JPEG")
    builder = prepare("tnbc", manual_dir=root, data_dir=tmp_path / "built")
    item = builder.find(root)["train"][0]
    assert builder.example(item).image.content == (root / "Slide_03" / "03_1.png").read_bytes()
    with Image.open(io.BytesIO(builder.example(item).image.content)) as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize("lost", ["GT_04", "GT_04/04_2.png"])
def test_missing_ground_truth(root, tmp_path, lost):
    save_pair(root, 4, 1, mask())
    save_pair(root, 4, 2, mask())
    for path in sorted([root / lost, *(root / lost).rglob("*")], reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(InputError) as caught:
        prepare("tnbc", manual_dir=root, data_dir=tmp_path / "built")
    assert str(root / lost) in str(caught.value)
    assert "Slide_01/01_1.png, 01_2.png, ...    images of patient 1" in str(caught.value)


def test_nothing_there(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match=r"every folder Slide_XX is missing[\s\S]*GT_01/01_1\.png"):
        prepare("tnbc", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")


def test_ground_truth_of_another_size(root, tmp_path):
    save_pair(root, 5, 1, mask()[:, :39])
    with pytest.raises(InputError, match=r"GT_05.05_1\.png: .* it is 39 x 32, and the image is 40 x 32"):
        prepare("tnbc", manual_dir=root, data_dir=tmp_path / "built")


def test_coloured_ground_truth_is_refused(root, tmp_path):
    truth = np.repeat(mask()[..., None], 3, axis=2)
    truth[4, 5] = (1, 2, 3)
    save_pair(root, 5, 1, truth)
    with pytest.raises(InputError, match=r"05_1\.png: must be a mask or a label map of one channel"):
        prepare("tnbc", manual_dir=root, data_dir=tmp_path / "built")


def test_the_real_images(shared_data, tmp_path):
    """The 37 images at hand, put back as published: JPEG under .png names, masks of 0 and 255."""
    raw, given = tmp_path / "TNBC_NucleiSegmentation", shared_data / "tnbc"
    stems = sorted(path.stem for path in (given / "instances").glob("*.png"))
    truths = {}
    for stem in stems:
        slide, truth = raw / f"Slide_{stem[:2]}", raw / f"GT_{stem[:2]}"
        slide.mkdir(parents=True, exist_ok=True)
        truth.mkdir(exist_ok=True)
        (slide / f"{stem}.png").write_bytes((given / "images" / f"{stem}.jpg").read_bytes())
        truths[stem] = np.asarray(Image.open(given / "instances" / f"{stem}.png"))
        Image.fromarray(np.where(truths[stem] > 0, np.uint8(255), np.uint8(0))).save(truth / f"{stem}.png")

    builder = prepare("tnbc", manual_dir=tmp_path, data_dir=tmp_path / "built")
    counts = {}
    for split in ("train", "validation", "test"):
        rows = list(builder.as_data_source(split))
        counts[split] = (len(rows), sum(len(row["class_ids"]) for row in rows))
        for row in rows:
            stem = row["image_id"].decode()
            assert same_objects(row["instances"][..., 0], truths[stem])
            with Image.open(given / "images" / f"{stem}.jpg") as image:
                np.testing.assert_array_equal(row["image"], np.asarray(image))
    assert counts == {"train": (23, 1531), "validation": (7, 624), "test": (7, 1002)}
    patients = [row["patient"].decode() for row in builder.as_data_source("train")]
    assert [name for name, _ in itertools.groupby(patients)] == ["01", "02", "03", "04"]
    assert "The whole data set was published with 50 images; found 37." in builder.notes
    assert not [note for note in builder.notes if "edges" in note]
    assert Path(builder.data_dir).is_relative_to(tmp_path)


def test_shifted_ground_truth_is_told(shared_data, root, tmp_path):
    for folder in ("Slide_01", "GT_01"):
        (root / folder).mkdir(parents=True)
    given = shared_data / "tnbc"
    (root / "Slide_01" / "01_2.png").write_bytes((given / "images" / "01_2.jpg").read_bytes())
    with Image.open(given / "instances" / "01_2.png") as image:
        moved = np.roll(np.asarray(image), (0, 1), axis=(0, 1))
    Image.fromarray(moved).save(root / "GT_01" / "01_2.png")
    builder = prepare("tnbc", manual_dir=root, data_dir=tmp_path / "built")
    (note,) = [note for note in builder.notes if "edges" in note]
    assert note.startswith("The instances of split 'train' lie +1.")
    assert same_objects(builder.as_data_source("train")[0]["instances"][..., 0], moved)


def same_objects(one, other):
    """Equal up to numbering: as many pairs of labels as labels on either side."""
    pairs = np.unique(one.astype(np.int64) << 16 | other)
    return len(pairs) == len(np.unique(one)) == len(np.unique(other))
