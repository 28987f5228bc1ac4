"""From a detector's output to objects: candidates above a threshold, suppression, the best first."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparseshot_jax.errors import InputError
from sparseshot_jax.models.suppress import soften, suppress
from sparseshot_jax.models.suppress_cells import CellGrid
from sparseshot_jax.types import CellOutput, Detections, Scalar

_RULES = ("iou", "distance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSpec:
    """Which candidates become objects. See `suppress` for the rule."""

    by: str = "iou"  # two are too near: iou (boxes overlap) or distance (of centres)
    iou: float = dataclasses.field(default=0.3, metadata={"traced": True})  # too near above this, (0, 1)
    distance_um: float = dataclasses.field(default=3.0, metadata={"traced": True})  # too near below this, > 0
    class_aware: bool = False  # only objects of one class suppress one another
    soft_sigma: float = 0.0  # of Gaussian soft suppression (by iou alone), > 0, usually 0.5; 0: none
    peaks: bool = False  # candidates are cells with the highest score of the 3 x 3 round them, ties alike
    max_objects: int = 5000  # of `detect`: an image's best are kept, the others counted; a slide has no limit

    def __post_init__(self) -> None:
        if self.by not in _RULES:
            raise InputError(f"by must be one of {', '.join(_RULES)}; got {self.by!r}.")
        if not 0.0 < self.iou < 1.0:
            raise InputError(f"iou must lie between 0 and 1, both excluded; got {self.iou}. Try 0.3.")
        if not 0.0 < self.distance_um < math.inf:
            raise InputError(f"distance_um must be above 0 micrometres; got {self.distance_um}. Try 3.0.")
        if not 0.0 <= self.soft_sigma < math.inf:
            raise InputError(f"soft_sigma must be 0 (off) or above; got {self.soft_sigma}. Try 0.5.")
        if self.soft_sigma and self.by != "iou":
            raise InputError(
                f"soft suppression weighs by overlap and needs by='iou'; got by={self.by!r} with "
                f"soft_sigma={self.soft_sigma}. Try soft_sigma=0, or by='iou'."
            )
        if self.max_objects < 1:
            raise InputError(f"max_objects must be at least 1; got {self.max_objects}. Try 5000.")

    def limits(self, *, mpp: float) -> dict[str, float]:
        """The numbers that `detect` takes as traced values, at this many micrometres a pixel of the input.

        >>> DecodeSpec(by="distance").limits(mpp=0.25)
        {'iou': 0.3, 'distance_px': 12.0, 'soft_sigma': 0.0}
        """
        if not 0.0 < mpp < math.inf:
            raise InputError(f"mpp must be above 0 micrometres a pixel; got {mpp}. Try 0.25.")
        return {"iou": self.iou, "distance_px": self.distance_um / mpp, "soft_sigma": self.soft_sigma}


def candidates(
    output: CellOutput, *, threshold: Scalar, peaks: bool = False
) -> tuple[Float[Array, "b n 4"], Float[Array, "b n"], Float[Array, "b n c"], Bool[Array, "b n"]]:
    """Boxes, scores, class probabilities and which of them are candidates, of all n = h * w * a places.

    A candidate scores above `threshold` and has finite numbers. With `peaks` no place of the 3 x 3 cells
    round it has a higher score; places that tie are candidates all.
    """
    z = output.objectness.astype(jnp.float32)
    b, h, w, a = z.shape
    score = jax.nn.sigmoid(z)
    valid = (score > threshold) & jnp.all(jnp.isfinite(output.boxes_yxyx_px), axis=-1)
    if peaks:
        valid &= z >= _highest_around(jnp.max(z, axis=-1))[..., None]
    classes = jax.nn.softmax(output.classes.astype(jnp.float32), axis=-1)
    valid &= jnp.all(jnp.isfinite(classes), axis=-1)
    n = h * w * a
    boxes = output.boxes_yxyx_px.reshape(b, n, 4)
    return boxes, score.reshape(b, n), classes.reshape(b, n, -1), valid.reshape(b, n)


def detect(
    output: CellOutput,
    spec: DecodeSpec,
    *,
    stride_px: int,
    threshold: Scalar,
    iou: Scalar,
    distance_px: Scalar,
    soft_sigma: Scalar = 0.0,
) -> tuple[Detections, Int[Array, "b"]]:
    """Objects of each image, best first, and how many more there were than `spec.max_objects`.

    `iou`, `distance_px` and `soft_sigma` are `spec.limits(mpp=...)`: traced, where `spec` and `stride_px`
    (side of a cell, pixels) are static. The objects at a higher threshold are those with a score above it.
    """
    boxes, score, classes, valid = candidates(output, threshold=threshold, peaks=spec.peaks)
    class_ids = jnp.argmax(classes, axis=-1)
    if spec.soft_sigma:
        rule = {"sigma": soft_sigma, "threshold": threshold, "class_aware": spec.class_aware}
        score = soften(boxes, score, class_ids, valid, **rule)
        kept = score > 0
    else:
        _, height, width, anchors = output.objectness.shape
        grid = CellGrid(height=height, width=width, anchors=anchors, stride_px=stride_px)
        limit = iou if spec.by == "iou" else distance_px
        rule = {"by": spec.by, "limit": limit, "class_aware": spec.class_aware, "grid": grid}
        kept = suppress(boxes, score, class_ids, valid, **rule)
    return _best(boxes, score, classes, kept, count=spec.max_objects)


def _best(
    boxes: Float[Array, "b n 4"],
    score: Float[Array, "b n"],
    classes: Float[Array, "b n c"],
    kept: Bool[Array, "b n"],
    *,
    count: int,
) -> tuple[Detections, Int[Array, "b"]]:
    """The `count` best (fewer where there are fewer places), and the number of the others."""
    top, place = jax.lax.top_k(jnp.where(kept, score, -1.0), min(count, score.shape[1]))
    found = top >= 0  # a probability; -1 marks what is not kept

    def chosen(values: Float[Array, "b n k"]) -> Float[Array, "b m k"]:
        return jnp.where(found[..., None], jnp.take_along_axis(values, place[..., None], axis=1), 0.0)

    detections = Detections(
        boxes_yxyx_px=chosen(boxes),
        score=jnp.where(found, top, 0.0),
        classes=chosen(classes),
        valid=found,
    )
    return detections, jnp.sum(kept, axis=1) - jnp.sum(found, axis=1)


def _highest_around(z: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """The maximum of the 3 x 3 cells round each."""
    return jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (1, 3, 3), (1, 1, 1), "SAME")
