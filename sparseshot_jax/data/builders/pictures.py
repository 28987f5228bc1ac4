"""Images and label maps of the published data sets as the bytes that a record keeps."""

import dataclasses
import io
import warnings
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32, Integer, UInt8
from PIL import Image

from sparseshot_jax.errors import InputError

_KEPT = ("PNG", "JPEG")
_CONVERTED = ("RGB", "RGBA", "P", "L", "1", "CMYK", "YCbCr", "LA")  # 8 bits a channel, as RGB without loss
_MAX_LABELS = 65535


class EncodedImage(tfds.features.Image):
    """An image feature that Pillow decodes, whether or not OpenCV is there: 16 bits, and equal pixels."""

    def decode_example_np(self, example: bytes) -> np.ndarray:
        """Encoded bytes to an array [h, w, c]."""
        with Image.open(io.BytesIO(example)) as image:
            pixels = np.asarray(image).astype(self._dtype, copy=False)
        return pixels if pixels.ndim == 3 else pixels[..., None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """An image as it is stored, and what has to be known of it without decoding."""

    content: bytes  # PNG or JPEG
    width: int  # pixels
    height: int


def encoded_rgb(path: Path) -> Encoded:
    """The bytes of an 8-bit RGB image: the file's own if it is PNG or JPEG, else a lossless PNG.

    What a file is, its content says and not its name: TNBC's release has JPEG data under .png names. An
    alpha channel is dropped.

    Raises:
        InputError: the file is no image, is cut off, or has more than 8 bits a channel.
    """
    try:
        content = path.read_bytes()
        with warnings.catch_warnings():
            # Beyond twice the size of this warning Pillow refuses by itself.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                kept = image.format in _KEPT and image.mode == "RGB"
                if image.mode not in _CONVERTED:
                    raise InputError(
                        f"{path}: must be an image of 8 bits a channel; it is of Pillow's mode {image.mode}. "
                        "Convert it to RGB."
                    )
                if not kept:
                    content = png(image.convert("RGB"))
                return Encoded(content=content, width=image.width, height=image.height)
    except InputError:
        raise
    except Exception as error:  # a broken file raises whatever its bytes lead Pillow's decoders to
        raise InputError(
            f"{path}: cannot be read as an image: {error}. Unpack the published archive again."
        ) from error


def read_pixels(path: Path) -> UInt8[np.ndarray, "h w c"]:
    """All pixels of an 8-bit image as RGB.

    Raises:
        InputError: see `encoded_rgb`.
    """
    with Image.open(io.BytesIO(encoded_rgb(path).content)) as image:
        return np.asarray(image)


def encoded_labels(labels: Integer[np.ndarray, "h w"]) -> bytes:
    """A label map of 0..65535 as 16-bit PNG."""
    return png(Image.fromarray(np.ascontiguousarray(labels, np.uint16)))


def dense_labels(
    labels: Integer[np.ndarray, "h w"],
) -> tuple[Int32[np.ndarray, "h w"], Integer[np.ndarray, "n"]]:
    """The label map renumbered 1..n in ascending order of its labels, and those labels.

    >>> dense_labels(np.array([[0, 7], [3, 7]]))
    (array([[0, 2],
           [1, 2]], dtype=int32), array([3, 7]))
    """
    found = np.unique(labels)
    found = found[found != 0]
    dense = np.where(labels == 0, 0, np.searchsorted(found, labels) + 1)
    return dense.astype(np.int32), found


def check_labels(labels: Integer[np.ndarray, "h w"], image: Encoded, path: Path) -> None:
    """A label map must have its image's size, and labels that fit 16 bits.

    Raises:
        InputError: it does not.
    """
    height, width = labels.shape
    if (width, height) != (image.width, image.height):
        raise InputError(
            f"{path}: a label map must have its image's size; it is {width} x {height}, and the image is "
            f"{image.width} x {image.height} (width x height). Unpack the published archive again."
        )
    if labels.size and (labels.min() < 0 or labels.max() > _MAX_LABELS):
        raise InputError(
            f"{path}: labels must be between 0 and {_MAX_LABELS}; got {labels.min()} to {labels.max()}."
        )


def png(image: Image.Image) -> bytes:
    """An image as PNG bytes."""
    buffer = io.BytesIO()
    # Level 1 is 10 % larger than Pillow's 6 on H&E and several times faster.
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
