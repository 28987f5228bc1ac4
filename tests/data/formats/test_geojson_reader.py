import gc
import gzip
import json

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Kind
from sparseshot_jax.data.formats import json_stream
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.errors import InputError

SQUARE = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
HOLE = [[1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]


def feature(kind="Polygon", coordinates=None, **properties):
    geometry = {"type": kind, "coordinates": [SQUARE] if coordinates is None else coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.fixture
def read(tmp_path):
    def read(document, name="a.geojson", **options):
        path = tmp_path / name
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        return read_geojson(path, **options)

    return read


def test_qupath_export(shared_data):
    path = shared_data / "slides" / "qupath05.geojson"
    found = read_geojson(path)
    assert len(found) == 3
    assert found.class_names == ("",)  # names, but no classification
    assert found.notes == ()
    np.testing.assert_array_equal(found.xy_px[0], [8909, 6277])
    # Counted once more without any of the reader's code: each ring without its closing vertex.
    features = json.loads(path.read_text())["features"]
    assert {f["geometry"]["type"] for f in features} == {"Polygon"}
    rings = [ring[:-1] for f in features for ring in f["geometry"]["coordinates"]]
    assert len(rings) == len(features) == 3
    np.testing.assert_array_equal(np.diff(found.ring_offsets), [len(ring) for ring in rings])
    np.testing.assert_array_equal(found.xy_px, np.concatenate([np.array(ring) for ring in rings]))
    areas = [
        abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1]))) / 2
        for ring in rings
    ]
    np.testing.assert_allclose(found.areas_px, areas, rtol=1e-12)


@pytest.mark.parametrize(
    "document",
    [
        collection(feature()),
        [feature()],
        feature(),
        feature()["geometry"],
        {"features": [feature()]},
        {"a": {"features": [1]}, "b": '"features": [', "features": [feature()], "z": [[]]},
    ],
)
def test_kinds_of_documents(read, document):
    found = read(document)
    assert len(found) == 1
    assert found.areas_px[0] == 16
    assert found.source.endswith("a.geojson")
    assert found.notes == ()


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 700])
def test_a_document_in_pieces_reads_as_one(read, monkeypatch, indent, chunk):
    names = ['quo"te', "back\\", "}],{[", "é", "Tumor: Positive"]
    features = [
        feature(coordinates=[[[x + k, y] for x, y in SQUARE]], classification={"name": names[k % 5]})
        for k in range(40)
    ]
    text = json.dumps(collection(*features), indent=indent, ensure_ascii=False).encode()
    whole = read(text)
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(json_stream, "SCAN_BYTES", 97)
    pieces = read(text)
    assert len(whole) == len(pieces) == 40
    assert whole.class_names == pieces.class_names == tuple(names)
    np.testing.assert_array_equal(whole.xy_px, pieces.xy_px)
    np.testing.assert_array_equal(whole.class_ids, pieces.class_ids)
    np.testing.assert_array_equal(pieces.xy_px[::4, 0], np.arange(40))


def test_geometry_types_holes_and_parts(read):
    far = [[[x + 10, y] for x, y in SQUARE]]
    found = read(
        collection(
            feature(coordinates=[SQUARE, HOLE]),
            feature("MultiPolygon", [[SQUARE, HOLE], far]),
            feature("Point", [7, 8]),
            feature("MultiPoint", [[1, 2], [3, 4.5]]),
        )
    )
    np.testing.assert_array_equal(found.areas_px, [15, 31, 0, 0, 0])
    np.testing.assert_array_equal(found.is_point, [False, False, True, True, True])
    np.testing.assert_array_equal(found.centroids_px[2:], [[7, 8], [1, 2], [3, 4.5]])
    assert found.notes == ()


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "Tumor: Positive", "color": [1, 2, 3]}}, "Tumor: Positive"),
        ({"classification": {"name": "Stroma", "colorRGB": -16776961}}, "Stroma"),
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"classification": {"names": ["Immune"], "color": [1, 2, 3]}}, "Immune"),
        ({"classification": {"names": [], "color": [1, 2, 3]}}, ""),
        (
            {
                "classification": {
                    "name": "Nuclear",
                    "colorRGB": -1,
                    "parentClass": {"name": "Positive", "parentClass": {"name": "Tumor", "colorRGB": -1}},
                }
            },
            "Tumor: Positive: Nuclear",
        ),
        ({"classification": "Immune"}, "Immune"),
        ({"classification": {"name": None}}, ""),
        ({"classification": None}, ""),
        ({"isEllipse": True, "objectType": "annotation"}, ""),
    ],
)
def test_class_names(read, properties, name):
    assert read(collection(feature(**properties))).class_names == (name,)


