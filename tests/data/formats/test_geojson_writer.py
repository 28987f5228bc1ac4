import dataclasses
import errno
import gzip
import json
import os
import uuid

import numpy as np
import pytest
import shapely
import shapely.geometry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats import geojson_writer
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.geojson import GEOJSON, GeoJsonWriter, read_geojson, write_geojson
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


def test_the_order_of_an_array_in_memory_is_of_no_interest(tmp_path, objects):
    columns = dataclasses.replace(objects, xy_px=np.asfortranarray(objects.xy_px))
    write_geojson(tmp_path / "a.geojson", objects)
    write_geojson(tmp_path / "b.geojson", columns, measurements={})
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()


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


def _check_ring(ring):
    assert len(ring) >= 4
    assert ring[0] == ring[-1]
    assert all(len(vertex) == 2 for vertex in ring)
    assert all(type(number) in (int, float) and np.isfinite(number) for vertex in ring for number in vertex)


def _check_geometry(geometry):
    assert set(geometry) == {"type", "coordinates"}
    coordinates = geometry["coordinates"]
    if geometry["type"] == "Point":
        assert len(coordinates) == 2
        assert np.isfinite(coordinates).all()
        return
    assert geometry["type"] in ("Polygon", "MultiPolygon")
    if geometry["type"] == "MultiPolygon":
        assert len(coordinates) > 1  # QuPath refuses a MultiPolygon of one
    for polygon in [coordinates] if geometry["type"] == "Polygon" else coordinates:
        assert polygon
        for ring in polygon:
            _check_ring(ring)
    assert shapely.geometry.shape(geometry).is_valid  # holes lie in the shell that they stand with


def _check_properties(properties, object_type, classes):
    assert properties.keys() <= {"objectType", "classification", "measurements", "metadata"}
    assert properties["objectType"] == object_type
    if "classification" in properties:
        given = properties["classification"]
        assert set(given) == {"name", "color"}
        assert given["name"] in classes
        assert len(given["color"]) == 3
        assert all(type(value) is int and 0 <= value <= 255 for value in given["color"])
    if "measurements" in properties:
        assert properties["measurements"]  # QuPath leaves an empty one out
        assert all(type(name) is str for name in properties["measurements"])
        assert all(type(v) in (int, float) and np.isfinite(v) for v in properties["measurements"].values())
    if "metadata" in properties:
        assert all(type(value) is str for value in properties["metadata"].values())


@pytest.mark.parametrize("object_type", geojson_writer.OBJECT_TYPES)
def test_every_field_is_as_qupath_expects_it(tmp_path, objects, object_type):
    boxes = Annotations.from_boxes([[1.5, 2.25, 8, 9]], "blood: red")
    everything = Annotations.concatenate([objects, boxes])
    rows = {
        "Nucleus: Area \u00b5m^2": np.array([1, np.nan, -np.inf, 1e-9, 3e20]),
        '"quoted", \\': np.arange(5),
        "flag": np.array([True, False, True, True, False]),
        "nothing": np.full(5, np.nan),
    }
    write_geojson(tmp_path / "a.geojson", everything, object_type=object_type, measurements=rows)
    text = (tmp_path / "a.geojson").read_text()
    assert not any(token in text for token in ("NaN", "Infinity", "null"))
    document = json.loads(text)
    assert set(document) == {"type", "features"}
    assert document["type"] == "FeatureCollection"
    assert len(document["features"]) == len({f["id"] for f in document["features"]}) == 5
    for feature in document["features"]:
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        identity = uuid.UUID(feature["id"])
        assert str(identity) == feature["id"]
        assert (identity.variant, identity.version) == (uuid.RFC_4122, 5)
        _check_geometry(feature["geometry"])
        _check_properties(feature["properties"], object_type, everything.class_names)
    colours = {
        f["properties"]["classification"]["name"]: f["properties"]["classification"]["color"]
        for f in document["features"]
        if "classification" in f["properties"]
    }
    assert len({tuple(colour) for colour in colours.values()}) == len(colours) == 3
    box = document["features"][4]
    assert box["geometry"]["coordinates"] == [[[1.5, 2.25], [8, 2.25], [8, 9], [1.5, 9], [1.5, 2.25]]]
    assert box["properties"]["metadata"] == {"kind": "box"}
    measured = [f["properties"]["measurements"] for f in document["features"]]
    assert measured[0] == {"Nucleus: Area \u00b5m^2": 1, '"quoted", \\': 0, "flag": 1}
    assert measured[1] == {'"quoted", \\': 1, "flag": 0}
    assert measured[4] == {"Nucleus: Area \u00b5m^2": 3e20, '"quoted", \\': 4, "flag": 0}


