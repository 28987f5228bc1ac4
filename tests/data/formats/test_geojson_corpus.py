"""Files that are broken, hostile or large: they read or are refused, in bounded time and memory."""

import gzip
import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats import json_stream
from sparseshot_jax.data.formats.geojson import read_geojson, write_geojson
from sparseshot_jax.errors import InputError

SQUARE = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]


def feature(ring=SQUARE, **properties):
    return {"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def document(*features):
    return json.dumps({"type": "FeatureCollection", "features": list(features)}).encode()


@pytest.fixture
def read(tmp_path):
    def read(content, **options):
        (tmp_path / "a.geojson").write_bytes(content)
        return read_geojson(tmp_path / "a.geojson", **options)

    return read


def test_a_file_cut_anywhere_is_refused_with_its_name(read):
    text = document(feature(classification={"name": "é"}), feature())
    for cut in range(len(text)):
        with pytest.raises(InputError, match=r"a\.geojson: "):
            read(text[:cut])


def test_a_gzip_file_cut_anywhere_is_refused_with_its_name(read):
    packed = gzip.compress(document(feature()), mtime=0)
    for cut in range(len(packed)):
        with pytest.raises(InputError, match=r"a\.geojson: "):
            read(packed[:cut])


def test_gzip_bombs_are_bounded(read):
    once = gzip.compress(b"[" * (8 << 20))
    with pytest.raises(InputError, match="at most 1,000,000 bytes once unpacked"):
        read(once, max_bytes=1_000_000)
    with pytest.raises(InputError, match="is not valid JSON"):  # packed twice is unpacked once
        read(gzip.compress(once))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_refused(read, encoding):
    text = json.dumps([feature(classification={"name": "é"})], ensure_ascii=False)
    with pytest.raises(InputError, match="UTF-8"):
        read(text.encode(encoding))


def test_a_byte_order_mark_is_no_fault_packed_or_not(read):
    marked = b"\xef\xbb\xbf" + document(feature())
    assert len(read(marked)) == len(read(gzip.compress(marked))) == 1


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("chunk", [1, 10_000])
def test_tokens_that_java_and_python_write(read, monkeypatch, token, chunk):
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk)
    text = document(feature(), feature(measurements={"a": 1.25}), feature([[0, 0], [7.5, 0], [4, 4]]))
    found = read(text.replace(b"1.25", token.encode()))
    assert len(found) == 3
    found = read(text.replace(b"7.5", token.encode()))
    assert len(found) == 2
    assert found.notes[-1].startswith("1 objects with coordinates that are no number")


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" * 400])
def test_numbers_beyond_any_number_are_refused_with_their_place(read, number):
    text = document(feature([[0, 0], [7.5, 0], [4, 4], [0, 0]]))
    with pytest.raises(InputError, match=f"infinity.*byte {text.index(b'7.5')}"):
        read(text.replace(b"7.5", number))


@pytest.mark.parametrize("number", [b"1e13", b"-1e300", b"123456789012345678901234567890"])
def test_numbers_beyond_any_slide_are_rejected(read, number):
    found = read(document(feature([[0, 0], [7.5, 0], [4, 4], [0, 0]])).replace(b"7.5", number))
    assert len(found) == 0
    assert found.notes[0].startswith("1 objects with coordinates that are no number or beyond 1e12")


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        (b"[", b"]"),
        (b'{"features":', b"}"),
        (b'{"features":[', b"]}"),
        (b'{"geometry":', b"}"),
        (b'[{"geometry":{"type":"Polygon","coordinates":' + b"[" * 50, b"]" * 50 + b"}}]"),
        (b'{"geometry":null,"properties":{"childObjects":[', b"]}}"),
    ],
)
@pytest.mark.parametrize("depth", [2000, 100_000])
def test_deep_nesting_is_refused(read, opening, closing, depth):
    begun = time.perf_counter()
    with pytest.raises(InputError, match=r"a\.geojson: is not valid JSON: depth limit"):
        read(opening * depth + b"{}" + closing * depth)
    assert time.perf_counter() - begun < 5


def test_children_nested_as_deep_as_the_parser_goes(read):
    nested = feature()
    for _ in range(300):
        nested = feature(childObjects=[nested])
    assert len(read(document(nested))) == 301


def test_escapes_do_not_hide_or_fake_the_end_of_a_string(read, monkeypatch):
    names = ['"', "\\", '\\"', '\\\\"]}', "]}", "\\\\", '"}],"features":[']
    features = [feature(classification={"name": name}) for name in names]
    for scan, chunk in itertools.product([1, 2, 3, 7, 64], [1, 300]):
        monkeypatch.setattr(json_stream, "SCAN_BYTES", scan)
        monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk)
        assert read(document(*features)).class_names == tuple(names)


