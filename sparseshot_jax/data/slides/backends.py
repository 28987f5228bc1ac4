"""The libraries that decode slides and images, behind one small face."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from typing import Any

import fastslide
import numpy as np
import openslide
from jaxtyping import UInt8
from PIL import Image

from sparseshot_jax.data.slides.tiff_tiles import DamagedTile, JpegTiles

Read = Callable[[int, int, int, int, int], UInt8[np.ndarray, "h w 3"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """An open file: what a backend must give."""

    level_sizes: tuple[tuple[int, int], ...]  # (width, height) of each level, finest first
    mpp: float | None  # micrometres a level-0 pixel; None = the file does not say
    read: Read  # (level, x, y, width, height), level pixels, wholly inside the level; thread-safe
    bounds: tuple[int, int, int, int] | None = None  # x, y, width, height of the scanned part, level-0
    # pixels; None = all of it, or the file does not say
    nbytes: int = 0  # held in memory for as long as the file is open


class NotReadable(Exception):
    """A backend opened the file, and what it holds is no 8-bit colour image."""


# What the three libraries raise for a file that they cannot use.
FAILURES = (
    NotReadable,
    DamagedTile,
    RuntimeError,
    ValueError,
    OSError,
    openslide.OpenSlideError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    SyntaxError,  # Pillow, for a broken PNG chunk
)


_FASTSLIDE_PROCESS: set[int] = set()  # the process whose threads fastslide uses, once it has any


def open_fastslide(path: str) -> Opened:
    """Whole-slide formats and tiled TIFF, by fastslide (releases the GIL while it decodes).

    fastslide decodes in a pool of threads that a fork does not copy: a child forked from a process
    that used it would wait for them for ever, and reads by OpenSlide instead.

    Its JPEG decoder ends the process (and from one of those threads: hangs it) where a stream is broken, so
    that every tile is looked at before it is given to it.
    """
    if _FASTSLIDE_PROCESS and os.getpid() not in _FASTSLIDE_PROCESS:
        return open_openslide(path)
    _FASTSLIDE_PROCESS.add(os.getpid())
    slide: Any = fastslide.FastSlide.from_file_path(path)
    if str(slide.dtype) != "uint8" or slide.num_channels not in (1, 3, 4):
        raise NotReadable(f"{slide.num_channels} channels of {slide.dtype}, not 8-bit RGB")

    sizes = tuple((int(w), int(h)) for w, h in slide.level_dimensions)
    if not sizes:  # so it opens an SVS file that was cut short
        raise NotReadable("no image level in it")
    tiles = JpegTiles(path, sizes)
    if tiles.sparse:  # OpenSlide paints them
        raise NotReadable("tiles were left out")

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        tiles.check(level, x, y, width, height)
        return _rgb(slide.read_region((x, y), level, (width, height)).numpy())

    (left, top), (width, height) = slide.bounds
    bounds = _part(sizes[0], left, top, width, height)
    return Opened(level_sizes=sizes, mpp=_plausible(*slide.mpp), read=read, bounds=bounds)


def open_openslide(path: str) -> Opened:
    """The formats that only OpenSlide knows."""
    slide = openslide.OpenSlide(path)

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        factor = slide.level_downsamples[level]  # OpenSlide wants the corner in level-0 pixels
        corner = (round(x * factor), round(y * factor))
        return _rgb(np.asarray(slide.read_region(corner, level, (width, height))))

    x, y = (slide.properties.get(f"openslide.mpp-{axis}", 0.0) for axis in "xy")
    sizes = tuple((int(w), int(h)) for w, h in slide.level_dimensions)
    names = (f"openslide.bounds-{name}" for name in ("x", "y", "width", "height"))
    bounds = _part(sizes[0], *(slide.properties.get(name) for name in names))
    return Opened(level_sizes=sizes, mpp=_plausible(float(x), float(y)), read=read, bounds=bounds)


def open_image(path: str) -> Opened:
    """A plain image (PNG, JPEG, TIFF ...), decoded whole into memory, at most 89 megapixels.

    The dots-per-inch of such files is set by software that knows of no microscope: mpp stays None.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF and the like: the pixels decide
        # Pillow's guard against decompression bombs: a warning from 89 Mpx on, here an error.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise NotReadable(f"mode {image.mode}: a label map or a grey image, not 8-bit RGB")
            mode = "RGBA" if "A" in image.mode or "transparency" in image.info else "RGB"
            pixels = _rgb(np.asarray(image.convert(mode)))

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return pixels[y : y + height, x : x + width]

    size = (pixels.shape[1], pixels.shape[0])
    return Opened(level_sizes=(size,), mpp=None, read=read, nbytes=pixels.nbytes)


BACKENDS: dict[str, Callable[[str], Opened]] = {
    "fastslide": open_fastslide,
    "openslide": open_openslide,
    "image": open_image,
}


def _part(size: tuple[int, int], *bounds: str | int | float | None) -> tuple[int, int, int, int] | None:
    """Bounds as a file gives them; None where they are all of the slide, or not given."""
    try:
        x, y, width, height = (int(float(b)) for b in bounds if b is not None)
    except ValueError:
        return None
    inside = width > 0 and height > 0 and 0 <= x < size[0] and 0 <= y < size[1]
    return (x, y, width, height) if inside and (x, y, width, height) != (0, 0, *size) else None


def _plausible(x: float, y: float) -> float | None:
    """Mean pixel size, or None where the tags speak of no microscope (72 dpi is 353 um)."""
    mpp = (x + y) / 2.0
    return mpp if 0.01 < mpp < 50.0 else None


def _rgb(pixels: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """Grey repeated, transparency laid over white; RGB as it came, not copied."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[-1]
    if channels == 3:
        return pixels
    if channels == 1:
        return np.repeat(pixels, 3, axis=-1)
    alpha = pixels[..., 3:]
    if (alpha == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    weight = alpha.astype(np.float32) / 255.0
    return np.rint(255.0 + (pixels[..., :3].astype(np.float32) - 255.0) * weight).astype(np.uint8)
