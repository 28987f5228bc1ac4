"""Do label maps lie on the edges that they outline? Circulating copies are off by up to a pixel."""

import io

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Float32, Integer, UInt8
from PIL import Image

_REACH = 2  # largest shift tried, pixels
_SMOOTH = 1.0  # standard deviation, pixels: takes the noise of JPEG blocks
_LEAST_OBJECTS = 100  # with fewer, chance decides
_LEAST_CONTRAST = 1.0  # grey levels a pixel across the outlines; below there are no edges to speak of
TOLERANCE_PX = 0.5


class Alignment:
    """Contrast across the outlines of many images, for every small shift of the label maps."""

    def __init__(self):
        self._contrast = np.zeros((2 * _REACH + 1, 2 * _REACH + 1))  # at [_REACH + dy, _REACH + dx]
        self._faces = 0
        self._objects = 0

    def add(self, content: bytes, labels: Integer[np.ndarray, "h w"]) -> None:
        """Take in an image (PNG or JPEG) and its label map, 0 = background, objects darker than it."""
        with Image.open(io.BytesIO(content)) as image:
            grey = _grey(np.asarray(image))
        inside = (labels > 0).astype(np.int8)
        for axis in (0, 1):
            step = np.diff(grey, axis=axis)  # from a pixel to the next: face (i, j) lies between them
            outward = -np.diff(inside, axis=axis)
            rows, columns = np.nonzero(outward)
            fits = (np.minimum(rows, columns) >= _REACH) & (rows < step.shape[0] - _REACH)
            fits &= columns < step.shape[1] - _REACH
            rows, columns = rows[fits], columns[fits]
            sign = outward[rows, columns]
            self._faces += len(rows)
            for dy in range(-_REACH, _REACH + 1):
                for dx in range(-_REACH, _REACH + 1):
                    self._contrast[_REACH + dy, _REACH + dx] += float(sign @ step[rows + dy, columns + dx])
        self._objects += int(labels.max(initial=0))

    def offset_px(self) -> Float[np.ndarray, "2"] | None:
        """How far right of and below the edges the outlines lie, x and y; None where that cannot be told."""
        row, column = np.unravel_index(int(self._contrast.argmax()), self._contrast.shape)
        if self._objects < _LEAST_OBJECTS or self._contrast.max() < _LEAST_CONTRAST * self._faces:
            return None
        best = np.array([column + _vertex(self._contrast[row], int(column)), 0.0])
        best[1] = row + _vertex(self._contrast[:, column], int(row))
        return _REACH - best  # moved by `best`, they lie on the edges


def _grey(pixels: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
    return scipy.ndimage.gaussian_filter(pixels.mean(axis=2, dtype=np.float32), _SMOOTH)


def _vertex(values: Float[np.ndarray, "k"], k: int) -> float:
    """Where, from k, the parabola through the largest value and its neighbours is highest."""
    if not 0 < k < len(values) - 1:
        return 0.0
    low, high = values[k - 1], values[k + 1]
    bend = low - 2 * values[k] + high
    return float((low - high) / (2 * bend)) if bend < 0 else 0.0
