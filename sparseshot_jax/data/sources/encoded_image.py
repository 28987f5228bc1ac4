"""An image that stays as the bytes of its file until it is read."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sparseshot_jax.data.slides.backends import FAILURES
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window


class EncodedSlide:
    """A small image held encoded (PNG, JPEG): a `Slide`, decoded at every read, that pickles small.

    Args:
        encoded: the bytes of an image file.
        name: what to call it in a message.
        mpp: micrometres a pixel; None = unknown.

    Raises:
        InputError: the bytes are no image.
    """

    path: str = ""  # there is no file to open
    downsamples: tuple[float, ...] = (1.0,)

    def __init__(self, encoded: bytes, *, name: str, mpp: float | None = None):
        self.name, self.mpp = name, mpp
        self._encoded = encoded
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                self.width, self.height = image.size
        except FAILURES as error:
            raise self._broken(error) from error

    def read(self, window: Window) -> UInt8[np.ndarray, "h w 3"]:
        """See `Slide.read`."""
        try:
            with Image.open(io.BytesIO(self._encoded)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except FAILURES as error:
            raise self._broken(error) from error
        return ArraySlide(pixels, mpp=self.mpp, path=self.name).read(window)

    def _broken(self, error: Exception) -> InputError:
        return InputError(
            f"{self.name}: the stored image must be a whole PNG or JPEG file; {len(self._encoded)} bytes "
            f"cannot be decoded: {error}. Delete the data set's folder under data_dir, and build it again."
        )
