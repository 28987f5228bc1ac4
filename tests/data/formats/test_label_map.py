import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.label_map import (
    hidden,
    label_map_to_annotations,
    read_label_map,
    write_label_map,
)
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window


def redrawn(annotations, shape):
    return rasterize(annotations, Window(x_px=0, y_px=0, width=shape[1], height=shape[0]))


def renumbered(array):
    """Labels 1, 2, ... in their order."""
    labels = np.unique(array[array > 0])
    return np.where(array > 0, np.searchsorted(labels, array) + 1, 0)


def assert_comes_back(path):
    array = np.asarray(Image.open(path))
    again = redrawn(read_label_map(path), array.shape)
    np.testing.assert_array_equal(again, renumbered(array))


def real_maps(shared_data):
    paths = sorted(shared_data.glob("tnbc/instances/*.png"))
    return paths, sorted(shared_data.glob("kumar/instances/*.png"))


def test_some_real_label_maps_come_back(shared_data):
    tnbc, kumar = real_maps(shared_data)
    for path in [*tnbc[::6], kumar[0]]:
        assert_comes_back(path)


@pytest.mark.slow
def test_all_real_label_maps_come_back(shared_data):
    tnbc, kumar = real_maps(shared_data)
    assert len(tnbc) == 37
    assert len(kumar) == 30
    for path in [*tnbc, *kumar]:
        assert_comes_back(path)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9, 1.0])
def test_noise_comes_back(density):
    """Single pixels, diagonal neighbours, holes, scattered parts, objects on every border."""
    rng = np.random.default_rng(int(density * 10))
    array = np.where(rng.random((37, 53)) < density, rng.integers(1, 9, (37, 53)), 0)
    found = label_map_to_annotations(array)
    np.testing.assert_array_equal(redrawn(found, array.shape), renumbered(array))
    assert len(found) == 8


def test_objects_follow_the_order_of_the_labels():
    array = np.zeros((6, 9), np.uint16)
    array[0:2, 5:8] = 300
    array[3:6, 1:3] = 40000
    array[5, 8] = 7
    found = label_map_to_annotations(array, "nucleus", source="x.png")
    np.testing.assert_array_equal(found.centroids_px, [[8.5, 5.5], [6.5, 1.0], [2.0, 4.5]])
    assert found.class_names == ("nucleus",)
    assert found.source == "x.png"


def test_a_hole_is_no_area():
    array = np.ones((7, 7), np.int32)
    array[2:5, 2:5] = 0
    # Each outline cuts its four corners by 1/8 pixel.
    assert label_map_to_annotations(array).areas_px[0] == (49 - 0.5) - (9 - 0.5)


def test_straight_sides_have_no_vertices_within():
    found = label_map_to_annotations(np.ones((40, 50), np.uint8))
    assert len(found.xy_px) == 8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_files(tmp_path, dtype, suffix):
    array = np.zeros((5, 8), dtype)
    array[1:3, 2:6] = 200
    path = tmp_path / f"a{suffix}"
    Image.fromarray(array).save(path)
    found = read_label_map(path, class_name="nucleus")
    np.testing.assert_array_equal(redrawn(found, array.shape), array > 0)
    assert found.class_names == ("nucleus",)
    assert found.source == str(path)


def test_a_32_bit_tiff(tmp_path):
    array = np.full((4, 4), 100_000, np.uint32)
    tifffile.imwrite(tmp_path / "a.tiff", array)
    assert len(read_label_map(tmp_path / "a.tiff")) == 1


