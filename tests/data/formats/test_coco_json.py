import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats import coco_rle
from sparseshot_jax.data.formats.coco_json import (
    read_coco,
    read_coco_images,
    write_coco,
    write_coco_images,
)
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

SQUARE = [10, 20, 14, 20, 14, 26, 10, 26]


def document(*annotations, images=({"id": 7, "file_name": "a.png", "width": 40, "height": 30},)):
    return {
        "images": list(images),
        "annotations": [{"image_id": 7, "category_id": 3, **one} for one in annotations],
        "categories": [{"id": 3, "name": "tumour"}, {"id": 9, "name": "stroma"}],
    }


@pytest.fixture
def read(tmp_path):
    def read(given, **arguments):
        (tmp_path / "a.json").write_text(given if isinstance(given, str) else json.dumps(given))
        return read_coco(tmp_path / "a.json", **arguments)

    return read


def names(annotations):
    return [annotations.class_names[k] for k in annotations.class_ids]


def mask_of(counts, height, width):
    """Column after column, told as the format's authors tell it."""
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    return flat.reshape(width, height).T.astype(bool)


def drawn(annotations, height, width):
    return rasterize(annotations, Window(x_px=0, y_px=0, width=width, height=height)) > 0


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([0, 6, 1, 3], "061M"),  # 3 - 6 = -3 = 0b11101
        ([0, 6, 1, 1], "061K"),
        ([0, 6, 1, 6], "0610"),
        ([0, 1024], "0PP1"),  # 1024 = 1 << 10: two empty pieces, then 1
        ([15, 16], "?`0"),  # 15 fits in one piece beside its sign, 16 does not
        ([0, 1, 1, 2, 1, 3, 1, 4, 1], "011101010"),
        ([12], "<"),
        ([], ""),
    ],
)
def test_compact_text_by_hand(counts, text):
    assert coco_rle.encode_counts(np.array(counts, np.int64)) == text
    assert coco_rle.decode_counts(text).tolist() == counts


@given(st.lists(st.integers(0, 2**40), max_size=30))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_compact_text_comes_back(counts):
    text = coco_rle.encode_counts(np.array(counts, np.int64))
    assert coco_rle.decode_counts(text).tolist() == counts


@pytest.mark.parametrize("text", ["P", "0é", "0 1", "P" * 13 + "1", "P" * 11 + "O"])
def test_text_that_is_no_mask(text):
    with pytest.raises(ValueError, match="its text"):
        coco_rle.decode_counts(text)


@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("size", [(7, 5), (1, 9), (9, 1), (6, 11)])
def test_masks_come_back(density, size):
    height, width = size
    mask = np.random.default_rng(height).random(size) < density
    mask[0, 0] = True
    counts = coco_rle.counts_of(mask, 0, 0, height, width)
    np.testing.assert_array_equal(mask_of(counts, height, width), mask)
    objects = Annotations.from_polygons(
        [[ring for part in coco_rle.outline(counts, height, width) for ring in part]]
    )
    np.testing.assert_array_equal(drawn(objects, height, width), mask)
    assert objects.areas_px.sum() == mask.sum()


def test_a_mask_inside_a_picture():
    mask = np.array([[1, 0], [1, 1]], bool)
    counts = coco_rle.counts_of(mask, 2, 1, 4, 5)
    whole = np.zeros((4, 5), bool)
    whole[1:3, 2:4] = mask
    np.testing.assert_array_equal(mask_of(counts, 4, 5), whole)
    full = coco_rle.counts_of(np.ones((4, 2), bool), 3, 0, 4, 5)
    assert full.tolist() == [12, 8]  # one run over both columns, and nothing after it
    assert coco_rle.counts_of(np.zeros((2, 2), bool), 0, 0, 4, 5).tolist() == [20]


def test_polygons_in_parts(read):
    found = read(document({"segmentation": [SQUARE, [0, 0, 2, 0, 2, 2]], "iscrowd": 0}))
    np.testing.assert_array_equal(found.xy_px[:2], [[10, 20], [14, 20]])
    np.testing.assert_array_equal(found.object_offsets, [0, 2])
    assert found.areas_px.tolist() == [26.0]
    assert names(found) == ["tumour"]
    assert found.class_names == ("tumour", "stroma")
    assert found.notes == ()
    assert found.source.endswith("a.json")


