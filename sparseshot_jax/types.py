"""The values that travel between the rooms of the package, with their shapes."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

from sparseshot_jax.errors import InputError

Scalar = float | int | np.floating | np.integer | Float[Array, ""]  # on the host, or traced


class Ground(enum.IntEnum):
    """What is known of a location. Every pixel is exactly one of the four."""

    UNANNOTATED = 0  # nobody looked: object or background, unknown
    ANNOTATED = 1  # inside a marked object; its class is known
    BACKGROUND = 2  # known to be background (an exhaustively annotated region, a look-alike marked so)
    IGNORED = 3  # outside the loss, numerator and denominator alike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of an image, read or drawn at a chosen resolution.

    Output pixel (row i, column j) is centred on level-0 point
    (x_px + (j + 0.5) * scale, y_px + (i + 0.5) * scale); level-0 pixel (0, 0) covers [0, 1] x [0, 1].
    """

    x_px: float  # left edge, level-0 pixels
    y_px: float  # top edge, level-0 pixels
    width: int  # output pixels
    height: int  # output pixels
    scale: float = 1.0  # level-0 pixels per output pixel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a model is trained on beside the ground and the class of each pixel."""

    objects: int = 0  # boxes a tile at most; above 0, `ground` is drawn without the wanted objects
    distance: bool = False  # the depth of each pixel in its object


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Objects:
    """The annotated objects of each tile of a batch, in a fixed number of places."""

    boxes_yxyx_px: Float[Array, "b n 4"]  # top, left, bottom, right; tile pixels, may reach beyond it
    label: UInt8[Array, "b n"]  # class 1..C; 0 = an object of unknown class, or no object
    present: Bool[Array, "b n"]  # False: no object in this place, its box is 0
    left_out: Int[Array, "b"]  # objects for which there was no place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of tiles, as the pipeline gives it and the train step takes it."""

    image: UInt8[Array, "b h w 3"]  # RGB
    ground: UInt8[Array, "b h w"]  # `Ground` codes
    label: UInt8[Array, "b h w"]  # class 1..C where annotated, 0 elsewhere
    valid: Bool[Array, "b"]  # False for a tile that only pads the batch; its ground is IGNORED
    objects: Objects | None = None  # where the model's `Needs` ask for them
    # Distance to the object's border over the largest in that object, as 1..255 inside wanted objects.
    distance: UInt8[Array, "b h w"] | None = None
    # Top and left of the tile in `CutTiles.canvas_px`, where the loss remembers its pixels.
    place: Int[Array, "b 2"] | None = None
    # What a loss remembers of them, m numbers a pixel: the step reads it from `TrainState.memory`.
    average: Float[Array, "b m h w"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """What a loss is told of every location."""

    ground: UInt8[Array, "*b"]  # `Ground` codes
    label: Integer[Array, "*b"]  # class 1..C where annotated, 0 elsewhere
    average: Float[Array, "*b"] | None = None  # of earlier predictions, for a loss that remembers them

    @property
    def annotated(self) -> Bool[Array, "*b"]:
        """Set F of the paper."""
        return self.ground == Ground.ANNOTATED

    @property
    def known_background(self) -> Bool[Array, "*b"]:
        """Background that somebody vouched for: never masked, never re-weighted."""
        return self.ground == Ground.BACKGROUND

    @property
    def valid(self) -> Bool[Array, "*b"]:
        """Everything but the ignored."""
        return self.ground != Ground.IGNORED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """A loss before its division: `losses.reduce` alone divides."""

    values: Float[Array, "*b"]  # what is minimised, an element; 0 where ignored
    weights: Float[Array, "*b"]  # 1 where valid, kept or dropped alike; 0 where ignored
    kept: Bool[Array, "*b"]  # False on unannotated elements whose term is dropped
    capped: Float[Array, "*b"]  # `values` with dropped terms held at the threshold: a continuous curve
    average: Float[Array, "*b"] | None = None  # what `Targets.average` is to be when the element comes again


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """What training data say of their own labels; from it a loss takes what its spec leaves open."""

    share: float | None  # c: of the wanted objects, those annotated, (0, 1]; None: nobody knows
    # The same of the objects that training tiles show; None: tiles favour none of them.
    share_in_tiles: float | None = None
    # Of the loss's elements on annotated or unannotated ground, those annotated, [0, 1]; None: not looked at.
    annotated_fraction: float | None = None
    counted: float | None = None  # c by dense truth, where the config says another; None: not asked, or alike

    @property
    def shown(self) -> float | None:
        """Of the objects that a loss is shown, those annotated, (0, 1]."""
        return self.share if self.share_in_tiles is None else self.share_in_tiles

    @property
    def prior(self) -> float:
        """Prevalence of objects among the unannotated elements: a (1 - c) / (c (1 - a)), [0, 1).

        a is the annotated fraction, c the share shown. For each annotated element there are (1 - c) / c of
        unannotated objects, if those that were marked are no larger or smaller than the rest.

        Raises:
            InputError: one of them is not known; the share is too small for so much annotated ground.

        >>> round(LabelFacts(share=0.25, annotated_fraction=0.1).prior, 3)
        0.333
        """
        if self.shown is None:
            raise InputError(
                "the prevalence of objects among what is not annotated follows from the share of them that "
                "is annotated, and nobody knows it here. Give loss.prior, or labels.share."
            )
        if self.annotated_fraction is None:
            raise InputError(
                "the prevalence of objects among what is not annotated follows from the fraction of the "
                "ground that is annotated, at which nobody has looked. Set needs_prior = True in the loss's "
                "class."
            )
        if self.annotated_fraction >= 1.0:
            return 0.0
        odds = self.annotated_fraction / (1.0 - self.annotated_fraction)
        prior = odds * (1.0 - self.shown) / self.shown
        if prior >= 1.0:
            raise InputError(
                f"labels.share c = {self.shown:.3g} with {100 * self.annotated_fraction:.3g} % of the ground "
                "annotated leaves more objects than ground; give a larger labels.share, or loss.prior."
            )
        return prior


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CellOutput:
    """What a detector says of every cell of its grid and every anchor in it."""

    objectness: Float[Array, "b h w a"]  # logit of "an object's centre lies here", float32
    boxes_yxyx_px: Float[Array, "b h w a 4"]  # top, left, bottom, right; pixels of the input, float32
    classes: Float[Array, "b h w a c"]  # a logit for each of the C classes (softmax), float32
    anchors_px: Float[Array, "a 2"]  # height and width of the anchors, pixels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Detections:
    """Objects found in each image of a batch, in a fixed number of places, best score first."""

    boxes_yxyx_px: Float[Array, "b n 4"]  # pixels of the input; 0 where not valid
    score: Float[Array, "b n"]  # p of an object, [0, 1]; 0 where not valid
    classes: Float[Array, "b n c"]  # p of each class given an object; sums to 1
    valid: Bool[Array, "b n"]  # False: no object in this place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that training carries from one step to the next."""

    step: Int[Array, ""]
    params: Any  # nnx.Param state of the model, float32
    stats: Any  # its other state (running statistics of normalisation)
    opt_state: Any
    ema: Any  # exponential average of (params, stats); None where it is switched off
    # m numbers for each pixel of `CutTiles.canvas_px`, where the loss remembers them.
    memory: Float[Array, "m rows columns"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hyper:
    """The traced numbers of one step."""

    loss: Mapping[str, Scalar]  # what the loss's `hyper(t)` gives
    learning_rate: Scalar  # at this step
    ema_decay: Scalar  # share of the old average kept a step, [0, 1)
    seed: Scalar  # of augmentation and of losses that sample
    # The traced fields of the model's spec: weights of its other terms.
    model: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """Sums of one step over the global batch; `ratios` gives what is logged.

    An element is a pixel in segmentation, a cell and anchor in detection.
    """

    loss: Float[Array, ""]  # all terms, weighted
    capped: Float[Array, ""]
    weight: Float[Array, ""]  # what the loss is divided by: valid elements, or annotated objects
    unannotated: Float[Array, ""]  # elements of U
    kept: Float[Array, ""]  # of these, kept by the mask
    annotated: Float[Array, ""]  # elements of F
    p_unannotated: Float[Array, ""]  # sum of p over U
    p_annotated: Float[Array, ""]  # sum of p over F
    parts: Mapping[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)  # terms of the loss
    # before their weights, where there are several
    counts: Mapping[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)  # of odd cases
    # No sum: `Batch.average` as it is to be. The step takes it out.
    average: Float[Array, "b m h w"] | None = None

    def ratios(self) -> dict[str, float]:
        """Means for the log, on the host; the loss's parts over what the loss is divided by."""

        def share(part: Any, whole: Any) -> float:
            return float(part) / max(float(whole), 1.0)

        return {
            "loss": share(self.loss, self.weight),
            "capped_loss": share(self.capped, self.weight),
            "keep_rate": share(self.kept, self.unannotated) if float(self.unannotated) else 1.0,
            "p_annotated": share(self.p_annotated, self.annotated),
            "p_unannotated": share(self.p_unannotated, self.unannotated),
            **{name: share(value, self.weight) for name, value in self.parts.items()},
            **{name: float(value) for name, value in self.counts.items()},
        }
