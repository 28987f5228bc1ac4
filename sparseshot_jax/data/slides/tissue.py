"""Where the tissue is, found at low magnification."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from scipy import ndimage

from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.data.slides.tissue_cache import cache_key, load_mask, save_mask
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

VERSION = (
    1  # of what `tissue_mask` finds: raise it with any change of the result, and kept masks are not used
)
_BLOCK_PX = 128  # mask pixels read at once, so that a slide without coarse levels stays in memory
_GLASS_SATURATION = 25.0  # of 255: a threshold outside these two does not tell glass from stain
_STAIN_SATURATION = 110.0
_CROP_UM = 500.0  # an image narrower than this was cut out for its tissue
_SPECK_UM2 = 2_000.0  # tissue smaller than this is dust, a hole smaller than this is tissue
_DEFAULT_MPP = 0.5  # assumed of a slide that does not say


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TissueMask:
    """Tissue at low magnification."""

    mask: Bool[np.ndarray, "h w"]  # True = tissue
    scale: float  # level-0 pixels per mask pixel

    def fraction(self, windows: Sequence[Window]) -> Float64[np.ndarray, "n"]:
        """Share of each window that is tissue, 0 to 1; what lies outside the slide is not.

        From one summed-area table: exact to fractions of a mask pixel, for any number of windows.
        """
        table = np.pad(self.mask.cumsum(0).cumsum(1), ((1, 0), (1, 0))).astype(np.float64)
        corners = np.array(
            [(w.x_px, w.y_px, w.x_px + w.width * w.scale, w.y_px + w.height * w.scale) for w in windows],
            np.float64,
        ).reshape(-1, 4)
        x0, y0, x1, y1 = (corners / self.scale).T
        inside = (
            _sum_to(table, x1, y1) - _sum_to(table, x0, y1) - _sum_to(table, x1, y0) + _sum_to(table, x0, y0)
        )
        return np.clip(inside / ((x1 - x0) * (y1 - y0)), 0.0, 1.0)


def tissue_mask(slide: Slide, *, um_per_pixel: float = 16.0) -> TissueMask:
    """Tell tissue from glass by saturation: Otsu's threshold, then specks and holes removed.

    Otsu's threshold lies midway between glass and strong stain; the one used lies halfway down from
    it to the glass, since tissue lost costs more than glass kept. All of an image counts as tissue
    where it is a crop that somebody chose (narrower than 500 um), and where its saturations are not
    of two kinds, glass and stain. The mask of a file is kept on disk (see `tissue_cache`).

    Args:
        slide: any slide; without a known mpp, 0.5 is assumed.
        um_per_pixel: resolution of the mask, never finer than the slide's own.

    Raises:
        InputError: the resolution is not positive, or the slide is damaged.
    """
    if not 0.0 < um_per_pixel < math.inf:
        raise InputError(f"um_per_pixel must be positive; got {um_per_pixel}. Try 16.")
    mpp = slide.mpp or _DEFAULT_MPP
    scale = max(1.0, um_per_pixel / mpp)
    shape = (math.ceil(slide.height / scale), math.ceil(slide.width / scale))
    if min(slide.width, slide.height) * mpp < _CROP_UM:
        return TissueMask(mask=np.ones(shape, bool), scale=scale)
    key = cache_key(slide.path, VERSION, um_per_pixel, slide.mpp, shape)
    kept = load_mask(key) if key else None
    if kept is not None and kept.shape == shape:
        return TissueMask(mask=kept, scale=scale)
    found = _tissue(slide, scale, mpp)
    if key:
        save_mask(key, found)
    return TissueMask(mask=found, scale=scale)


def _tissue(slide: Slide, scale: float, mpp: float) -> Bool[np.ndarray, "h w"]:
    """True where tissue is; everywhere, where it cannot be told from glass."""
    saturation = _saturation(slide, scale)
    threshold = otsu(saturation)
    if not _has_glass(saturation, threshold):
        return np.ones_like(saturation, bool)
    glass = float(np.median(saturation[saturation <= threshold]))
    speck = max(1.0, _SPECK_UM2 / (scale * mpp) ** 2)
    tissue = _without_specks(saturation > (glass + threshold) / 2.0, speck)
    tissue = ~_without_specks(~tissue, speck)
    return tissue if tissue.any() else np.ones_like(tissue)


def otsu(values: UInt8[np.ndarray, "h w"]) -> float:
    """Threshold with the largest variance between the two classes (Otsu 1979); t splits <= t from > t."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()[:-1]
    moment = (counts * np.arange(256)).cumsum()
    above = counts.sum() - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment[:-1] / below - (moment[-1] - moment[:-1]) / above
        between = np.nan_to_num(below * above * gap**2)
    best = np.flatnonzero(between == between.max())
    return float(best.mean())  # the middle of a plateau


def _saturation(slide: Slide, scale: float) -> UInt8[np.ndarray, "h w"]:
    """Largest minus smallest colour channel, smoothed: near 0 on glass, shadows and pen-free white."""
    width, height = math.ceil(slide.width / scale), math.ceil(slide.height / scale)
    out = np.empty((height, width), np.uint8)
    for y in range(0, height, _BLOCK_PX):
        for x in range(0, width, _BLOCK_PX):
            w, h = min(_BLOCK_PX, width - x), min(_BLOCK_PX, height - y)
            window = Window(x_px=x * scale, y_px=y * scale, width=w, height=h, scale=scale)
            rgb = slide.read(window)
            out[y : y + h, x : x + w] = rgb.max(axis=2) - rgb.min(axis=2)
    return ndimage.median_filter(out, size=3, mode="nearest")


def _has_glass(saturation: np.ndarray, threshold: float) -> bool:
    tissue = saturation > threshold
    if tissue.all() or not tissue.any():
        return False
    glass, stain = saturation[~tissue].mean(), saturation[tissue].mean()
    return bool(glass < _GLASS_SATURATION and threshold < _STAIN_SATURATION and stain > 2 * glass)


def _without_specks(mask: np.ndarray, least: float) -> np.ndarray:
    """The mask without its connected parts of fewer than `least` pixels."""
    parts = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=parts)
    keep = np.bincount(parts.ravel()) >= least
    keep[0] = False
    return keep[parts]


def _sum_to(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tissue in the rectangle from the origin to (x, y), mask pixels: the table, interpolated."""
    height, width = table.shape
    x, y = np.clip(x, 0.0, width - 1.0), np.clip(y, 0.0, height - 1.0)
    column, row = (np.minimum(v.astype(int), n - 2) for v, n in ((x, width), (y, height)))
    fx, fy = x - column, y - row
    upper = table[row, column] * (1 - fx) + table[row, column + 1] * fx
    lower = table[row + 1, column] * (1 - fx) + table[row + 1, column + 1] * fx
    return upper * (1 - fy) + lower * fy
