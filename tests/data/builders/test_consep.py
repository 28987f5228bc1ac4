import numpy as np
import pytest
import scipy.io
from PIL import Image

from sparseshot_jax.data.builders.consep import CLASSES, MERGED
from sparseshot_jax.data.builders.registry import prepare
from sparseshot_jax.errors import InputError


def write_pair(root, split, number, labels, types, *, alpha=False, **without):
    """One image with its .mat in the original layout; its pixels."""
    images, truth = root / split.capitalize() / "Images", root / split.capitalize() / "Labels"
    for folder in (images, truth):
        folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    stored = np.concatenate([pixels, np.full((*labels.shape, 1), 255, np.uint8)], axis=2) if alpha else pixels
    Image.fromarray(stored).save(images / f"{split}_{number}.png")
    numbers = [n for n in np.unique(labels) if n]
    centroids = [np.argwhere(labels == n)[:, ::-1].mean(axis=0) for n in numbers]
    type_map = np.zeros(labels.shape)
    for n, kind in zip(numbers, types, strict=True):
        type_map[labels == n] = kind
    arrays = {
        "inst_map": labels.astype(np.float64),
        "type_map": type_map,
        "inst_type": np.array(types, np.float64)[:, None],
        "inst_centroid": np.array(centroids).reshape(-1, 2),
    }
    scipy.io.savemat(truth / f"{split}_{number}.mat", {k: v for k, v in arrays.items() if k not in without})
    return pixels


def labels_with(gap):
    """Three nuclei; with a gap their numbers are 2, 5, 9."""
    labels = np.zeros((18, 25), int)
    labels[1:4, 2:9], labels[5:9, 14:20], labels[12:17, 3:5] = (2, 5, 9) if gap else (1, 2, 3)
    return labels


@pytest.fixture
def root(tmp_path):
    return tmp_path / "raw" / "CoNSeP"


def test_round_trip(root, tmp_path):
    known = {
        "train": [
            write_pair(root, "train", 2, labels_with(False), [4, 1, 7], alpha=True),
            write_pair(root, "train", 10, labels_with(True), [0, 2, 3]),
        ],
        "test": [write_pair(root, "test", 1, np.zeros((18, 25), int), [])],
    }
    (root / "Train" / "Overlay").mkdir()
    builder = prepare("consep", manual_dir=root.parent, data_dir=tmp_path / "built")
    dense = labels_with(False)
    expected = {
        "train": [("train_2", dense, [3, 0, 6]), ("train_10", dense, [-1, 1, 2])],
        "test": [("test_1", np.zeros((18, 25)), [])],
    }
    for split in expected:
        rows = list(builder.as_data_source(split))
        for row, pixels, (name, labels, classes) in zip(rows, known[split], expected[split], strict=True):
            assert row["image_id"].decode() == name
            np.testing.assert_array_equal(row["image"], pixels)
            np.testing.assert_array_equal(row["instances"][..., 0], labels)
            assert row["class_ids"].tolist() == classes
            assert row["mpp"] == np.float32(0.275)
    assert "The whole data set was published with 24319 objects; found 6." in builder.notes
    assert builder.info.metadata["class_names"][3] == "malignant epithelial"


def test_types_without_inst_type_come_from_the_type_map(root, tmp_path):
    write_pair(root, "train", 1, labels_with(False), [4, 1, 7], inst_type=None)
    write_pair(root, "test", 1, labels_with(False), [1, 1, 1])
    builder = prepare("consep", manual_dir=root, data_dir=tmp_path / "built")
    assert builder.as_data_source("train")[0]["class_ids"].tolist() == [3, 0, 6]


def test_merged_classes_are_those_of_the_paper():
    assert set(MERGED) == set(CLASSES)
    assert [MERGED[name] for name in CLASSES] == [
        "miscellaneous",
        "inflammatory",
        *["epithelial"] * 2,
        *["spindle-shaped"] * 3,
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inst_type": None, "type_map": None}, r"train_1\.mat: must have inst_type or type_map"),
        ({"inst_map": None}, r"train_1\.mat: holds no inst_map"),
    ],
)
def test_a_file_without_arrays(root, tmp_path, changes, message):
    write_pair(root, "train", 1, labels_with(False), [1, 2, 3], **changes)
    write_pair(root, "test", 1, labels_with(False), [1, 2, 3])
    with pytest.raises(InputError, match=message):
        prepare("consep", manual_dir=root, data_dir=tmp_path / "built")


def test_a_type_that_does_not_exist(root, tmp_path):
    write_pair(root, "train", 1, labels_with(False), [1, 8, 3])
    write_pair(root, "test", 1, labels_with(False), [1, 2, 3])
    with pytest.raises(
        InputError, match=r"train_1\.mat: classes must be among the 7 of CoNSeP.* from 0 to 7"
    ):
        prepare("consep", manual_dir=root, data_dir=tmp_path / "built")


@pytest.mark.parametrize(
    "lost", ["Test", "Train/Labels", "Train/Labels/train_1.mat", "Test/Images/test_1.png"]
)
def test_missing(root, tmp_path, lost):
    for split in ("train", "test"):
        write_pair(root, split, 1, labels_with(False), [1, 2, 3])
    (root / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as caught:
        prepare("consep", manual_dir=root, data_dir=tmp_path / "built")
    place = root / lost if lost[-3:] != "png" else (root / lost).parent
    assert f"looked for {place}" in str(caught.value)
    assert "Train/Images/train_1.png ... train_27.png" in str(caught.value)
