"""Whole slides and plain images behind one reader: any place, any resolution, RGB."""

import math
import os
import threading
import time
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sparseshot_jax.data.slides.backends import BACKENDS, FAILURES, Opened
from sparseshot_jax.data.slides.handles import HANDLES
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")

# A window that departs from a level's grid by less (in level pixels) is read without resampling.
_EXACT_PX = 1e-3

_READING: dict[int, tuple[str, float]] = {}  # what each thread of this process reads, and since when


@runtime_checkable
class Slide(Protocol):
    """An image of any size at any resolution. Picklable; `read` may be called from many threads."""

    path: str  # the file; "" for an image in memory
    width: int  # level-0 pixels
    height: int  # level-0 pixels
    mpp: float | None  # micrometres a level-0 pixel; None = unknown
    downsamples: tuple[float, ...]  # level-0 pixels per pixel of each stored level, finest first

    def read(self, window: Window) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels of a window; white outside the slide."""
        ...


class _Pyramid:
    """Reading from stored levels: choice of level, white outside, resampling."""

    path: str
    width: int
    height: int
    mpp: float | None
    downsamples: tuple[float, ...]
    _sizes: tuple[tuple[int, int], ...]

    def _describe(self, path: str, opened: Opened, mpp: float | None) -> None:
        self.path = path
        self.mpp = opened.mpp if mpp is None else mpp
        self._sizes = opened.level_sizes
        self.width, self.height = opened.level_sizes[0]
        self.downsamples = tuple(_downsample(self._sizes[0], size) for size in self._sizes)

    def _open(self) -> Opened:
        raise NotImplementedError

    def _reopened(self) -> Opened:
        """A handle of the caller's own."""
        return self._open()

    def _drop(self) -> None:
        """Keep no handle that has failed."""

    def read(self, window: Window) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels of a window, from the coarsest level that is at least as fine; white outside.

        A window whose pixels are a level's own is copied unchanged. Any other is resampled with
        Pillow's triangle filter, stretched to the output's pixel pitch: it averages over what an
        output pixel covers (no aliasing), samples at true sub-pixel positions (a box filter snaps
        to whole pixels), and does not overshoot at the edge of the tissue (Lanczos does).

        Raises:
            InputError: the file is damaged there, or the window is empty.
        """
        if window.width < 1 or window.height < 1 or not 0.0 < window.scale < math.inf:
            raise InputError(
                f"{self.path}: a window must have width and height >= 1 and a positive scale; got {window}."
            )
        level = self._level(window.scale)
        factor = self.downsamples[level]
        left, top = window.x_px / factor, window.y_px / factor
        step = window.scale / factor  # level pixels per output pixel
        x, y = round(left), round(top)
        drift = abs(step - 1.0) * max(window.width, window.height)
        if max(abs(left - x), abs(top - y), drift) < _EXACT_PX:
            return self._pixels(level, x, y, window.width, window.height)
        return self._resampled(level, left, top, step, window)

    def _level(self, scale: float) -> int:
        fine = [k for k, factor in enumerate(self.downsamples) if factor <= scale * 1.0001]
        return max(fine, key=lambda k: self.downsamples[k], default=0)

    def _resampled(self, level: int, left: float, top: float, step: float, window: Window) -> np.ndarray:
        right, bottom = left + window.width * step, top + window.height * step
        margin = max(step, 1.0) + 1.0  # the triangle reaches one output pitch beyond the window
        x, y = math.floor(left - margin), math.floor(top - margin)
        width, height = math.ceil(right + margin) - x, math.ceil(bottom + margin) - y
        source = Image.fromarray(self._pixels(level, x, y, width, height))
        box = (left - x, top - y, right - x, bottom - y)
        size = (window.width, window.height)
        return np.array(source.resize(size, Image.Resampling.BILINEAR, box=box))

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Stored pixels of one level; white outside it."""
        level_width, level_height = self._sizes[level]
        x0, x1 = max(x, 0), min(x + width, level_width)
        y0, y1 = max(y, 0), min(y + height, level_height)
        if x0 >= x1 or y0 >= y1:
            return np.full((height, width, 3), 255, np.uint8)
        inside = self._stored(level, x0, y0, x1 - x0, y1 - y0)
        if inside.shape == (height, width, 3):
            return inside
        canvas = np.full((height, width, 3), 255, np.uint8)
        canvas[y0 - y : y1 - y, x0 - x : x1 - x] = inside
        return canvas

    def _stored(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels inside a level; tried again with a new handle before the file is called damaged.

        OpenSlide refuses every read after one that failed, from other threads too: without the second
        attempt, what can be read would depend on what was read before.
        """
        thread = threading.get_ident()
        _READING[thread] = self.path, time.monotonic()
        try:
            return self._open().read(level, x, y, width, height)
        except FAILURES:
            self._drop()
        finally:
            _READING.pop(thread, None)
        try:
            return self._reopened().read(level, x, y, width, height)
        except FAILURES as error:
            raise InputError(
                f"{self.path}: level {level}, x {x}..{x + width}, y {y}..{y + height} (pixels of that "
                f"level) cannot be read: {_first_line(error)}. The file is damaged or incomplete: copy "
                "or export it again."
            ) from error


class ArraySlide(_Pyramid):
    """An image in memory, read like a slide."""

    def __init__(self, image: UInt8[np.ndarray, "h w 3"], mpp: float | None = None, path: str = ""):
        self.image = image
        size = (image.shape[1], image.shape[0])
        self._describe(path, Opened(level_sizes=(size,), mpp=mpp, read=self._crop), mpp)

    def _crop(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self.image[y : y + height, x : x + width]

    def _open(self) -> Opened:
        return Opened(level_sizes=self._sizes, mpp=self.mpp, read=self._crop)


class FileSlide(_Pyramid):
    """A file, opened anew by each process that reads it; made by `open_slide`."""

    def __init__(self, path: str, backend: str, mpp: float | None = None):
        self._backend = backend
        self.path = path
        opened = BACKENDS[backend](path)
        self.bounds = opened.bounds  # x, y, width, height of the scanned part; None = all, or unknown
        self._describe(path, opened, mpp)
        HANDLES.put((path, backend), opened)

    def close(self) -> None:
        """Keep the file open no longer in this process; a later read opens it again."""
        HANDLES.drop((self.path, self._backend))

    def _open(self) -> Opened:
        # Threads that race open the file twice, and one handle is dropped.
        handle = HANDLES.get((self.path, self._backend))
        if handle is None:
            handle = BACKENDS[self._backend](self.path)
            HANDLES.put((self.path, self._backend), handle)
        return self._same(handle)

    def _reopened(self) -> Opened:
        return self._same(BACKENDS[self._backend](self.path))

    def _drop(self) -> None:
        self.close()

    def _same(self, handle: Opened) -> Opened:
        if handle.level_sizes != self._sizes:
            self.close()
            raise InputError(
                f"{self.path}: has other levels than when it was opened: it was replaced, or a forked "
                "process cannot read this format. Open it again, or spawn the process."
            )
        return handle

    def __repr__(self) -> str:
        return f"FileSlide({self.path!r}, {self.width} x {self.height}, mpp {self.mpp})"


def open_slide(path: str | os.PathLike[str], *, mpp: float | None = None) -> FileSlide:
    """Open a whole slide or a plain image.

    Slides go to fastslide, what it cannot open to OpenSlide, plain images to Pillow. The last pixel
    of every level is read at once, so that an incomplete file fails here and not an hour later.

    Args:
        path: any file of those three libraries.
        mpp: micrometres a level-0 pixel, in place of the file's own.

    Raises:
        InputError: no such file, not an image, damaged, or not 8-bit RGB.
    """
    path = os.fspath(path)
    if mpp is not None and not 0.0 < mpp < math.inf:
        raise InputError(f"{path}: mpp must be a positive number of micrometres a pixel; got {mpp}.")
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file. Check the name and the folder.")
    plain = Path(path).suffix.lower() in IMAGE_SUFFIXES
    reasons = []
    for backend in ["image"] if plain else list(BACKENDS):
        try:
            slide = FileSlide(path, backend, mpp)
            for level, (width, height) in enumerate(slide._sizes):
                slide._open().read(level, width - 1, height - 1, 1, 1)
            return slide
        except FAILURES as error:
            reasons.append(f"{backend}: {_first_line(error)}")
    raise InputError(
        f"{path}: must be a whole slide or a plain image, 8-bit RGB, complete, and (where it is no "
        f"pyramid) below 89 megapixels. It cannot be read ({'; '.join(reasons)}). "
        "If it is a slide, copy or export it again; if it is another format, convert it to a "
        "pyramidal TIFF."
    )


def slowest_read() -> tuple[str, float]:
    """Path and seconds so far of the read in this process that began first; "" = none goes on."""
    path, began = min(_READING.copy().values(), key=lambda read: read[1], default=("", 0.0))
    return path, time.monotonic() - began


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Level-0 pixels per level pixel: the whole number behind rounded sizes, else the mean ratio.

    A level of 313 rows below 2500 is a reduction by 8, not by 7.99: taken literally, its last row
    would lie several pixels off.
    """
    ratio = (full[0] / size[0] + full[1] / size[1]) / 2.0
    whole = round(ratio)
    if all(n in (f // whole, -(-f // whole)) for f, n in zip(full, size)):
        return float(whole)
    return ratio


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
