import io
import re

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.slides.jpeg_check import head_length, jpeg_fault, scan_fault


def jpeg(mode="RGB", size=(48, 40), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"subsampling": "4:2:0", "quality": 30}, {"restart_marker_rows": 1}]
)
def test_sound_streams(mode, options):
    stream = jpeg(mode, **options)
    assert jpeg_fault(stream) == ""
    assert scan_fault(stream, head_length(stream)) == ""
    assert jpeg_fault(stream[:-2]) == ""  # libjpeg makes up the end
    assert jpeg_fault(stream + b"\0\xff\xb2") == ""  # and does not look behind it


def segment(stream, marker):
    """Where a segment's body begins."""
    return stream.index(bytes((0xFF, marker))) + 4


def changed(stream, at, value):
    return stream[:at] + bytes([value]) + stream[at + 1 :]


STREAM = jpeg()
FRAME, SCAN, HUFFMAN = (segment(STREAM, marker) for marker in (0xC0, 0xDA, 0xC4))


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (b"", "no JPEG stream"),
        (bytes(500), "no JPEG stream"),
        (STREAM[:100], "within its head|longer than the stream"),
        (STREAM[:2], "within its head"),
        (STREAM[:2] + STREAM[-2:], "no picture"),
        (changed(STREAM, 2, 0), "no marker at byte 2"),
        (changed(STREAM, FRAME, 12), "12 bits"),
        (changed(STREAM, FRAME + 2, 0), "a size of 48 x 0"),
        (changed(STREAM, FRAME + 1, 200), "a size of 48 x 51240"),
        (changed(STREAM, FRAME + 5, 9), "wrong frame header"),
        (changed(STREAM, FRAME + 7, 0x05), "wrong colour component"),
        (changed(STREAM, FRAME + 9, STREAM[FRAME + 6]), "wrong colour component"),
        (changed(STREAM, FRAME + 8, 3), "quantisation table is missing"),
        (changed(STREAM, FRAME - 3, 0xC3), "0xc3.*another kind"),
        (changed(STREAM, SCAN, 5), "wrong scan header"),
        (changed(STREAM, SCAN + 1, 77), "leaves colours out"),
        (changed(STREAM, SCAN + 2, 0x33), "Huffman table is missing"),
        (changed(STREAM, SCAN + 2, 0x44), "wrong table name"),
        (changed(STREAM, HUFFMAN, 0x07), "wrong Huffman table"),
        (changed(STREAM, HUFFMAN + 1, 3), "overfull Huffman table|wrong Huffman table"),
        (changed(STREAM, HUFFMAN + 17, 16), "wrong Huffman symbol"),
        (changed(STREAM, segment(STREAM, 0xDB), 0x23), "wrong quantisation table"),
        (jpeg(progressive=True), "0xc2.*another kind"),
    ],
)
def test_broken_heads(stream, fault):
    assert re.search(fault, jpeg_fault(stream, max_side=1000))


@pytest.mark.parametrize("marker", [0x02, 0xB2, 0xC4, 0xD8, 0xDA, 0xE7])
def test_a_marker_within_the_picture(marker):
    at = len(STREAM) - 40
    broken = STREAM[:at] + bytes((0xFF, marker)) + STREAM[at + 2 :]
    assert jpeg_fault(broken) == f"marker {marker:#04x} within the picture data, at byte {at}"
    assert scan_fault(broken, head_length(STREAM)) == jpeg_fault(broken)


def test_tables_may_lie_elsewhere():
    """As in TIFF: one stream of tables for all tiles."""
    head, tables = STREAM[:2], b""
    at = 2
    while STREAM[at + 1] != 0xDA:
        length = 2 + int.from_bytes(STREAM[at + 2 : at + 4], "big")
        part = STREAM[at : at + length]
        tables, head = (tables + part, head) if part[1] in (0xC4, 0xDB) else (tables, head + part)
        at += length
    tile = head + STREAM[at:]
    assert jpeg_fault(tile) == "a quantisation table is missing"
    assert jpeg_fault(tile, tables=b"\xff\xd8" + tables + b"\xff\xd9") == ""
    assert jpeg_fault(tile, tables=b"junk") == "no JPEG stream begins here"


def test_what_is_let_through_is_drawn():
    """Whatever a flipped byte does, Pillow (libjpeg too) raises no error where nothing was found wrong."""
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(300):
        broken = changed(STREAM, int(rng.integers(len(STREAM))), int(rng.integers(256)))
        if jpeg_fault(broken, max_side=64):
            continue
        passed += 1
        with Image.open(io.BytesIO(broken)) as image:
            image.load()
    assert passed > 100