def test_missing_properties_leave_it_unclassified(read):
    bare = {"type": "Feature", "geometry": feature()["geometry"]}
    assert read([bare, bare | {"properties": None}]).class_names == ("",)


@pytest.mark.parametrize(
    "measurements",
    [
        [{"name": "Area", "value": 4.0}, {"name": "Circularity", "value": 0.9}],  # QuPath 0.2 and 0.3
        {"Area": 4.0, "Circularity": None},
        {},
        None,
    ],
)
def test_what_qupath_adds_to_an_object_is_no_fault(read, measurements):
    properties = {
        "objectType": "annotation",
        "name": "core 3",
        "color": [1, 2, 3],
        "isLocked": True,
        "measurements": measurements,
        "metadata": {"ANNOTATION_DESCRIPTION": "by hand"},
        "classification": {"name": "Tumor", "color": [200, 0, 0]},
    }
    named = feature(**properties) | {"id": "PathAnnotationObject"}  # as 0.2 did
    named["geometry"]["plane"] = {"c": -1, "z": 1, "t": 0}
    found = read(collection(named))
    assert found.class_names == ("Tumor",)
    assert found.notes == ()
    np.testing.assert_array_equal(found.areas_px, [16])


def test_an_ellipse_fills_the_box_of_the_polygon_beside_it(read):
    diamond = [[10, 25], [30, 20], [50, 25], [30, 30], [10, 25]]
    marked, plain = feature(coordinates=[diamond]), feature(coordinates=[diamond])
    marked["geometry"]["isEllipse"] = True
    plain["geometry"]["isEllipse"] = False
    found = read(collection(marked, plain))
    np.testing.assert_allclose(found.areas_px, [np.pi * 20 * 5, 200], rtol=1e-12)
    np.testing.assert_allclose(found.centroids_px[0], [30, 25], rtol=1e-12)
    np.testing.assert_allclose(found.bounds_px[0], [10, 20, 50, 30], atol=0.02)
    assert found.kind[0] == Kind.POLYGON
    assert found.notes == ()


@pytest.mark.parametrize(
    "ring", [[], [[1, 1]], [[1, 1], [None, 2], [3, 3]], [[1, 1], [1, 9], [1, 4], [1, 1]]]
)
def test_an_ellipse_without_extent_is_rejected(read, ring):
    flat = feature(coordinates=[ring])
    flat["geometry"]["isEllipse"] = True
    found = read(collection(flat))
    assert len(found) == 0
    assert any("were rejected" in note for note in found.notes)


def test_a_cell_is_read_by_its_own_outline_or_its_nucleus(read):
    nucleus = {"type": "Polygon", "coordinates": [HOLE]}
    cell = feature(objectType="cell") | {"nucleusGeometry": nucleus}
    document = collection(cell, feature(objectType="cell"), cell | {"nucleusGeometry": None})
    found = read(document)
    np.testing.assert_array_equal(found.areas_px, [16, 16, 16])
    assert found.notes == ("1 cells have an outline of the nucleus too; that of the cell was read.",)
    found = read(document, nuclei=True)
    np.testing.assert_array_equal(found.areas_px, [1, 16, 16])
    assert found.notes == ("1 cells have an outline of the cell too; that of the nucleus was read.",)


