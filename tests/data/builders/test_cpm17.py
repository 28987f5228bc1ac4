import numpy as np
import pytest
import scipy.io
from PIL import Image

from sparseshot_jax.data.builders.registry import prepare
from sparseshot_jax.errors import InputError


def write_pair(root, split, number, suffix):
    """One image and its label map as .mat or text; pixels and the map."""
    for name in ("Images", "Labels", "Overlay"):
        (root / split / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([number, split == "test"])
    pixels = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    labels = np.zeros((9, 14), int)
    labels[1:3, 2 : 4 + number], labels[5:8, 9:13] = 1, 2
    Image.fromarray(pixels).save(root / split / "Images" / f"image_{number:02d}.png")
    Image.fromarray(pixels[::-1].copy()).save(root / split / "Overlay" / f"image_{number:02d}.png")
    path = root / split / "Labels" / f"image_{number:02d}{suffix}"
    if suffix == ".mat":
        scipy.io.savemat(path, {"inst_map": labels.astype(np.float64)})
    else:
        path.write_text("14 9\n" + "".join(f"{label}\n" for label in labels.ravel()))
    return pixels, labels


@pytest.mark.parametrize("suffix", [".mat", ".txt", ".csv"])
def test_round_trip(tmp_path, suffix):
    root = tmp_path / "raw" / "cpm17"
    numbers = {"train": (2, 5), "test": (2,)}
    known = {s: [write_pair(root, s, n, suffix) for n in numbers[s]] for s in numbers}
    builder = prepare("cpm17", manual_dir=root.parent, data_dir=tmp_path / "built")
    for split in numbers:
        rows = list(builder.as_data_source(split))
        for row, number, (pixels, labels) in zip(rows, numbers[split], known[split], strict=True):
            assert row["image_id"].decode() == f"{split}_image_{number:02d}"
            np.testing.assert_array_equal(row["image"], pixels)
            np.testing.assert_array_equal(row["instances"][..., 0], labels)
            assert row["class_ids"].tolist() == [0, 0]
    assert builder.notes == [
        "Split 'train' was published with 32 images; found 2.",
        "Split 'test' was published with 32 images; found 1.",
        "The whole data set was published with 64 images; found 3.",
        "The whole data set was published with 7570 objects; found 6.",
    ]


@pytest.mark.parametrize(
    "lost", ["test", "train/Labels", "train/Labels/image_00.mat", "test/Images/image_00.png"]
)
def test_missing(tmp_path, lost):
    root = tmp_path / "cpm17"
    for split in ("train", "test"):
        write_pair(root, split, 0, ".mat")
    (root / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as caught:
        prepare("cpm17", manual_dir=tmp_path, data_dir=tmp_path / "built")
    place = root / lost if lost[-3:] != "png" else (root / lost).parent
    assert f"looked for {place}" in str(caught.value)
    assert "train/Labels/image_00.mat ...     inst_map" in str(caught.value)
