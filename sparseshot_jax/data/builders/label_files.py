"""Label maps in the files of the published data sets: picture, text, MATLAB."""

import warnings
from pathlib import Path

import numpy as np
import scipy.ndimage
from jaxtyping import Int32, Integer
from PIL import Image

from sparseshot_jax.data.builders.pictures import dense_labels
from sparseshot_jax.data.formats.hovernet_mat import read_instances
from sparseshot_jax.errors import InputError

MAX_TEXT_BYTES = 1 << 28  # a mask of 1000 x 600 pixels is 2 MB of text

_EIGHT = np.ones((3, 3), int)  # pixels that touch at a corner belong together


def read_mask_or_labels(path: Path) -> Int32[np.ndarray, "h w"]:
    """A picture that is either a label map or a mask of one value beside 0.

    A mask's objects are its connected pixels, corners included. (A label map with one object only cannot
    be told from a mask; its pieces would become objects.) An alpha channel is dropped.

    Raises:
        InputError: the file cannot be read, or its channels differ.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                values = np.asarray(image)
    except Exception as error:  # a broken file raises whatever its bytes lead Pillow's decoders to
        raise InputError(
            f"{path}: cannot be read as an image: {error}. Unpack the published archive again."
        ) from error
    if values.ndim == 3:
        colour = values[..., : values.shape[2] - 1] if values.shape[2] in (2, 4) else values
        if (colour != colour[..., :1]).any():
            raise InputError(
                f"{path}: must be a mask or a label map of one channel; its colour channels differ. "
                "Take the published file, not a rendering of it."
            )
        values = colour[..., 0]
    labels = values.astype(np.int32)
    if len(np.unique(labels[labels != 0])) == 1:
        scipy.ndimage.label(labels, _EIGHT, output=labels)
    return labels


def text_size(path: Path) -> tuple[int, int]:
    """Width and height as the first line of a text mask gives them.

    Raises:
        InputError: the first line is no such pair.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(200).replace(b",", b" ").split()
        width, height = (int(word) for word in line)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}, line 1: must be 'width height', two whole numbers: {error}.") from error
    if width < 1 or height < 1:
        raise InputError(f"{path}, line 1: width and height must be at least 1; got {width} and {height}.")
    return width, height


def read_text_mask(path: Path) -> Integer[np.ndarray, "h w"]:
    """A label map as text: a line 'width height', then a label a pixel, row by row from the top.

    Raises:
        InputError: the file is too large, holds something that is no number, or too few or many of them.
    """
    width, height = text_size(path)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise InputError(f"{path}: must be at most {MAX_TEXT_BYTES} bytes; it has {path.stat().st_size}.")
    words = path.read_bytes().replace(b",", b" ").split()[2:]
    if len(words) != width * height:
        raise InputError(
            f"{path}: must hold {width} x {height} = {width * height} labels after its first line; it holds "
            f"{len(words)}. Unpack the published archive again."
        )
    try:
        labels = np.array(words, dtype="S12").astype(np.int64)
    except ValueError as error:
        raise InputError(f"{path}: labels must be whole numbers: {error}.") from error
    return labels.reshape(height, width)


def read_matlab(path: Path) -> tuple[Int32[np.ndarray, "h w"], Int32[np.ndarray, "n"] | None]:
    """inst_map renumbered 1..n, and each nucleus's type (None where the file has no types).

    Raises:
        InputError: see `read_instances`.
    """
    arrays = read_instances(path)
    return dense_labels(arrays["inst_map"])[0], arrays.get("inst_type")
