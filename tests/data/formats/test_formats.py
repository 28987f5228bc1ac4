import json
import re

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats import FORMATS, format_of, formats_named, known_format, read_annotations
from sparseshot_jax.data.formats.coco_json import write_coco
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.errors import InputError

WRITERS = [name for name, one in FORMATS.items() if one.write]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_describes_itself(name):
    one = FORMATS[name]
    assert re.fullmatch("[a-z_]+", name)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in one.suffixes)
    assert one.title
    assert one.origin
    assert "classes" in one.keeps or "class names" in one.keeps
    assert " px" in one.keeps or "whole pixels" in one.keeps
    assert (one.read_many is None) == (one.write_many is None)


def test_titles_and_marks_are_distinct():
    assert len({one.title for one in FORMATS.values()}) == len(FORMATS)
    marks = [mark for one in FORMATS.values() for mark in one.marks]
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_found_out_by_name_and_content(tmp_path, name):
    one = FORMATS[name]
    given = Annotations.from_boxes([[1, 2, 5, 9]], "a")
    for suffix in one.suffixes:
        path = tmp_path / f"some cells{suffix}"
        assert one.write is not None
        one.write(path, given, Picture(name="x.png", width=20, height=10))
        assert format_of(path) == name
        assert len(read_annotations(path)) == 1
        assert len(read_annotations(str(path), name)) == 1


@pytest.mark.parametrize("name", ["A.GEOJSON", "a.geojson.gz", "a.json", "a.json.gz"])
def test_geojson_by_name_or_content(tmp_path, name):
    write_geojson(tmp_path / name, Annotations.from_points([[1, 2]], "a"))
    np.testing.assert_array_equal(read_annotations(tmp_path / name).xy_px, [[1, 2]])


@pytest.mark.parametrize("name", ["a.json", "a.points.json"])
def test_points_by_name_or_content(tmp_path, name):
    (tmp_path / name).write_text(json.dumps({"a": [[1, 2]]}))
    np.testing.assert_array_equal(read_annotations(tmp_path / name).xy_px, [[1.5, 2.5]])


def test_an_empty_list_is_an_export_without_objects(tmp_path):
    (tmp_path / "a.json").write_text(" []")
    assert format_of(tmp_path / "a.json") == "geojson"


def test_a_file_of_another_format_can_be_named(tmp_path):
    write_coco(tmp_path / "a.txt.json", Annotations.from_boxes([[1, 2, 5, 9]], "a"), Picture())
    assert format_of(tmp_path / "a.txt.json") == "coco"
    with pytest.raises(InputError, match="must be a FeatureCollection"):
        read_annotations(tmp_path / "a.txt.json", "geojson")


def test_label_map_by_name(tmp_path):
    Image.fromarray(np.ones((3, 3), np.uint16)).save(tmp_path / "a.png")
    assert len(read_annotations(tmp_path / "a.png")) == 1


def test_names():
    assert formats_named("b/A.XML") == ["asap", "imagescope", "voc"]
    assert formats_named("a.json") == ["geojson", "coco", "points_json"]
    assert formats_named("a.points.json") == ["points_json"]
    assert known_format("coco") == "coco"
    with pytest.raises(InputError, match=r"one of geojson, coco.*got 'GeoJson'\. Did you mean 'geojson'"):
        known_format("GeoJson")
    with pytest.raises(InputError, match="Did you mean 'label_map'"):
        known_format("labelmap")
    with pytest.raises(InputError, match="got '/'"):
        known_format("/")


def test_unknown_and_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"a\.doc: is of no known annotation format.*\.geojson"):
        format_of(tmp_path / "a.doc")
    with pytest.raises(InputError, match=r"a\.json: cannot be read"):
        format_of(tmp_path / "a.json")
    (tmp_path / "a.xml").write_text("<html></html>")
    with pytest.raises(InputError, match=r"a\.xml: is of no known format among ASAP XML \(asap\), Aperio"):
        format_of(tmp_path / "a.xml")
    (tmp_path / "a.json.gz").write_bytes(b"\x1f\x8b\x08\xff\xff\xff")
    with pytest.raises(InputError, match=r"a\.json\.gz: the gzip file is broken"):
        read_annotations(tmp_path / "a.json.gz")
    with pytest.raises(InputError, match="must be one of"):
        read_annotations(tmp_path / "a.json", "no")
