"""Case: one image or slide with what is known of it, the unit of every split."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import LabelSpec, TargetMaps
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground, Window

# A stored level whose resolution is this near to the asked one is taken for it: scanners write 0.4990
# for 0.5, and resampling by 1.002 would cost time and sharpness for nothing.
_SAME_SCALE = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One image or slide: the unit of every split."""

    name: str  # unique in its split; file stem
    slide: Slide
    mpp: float  # micrometres a level-0 pixel
    given: Annotations  # what training sees: after sparsification and hold-out; regions included
    truth: Annotations | None  # dense truth for measuring, None where none exists
    held_out: Annotations | None  # sparse objects kept from training, to measure recall
    labels: LabelSpec


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """The cases of a data set, and what the reader has to say about them."""

    train: tuple[Case, ...]  # sparse marks
    validation: tuple[Case, ...]  # dense truth, or held-out objects where there is none
    test: tuple[Case, ...]  # dense truth; () where none exists
    notes: tuple[str, ...] = ()  # repairs, counts and omissions, a sentence each


@runtime_checkable
class Source(Protocol):
    """A data set: a frozen dataclass of paths and options with one method."""

    def load(self, labels: LabelSpec, seed: int) -> Splits:
        """Read all annotations, check them, sparsify and split. Pixels are read later.

        Args:
            labels: what the class names mean.
            seed: of the sparse subset and the hold-out.

        Raises:
            InputError: anything wrong in the files, with file, place and remedy.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Dense truth of a window, for measuring."""

    instances: Int32[np.ndarray, "h w"]  # 0 = none, k + 1 = object k
    label: UInt8[np.ndarray, "h w"]  # class 1..C where an object is, 0 elsewhere
    valid: Bool[np.ndarray, "h w"]  # False in ignored regions


def scale_at(slide: Slide, slide_mpp: float, mpp: float) -> float:
    """Level-0 pixels per output pixel at `mpp`; a stored level within 2 % is taken as it is."""
    asked = mpp / slide_mpp
    for level in slide.downsamples:
        if abs(asked / level - 1.0) <= _SAME_SCALE:
            return float(level)
    return asked


def whole_window(case: Case, mpp: float) -> Window:
    """The window that covers the case at `mpp` (micrometres an output pixel)."""
    scale = scale_at(case.slide, case.mpp, mpp)
    width = max(1, int(case.slide.width / scale + 1e-6))
    height = max(1, int(case.slide.height / scale + 1e-6))
    return Window(x_px=0.0, y_px=0.0, width=width, height=height, scale=scale)


def read_whole(case: Case, mpp: float) -> UInt8[np.ndarray, "h w 3"]:
    """All of the image at `mpp`. For images that fit into memory."""
    return case.slide.read(whole_window(case, mpp))


def truth_maps(case: Case, window: Window) -> Truth:
    """Dense truth of a window.

    Raises:
        InputError: the case has no dense truth.
    """
    maps = _truth_of(case)
    ground, label = maps.draw(window)
    instances = maps.instances(window)
    return Truth(instances=instances, label=label, valid=ground != Ground.IGNORED)


def truth_instances(case: Case, window: Window) -> Int32[np.ndarray, "h w"]:
    """Instance map of the dense truth: 0 = none, k + 1 = wanted object k.

    Raises:
        InputError: the case has no dense truth.
    """
    return _truth_of(case).instances(window)


def _truth_of(case: Case) -> TargetMaps:
    if case.truth is None:
        raise InputError(
            f"{case.name}: Dice and F1 need dense truth, and this case has none. Give dense "
            "annotations (data.truth), or measure the recall on held-out objects."
        )
    return TargetMaps(case.truth, case.labels, mpp=case.mpp)
