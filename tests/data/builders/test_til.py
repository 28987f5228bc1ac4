import json

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.builders.registry import prepare
from sparseshot_jax.data.formats import FORMATS
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.errors import InputError

SETTINGS = {"tile_px": 16, "mpp": 0.5, "slide_mpp": 0.5, "point_radius_um": 1.0}


def square(x, y, side):
    return [[[x, y], [x + side, y], [x + side, y + side], [x, y + side]]]


def save(root, name, marks, width=40, height=36):
    """A slide of 40 x 36 pixels: 3 x 3 tiles of 16, the last of them moved inwards."""
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / f"{name}.png")
    write_geojson(root / f"{name}.geojson", marks)
    return pixels


def build(tmp_path, **settings):
    (tmp_path / "raw/tiles.json").write_text(json.dumps({**SETTINGS, **settings}))
    return prepare("til", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")


def test_tiles_hold_what_is_marked_on_them(tmp_path):
    marks = Annotations.concatenate(
        [
            Annotations.from_polygons([square(14, 2, 4), square(33, 33, 2)], ["cell", "stroma"]),
            Annotations.from_points([[4.5, 20.5]], "cell"),
            Annotations.from_boxes([[1, 1, 4, 3]], "stroma"),
        ]
    )
    pixels = save(tmp_path / "raw", "slide", marks)
    builder = build(tmp_path)
    rows = {row["image_id"].decode(): row for row in builder.as_data_source("train")}
    # Three corners of the grid are marked, and the tile that the first square reaches into.
    assert list(rows) == ["slide_0_0", "slide_16_0", "slide_0_16", "slide_24_20"]
    names = list(builder.info.metadata["class_names"])
    assert names == ["cell", "stroma"]
    first = rows["slide_0_0"]
    np.testing.assert_array_equal(first["image"], pixels[:16, :16])
    expected = np.zeros((16, 16), np.uint16)
    expected[2:6, 14:16], expected[1:3, 1:4] = 1, 2
    np.testing.assert_array_equal(first["instances"][..., 0], expected)  # the larger one first
    assert [names[k] for k in first["class_ids"]] == ["cell", "stroma"]
    np.testing.assert_allclose(
        first["points_xy_px"], [[16, 4], [2.5, 2]]
    )  # the centroid (16, 4) is on the edge
    second = rows["slide_16_0"]
    assert (second["instances"][2:6, :2] == 1).all()
    assert second["instances"].sum() == 8
    np.testing.assert_allclose(second["points_xy_px"], [[0, 4]])
    point = rows["slide_0_16"]
    np.testing.assert_allclose(point["points_xy_px"], [[4.5, 4.5]], atol=1e-5)
    disc = np.argwhere(point["instances"][..., 0])
    np.testing.assert_allclose(disc.mean(axis=0) + 0.5, [4.5, 4.5])
    assert 9 <= len(disc) <= 13  # radius 2 px
    corner = rows["slide_24_20"]
    np.testing.assert_array_equal(corner["image"], pixels[20:, 24:])  # moved inwards where the slide ends
    assert (corner["instances"][13:15, 9:11] == 1).all()
    assert [names[k] for k in corner["class_ids"]] == ["stroma"]
    assert {(row["mpp"], row["patient"]) for row in rows.values()} == {(0.5, b"slide")}
    again = prepare("til", manual_dir=None, data_dir=tmp_path / "built")
    assert list(again.info.metadata["class_names"]) == names


def test_tiles_at_half_the_resolution(tmp_path):
    pixels = save(tmp_path / "raw", "slide", Annotations.from_polygons([square(4, 8, 4)], "cell"))
    (row,) = build(tmp_path, mpp=1.0).as_data_source("train")
    assert row["image"].shape == (16, 16, 3)
    assert row["mpp"] == 1.0
    expected = np.zeros((16, 16), np.uint16)
    expected[4:6, 2:4] = 1
    np.testing.assert_array_equal(row["instances"][..., 0], expected)
    np.testing.assert_allclose(row["points_xy_px"], [[3, 5]])
    halved = pixels[:32, :32].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(row["image"][1:-1, 1:-1] - halved[1:-1, 1:-1]).mean() < 30  # the same place, smoothed


def test_small_marks_lie_over_large_ones_and_the_hidden_are_counted(tmp_path):
    shapes = [square(4, 4, 2), square(4, 4, 2), square(1, 1, 12)]
    save(tmp_path / "raw", "slide", Annotations.from_polygons(shapes, ["cell", "", "Exhaustive"]))
    builder = build(tmp_path)
    (row,) = builder.as_data_source("train")
    assert list(builder.info.metadata["class_names"]) == ["Exhaustive", "cell"]
    assert row["class_ids"].tolist() == [0, -1]  # the last of two equal squares, which has no class
    assert (row["instances"] == 2).sum() == 4
    assert (row["instances"] == 1).sum() == 140
    assert [n for n in builder.notes if "slide.geojson: 1 marks are smaller" in n] != []
    assert len(builder.notes) == len(set(builder.notes))


@pytest.mark.parametrize(
    ("suffix", "name"), [(".xml", "asap"), (".xml", "imagescope"), (".csv", "points_csv")]
)
def test_marks_of_other_formats(tmp_path, suffix, name):
    points = Annotations.from_points([[20.5, 4.5], [21.5, 24.5]], ["cell", "stroma"])
    save(tmp_path / "raw", "slide", points)
    (tmp_path / "raw/slide.geojson").unlink()
    write = FORMATS[name].write
    assert write is not None
    write(tmp_path / f"raw/slide{suffix}", points, Picture(name="slide.png", width=40, height=36))
    builder = build(tmp_path)
    first, second = builder.as_data_source("train")
    assert [first["image_id"], second["image_id"]] == [b"slide_16_0", b"slide_16_16"]
    np.testing.assert_allclose(first["points_xy_px"], [[4.5, 4.5]], atol=1e-3)
    np.testing.assert_allclose(second["points_xy_px"], [[5.5, 8.5]], atol=1e-3)
    names = builder.info.metadata["class_names"]
    assert [names[first["class_ids"][0]], names[second["class_ids"][0]]] == ["cell", "stroma"]


def test_splits_go_by_slide(tmp_path):
    marks = Annotations.from_polygons([square(1, 1, 3)], "cell")
    for name in ("a", "b", "c", "d"):
        save(tmp_path / "raw", name, marks)
    path = tmp_path / "raw/split.json"
    path.write_text(json.dumps({"train": ["c", "a"], "test": ["d"]}))
    builder = build(tmp_path)
    found = {s: [r["patient"] for r in builder.as_data_source(s)] for s in builder.info.splits}
    assert found == {"train": [b"c", b"a"], "test": [b"d"]}
    assert "1 of 4 slides are in no list of split.json." in builder.notes


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("[", r"split\.json: must be JSON"),
        ('["a"]', r"split\.json: must be \{split"),
        ('{"train": ["z"]}', r"'train' names 'z'; the slides are a"),
        ('{"train": ["a"], "test": ["a"]}', r"in one list; 'a' is in train and test"),
    ],
)
def test_bad_splits(tmp_path, split, message):
    save(tmp_path / "raw", "a", Annotations.from_polygons([square(1, 1, 3)], "cell"))
    (tmp_path / "raw/split.json").write_text(split)
    with pytest.raises(InputError, match=message):
        build(tmp_path)