@pytest.mark.parametrize("key", ["childObjects", "children"])
def test_objects_inside_objects_follow_them(read, key):
    def inside(*features, at, **properties):
        moved = [[[x + at, y] for x, y in SQUARE]]
        return feature(coordinates=moved, **properties, **{key: list(features)})

    grandchild = inside(at=30, classification={"name": "c"})
    child = inside(grandchild, at=20, classification={"name": "b"})
    parent = inside(child, inside(at=40), at=10, classification={"name": "a"})
    root = {"type": "Feature", "geometry": None, "properties": {"objectType": "root", key: [parent]}}
    found = read(collection(root, feature()))
    np.testing.assert_array_equal(found.bounds_px[:, 0], [10, 20, 30, 40, 0])
    assert [found.class_names[i] for i in found.class_ids] == ["a", "b", "c", "", ""]
    assert set(found.notes) == {
        "1 features without geometry were skipped.",
        "4 objects inside other objects were read as objects of their own.",
    }


def test_children_that_are_no_objects_are_of_no_interest(read):
    assert read([feature(children=[1, "x", {"name": "Anna"}]), feature(children=2)]).notes == ()


def test_only_an_upright_rectangle_is_taken_for_a_box(read):
    def kind(ring, more=(), **properties):
        return read([feature(coordinates=[ring, *more], **properties)]).kind[0]

    box = {"kind": "box"}
    up = [[0, 0], [0, 4], [4, 4], [4, 0], [0, 0]]
    assert kind(SQUARE, metadata=box) == kind(up, metadata=box) == Kind.BOX
    assert kind(SQUARE) == kind(SQUARE, metadata={"kind": "x"}) == kind(SQUARE, metadata=3) == Kind.POLYGON
    edited = [[0, 0], [4, 0], [4, 4], [1, 4], [0, 0]]
    rhombus = [[2, 0], [4, 2], [2, 4], [0, 2], [2, 0]]
    step = [[0, 0], [4, 0], [4, 4], [2, 4], [2, 6], [0, 6], [0, 0]]
    for other in (edited, rhombus, step, SQUARE[:3] + SQUARE[4:]):
        assert kind(other, metadata=box) == Kind.POLYGON
    assert kind(SQUARE, [HOLE], metadata=box) == Kind.POLYGON


def test_unclosed_rings_are_closed_and_counted(read):
    found = read(collection(feature(coordinates=[SQUARE[:-1]]), feature()))
    np.testing.assert_array_equal(found.xy_px, SQUARE[:-1] * 2)
    assert found.notes == ("1 unclosed rings were closed.",)


def test_self_crossing_polygons_are_repaired_and_counted(read):
    eight = [[0, 0], [4, 4], [4, 0], [0, 4], [0, 0]]
    overlapping = [[SQUARE], [[[x + 2, y] for x, y in SQUARE]]]
    found = read(collection(feature(a=1), feature(coordinates=[eight]), feature("MultiPolygon", overlapping)))
    # Both lobes of the eight stay, and parts that overlap are joined.
    np.testing.assert_allclose(found.areas_px, [16, 8, 24], rtol=1e-12)
    assert found.notes == ("2 self-crossing polygons were repaired.",)


def test_repair_keeps_order_classes_and_points(read):
    eight = [[0, 0], [4, 4], [4, 0], [0, 4], [0, 0]]
    found = read(
        collection(
            feature(coordinates=[eight], classification={"name": "a"}),
            feature("Point", [1, 1], classification={"name": "b"}),
            feature(classification={"name": "c"}),
        )
    )
    assert [found.class_names[i] for i in found.class_ids] == ["a", "b", "c"]
    np.testing.assert_allclose(found.areas_px, [8, 0, 16], rtol=1e-12)