def _shape(rng, centre, reach):
    """A ring round a point, its vertices between half of `reach` and `reach` away."""
    angle = np.sort(rng.permutation(64)[: rng.integers(8, 30)]) * 2 * np.pi / 64
    if np.diff(angle, append=angle[0] + 2 * np.pi).max() > 2:
        angle = np.arange(12) * 2 * np.pi / 12
    angle = angle[:: rng.choice([-1, 1])]
    distance = rng.uniform(reach / 2, reach, len(angle))
    return centre + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _anything(rng):
    """Polygons with holes and parts, points and boxes, classed, in any order."""
    polygons = []
    for _ in range(rng.integers(0, 4)):
        centre = rng.uniform(-1e3, 1e5, 2)
        parts = [centre + np.array([60 * k, 0]) for k in range(rng.integers(1, 4))]
        outlines = [_shape(rng, at, 25) for at in parts]
        # Edges of the outer ring may come a third of the way in.
        outlines += [_shape(rng, at, 2.5) for at in parts if rng.random() < 0.5]
        polygons.append([outlines[k] for k in rng.permutation(len(outlines))])
    corners = np.sort(rng.uniform(0, 1e5, (int(rng.integers(0, 3)), 2, 2)), axis=1)
    points = rng.uniform(0, 1e5, (int(rng.integers(0, 3)), 2))
    names = ["a", "b: c", "", '\u00e9 "\\']
    total = Annotations.concatenate(
        [
            Annotations.from_polygons(polygons, [names[i] for i in rng.integers(0, 4, len(polygons))]),
            Annotations.from_boxes(corners.reshape(-1, 4), "box"),
            Annotations.from_points(points, [names[i] for i in rng.integers(0, 4, len(points))]),
        ]
    )
    return total.take(rng.permutation(len(total)))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32 - 1), packed=st.booleans())
def test_any_objects_survive_a_round_trip(tmp_path, seed, packed):
    first = _anything(np.random.default_rng(seed))
    path = tmp_path / ("a.geojson.gz" if packed else "a.geojson")
    assert GEOJSON.write is not None
    GEOJSON.write(path, first, Picture())
    again = GEOJSON.read(path)
    assert len(again) == len(first)
    assert again.notes == () or not len(first)
    np.testing.assert_array_equal(again.kind, first.kind)
    assert [again.class_names[i] for i in again.class_ids] == [first.class_names[i] for i in first.class_ids]
    np.testing.assert_array_equal(np.diff(again.object_offsets), np.diff(first.object_offsets))
    # Rings of an object are sorted into shells and their holes; the vertices of a ring keep their order.
    rings = {tuple(xy.round(3).ravel()) for xy in np.split(first.xy_px, first.ring_offsets[1:-1])}
    found = {tuple(xy.ravel()) for xy in np.split(again.xy_px, again.ring_offsets[1:-1])}
    assert found == rings
    # A border moved by 0.0005 px on each side.
    np.testing.assert_allclose(again.areas_px, first.areas_px, rtol=1e-6, atol=0.5)
    np.testing.assert_allclose(again.bounds_px, first.bounds_px, atol=0.00051)
    shells = first.nesting[0] % 2 == 0
    owners = np.repeat(np.arange(len(first)), np.diff(first.object_offsets))
    again_owners = np.repeat(np.arange(len(again)), np.diff(again.object_offsets))
    np.testing.assert_array_equal(
        np.bincount(owners[shells], minlength=len(first)),
        np.bincount(again_owners[again.nesting[0] % 2 == 0], minlength=len(first)),
    )


def test_the_format_names_annotations_and_its_own_marks(tmp_path, objects):
    assert GEOJSON.write is not None
    GEOJSON.write(tmp_path / "a.geojson", objects, Picture(name="a.svs"))
    text = (tmp_path / "a.geojson").read_bytes()
    assert all(mark in text[:1000] for mark in GEOJSON.marks)
    assert {f["properties"]["objectType"] for f in json.loads(text)["features"]} == {"annotation"}
