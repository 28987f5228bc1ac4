import json

import numpy as np
import pytest
import scipy.io
from PIL import Image

from sparseshot_jax.data.builders.crchisto import CLASSES, join_lists, read_points, split_of
from sparseshot_jax.data.builders.registry import prepare
from sparseshot_jax.errors import InputError


def save(root, number, lists, pixels=None):
    """One image in the original layout; lists: 0-based points by name."""
    name = f"img{number}"
    for part in ("Detection", "Classification"):
        (root / part / name).mkdir(parents=True)
    if pixels is None:
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "Detection" / name / f"{name}.bmp")
    for key in ("detection", *CLASSES):
        part = "Detection" if key == "detection" else "Classification"
        points = np.array(lists.get(key, []), np.float64) + 1.0  # the files count from 1
        points = points if len(points) else np.zeros((0, 0))  # MATLAB's []
        scipy.io.savemat(root / part / name / f"{name}_{key}.mat", {"detection": points})
    return pixels


@pytest.fixture
def root(tmp_path):
    return tmp_path / "raw" / "CRCHistoPhenotypes_2016_04_28"


def test_round_trip(root, tmp_path):
    lists = {
        "detection": [[3, 4], [10, 4.5], [20, 9], [0, 0]],
        "others": [[3.5, 4.5], [25, 15]],  # the first is 0.7 px from a detection, the second is nowhere
        "fibroblast": [[20, 10.01]],  # just beyond 1 px: an object of its own
        "epithelial": [[10, 5.5]],  # 1 px exactly
    }
    images = {n: save(root, n, lists if n == 1 else {"detection": [[1, 2]]}) for n in (1, 3, 4, 5, 20)}
    builder = prepare("crchisto", manual_dir=root.parent, data_dir=tmp_path / "built")
    stored = {split: list(builder.as_data_source(split)) for split in ("train", "validation", "test")}
    ids = {split: [row["image_id"].decode() for row in rows] for split, rows in stored.items()}
    assert ids == {"train": ["img1", "img3"], "validation": ["img4"], "test": ["img5", "img20"]}
    for rows in stored.values():
        for row in rows:
            np.testing.assert_array_equal(row["image"], images[int(row["image_id"][3:])])
    first = stored["train"][0]
    # The files' (1, 1) is the centre of the first pixel, (0.5, 0.5).
    expected = np.array([[3, 4], [10, 4.5], [20, 9], [0, 0], [20, 10.01], [25, 15]]) + 0.5
    np.testing.assert_allclose(first["points_xy_px"], expected, atol=1e-5)
    assert first["class_ids"].tolist() == [3, 0, -1, -1, 1, 3]
    assert first["mpp"] == np.float32(0.55)
    assert list(builder.info.metadata["class_names"]) == list(CLASSES)
    notes = " ".join(builder.notes)
    assert "Split 'train': 5 detections, 3 of them without a class; 2 class points" in notes
    assert "published with 60 images; found 2" in notes
    assert "29756 detections were published; found 8." in notes


def test_lists_are_joined_one_to_one():
    twice = np.array([[5.0, 5.0], [5.0, 5.0], [8.0, 5.0], [8.9, 5.0]])
    classed = [np.array([[5.0, 5.0]]), np.zeros((0, 2)), np.array([[8.4, 5.0]]), np.array([[5.0, 5.0]])]
    nuclei = join_lists(twice, classed)
    # The nucleus listed twice has both its classes; two detections share the one point between them.
    assert sorted(nuclei.class_ids[:2].tolist()) == [0, 3]
    assert nuclei.class_ids[2:].tolist() == [2, 2]
    assert nuclei.added == 0
    nothing = join_lists(np.zeros((0, 2)), [np.zeros((0, 2))] * 3 + [np.array([[1.0, 2.0]])])
    assert nothing.xy_px.tolist() == [[1.0, 2.0]]
    assert (nothing.class_ids.tolist(), nothing.added) == ([3], 1)


def test_splits_by_number():
    assert [n for n in range(1, 41) if split_of(n) == "test"] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [n for n in range(1, 41) if split_of(n) == "validation"] == [4, 8, 12, 16, 24, 28, 32, 36]


def test_what_is_missing_is_named_with_the_layout(root, tmp_path):
    save(root, 1, {"detection": [[1, 2]]})
    (root / "Classification/img1/img1_others.mat").unlink()
    with pytest.raises(InputError, match=r"img1_others\.mat is missing(.|\n)*imgN_inflammatory\.mat"):
        prepare("crchisto", manual_dir=root, data_dir=tmp_path / "built")
    with pytest.raises(InputError, match=r"Detection is missing"):
        prepare("crchisto", manual_dir=tmp_path, data_dir=tmp_path / "built")


@pytest.mark.parametrize(
    "content",
    [b"", b"MATLAB 5.0 MAT-file" + bytes(200), {"other": [[1, 2]]}, {"detection": [[1, 2, 3]]}],
)
def test_broken_lists(tmp_path, content):
    path = tmp_path / "img1_detection.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, content)
    with pytest.raises(InputError, match=r"img1_detection\.mat.*detection"):
        read_points(path)


def test_broken_list_names_its_file_through_the_build(root, tmp_path):
    save(root, 1, {"detection": [[1, 2]]})
    (root / "Detection/img1/img1_detection.mat").write_bytes(b"x")
    with pytest.raises(InputError, match=r"img1_detection\.mat"):
        prepare("crchisto", manual_dir=root, data_dir=tmp_path / "built")


def test_the_80_real_images(shared_data, root, tmp_path):
    folder = shared_data / "crchisto"
    for path in sorted((folder / "points").iterdir()):
        with Image.open(folder / "images" / f"{path.stem}.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        save(root, int(path.stem[3:]), json.loads(path.read_text()), pixels)
    builder = prepare("crchisto", manual_dir=root, data_dir=tmp_path / "built")
    rows = [row for split in builder.info.splits for row in builder.as_data_source(split)]
    assert len(rows) == 80
    ids = np.concatenate([row["class_ids"] for row in rows])
    assert len(ids) == 23_254 + 48  # detections; class points without one
    assert (ids >= 0).sum() == 17_801
    for split, divisible in (("test", (5,)), ("validation", (4,))):
        numbers = [int(row["image_id"][3:]) for row in builder.as_data_source(split)]
        assert all(n % d == 0 for n in numbers for d in divisible)
    given = json.loads((folder / "points/img1.json").read_text())["detection"]
    first = next(row for row in rows if row["image_id"] == b"img1")
    np.testing.assert_allclose(first["points_xy_px"][: len(given)], np.array(given) + 0.5, atol=1e-4)
    with Image.open(folder / "images/img1.png") as image:
        np.testing.assert_array_equal(first["image"], np.asarray(image.convert("RGB")))
