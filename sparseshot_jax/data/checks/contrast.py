"""Do outlines lie on stain? How much darker objects are than their surroundings, and at which shift."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float64, Int32, Int64
from scipy import fft, ndimage

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.data.slides.slide import ArraySlide, Slide
from sparseshot_jax.types import Window

SAMPLE = 200  # objects that are looked at, evenly spaced in the order of the file
WORKING_PX = 8  # diameter of the median object where large shifts are sought
_RING_PX = 3  # width of the surroundings, working pixels
_EXTENT = 4 * WORKING_PX  # an object and its surroundings must fit into this side, working pixels
_HELD_PX = 1 << 24  # an image up to this size is read once


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Contrasts:
    """Darkness inside minus darkness round each sampled object, at every shift."""

    at: Float64[np.ndarray, "k s s"]  # grey levels; [:, reach + dy, reach + dx] is the shift (dx, dy)
    reach: int  # largest shift, working pixels
    scale: float  # level-0 pixels a working pixel

    @property
    def here(self) -> Float64[np.ndarray, "k"]:
        """Without a shift."""
        return self.at[:, self.reach, self.reach]

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The shift (dx, dy) of the largest mean, in level-0 pixels, and the contrasts there."""
        mean = self.at.mean(axis=0)
        row, column = np.unravel_index(int(mean.argmax()), mean.shape)
        step = np.array([_vertex(mean[row], int(column)), _vertex(mean[:, column], int(row))])
        shift = (np.array([column, row]) - self.reach + step) * self.scale
        return shift, self.at[:, row, column]


def held(slide: Slide, mpp: float) -> Slide:
    """The slide, or, where it is a small file, its pixels in memory: it is read hundreds of times."""
    if slide.width * slide.height > _HELD_PX:
        return slide
    whole = Window(x_px=0.0, y_px=0.0, width=slide.width, height=slide.height)
    return ArraySlide(slide.read(whole), mpp, slide.path)


def sample(objects: Annotations, most: int = SAMPLE) -> Int64[np.ndarray, "k"]:
    """Indices of at most `most` of the objects, always the same ones."""
    count = min(most, len(objects))
    return np.linspace(0, len(objects) - 1, count).round().astype(np.int64)


def diameters_px(objects: Annotations) -> Float64[np.ndarray, "n"]:
    """Diameters of discs of the same areas, level-0 pixels; 0 for points."""
    return 2.0 * np.sqrt(objects.areas_px / np.pi)


def contrasts(
    slide: Slide,
    objects: Annotations,
    which: Int64[np.ndarray, "k"],
    *,
    reach: int,
    scale: float | None = None,
    band_px: int | None = None,
) -> Contrasts:
    """Contrast of objects with the ring round them, for all shifts up to `reach` at once.

    Args:
        slide: the image; white outside it does not count.
        objects: all outlines in level-0 pixels: what lies in one of them belongs to no ring.
        which: indices of those to measure (`sample`).
        reach: largest shift in x and in y, working pixels.
        scale: level-0 pixels a working pixel; None makes the median object `WORKING_PX` wide.
        band_px: compare only the rim inside the edge with the rim outside, of this width each:
            blunt for large shifts, sharp for small ones.
    """
    diameters = diameters_px(objects)[which]
    if scale is None:
        scale = max(1.0, float(np.median(diameters)) / WORKING_PX) if len(which) else 1.0
    extent = _EXTENT if band_px is None else int(diameters.max(initial=1.0) * 2) + 4 * band_px
    side = extent + 2 * reach
    found = []
    dark = _Darkness(slide, scale)
    for k, (x, y) in zip(which, objects.centroids_px[which] / scale):
        left, top = math.floor(x) - side // 2, math.floor(y) - side // 2
        window = Window(x_px=left * scale, y_px=top * scale, width=side, height=side, scale=scale)
        kernel = _kernel(rasterize(objects, window), int(k) + 1, band_px)
        # One that reaches into the margin would wrap round the window in the correlation.
        if kernel is None or np.count_nonzero(kernel[reach:-reach, reach:-reach]) < np.count_nonzero(kernel):
            continue
        found.append(_correlation(kernel, dark.at(left, top, side), reach))
    empty = np.zeros((0, 2 * reach + 1, 2 * reach + 1))
    return Contrasts(at=np.stack(found) if found else empty, reach=reach, scale=scale)


def clearly_better(new: np.ndarray, old: np.ndarray, *, paired: bool) -> bool:
    """More contrast by six standard errors: chance finds four among the thousands of shifts tried."""
    if min(len(new), len(old)) < 10:
        return False
    if paired:
        gain, error = (new - old).mean(), (new - old).std() / np.sqrt(len(new))
    else:
        gain = new.mean() - old.mean()
        error = np.sqrt(new.var() / len(new) + old.var() / len(old))
    return bool(gain > 6.0 * error and gain > 1.0)


def _kernel(drawn: Int32[np.ndarray, "s s"], number: int, band_px: int | None) -> np.ndarray | None:
    """Weights whose sum with the darkness is the contrast; None where object or ring have no pixel."""
    inside = drawn == number
    width = _RING_PX if band_px is None else band_px
    ring = np.asarray(ndimage.binary_dilation(inside, iterations=width), bool) & (drawn == 0)
    if band_px is not None:
        inside = inside & ~np.asarray(ndimage.binary_erosion(inside, iterations=width), bool)
    if not inside.any() or not ring.any():
        return None
    return inside / inside.sum() - ring / ring.sum()


class _Darkness:
    """255 minus the mean of the colours; outside the slide the mean of what is inside."""

    def __init__(self, slide: Slide, scale: float):
        self._slide, self._scale = slide, scale
        self._width, self._height = (max(1, math.floor(n / scale)) for n in (slide.width, slide.height))
        # An image in memory is reduced once; windows of it overlap many times over.
        in_memory = isinstance(slide, ArraySlide)
        self._whole = self._read(0, 0, self._width, self._height) if in_memory else None

    def at(self, x: int, y: int, side: int) -> np.ndarray:
        """A square of working pixels whose upper left one is (x, y)."""
        x0, x1 = (min(max(v, 0), self._width) for v in (x, x + side))
        y0, y1 = (min(max(v, 0), self._height) for v in (y, y + side))
        if x0 == x1 or y0 == y1:
            return np.zeros((side, side))
        whole = self._whole
        part = self._read(x0, y0, x1 - x0, y1 - y0) if whole is None else whole[y0:y1, x0:x1]
        dark = np.full((side, side), part.mean())
        dark[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return dark

    def _read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        window = Window(
            x_px=x * self._scale, y_px=y * self._scale, width=width, height=height, scale=self._scale
        )
        return 255.0 - self._slide.read(window).mean(axis=2)


def _correlation(kernel: np.ndarray, dark: np.ndarray, reach: int) -> np.ndarray:
    """Sum of kernel(x) dark(x + d) for every d up to `reach`."""
    size = [fft.next_fast_len(n, real=True) for n in dark.shape]
    spectra = [np.asarray(fft.rfft2(values, size)) for values in (kernel, dark)]
    full = fft.irfft2(spectra[0].conj() * spectra[1], size)
    shifts = np.arange(-reach, reach + 1)
    return np.asarray(full)[np.ix_(shifts, shifts)]


def _vertex(values: np.ndarray, k: int) -> float:
    """Where between the neighbours of the largest value a parabola through the three is highest."""
    if not 0 < k < len(values) - 1:
        return 0.0
    low, mid, high = values[k - 1 : k + 2]
    bend = low - 2 * mid + high
    return float((low - high) / (2 * bend)) if bend < 0 else 0.0
