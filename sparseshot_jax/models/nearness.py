"""When two detections lie too near each other: by the overlap of their boxes, or by their centres."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Scalar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearness:
    """by="iou": IoU above `limit`; by="distance": centres less than `limit` pixels apart.

    Boxes without area overlap nothing. The areas are computed once, so that a pair's answer is the same
    wherever it is asked.
    """

    by: str
    limit: Scalar

    def __post_init__(self) -> None:
        if self.by not in ("iou", "distance"):
            raise InputError(f"by must be iou or distance; got {self.by!r}.")

    def fields(
        self, boxes_yxyx_px: Float[Array, "b n 4"], valid: Bool[Array, "b n"]
    ) -> Float[Array, "f b n"]:
        """What is compared of each candidate; 0 for what is none, and may be NaN."""
        y0, x0, y1, x1 = jnp.moveaxis(boxes_yxyx_px.astype(jnp.float32), -1, 0)
        if self.by == "iou":
            area = jnp.maximum(y1 - y0, 0.0) * jnp.maximum(x1 - x0, 0.0)
            compared = jnp.stack([y0, x0, y1, x1, area])
        else:
            compared = jnp.stack([(y0 + y1) / 2, (x0 + x1) / 2])
        return jnp.where(valid[None], compared, 0.0)

    def near(self, one: Float[Array, "f ..."], other: Float[Array, "f ..."]) -> Bool[Array, "..."]:
        """Whether two, given by their fields, are too near each other."""
        if self.by == "iou":
            shared, union = overlap(one, other)
            return shared > self.limit * union
        square = jnp.square(one[0] - other[0]) + jnp.square(one[1] - other[1])
        return square < jnp.square(jnp.asarray(self.limit, jnp.float32))

    def reach_px(self, boxes_yxyx_px: Float[Array, "b n 4"]) -> Float[Array, "b n"]:
        """No box that is at most as large as this one is too near if its centre lies this far off.

        Along a row or a column: IoU along one axis bounds the IoU, and for intervals of at most M whose
        centres are d apart it is at most (M - d) / (M + d). So IoU > t needs d < M (1 - t) / (1 + t).
        """
        sides = boxes_yxyx_px[..., 2:] - boxes_yxyx_px[..., :2]
        if self.by == "iou":
            return jnp.max(sides, axis=-1) * (1.0 - self.limit) / (1.0 + self.limit)
        return jnp.full(sides.shape[:-1], self.limit, jnp.float32)


def overlap(
    one: Float[Array, "f ..."], other: Float[Array, "f ..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Areas of intersection and union, from the fields of two boxes by IoU."""
    height = jnp.minimum(one[2], other[2]) - jnp.maximum(one[0], other[0])
    width = jnp.minimum(one[3], other[3]) - jnp.maximum(one[1], other[1])
    shared = jnp.maximum(height, 0.0) * jnp.maximum(width, 0.0)
    return shared, one[4] + other[4] - shared


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """Candidates ready for comparison."""

    rule: Nearness
    fields: Float[Array, "f b n"]
    score: Float[Array, "b n"]  # -inf where not valid
    groups: Integer[Array, "b n"]  # only members of one suppress one another
    valid: Bool[Array, "b n"]
