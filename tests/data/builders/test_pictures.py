import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.builders.pictures import (
    EncodedImage,
    dense_labels,
    encoded_labels,
    encoded_rgb,
    read_pixels,
)
from sparseshot_jax.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def decoded(content):
    with Image.open(io.BytesIO(content)) as image:
        return image.format, np.asarray(image)


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.png", "JPEG"), ("a.jpg", "JPEG")])
def test_png_and_jpeg_keep_their_bytes_whatever_their_name(tmp_path, name, kind):
    Image.fromarray(PIXELS).save(tmp_path / name, format=kind)
    image = encoded_rgb(tmp_path / name)
    assert image.content == (tmp_path / name).read_bytes()
    assert (image.width, image.height) == (17, 12)


@pytest.mark.parametrize("name", ["a.tif", "a.bmp"])
def test_others_become_png_without_loss(tmp_path, name):
    Image.fromarray(PIXELS).save(tmp_path / name)
    kind, pixels = decoded(encoded_rgb(tmp_path / name).content)
    assert kind == "PNG"
    np.testing.assert_array_equal(pixels, PIXELS)
    np.testing.assert_array_equal(read_pixels(tmp_path / name), PIXELS)


def test_alpha_is_dropped(tmp_path):
    alpha = np.zeros((12, 17, 1), np.uint8)
    Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), PIXELS)


def test_grey_becomes_three_channels(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), np.repeat(PIXELS[..., :1], 3, axis=2))


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: must be an image of 8 bits a channel; .*I;16"):
        encoded_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_broken(tmp_path, content):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:300] if content is None else content)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
        encoded_rgb(tmp_path / "a.png")


def test_a_picture_that_claims_a_million_by_a_million(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
        encoded_rgb(tmp_path / "a.png")


def test_missing(tmp_path):
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        encoded_rgb(tmp_path / "a.png")


def test_labels_of_sixteen_bits_come_back():
    labels = np.array([[0, 1, 256], [65535, 300, 7]])
    feature = EncodedImage(shape=(None, None, 1), dtype=np.uint16, encoding_format="png")
    back = feature.decode_example_np(encoded_labels(labels))
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, labels[..., None])


def test_dense_labels_keep_the_order():
    dense, found = dense_labels(np.array([[900, 0, 3], [3, 41, 900]]))
    assert dense.tolist() == [[3, 0, 1], [1, 2, 3]]
    assert found.tolist() == [3, 41, 900]


def test_dense_labels_of_nothing():
    dense, found = dense_labels(np.zeros((2, 3), np.int64))
    assert dense.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert len(found) == 0
