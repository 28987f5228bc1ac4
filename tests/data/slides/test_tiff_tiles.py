import struct

import numpy as np
import pytest
import tifffile

from sparseshot_jax.data.slides.backends import open_fastslide
from sparseshot_jax.data.slides.pyramid import write_pyramid
from sparseshot_jax.data.slides.slide import open_slide
from sparseshot_jax.data.slides.tiff_tiles import DamagedTile, JpegTiles
from sparseshot_jax.types import Window

SIZES = ((300, 200), (150, 100), (75, 50))


@pytest.fixture
def pyramid(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    path = tmp_path / "s.tiff"
    write_pyramid(path, lambda x, y, w, h: image[y : y + h, x : x + w], 300, 200, mpp=0.5, tile_px=96)
    return path


def directories(path):
    with tifffile.TiffFile(path) as tiff:
        return [(page.dataoffsets, page.databytecounts) for page in tiff.pages]


def test_offsets_are_those_that_tifffile_finds(pyramid):
    tiles = JpegTiles(str(pyramid), SIZES)
    for level, (offsets, counts) in zip(tiles._levels, directories(pyramid)):
        np.testing.assert_array_equal(level.offsets, offsets)
        np.testing.assert_array_equal(level.counts, counts)
        assert level.tile == (96, 96)
    assert not tiles.sparse


@pytest.mark.parametrize("bad", [(0, 0), (1, 0), (2, 3), (0, 3)])
def test_only_the_tiles_of_the_region_are_looked_at(pyramid, bad):
    row, column = bad
    offsets, _ = directories(pyramid)[0]
    data = bytearray(pyramid.read_bytes())
    at = offsets[4 * row + column]  # 300 / 96: four tiles a row
    data[at : at + 2] = b"\0\0"
    pyramid.write_bytes(data)
    tiles = JpegTiles(str(pyramid), SIZES)
    x0, y0 = 96 * column, 96 * row
    right, bottom = min(x0 + 96, 300), min(y0 + 96, 200)
    for x, y, w, h in (
        (0, 0, x0, 200),
        (0, 0, 300, y0),
        (right, 0, 300 - right, 200),
        (0, bottom, 300, 200 - bottom),
    ):
        if w and h:
            tiles.check(0, x, y, w, h)
    tiles.check(1, 0, 0, 150, 100)
    for x, y in ((x0, y0), (right - 1, bottom - 1)):
        with pytest.raises(DamagedTile, match=rf"row {row}, column {column} is damaged \(no JPEG"):
            tiles.check(0, x, y, 1, 1)


def test_a_tile_is_looked_at_again_once_the_file_is_written_to(pyramid):
    tiles = JpegTiles(str(pyramid), SIZES)
    tiles.check(0, 0, 0, 300, 200)
    offsets, _ = directories(pyramid)[0]
    with pyramid.open("r+b") as file:
        file.seek(offsets[0])
        file.write(bytes(50))
    with pytest.raises(DamagedTile, match="row 0, column 0"):
        tiles.check(0, 0, 0, 300, 200)


def test_a_file_cut_short(pyramid):
    tiles = JpegTiles(str(pyramid), SIZES)
    offsets, counts = directories(pyramid)[0]
    with pyramid.open("r+b") as file:
        file.truncate(offsets[-1] + counts[-1] // 2)
    with pytest.raises(DamagedTile, match=r"row 2, column 3 is damaged \(the file ends within it"):
        tiles.check(0, 299, 199, 1, 1)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("rows", [None, 16])
def test_other_layouts(tmp_path, bigtiff, byteorder, rows):
    """Deflate tiles and strips are none of ours; the same directories marked as JPEG are."""
    image = np.zeros((70, 50, 3), np.uint8)
    layout = {"rowsperstrip": rows} if rows else {"tile": (32, 32)}
    path = tmp_path / "t.tif"
    tifffile.imwrite(
        path, image, bigtiff=bigtiff, byteorder=byteorder, photometric="rgb", compression="zlib", **layout
    )
    assert JpegTiles(str(path), [(50, 70)])._levels == [None]
    data = path.read_bytes()
    tag = struct.pack(f"{byteorder}HH", 259, 3)
    at = data.index(tag) + len(tag) + (8 if bigtiff else 4)
    path.write_bytes(data[:at] + struct.pack(f"{byteorder}H", 7) + data[at + 2 :])
    tiles = JpegTiles(str(path), [(50, 70)])
    assert tiles._levels[0].tile == ((50, 16) if rows else (32, 32))
    with tifffile.TiffFile(path) as tiff:
        np.testing.assert_array_equal(tiles._levels[0].offsets, tiff.pages[0].dataoffsets)
    with pytest.raises(DamagedTile):
        tiles.check(0, 0, 0, 1, 1)


@pytest.mark.parametrize("data", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"no tiff at all, but a text"])
def test_no_tiff(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    tiles = JpegTiles(str(tmp_path / "x"), SIZES)
    tiles.check(0, 0, 0, 300, 200)
    assert not tiles.sparse


def test_broken_directories_leave_the_file_to_its_reader(pyramid):
    data = pyramid.read_bytes()
    rng = np.random.default_rng(0)
    start = max(map(max, (offsets for offsets, _ in directories(pyramid))))
    for _ in range(200):
        broken = bytearray(data)
        for at in rng.integers(start, len(data), 4):
            broken[at] = rng.integers(256)
        pyramid.write_bytes(broken)
        tiles = JpegTiles(str(pyramid), SIZES)
        try:
            for level, (width, height) in enumerate(SIZES):
                tiles.check(level, 0, 0, width, height)
        except DamagedTile:
            pass


def test_a_slide_with_tiles_left_out_goes_to_openslide(pyramid):
    data = bytearray(pyramid.read_bytes())
    counts = directories(pyramid)[0][1]
    table = struct.pack(f"<{len(counts)}Q", *counts)
    at = data.index(table) + 8 * 5
    data[at : at + 8] = bytes(8)
    pyramid.write_bytes(data)
    assert JpegTiles(str(pyramid), SIZES).sparse
    with pytest.raises(Exception, match="left out"):
        open_fastslide(str(pyramid))
    slide = open_slide(pyramid)
    assert slide._backend == "openslide"
    slide.read(Window(x_px=0, y_px=0, width=96, height=96))


def test_a_scanner_file(shared_data):
    path = str(shared_data / "slides" / "CMU-1-Small-Region.svs")
    tiles = JpegTiles(path, [(2220, 2967)])
    assert tiles._levels[0].tables  # in a tag of their own
    tiles.check(0, 0, 0, 2220, 2967)
    assert tiles._levels[0].sound.all()