def test_bad_input(tmp_path):
    marks = Annotations.from_polygons([square(1, 1, 3)], "cell")
    save(tmp_path / "raw", "a", marks)
    for settings, message in (
        ({"tile_px": 8}, r"tile_px must be a whole number of 16 to 4096"),
        ({"mpp": 0}, r"mpp must be a number above 0; got 0"),
        ({"tiles": 1}, r"names among tile_px, mpp"),
    ):
        with pytest.raises(InputError, match=rf"tiles\.json.*{message}"):
            build(tmp_path, **settings)
    (tmp_path / "raw/tiles.json").write_text("{}")
    with pytest.raises(InputError, match=r"a\.png.*how large a pixel is.*slide_mpp"):
        prepare("til", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")
    (tmp_path / "raw/a.json").write_text("{}")
    with pytest.raises(InputError, match=r"one file of marks; it has a\.geojson, a\.json"):
        build(tmp_path)
    for name in ("a.json", "a.geojson"):
        (tmp_path / "raw" / name).unlink()
    with pytest.raises(InputError, match=r"the marks of a\.png is missing(.|\n)*NAME\.geojson"):
        build(tmp_path)
    save(tmp_path / "raw", "a", Annotations.empty())
    with pytest.raises(InputError, match=r"at least one mark"):
        build(tmp_path)
    for name in ("a.png", "a.geojson"):
        (tmp_path / "raw" / name).unlink()
    with pytest.raises(InputError, match=r"every slide is missing"):
        build(tmp_path)


def test_other_files_than_it_was_built_from_are_told(tmp_path):
    marks = Annotations.from_boxes([[1, 1, 4, 3]], "stroma")
    save(tmp_path / "raw", "slide", marks)
    build(tmp_path)
    assert prepare("til", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")
    save(tmp_path / "raw", "second", marks)
    with pytest.raises(InputError, match="was built from other files"):
        prepare("til", manual_dir=tmp_path / "raw", data_dir=tmp_path / "built")
    assert prepare("til", manual_dir=None, data_dir=tmp_path / "built")
