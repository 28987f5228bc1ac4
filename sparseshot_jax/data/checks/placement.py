"""Do annotations lie where they should: on the slide, on tissue, on stain, at the right size?"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.checks import contrast as stain
from sparseshot_jax.data.checks.findings import Finding, Severity, places
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.data.slides.tissue import tissue_mask

PLAUSIBLE_UM = (3.0, 40.0)  # diameter of the median cell or nucleus
_USUAL_UM = (4.0, 25.0)  # the diameter that a suggested mpp has to give
_USUAL_MPP = (0.1, 0.125, 0.2, 0.25, 0.4, 0.5, 1.0, 2.0, 4.0, 8.0)
_LEAST_OBJECTS = 10  # from fewer nothing is concluded
_REACH = 12 * stain.WORKING_PX  # of the search for an offset: 12 diameters
_COARSE_SAMPLE = 100
_GOOD = 0.7  # of the best contrast that a shift gives
_NEARLY = 0.25  # diameters: a smaller offset is left to the search by pixels
_PIXEL_SHIFT = 0.75  # pixels: a label map off by one shows as a mean of 0.75 to 1.25


def placement_findings(
    slide: Slide,
    annotations: Annotations,
    wanted: Bool[np.ndarray, "n"],
    *,
    mpp: float,
    radius_px: float | Float64[np.ndarray, "n"],
    bounds_px: tuple[float, float] = (0.0, 0.0),
) -> list[Finding | None]:
    """Everything that depends on where the objects lie.

    Args:
        slide: the image.
        annotations: everything marked in it.
        wanted: True for the objects that training is to find.
        mpp: micrometres a level-0 pixel.
        radius_px: of a point's disc, level-0 pixels; of all, or of each object.
        bounds_px: x, y of the upper left corner of what was scanned (mrxs and the like).
    """
    objects = annotations.take(wanted)
    slide = stain.held(slide, mpp)
    discs = annotations.discs(radius_px).take(wanted)
    misplaced = _misplaced(slide, discs, mpp, bounds_px)
    wrong_unit = misplaced is not None and misplaced.kind == "micrometres"
    return [
        misplaced,
        None if wrong_unit else _size(objects, mpp),
        _outside(slide, annotations),
        _on_glass(slide, annotations, wanted),
        None if misplaced else _pixel_shift(slide, objects),
    ]


def _outside(slide: Slide, annotations: Annotations) -> Finding | None:
    x0, y0, x1, y1 = annotations.bounds_px.T
    outside = (x1 <= 0) | (y1 <= 0) | (x0 >= slide.width) | (y0 >= slide.height)
    if not outside.any():
        return None
    everything = bool(outside.all())
    return Finding(
        severity=Severity.ERROR if everything else Severity.WARNING,
        kind="outside",
        what=f"{int(outside.sum())} of {len(annotations)} objects lie outside the image, which is "
        f"{slide.width} x {slide.height} pixels; all objects: x {x0.min():.1f}..{x1.max():.1f}, y "
        f"{y0.min():.1f}..{y1.max():.1f}.",
        remedy="Training passes them over. Check that the file belongs to this image, and that its "
        "coordinates are full-resolution pixels from the upper left corner.",
        places=places(annotations, np.flatnonzero(outside)),
        count=int(outside.sum()),
    )


def _on_glass(slide: Slide, annotations: Annotations, wanted: np.ndarray) -> Finding | None:
    tissue = tissue_mask(slide)
    # One pixel more (16 um): the mask's edge is not drawn to the cell.
    mask = np.asarray(ndimage.binary_dilation(tissue.mask), bool)
    column, row = np.floor(annotations.centroids_px / tissue.scale).astype(np.int64).T
    inside = (row >= 0) & (column >= 0) & (row < mask.shape[0]) & (column < mask.shape[1]) & wanted
    glass = np.zeros(len(annotations), bool)
    glass[inside] = ~mask[row[inside], column[inside]]
    if not glass.any():
        return None
    return Finding(
        severity=Severity.WARNING,
        kind="glass",
        what=f"{int(glass.sum())} of {int(wanted.sum())} objects lie on glass: their centres are outside "
        "the tissue.",
        remedy="Look at them: stray clicks are to be deleted; if there are many, coordinates may be shifted.",
        places=places(annotations, np.flatnonzero(glass)),
        count=int(glass.sum()),
    )


def _size(objects: Annotations, mpp: float) -> Finding | None:
    """Median object against what a cell can measure."""
    extended = objects.take(~objects.is_point)
    if len(extended) < _LEAST_OBJECTS:
        return None
    ellipse = np.where(extended.kind == Kind.BOX, math.pi / 4, 1.0)  # of what a box surrounds
    diameter = 2.0 * float(np.median(np.sqrt(extended.areas_px * ellipse / math.pi)))
    um = diameter * mpp
    if PLAUSIBLE_UM[0] <= um <= PLAUSIBLE_UM[1]:
        return None
    fitting = [m for m in _USUAL_MPP if _USUAL_UM[0] <= diameter * m <= _USUAL_UM[1]]
    better = min(fitting, key=lambda m: abs(math.log(m / mpp)), default=8.0 / max(diameter, 1e-3))
    factor = max(mpp / better, better / mpp)
    return Finding(
        severity=Severity.WARNING,
        kind="mpp",
        what=f"The median object measures {um:.3g} um at {mpp:.4g} um a pixel; cells and nuclei have "
        f"{PLAUSIBLE_UM[0]:g} to {PLAUSIBLE_UM[1]:g}. It looks {factor:.2g}x too "
        f"{'large' if um > PLAUSIBLE_UM[1] else 'small'}: was data.mpp {mpp:.4g} meant to be {better:.3g}?",
        remedy="Correct data.mpp, or the resolution the outlines were exported at. If these are areas and "
        "no cells, all is well.",
        count=len(extended),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Guess:
    """A mistake that would explain objects which do not lie on stain."""

    kind: str
    what: str
    remedy: str
    corrected: Annotations


def _guesses(
    slide: Slide, discs: Annotations, mpp: float, bounds_px: tuple[float, float]
) -> Sequence[_Guess]:
    found = [
        _Guess(
            kind="exchanged",
            what="x and y look exchanged: exchanged back, the objects lie on stain.",
            remedy="Exchange the two where the file is made (rows come before columns in array software).",
            corrected=dataclasses.replace(discs, xy_px=discs.xy_px[:, ::-1].copy()),
        )
    ]
    right, bottom = discs.bounds_px[:, 2].max(), discs.bounds_px[:, 3].max()
    if mpp < 1.0 and right <= slide.width * mpp + 1 and bottom <= slide.height * mpp + 1:
        found.append(
            _Guess(
                kind="micrometres",
                what=f"Coordinates look like micrometres: all lie within {slide.width * mpp:.0f} x "
                f"{slide.height * mpp:.0f}, and divided by {mpp:.4g} um a pixel they lie on stain.",
                remedy="Export the annotations in pixels.",
                corrected=discs.transformed(scale=1.0 / mpp),
            )
        )
    if any(bounds_px):
        x, y = bounds_px
        for sign, coords in ((1.0, "bounds"), (-1.0, "level0")):
            found.append(
                _Guess(
                    kind="offset",
                    what=f"Objects look shifted by the slide's own bounds offset: moved by ({sign * x:.0f}, "
                    f"{sign * y:.0f}) pixels they lie on stain.",
                    remedy=f"Read them with --coords {coords}.",
                    corrected=discs.transformed(dx=sign * x, dy=sign * y),
                )
            )
    return found


def _misplaced(
    slide: Slide, discs: Annotations, mpp: float, bounds_px: tuple[float, float]
) -> Finding | None:
    """The correction, if any, under which the objects are clearly darker than what surrounds them."""
    if len(discs) < _LEAST_OBJECTS:
        return None
    some = stain.sample(discs, _COARSE_SAMPLE)
    now = stain.contrasts(slide, discs, some, reach=_REACH)
    best: tuple[float, _Guess] | None = None
    shift, moved = now.best() if len(now.at) else (np.zeros(2), now.here)
    far = float(np.linalg.norm(shift)) > _NEARLY * float(np.median(stain.diameters_px(discs)))
    if far and stain.clearly_better(moved, now.here, paired=True):
        best = (float(moved.mean()), _shift_guess(discs, shift))
    # Where they lie on stain already, nothing is to be explained.
    good = now.here.mean() > _GOOD * moved.mean() if len(now.at) else False
    good = good and stain.clearly_better(now.here, np.zeros_like(now.here), paired=True)
    for guess in () if good else _guesses(slide, discs, mpp, bounds_px):
        chosen = stain.sample(guess.corrected, _COARSE_SAMPLE)
        then = stain.contrasts(slide, guess.corrected, chosen, reach=2).here
        better = stain.clearly_better(then, now.here, paired=False)
        if better and (best is None or then.mean() > best[0]):
            best = (float(then.mean()), guess)
    if best is None:
        return None
    contrast, guess = best
    here = float(now.here.mean()) if len(now.here) else 0.0
    return Finding(
        severity=Severity.ERROR,
        kind=guess.kind,
        what=f"{guess.what} (They are {contrast:.0f} grey levels darker than their surroundings there, "
        f"{here:.0f} where they are.)",
        remedy=guess.remedy,
        count=len(discs),
        places=places(discs, np.arange(min(3, len(discs)))),
    )


def _shift_guess(discs: Annotations, shift: np.ndarray) -> _Guess:
    x, y = shift
    return _Guess(
        kind="offset",
        what=f"Objects look shifted: moved by ({x:+.0f}, {y:+.0f}) pixels they lie on stain.",
        remedy="Check where the tool that made the file puts its origin, whether the image was cropped "
        "afterwards, and whether the file belongs to this image.",
        corrected=discs.transformed(dx=float(x), dy=float(y)),
    )


def _pixel_shift(slide: Slide, objects: Annotations) -> Finding | None:
    """A shift of one or two pixels, by the contrast along the edges."""
    extended = objects.take(objects.kind == Kind.POLYGON)
    some = stain.sample(extended)
    if len(some) < _LEAST_OBJECTS:
        return None
    edges = stain.contrasts(slide, extended, some, reach=4, scale=1.0, band_px=2)
    if not len(edges.at):
        return None
    shift, moved = edges.best()
    small = _PIXEL_SHIFT <= float(np.linalg.norm(shift)) < 3.5  # at the end of the search nothing was found
    if not small or not stain.clearly_better(moved, edges.here, paired=True):
        return None
    return Finding(
        severity=Severity.WARNING,
        kind="pixel-shift",
        what=f"Outlines fit the image's edges better moved by ({shift[0]:+.1f}, {shift[1]:+.1f}) pixels.",
        remedy="Exports that count pixels from 1, or pixel centres from 0, are off by one or by a half. "
        "Shift the label maps back if all images agree.",
        count=len(extended),
    )
