"""Whatever bytes a file holds: a reader returns, soon and in little memory, or raises an InputError.

A new format is tested by being registered: its own writer makes the files that are broken here.
"""

import contextlib
import functools
import gzip
import inspect
import re
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats import FORMATS, format_of, read_annotations
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.errors import InputError

FILES = [(name, suffix) for name, one in FORMATS.items() if one.write for suffix in one.suffixes]
MAX_SECONDS = 10.0  # for files of a few kilobytes; a hundred times what they take
PICTURE = Picture(name="x.png", width=60, height=40)

# What a mutation puts in place of a few bytes: what parsers stumble over.
TOKENS = (
    *(b"NaN", b"-1", b"1e999", b"9" * 400, b"null", b"[[[[", b"]]", b"{", b"}", b'"', b"<", b"/>", b"&#0;"),
    *(
        b"\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x7f\xff\xff\xff",
        b"\xff\xfe",
        b"\xc3",
        b"\\u0000",
    ),
    *(b",,,", b";", b"\n\n", b"true", b"-", b".", b"e5", b"0x10", b"1_0", b"\xe2\x82"),
)


def objects():
    ring = [[1.5, 1.25], [17.5, 1.75], [16.25, 17.5], [2.5, 16.5]]
    hole = [[6.5, 6.25], [9.5, 6.75], [8.5, 12.25]]
    polygons = Annotations.from_polygons(
        [[ring, hole], [[[20.5, 2.5], [26.5, 2.5], [24.5, 9.5]], [[30.5, 2.5], [36.5, 2.5], [34.5, 9.5]]]],
        ["a", "b"],
    )
    boxes = Annotations.from_boxes([[40.5, 3.5, 52.5, 17.25]], "a")
    points = Annotations.from_points([[7.5, 30.5], [9.25, 31.5]], ["a", "c"])
    return Annotations.concatenate([polygons, boxes, points])


@functools.cache
def whole_file(name, suffix, folder):
    """The bytes of a file as the format's own writer makes it."""
    path = Path(folder) / f"whole{suffix}"
    write = FORMATS[name].write
    assert write is not None
    everything = objects()
    try:
        write(path, everything, PICTURE)
    except InputError:  # the format has no points
        write(path, everything.take(~everything.is_point), PICTURE)
    return path.read_bytes()


def outcome(name, path):
    """What the file gave, or the error; nothing else, and soon."""
    start = time.monotonic()
    try:
        found = FORMATS[name].read(path)
    except InputError as error:
        found = error
    assert time.monotonic() - start < MAX_SECONDS
    assert isinstance(found, Annotations) or (str(path) in str(found) and len(str(found)) < 2000)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return lambda name, suffix: whole_file(name, suffix, str(folder))


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_the_files_that_are_broken_here_are_whole_at_first(tmp_path, whole, name, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole(name, suffix))
    assert isinstance(outcome(name, path), Annotations)
    assert format_of(path) == name


cut = st.tuples(st.integers(0, 2**20), st.integers(0, 12), st.sampled_from((*TOKENS, b"")))


@pytest.mark.parametrize(("name", "suffix"), FILES)
@given(changes=st.lists(cut, min_size=1, max_size=4), inside=st.booleans())
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_mutated_files(tmp_path, whole, name, suffix, changes, inside):
    """Bytes cut out, put in and replaced, at random places; of packed files also inside the packing."""
    content = whole(name, suffix)
    inside = inside and suffix.endswith(".gz")
    if inside:
        content = gzip.decompress(content)
    for place, count, token in changes:
        place %= len(content) + 1
        content = content[:place] + token + content[place + count :]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content, 1) if inside else content)
    found = outcome(name, path)
    if isinstance(found, Annotations):
        assert np.isfinite(found.areas_px).all()


@pytest.mark.parametrize(("name", "suffix"), FILES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.98, -1])
def test_truncated_files(tmp_path, whole, name, suffix, share):
    content = whole(name, suffix)
    content = content[:-1] if share < 0 else content[: int(share * len(content))]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    found = outcome(name, path)
    if isinstance(found, Annotations):
        assert len(found) <= len(objects())


def text_of(content, suffix):
    try:
        return (gzip.decompress(content) if suffix.endswith(".gz") else content).decode()
    except UnicodeDecodeError:
        return None