def test_parts_that_overlap_are_their_union(read):
    found = read(document({"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4], [2, 0, 6, 0, 6, 4, 2, 4]]}))
    assert found.areas_px.tolist() == [24.0]
    assert found.notes == ("1 self-crossing polygons were repaired.",)


def test_one_bare_polygon(read):
    assert read(document({"segmentation": SQUARE})).areas_px.tolist() == [24.0]


@pytest.mark.parametrize("counts", [[4, 2, 1, 2, 3], "42102"])
def test_masks(read, counts):
    picture = {"id": 7, "file_name": "a.png", "width": 4, "height": 3}
    found = read(document({"segmentation": {"size": [3, 4], "counts": counts}}, images=[picture]))
    # Down the columns: pixels 4 and 5 are column 1, rows 1 and 2; pixels 7 and 8 column 2, rows 1 and 2.
    np.testing.assert_array_equal(found.bounds_px, [[1, 1, 3, 3]])
    assert found.areas_px.tolist() == [4.0]
    assert len(found.xy_px) == 4


def test_a_huge_mask_of_few_runs_takes_no_memory(read):
    size = [1 << 20, 1 << 20]
    counts = [5, (1 << 40) - 12, 7]
    picture = {"id": 7, "file_name": "a.png"}
    found = read(document({"segmentation": {"size": size, "counts": counts}}, images=[picture]))
    assert found.areas_px[0] == (1 << 40) - 12


def test_crowds_are_ignored_regions(read):
    found = read(document({"segmentation": [SQUARE], "iscrowd": 1}, {"segmentation": [SQUARE]}))
    assert names(found) == ["Ignore*", "tumour"]
    assert found.notes == ("1 crowd regions (iscrowd 1) became regions to ignore, class Ignore*.",)


def test_boxes_points_and_nothing(read):
    found = read(
        document(
            {"bbox": [3, 5, 10, 2], "keypoints": [1, 2, 2], "segmentation": []},
            {"keypoints": [1, 2, 2]},
            {"bbox": [3, 5, 0, 2]},
        )
    )
    assert found.kind.tolist() == [Kind.BOX]
    np.testing.assert_array_equal(found.bounds_px, [[3, 5, 13, 7]])
    assert set(found.notes) == {
        "Keypoints of 2 annotations were left out.",
        "1 annotations with neither segmentation nor bbox were skipped.",
        "1 objects without area were rejected.",
    }


def test_nan_and_null_are_rejected(read):
    found = read(document({"segmentation": [[1, 2, None, 4, 5, 6]]}, {"bbox": [float("nan"), 1, 2, 3]}))
    assert len(found) == 0
    assert "2 objects with coordinates that are no number" in found.notes[0]
    assert found.notes[-1] == "The file holds no object of this image that can be used."


def test_many_images(tmp_path):
    images = [{"id": k, "file_name": f"{k}.png", "width": 9, "height": 8 + k} for k in (1, 2)]
    given = document({"image_id": 2, "bbox": [1, 2, 3, 4]}, images=images)
    with gzip.open(tmp_path / "a.json.gz", "wt") as stream:
        json.dump(given, stream)
    found = read_coco_images(tmp_path / "a.json.gz")
    assert list(found) == ["1.png", "2.png"]
    assert found["2.png"][0] == Picture(name="2.png", width=9, height=10)
    assert [len(found[name][1]) for name in found] == [0, 1]
    assert len(read_coco(tmp_path / "a.json.gz", "2.png")) == 1
    with pytest.raises(InputError, match=r"must hold one image; it holds 2: 1\.png, 2\.png"):
        read_coco(tmp_path / "a.json.gz")
    with pytest.raises(InputError, match=r"no image '2\.jpg'. Did you mean 2\.png"):
        read_coco(tmp_path / "a.json.gz", "2.jpg")


IMAGE = {"id": 7, "file_name": "a.png"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "list of COCO results"),
        ({"a": 1}, r"must be COCO JSON.*\['a'\]"),
        ([], "it holds a list"),
        ({"images": []}, "'images' is empty"),
        ({"images": 3}, "'images' must be a list"),
        ({"images": [3]}, r"entry 0 of 'images' \(the first is 0\) must be a mapping"),
        ({"images": [{"id": None}]}, "must have an id"),
        ({"images": [IMAGE, IMAGE]}, "entry 1 of 'images' .* id 7 of an earlier entry"),
        ({"images": [IMAGE, {**IMAGE, "id": 8}]}, r"names the file 'a\.png' a second time"),
        ({"images": [{**IMAGE, "width": -4}]}, "must have a width of 1 to"),
        ({"images": [IMAGE], "categories": [{"id": 1}]}, "entry 0 of 'categories' .*must have a name"),
        (document({"image_id": 8}), "names the image_id 8, which no entry of 'images' has"),
        (document({"image_id": [8]}), r"names the image_id \[8\]"),
        (document({"category_id": 8}), "names the category_id 8, which no entry of 'categories' has"),
        (document({}, {"bbox": [1, 2, 3]}), r"entry 1 of 'annotations' .*bbox \[x, y, width, height\]"),
        (document({"bbox": ["1", 2, 3, 4]}), "must hold numbers; it holds '1'"),
        (document({"segmentation": [[1, 2, 3]]}), "an even count of numbers"),
        (document({"segmentation": [[[1, 2], [3, 4]]]}), "must hold numbers"),
        (document({"segmentation": "x"}), "must have a segmentation"),
        (document({"iscrowd": 2}), "iscrowd 0 or 1"),
        (document({"segmentation": {"size": [30, 40], "counts": [1, 2]}}), "must fill the 30 x 40 pixels"),
        (document({"segmentation": {"size": [30, 40], "counts": [-1, 1201]}}), "whole numbers"),
        (document({"segmentation": {"size": [30, 40], "counts": "P"}}), "ends within a number"),
        (document({"segmentation": {"size": [40, 30], "counts": [1200]}}), "30 x 40 .height x width."),
        (document({"segmentation": {"size": [0, 30], "counts": []}}), "one pixel at least"),
        ('{"images": [', "is not valid JSON"),
    ],
)
def test_broken_files(read, given, message):
    with pytest.raises(InputError, match=message) as caught:
        read(given)
    assert "a.json" in str(caught.value)


def everything():
    ring = [[1.25, 1], [9, 1], [9, 9.5], [1, 9]]
    hole = [[3, 3], [5, 3], [5, 6], [3, 6]]
    polygons = Annotations.from_polygons(
        [[ring], [[[20, 2], [25, 2], [25, 9]], [[30, 2], [35, 2], [35, 9]]], [ring, hole]],
        ["a", "Ignore*", ""],
    )
    return Annotations.concatenate([polygons, Annotations.from_boxes([[0.5, 1, 2, 3]], "a")])


def test_written_files_have_what_other_tools_need(tmp_path):
    write_coco(tmp_path / "a.json", everything(), Picture(name="x.png", width=40, height=30))
    held = json.loads((tmp_path / "a.json").read_text())
    assert held["images"] == [{"id": 1, "file_name": "x.png", "width": 40, "height": 30}]
    first, crowd, holed, box = held["annotations"]
    assert first["segmentation"] == [[1.25, 1, 9, 1, 9, 9.5, 1, 9]]
    assert first["bbox"] == [1, 1, 8, 8.5]
    assert first["area"] == everything().areas_px[0].round(3)
    assert [one["id"] for one in held["annotations"]] == [1, 2, 3, 4]
    assert [one["iscrowd"] for one in held["annotations"]] == [0, 1, 0, 0]
    assert len(crowd["segmentation"]) == 2
    assert holed["segmentation"]["size"] == [30, 40]
    np.testing.assert_array_equal(
        mask_of(coco_rle.decode_counts(holed["segmentation"]["counts"]), 30, 40),
        drawn(everything().take(np.array([2])), 30, 40),
    )
    assert "segmentation" not in box
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    picture = Picture(name="x.png")
    with pytest.raises(InputError, match=r"COCO has no points; x\.png has 1"):
        write_coco(tmp_path / "a.json", Annotations.from_points([[1, 2]]), picture)
    with pytest.raises(InputError, match="width and height must be known"):
        write_coco(tmp_path / "a.json", everything(), picture)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="cannot be written"):
        write_coco(tmp_path / "no" / "a.json", Annotations.empty(), picture)


def test_many_images_written_and_read(tmp_path):
    picture = Picture(name="x.png", width=40, height=30)
    first = everything().take(np.array([0]))
    given = {"x.png": (picture, everything()), "y.png": (Picture(name="y.png"), first)}
    write_coco_images(tmp_path / "a.json.gz", given)
    found = read_coco_images(tmp_path / "a.json.gz")
    assert [len(found[name][1]) for name in ("x.png", "y.png")] == [4, 1]
    assert found["x.png"][0] == picture
    assert names(found["x.png"][1]) == ["a", "Ignore*", "", "a"]