def test_objects_without_area_or_place_are_rejected_and_counted(read):
    line = [[0, 0], [3, 3], [1, 1], [0, 0]]
    found = read(
        collection(
            feature(coordinates=[line]),
            feature(coordinates=[[[5, 5]] * 4]),
            feature(coordinates=[[[5, 5]]]),
            feature(coordinates=[[]]),
            feature(coordinates=[SQUARE, line]),
            feature(coordinates=[line, HOLE]),
            feature(coordinates=[[[0, 0], [None, 0], [1, 1]]]),
            feature("Point", [None, 3]),
        )
    )
    np.testing.assert_array_equal(found.areas_px, [16])
    assert set(found.notes) == {
        "5 objects without area were rejected.",
        "1 rings without area were dropped.",
        "2 objects with coordinates that are no number or beyond 1e12 were rejected.",
        "1 unclosed rings were closed.",
    }


def test_nan_as_python_writes_it_is_no_number_and_no_catastrophe(read):
    found = read(collection(feature("Point", [float("nan"), 1]), feature(measure=float("inf"))))
    assert len(found) == 1
    assert "1 objects with coordinates that are no number" in found.notes[0]


def test_what_is_no_object_is_skipped_and_counted(read):
    found = read(
        collection(
            {"type": "Feature", "properties": {}},
            {"type": "Feature", "geometry": None},
            feature("LineString", [[0, 0], [1, 1]]),
            feature("LineString", [[0, 0], [1, 1]]),
            {"geometry": {"type": "GeometryCollection", "geometries": [feature()["geometry"]]}},
            feature("{0}", [1]),
            feature(coordinates=[]),
            feature(),
        )
    )
    assert len(found) == 1
    assert set(found.notes) == {
        "2 features without geometry were skipped.",
        "2 features of geometry type LineString were skipped.",
        "1 features of geometry type GeometryCollection were skipped.",
        "1 features of geometry type {0} were skipped.",
        "1 features with empty geometry were skipped.",
    }


@pytest.mark.parametrize("document", [collection(), [], b' {"features" : [ ] } '])
def test_an_empty_collection_gives_no_objects_and_a_note(read, document):
    found = read(document)
    assert len(found) == 0
    assert found.notes == ("The file holds no object that can be used.",)