TEXTS = {
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "Latin-1": lambda text: text.replace("a", "é").encode("latin-1"),
    "NUL": lambda text: text.encode() + bytes(1000),
    "NaN": lambda text: re.sub(r"\d+\.\d+", "NaN", text).encode(),
    "one NaN": lambda text: re.sub(r"\d+\.\d+", "NaN", text, count=1).encode(),
    "null": lambda text: re.sub(r"\d+\.\d+", "null", text).encode(),
    "infinite": lambda text: re.sub(r"\d+\.\d+", "1e999", text).encode(),
    "huge": lambda text: re.sub(r"\d+\.\d+", "9" * 400, text).encode(),
    "text": lambda text: re.sub(r"\d+\.\d+", "ten", text).encode(),
    "empty": lambda text: re.sub(r"\d+\.\d+", "", text).encode(),
    "zero area": lambda text: re.sub(r"\d+\.\d+", "7.5", text).encode(),
    "twice": lambda text: (text + text).encode(),
}


@pytest.mark.parametrize(("name", "suffix"), FILES)
@pytest.mark.parametrize("change", TEXTS)
def test_texts_of_other_contents(tmp_path, whole, name, suffix, change):
    text = text_of(whole(name, suffix), suffix)
    if text is None:
        pytest.skip("no text format")
    content = TEXTS[change](text)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content, 1) if suffix.endswith(".gz") else content)
    found = outcome(name, path)
    if isinstance(found, Annotations):
        solid = found.take(~found.is_point)
        assert (solid.areas_px > 0).all()
        if change in ("NaN", "infinite", "huge"):
            assert len(found) < len(objects())


CONTENTS = {
    "nothing": b"",
    "zeros": bytes(5000),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
    "brackets": b"[" * 200_000,
    "braces": b'{"a":' * 100_000,
    "nested features": b'{"features":[{"geometry":{"type":"Polygon","coordinates":' + b"[" * 100_000,
    "elements": b"<a>" * 100_000,
    "annotations": b"<annotation><object>" + b"<a>" * 100_000,
    "a number": b"9" * 100_000,
    "quotes": b'"' * 100_001,
    "commas": b"," * 100_000,
    "lines": b"\n" * 100_000,
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "laughs": b'<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>',
    "half a gzip": gzip.compress(bytes(range(256)) * 9)[:60],
    "gzip in gzip": gzip.compress(gzip.compress(b"{}")),
}


@pytest.mark.parametrize(("name", "suffix"), FILES)
@pytest.mark.parametrize("content", CONTENTS)
def test_files_of_anything(tmp_path, name, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(CONTENTS[content])
    outcome(name, path)
    with contextlib.suppress(InputError):
        read_annotations(path)  # whatever format it is taken for


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_a_folder_in_place_of_a_file(tmp_path, name, suffix):
    path = tmp_path / f"a{suffix}"
    path.mkdir()
    assert isinstance(outcome(name, path), InputError)
    assert isinstance(outcome(name, tmp_path / f"missing{suffix}"), InputError)


@pytest.mark.parametrize("name", FORMATS)
def test_gzip_bombs_are_bounded(tmp_path, name):
    """64 MB of blanks in 64 kB."""
    assert "max_bytes" in inspect.signature(FORMATS[name].read).parameters
    path = tmp_path / f"a{FORMATS[name].suffixes[0]}"
    path.write_bytes(gzip.compress(b" " * (64 << 20), 1))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=re.escape(str(path))):
            FORMATS[name].read(path, max_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def tiff(width, height):
    """One strip of 16-bit grey at byte 8, that claims to hold all rows."""
    entries = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries.append((279, 1000))
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    table = struct.pack("<H", len(entries)) + body + bytes(4)
    return b"II*\0" + struct.pack("<I", 1008) + bytes(1000) + table


@pytest.mark.parametrize(("suffix", "make"), [(".png", png), (".tif", tiff)])
@pytest.mark.parametrize("size", [(10**6, 10**6), (2**31 - 1, 2), (2**32 - 1, 2**32 - 1), (0, 5)])
def test_pictures_that_claim_to_be_huge(tmp_path, suffix, make, size):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(make(*size))
    tracemalloc.start()
    try:
        assert isinstance(outcome("label_map", path), InputError)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_tiff_whose_pages_lead_back_to_the_first(tmp_path):
    content = tiff(1, 1)
    path = tmp_path / "a.tif"
    path.write_bytes(content[:-4] + struct.pack("<I", 1008))
    assert isinstance(outcome("label_map", path), InputError)