def test_an_empty_map_gives_no_objects_and_a_note(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    found = read_label_map(tmp_path / "a.png")
    assert len(found) == 0
    assert found.notes == ("The file holds no object.",)


def test_what_is_no_label_map_is_refused(tmp_path):
    rgb, mask, real, signed = (tmp_path / f"{name}.tif" for name in ("rgb", "mask", "real", "signed"))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(rgb.with_suffix(".png"))
    with pytest.raises(InputError, match=r"rgb\.png: must be a label map.*\(4, 4, 3\).*0 for background"):
        read_label_map(rgb.with_suffix(".png"))
    Image.fromarray(np.diag([0, 255]).astype(np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"mask of 0 and 255.*ndimage\.label"):
        read_label_map(mask)
    tifffile.imwrite(real, np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match="float32"):
        read_label_map(real)
    tifffile.imwrite(signed, np.full((4, 4), -1, np.int32))
    with pytest.raises(InputError, match="labels must be 0 or more; the least is -1"):
        read_label_map(signed)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_broken_and_missing_files(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_label_map(path)
    Image.fromarray(np.arange(40_000, dtype=np.uint16).reshape(200, 200)).save(path)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"no image", b""):
        path.write_bytes(part)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InputError, match="cannot be read as an image"):
                read_label_map(path)


def test_npy_files(tmp_path):
    array = np.zeros((5, 8), np.int64)
    array[1:3, 2:6] = 70_000
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(redrawn(read_label_map(tmp_path / "a.npy"), array.shape), array > 0)
    np.save(tmp_path / "f.npy", np.asfortranarray(array))
    np.testing.assert_array_equal(redrawn(read_label_map(tmp_path / "f.npy"), array.shape), array > 0)


def test_labels_beyond_a_table_are_the_same(tmp_path):
    array = np.zeros((5, 8), np.uint32)
    array[1:3, 2:6], array[4] = 4_000_000_000, 3
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(redrawn(read_label_map(tmp_path / "a.npy"), array.shape), renumbered(array))


def npy(shape, descr="'<i4'"):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("(1000000, 1000000)"), "at most 1,073,741,824 bytes.*needs 4,000,000,000,000"),
        (npy("(3, 3)") + b"1234", "cut off"),
        (npy("(3, 3)", "'|O'"), "Python objects"),
        (npy("(3, 3"), "cannot be read as an image"),
        (npy("(-3, 3)"), "cannot be read as an image|must be a label map"),
        (npy("(2, 2)", "[('a', '<i4')]") + b"0" * 16, "must be a label map"),
        (npy("(2, 2)", "'<f4'") + b"0" * 16, "float32"),
        (npy("(" * 5000), "cannot be read as an image"),
        (b"\x93NUMPY\x03\x00", "cannot be read as an image"),
        (b"", "cannot be read as an image"),
    ],
)
def test_broken_npy_files(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_label_map(tmp_path / "a.npy")


def png(width, height):
    """A PNG of 16-bit grey that claims a size and holds a few rows of nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_a_png_that_claims_to_be_huge_is_refused_unread(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10**6, 10**6))
    with pytest.raises(InputError, match=r"a\.png: claims more pixels .* \(1000000000000 pixels\)"):
        read_label_map(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(3000, 1000))
    with pytest.raises(InputError, match=r"at most 1,000,000 bytes.*\(1000, 3000\) needs 12,000,000"):
        read_label_map(tmp_path / "b.png", max_bytes=1_000_000)


def test_a_tiff_that_claims_to_be_huge_is_refused_unread(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint16), compression="zlib")
    with pytest.raises(InputError, match=r"at most 1,000 bytes.*\(64, 64\) needs 8,192"):
        read_label_map(tmp_path / "a.tif", max_bytes=1000)


def objects():
    squares = [[[x, 2], [x + 6, 2], [x + 6, 7], [x, 7]] for x in (1, 10, 14)]
    hole = [[3, 3], [4, 3], [4, 5], [3, 5]]
    return Annotations.from_polygons([[squares[0], hole], [squares[1]], [squares[2]]], "a")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_written_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_label_map(path, objects(), Picture(width=20, height=9))
    array = {".png": Image.open, ".tif": tifffile.imread, ".npy": np.load}[suffix](path)
    array = np.asarray(array)
    assert array.dtype == np.uint16
    assert array.shape == (9, 20)
    assert array[2, 1:7].tolist() == [1] * 6
    assert array[3:5, 3].tolist() == [0, 0]  # the hole
    assert array[2, 9:].tolist() == [0, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]  # the later object wins
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert hidden(objects(), Picture(width=20, height=9)) == 1


def test_what_cannot_be_written(tmp_path):
    known = Picture(width=20, height=9)
    many = Annotations.from_boxes(np.tile([0, 0, 1, 1], (65_536, 1)))
    for path, annotations, picture, message in [
        ("a.png", Annotations.from_points([[1, 2]]), known, "a label map has no points; got 1"),
        ("a.png", objects(), Picture(), "width and height must be known"),
        ("a.png", objects(), Picture(width=10**6, height=10**6), "1 to 268,435,456 pixels"),
        ("a.jpg", objects(), known, r"must end in \.png, \.tif"),
        ("a.png", many, known, "room for 65,535 objects; got 65,536"),
    ]:
        with pytest.raises(InputError, match=message):
            write_label_map(tmp_path / path, annotations, picture)
    assert list(tmp_path.iterdir()) == []
    write_label_map(tmp_path / "a.npy", many, known)
    assert np.load(tmp_path / "a.npy").max() == 65_536
