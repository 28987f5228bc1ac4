import errno
import gzip
import json
import os
import uuid

import numpy as np
import pytest
import shapely
import shapely.geometry

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats import geojson_writer
from sparseshot_jax.data.formats.geojson import GeoJsonWriter, read_geojson, write_geojson
from sparseshot_jax.errors import InputError

OUTER = [[0, 0], [10, 0], [10, 10], [0, 10]]
HOLE = [[2, 2], [2, 6], [6, 6], [6, 2]]
ISLAND = [[3, 3], [4, 3], [4, 4], [3, 4]]  # inside the hole
APART = [[20, 0], [22, 0], [22, 3], [20, 3]]


@pytest.fixture
def objects():
    polygons = Annotations.from_polygons(
        [[OUTER], [HOLE, OUTER], [ISLAND, HOLE, APART, OUTER]], ["tumour", "stroma", ""]
    )
    return Annotations.concatenate([polygons, Annotations.from_points([[1.23456, 2]], "tumour")])


def test_a_feature_as_qupath_reads_it(tmp_path, objects):
    path = tmp_path / "a.geojson"
    write_geojson(
        path,
        objects,
        probabilities=np.array([0.9, 0.1, 0.5, 1.0], np.float32),
        measurements={"area um^2": np.array([25, np.nan, np.inf, 0])},
    )
    document = json.loads(path.read_text())
    assert document["type"] == "FeatureCollection"
    first, second, third, point = document["features"]
    assert uuid.UUID(first.pop("id")).variant == uuid.RFC_4122
    assert first == {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*OUTER, OUTER[0]]]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": "tumour", "color": [213, 94, 0]},
            "measurements": {"probability": 0.9, "area um^2": 25.0},
        },
    }
    assert second["properties"]["classification"] == {"name": "stroma", "color": [0, 114, 178]}
    assert second["properties"]["measurements"] == {"probability": 0.1}  # no NaN, no null
    assert "classification" not in third["properties"]
    assert point["geometry"] == {"type": "Point", "coordinates": [1.235, 2.0]}


def test_holes_go_to_the_ring_round_them_whatever_their_order(tmp_path, objects):
    path = tmp_path / "a.geojson"
    write_geojson(path, objects, object_type="annotation")
    shapes = [shapely.geometry.shape(f["geometry"]) for f in json.loads(path.read_text())["features"]]
    assert [s.geom_type for s in shapes] == ["Polygon", "Polygon", "MultiPolygon", "Point"]
    assert all(s.is_valid for s in shapes)
    assert [s.area for s in shapes] == [100, 84, 91, 0]
    assert len(shapes[2].geoms) == 3


@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz"])
def test_what_is_written_reads_back(tmp_path, objects, name):
    write_geojson(tmp_path / name, objects)
    again = read_geojson(tmp_path / name)
    assert again.notes == ()
    np.testing.assert_array_equal(again.areas_px, objects.areas_px)
    np.testing.assert_array_equal(again.is_point, objects.is_point)
    assert [again.class_names[i] for i in again.class_ids] == ["tumour", "stroma", "", "tumour"]
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes()[:2] == (b"\x1f\x8b" if name.endswith("gz") else b'{"')


def test_pieces_join_to_one_document_with_ids_and_colours_of_their_own(tmp_path, monkeypatch, objects):
    monkeypatch.setattr(geojson_writer, "CHUNK_OBJECTS", 3)
    with GeoJsonWriter(tmp_path / "a.geojson") as writer:
        writer.write(objects, np.arange(4))
        writer.write(Annotations.empty())
        writer.write(Annotations.from_points([[0, 0], [0, 0]], ["immune", "stroma"]))
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert len(features) == 6
    assert len({f["id"] for f in features}) == 6
    assert features[3]["properties"]["measurements"] == {"probability": 3.0}
    colours = {
        f["properties"]["classification"]["name"]: tuple(f["properties"]["classification"]["color"])
        for f in features
        if "classification" in f["properties"]
    }
    assert len(set(colours.values())) == 3
    assert colours["stroma"] == geojson_writer.PALETTE[1]


def test_equal_objects_give_equal_bytes(tmp_path, objects):
    for name in ("a", "b"):
        write_geojson(tmp_path / f"{name}.geojson.gz", objects)
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()


def test_no_object_is_a_valid_file(tmp_path):
    write_geojson(tmp_path / "a.geojson", Annotations.empty())
    document = json.loads((tmp_path / "a.geojson").read_text())
    assert document == {"type": "FeatureCollection", "features": []}


def test_the_file_appears_only_when_complete(tmp_path, objects):
    path = tmp_path / "a.geojson"
    path.write_text("older")
    with GeoJsonWriter(path) as writer:
        writer.write(objects)
        assert path.read_text() == "older"
    assert len(read_geojson(path)) == 4


@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz"])
def test_an_exception_leaves_the_older_file_and_nothing_else(tmp_path, objects, name):
    (tmp_path / name).write_text("older")

    def interrupted():
        with GeoJsonWriter(tmp_path / name) as writer:
            writer.write(objects)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / name).read_text() == "older"
    assert os.listdir(tmp_path) == [name]


class FullDisk:
    """A stream on a disk with no space left, from its n-th write on."""

    def __init__(self, stream, writes):
        self.stream, self.writes = stream, writes

    def write(self, data):
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.stream.write(data)

    def close(self):
        self.stream.close()


@pytest.mark.parametrize("writes", [0, 1])  # the first piece of objects, the end of the file
def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path, objects, writes):
    def write():
        with GeoJsonWriter(tmp_path / "a.geojson") as writer:
            writer._streams[-1] = FullDisk(writer._streams[-1], writes)
            writer.write(objects)

    with pytest.raises(InputError, match=r"a\.geojson: cannot be written: No space left") as caught:
        write()
    assert "space left" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_an_input_error(tmp_path, objects):
    with pytest.raises(InputError, match=r"none/a\.geojson: cannot be written: No such file"):
        write_geojson(tmp_path / "none" / "a.geojson", objects)
    (tmp_path / "b.geojson").mkdir()
    with pytest.raises(InputError, match=r"b\.geojson: cannot be written"):
        write_geojson(tmp_path / "b.geojson", objects)
    assert os.listdir(tmp_path) == ["b.geojson"]


def test_wrong_arguments_are_refused(tmp_path, objects):
    path = tmp_path / "a.geojson"
    with pytest.raises(InputError, match=r"'probability' must have shape \(4,\).* got \(3,\)"):
        write_geojson(path, objects, probabilities=np.ones(3))
    with pytest.raises(InputError, match="object_type must be one of"):
        write_geojson(path, objects, object_type="nucleus")
    with pytest.raises(InputError, match="in a `with` block"):
        GeoJsonWriter(path).write(objects)
    assert os.listdir(tmp_path) == []


def test_gzip_holds_no_name_and_no_time(tmp_path, objects):
    write_geojson(tmp_path / "a.geojson.gz", objects)
    head = (tmp_path / "a.geojson.gz").read_bytes()[:10]
    assert head[3] == 0  # no optional fields
    assert head[4:8] == bytes(4)
    assert json.loads(gzip.decompress((tmp_path / "a.geojson.gz").read_bytes()))["features"]
