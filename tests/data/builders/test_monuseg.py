import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.builders.registry import prepare
from sparseshot_jax.data.builders.tcga import KUMAR_IMAGES, MONUSEG_TEST
from sparseshot_jax.data.formats.imagescope_xml import write_imagescope
from sparseshot_jax.errors import InputError


def write_pair(images, outlines, image_id, seed):
    """A 15 x 10 image with one nucleus of seed % 4 + 1 columns; pixels and label map."""
    images.mkdir(parents=True, exist_ok=True)
    outlines.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 15, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / f"{image_id}.tif")
    right = 3 + seed % 4
    ring = [[2, 5], [right, 5], [right, 9], [2, 9]]
    write_imagescope(outlines / f"{image_id}.xml", Annotations.from_polygons([[ring]], "nucleus"))
    labels = np.zeros((10, 15), np.uint16)
    labels[5:9, 2:right] = 1
    return pixels, labels


@pytest.fixture
def written(tmp_path):
    root, known = tmp_path / "raw", {}
    train, test = root / "MoNuSeg 2018 Training Data", root / "MoNuSegTestData"
    for seed, image_id in enumerate((*KUMAR_IMAGES, "TCGA-FG-A87N-01Z-00-DX1")):  # the last is no part of it
        known[image_id] = write_pair(train / "Tissue Images", train / "Annotations", image_id, seed)
    for seed, image_id in enumerate(MONUSEG_TEST):
        known[image_id] = write_pair(test, test, image_id, 100 + seed)
    return root, known


def test_round_trip(written, tmp_path):
    root, known = written
    builder = prepare("monuseg", manual_dir=root, data_dir=tmp_path / "built")
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 30,
        "test": 14,
    }
    for split, image_ids in (("train", KUMAR_IMAGES), ("test", MONUSEG_TEST)):
        for row, image_id in zip(builder.as_data_source(split), image_ids, strict=True):
            pixels, labels = known[image_id]
            assert row["image_id"].decode() == image_id
            assert row["patient"].decode() == image_id[:12]
            np.testing.assert_array_equal(row["image"], pixels)
            np.testing.assert_array_equal(row["instances"][..., 0], labels)
            assert row["class_ids"].tolist() == [0]
    assert builder.notes == ["Split 'train' was published with 16958 objects; found 30."]


def test_archives_unpacked_into_folders_of_their_names(written, tmp_path):
    root, _ = written
    for name in ("MoNuSegTestData", "MoNuSeg 2018 Training Data"):
        (root / name).rename(root / "moved")
        (root / name).mkdir()
        (root / "moved").rename(root / name / name)
    builder = prepare("monuseg", manual_dir=root, data_dir=tmp_path / "built")
    assert builder.info.splits["test"].num_examples == 14


@pytest.mark.parametrize(
    "lost",
    [
        "MoNuSegTestData",
        "MoNuSeg 2018 Training Data",
        f"MoNuSegTestData/{MONUSEG_TEST[2]}.xml",
        f"MoNuSeg 2018 Training Data/Tissue Images/{KUMAR_IMAGES[2]}.tif",
    ],
)
def test_missing(written, tmp_path, lost):
    root, _ = written
    (root / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as caught:
        prepare("monuseg", manual_dir=root, data_dir=tmp_path / "built")
    assert (root / lost).stem in str(caught.value).split("manual_dir")[0]
    assert str(root) in str(caught.value)
    assert "MoNuSegTestData/TCGA-XX-XXXX-....tif                             14 images" in str(caught.value)
