import shutil

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.builders.pictures import read_pixels
from sparseshot_jax.data.builders.registry import prepare
from sparseshot_jax.errors import InputError


def save(root, number, boxes):
    """One smear in the original layout; boxes: (name, xmin, ymin, xmax, ymax) as in the file."""
    name = f"BloodImage_{number:05d}"
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for label, x0, y0, x1, y1 in boxes
    )
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(text)
    return read_pixels(root / "JPEGImages" / f"{name}.jpg")


def save_lists(root, **lists):
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for name, numbers in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"BloodImage_{n:05d}\n" for n in numbers))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "BCCD_Dataset" / "BCCD"


def test_round_trip(root, tmp_path):
    boxes = [("WBC", 1, 2, 10, 12), ("Platelets", 20, 5, 20, 5), ("RBC", 3, 4, 5, 30)]
    images = {n: save(root, n, boxes if n == 7 else [("RBC", 1, 1, 4, 4)]) for n in (0, 7, 8, 9)}
    save_lists(root, train=[7, 0], val=[9], test=[8], trainval=[0, 7, 9])
    builder = prepare("bccd", manual_dir=tmp_path, data_dir=tmp_path / "built")
    stored = {split: list(builder.as_data_source(split)) for split in ("train", "validation", "test")}
    ids = {split: [int(row["image_id"][-5:]) for row in rows] for split, rows in stored.items()}
    assert ids == {"train": [7, 0], "validation": [9], "test": [8]}
    for split, rows in stored.items():
        for row, number in zip(rows, ids[split], strict=True):
            np.testing.assert_array_equal(row["image"], images[number])
    row = stored["train"][0]
    # VOC counts from 1, the last pixel included; the box without area is gone.
    assert row["boxes_xyxy_px"].tolist() == [[0, 1, 10, 12], [2, 3, 5, 30]]
    assert row["class_ids"].tolist() == [1, 0]
    assert np.isnan(row["mpp"])
    assert any("BloodImage_00007.xml: 1 boxes without width or height" in note for note in builder.notes)


def test_without_lists_splits_go_by_number(root, tmp_path):
    for number in (1, 4, 5, 20):
        save(root, number, [("RBC", 1, 1, 4, 4)])
    builder = prepare("bccd", manual_dir=root, data_dir=tmp_path / "built")
    found = {s: [int(r["image_id"][-5:]) for r in builder.as_data_source(s)] for s in builder.info.splits}
    assert found == {"train": [1], "validation": [4], "test": [5, 20]}


def test_bad_input(root, tmp_path):
    save(root, 1, [("cat", 1, 1, 4, 4)])
    with pytest.raises(InputError, match=r"BloodImage_00001\.xml.*RBC, WBC, Platelets; got cat"):
        prepare("bccd", manual_dir=root, data_dir=tmp_path / "built")
    (root / "Annotations/BloodImage_00001.xml").unlink()
    with pytest.raises(InputError, match=r"BloodImage_00001\.xml is missing(.|\n)*ImageSets/Main"):
        prepare("bccd", manual_dir=root, data_dir=tmp_path / "built")
    shutil.rmtree(root)
    with pytest.raises(InputError, match=r"JPEGImages is missing"):
        prepare("bccd", manual_dir=tmp_path, data_dir=tmp_path / "built")


def test_the_364_real_smears(shared_data, tmp_path):
    builder = prepare("bccd", manual_dir=shared_data / "bccd", data_dir=tmp_path / "built")
    rows = {split: list(builder.as_data_source(split)) for split in builder.info.splits}
    assert {split: len(several) for split, several in rows.items()} == {
        "train": 205,
        "validation": 87,
        "test": 72,
    }
    ids = np.concatenate([row["class_ids"] for several in rows.values() for row in several])
    # 4,155 red cells as released, two of them boxes of no area
    assert np.bincount(ids).tolist() == [4153, 372, 361]
    assert len(builder.notes) == 2
    assert all("1 boxes without width or height" in note for note in builder.notes)