def test_a_third_coordinate_is_ignored_wherever_it_stands(read):
    high = [[x, y, 9.5] for x, y in SQUARE]
    assert read([feature(coordinates=[high])]).areas_px[0] == 16
    np.testing.assert_array_equal(read([feature(coordinates=[high]), feature()]).areas_px, [16, 16])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "is not valid JSON.*line 1, byte 0"),
        (b'{"type":"FeatureCollection","features":[{}', "is not valid JSON"),
        (b'[{"geometry":null}\n,\n{"geometry" null}]', r"line 3, byte 33"),
        (b'[{"geometry":null} {"geometry":null}]', "expected ',' or '\\]', line 1, byte 19"),
        (b'[{"geometry":null},]', "trailing comma is not allowed, line 1, byte 18"),
        (b'{"features":[{"geometry":null}],\n"a":tru}', "line 2"),
        (b'{"features":[],"features":3}', "two lists are named 'features'"),
        (b"[" * 5000 + b"]" * 5000, "is not valid JSON: depth limit exceeded"),
        (b'[{"geometry":null,"a":NaN,"b":' + b"[" * 5000 + b"]" * 5000 + b"}]", "is not valid JSON"),
        (b'[{"properties":{"classification":"\xff\xfe"}}]', r"UTF-8.*byte 34"),
        (json.dumps([feature()]).encode("utf-16"), "UTF-8"),
        (b"3", "it holds a int"),
        (b"{}", "must be a FeatureCollection"),
        ({"features": {}}, "'features' must be a list"),
        ([feature(), 3], "feature 1 .*must be a mapping; it is 3"),
        ([{"geometry": "x"}], "feature 0 .*geometry must be a mapping"),
        ([{"geometry": {}}], "geometry.type must be a name"),
        ([{"geometry": {"type": "Point"}}], "geometry.coordinates must be a list"),
        ([feature(), feature(coordinates=[3])], "feature 1 .*a ring must be a list"),
        ([feature("MultiPolygon", [SQUARE, 3])], "a ring must be|a polygon must be"),
        ([feature("MultiPolygon", [[]])], "a polygon must be a list of rings"),
        ([feature(), feature(coordinates=[[["1", "2"]] * 4])], "feature 1 .*vertex 0.*holds '1'"),
        ([feature("Point", "12")], "must be a list"),
        ([feature("Point", [1])], r"must be \[x, y\]; it is \[1\]"),
        ([feature("Point", [[1, 2]])], "must be"),
        ([feature("Point", [{}, []])], "must hold numbers"),
        ([feature("Polygon", [[[[1, 2], [3, 4]]]])], "vertex 0 .*must hold numbers"),
        ([feature(classification={"names": ["a", 3]})], "classification must be text; it is 3"),
        ([feature(classification={"name": "a", "parentClass": {"name": 3}})], "text; it is 3"),
        ([feature(children=[{"geometry": 3}])], "feature 0 .*geometry must be a mapping; it is 3"),
        ([feature(classification=3)], "classification must be text; it is 3"),
        ([feature(classification={"name": ["a"]})], "classification must be text"),
        ([feature() | {"properties": [1]}], "properties must be a mapping"),
    ],
)
def test_broken_documents_name_file_place_and_remedy(read, document, message):
    with pytest.raises(InputError, match=message) as caught:
        read(document)
    assert "a.geojson" in str(caught.value)
    assert len(str(caught.value)) < 600  # plus the folder's name; never the document itself


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize(
    ("between", "after"),
    [(b" ", b""), (b",,", b""), (b",", b","), (b",", b" 1"), (b",", b",{}x"), (b",", b"]")],
)
def test_faults_between_features_are_found_in_pieces_too(read, monkeypatch, chunk, between, after):
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk)
    with pytest.raises(InputError, match=r"is not valid JSON.*byte \d+"):
        read(b'[{"geometry":null}' + between + b'{"geometry":null}' + after + b"]")


def test_a_place_in_a_later_piece_counts_from_the_start_of_the_file(read, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 1)
    lines = [json.dumps(feature()) for _ in range(5)]
    text = ("[" + ",\n".join(lines) + "]").encode()
    at = text.rindex(b'"coordinates":')
    with pytest.raises(InputError, match=f"line 5, byte {at + 13}"):
        read(text[: at + 13] + b";" + text[at + 14 :])
    with pytest.raises(InputError, match=r"feature 4 .*is 'x'"):
        read([*(feature() for _ in range(4)), "x"])


def test_gzip_by_content(read):
    packed = gzip.compress(json.dumps([feature()]).encode())
    assert len(read(packed, name="a.geojson.gz")) == len(read(packed, name="a.json")) == 1
    with pytest.raises(InputError, match="gzip file is broken"):
        read(packed[:-20])
    with pytest.raises(InputError, match="gzip file is broken"):
        read(packed[:2] + b"\x00" * 40)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    with pytest.raises(InputError):
        read(bytes(damaged))


def test_a_gzip_bomb_stops_at_the_limit(read):
    bomb = gzip.compress(b" " * (64 << 20))
    with pytest.raises(InputError, match="at most 10,000,000 bytes once unpacked"):
        read(bomb, max_bytes=10_000_000)


def test_a_byte_order_mark_is_no_fault(read):
    assert len(read(b"\xef\xbb\xbf" + json.dumps([feature()]).encode())) == 1


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match=r"none\.geojson: cannot be read: No such file"):
        read_geojson(tmp_path / "none.geojson")
    with pytest.raises(InputError, match="cannot be read"):
        read_geojson(tmp_path)


def test_reading_leaves_the_garbage_collector_as_it_was(read):
    read([feature()])
    assert gc.isenabled()
