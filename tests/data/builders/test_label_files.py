import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparseshot_jax.data.builders.label_files import read_mask_or_labels, read_text_mask
from sparseshot_jax.errors import InputError


def test_text_runs_along_the_rows(tmp_path):
    (tmp_path / "a.txt").write_text("5 4\n" + "\n".join("00000011001120002220"))
    assert read_text_mask(tmp_path / "a.txt").tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [1, 1, 2, 0, 0],
        [0, 2, 2, 2, 0],
    ]


@pytest.mark.parametrize("text", ["2 1\r\n7\r\n0\r\n", "2,1\n7,0", "2 1\n7 0\n\n"])
def test_text_of_other_separators(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert read_text_mask(tmp_path / "a.csv").tolist() == [[7, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: must be 'width height'"),
        ("5\n1\n", r"line 1: must be 'width height'"),
        ("a b\n1\n", r"line 1: must be 'width height'"),
        ("0 4\n", r"line 1: width and height must be at least 1; got 0 and 4"),
        ("2 2\n1\n2\n3\n", r"must hold 2 x 2 = 4 labels after its first line; it holds 3"),
        ("2 1\n1\n2\n3\n", r"it holds 3"),
        ("2 1\n1\nx\n", r"labels must be whole numbers"),
        ("2 1\n1\n1.5\n", r"labels must be whole numbers"),
        ("1000000 1000000\n1\n", r"1000000000000 labels after its first line; it holds 1"),
    ],
)
def test_broken_text(tmp_path, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=r"a\.txt.*" + message):
        read_text_mask(tmp_path / "a.txt")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=60) | st.text("0123456789 -.\n", max_size=30).map(str.encode))
def test_any_text_reads_or_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert read_text_mask(path).ndim == 2


def test_a_mask_is_split_and_a_label_map_is_not(tmp_path):
    mask = np.zeros((6, 9), np.uint8)
    mask[0, 0:2] = mask[1, 2] = mask[4, 4] = 200
    Image.fromarray(mask).save(tmp_path / "mask.png")
    split = read_mask_or_labels(tmp_path / "mask.png")
    assert len(np.unique(split)) == 3
    assert split[0, 0] == split[1, 2] != split[4, 4]
    mask[4, 4] = 7
    Image.fromarray(mask).save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_mask_or_labels(tmp_path / "map.png"), mask)


def test_a_broken_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
        read_mask_or_labels(tmp_path / "a.png")