def test_a_million_vertices_of_one_polygon_within_a_breath(read):
    angle = np.arange(1_000_000) * 2 * np.pi / 1_000_000
    radius = 30_000 + 3_000 * np.sin(400 * angle)
    ring = (40_000 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)).round(3)
    begun = time.perf_counter()
    found = read(document(feature(ring.tolist())))
    assert time.perf_counter() - begun < 10
    np.testing.assert_array_equal(found.xy_px, ring)
    # The area of r(a) = R + h sin(k a) is pi (R^2 + h^2 / 2).
    np.testing.assert_allclose(found.areas_px, [np.pi * (30_000**2 + 3_000**2 / 2)], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("outline", ["smooth", "tangled"])
def test_ten_million_vertices_of_one_polygon_within_bounds(tmp_path, outline):
    script = """
import resource, sys, time
import numpy as np
from sparseshot_jax.data.formats.geojson import read_geojson
begun = time.perf_counter()
found = read_geojson(sys.argv[1])
print(len(found), len(found.xy_px), time.perf_counter() - begun)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # GiB on Linux
"""
    count = 10_000_000
    angle = np.arange(count) * 2 * np.pi / count
    smooth = 30_000 * np.stack([np.cos(angle), np.sin(3 * angle) + 2 * np.sin(angle)], axis=1)
    walk = np.cumsum(np.random.default_rng(0).normal(size=(count, 2)), axis=0)
    path = tmp_path / "a.geojson"
    write_geojson(path, Annotations.from_polygons([[smooth if outline == "smooth" else walk]]))
    del angle, smooth, walk
    output = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    objects, vertices, seconds, gib = map(float, output.stdout.split())
    assert (objects, vertices) == ((1, count) if outline == "smooth" else (0, 0))
    assert seconds < 120
    assert gib < 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "geometry", "coordinates", "properties", "features", "name", "children", "isEllipse"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
NUMBER = st.integers(-(10**400), 10**400) | st.floats() | st.integers(0, 9) | JSON
RING = st.lists(st.lists(NUMBER, min_size=1, max_size=3) | JSON, max_size=6)
SHAPE = st.sampled_from(["Polygon", "MultiPolygon", "Point", "MultiPoint", "LineString"]) | JSON
GEOMETRY = st.fixed_dictionaries(
    {"type": SHAPE, "coordinates": RING | st.lists(RING, max_size=3) | JSON},
    optional={"isEllipse": st.booleans() | JSON},
)
CLASS = JSON | st.fixed_dictionaries(
    {}, optional={"name": JSON, "names": st.lists(JSON, max_size=2), "parentClass": JSON}
)
FEATURE = st.deferred(
    lambda: st.fixed_dictionaries(
        {
            "geometry": GEOMETRY | JSON,
            "properties": JSON
            | st.fixed_dictionaries(
                {"classification": CLASS},
                optional={
                    "metadata": st.just({"kind": "box"}) | JSON,
                    "childObjects": st.lists(FEATURE | JSON, max_size=2) | JSON,
                },
            ),
        },
        optional={"nucleusGeometry": GEOMETRY | JSON},
    )
)


def _reads_or_refuses(path, text, nuclei=False):
    path.write_bytes(text)
    try:
        outcome = read_geojson(path, nuclei=nuclei)
    except InputError as error:
        outcome = str(error)
    assert isinstance(outcome, Annotations) or str(path) in outcome


FUZZ = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(FUZZ, max_examples=200)
@given(content=st.lists(FEATURE | JSON, max_size=4) | JSON, nuclei=st.booleans(), data=st.data())
def test_any_document_reads_or_is_refused_with_an_input_error(tmp_path, content, nuclei, data):
    text = json.dumps(content).encode()
    _reads_or_refuses(tmp_path / "f.geojson", text, nuclei)
    cut = data.draw(st.integers(0, len(text)))
    junk = data.draw(st.binary(max_size=3))
    _reads_or_refuses(tmp_path / "f.geojson", text[:cut] + junk + text[cut + 1 :], nuclei)


@settings(FUZZ, max_examples=60)
@given(content=st.binary(max_size=200), packed=st.booleans())
def test_any_bytes_read_or_are_refused_with_an_input_error(tmp_path, content, packed):
    _reads_or_refuses(tmp_path / "f.geojson", gzip.compress(content) if packed else content)
