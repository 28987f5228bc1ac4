"""Detection: every cell and anchor is an element of the loss; METHOD, "Detection".

The loss, its mask included, acts on objectness alone. Box and class terms exist on F only, where an
annotated object says what is right. All are sums, divided by the number of annotated objects. What the loss
remembers of a cell and anchor lies on its pixels, a number for each anchor: tiles lie anywhere, so that the
next cell there is another, and is told the mean over its own pixels.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sparseshot_jax.models.assign import Assignment, assign, shared_and_union
from sparseshot_jax.training.memory import of_cells, of_pixels
from sparseshot_jax.training.objective import Objective, TermsFn, measures, total
from sparseshot_jax.types import Batch, CellOutput, Hyper, Measures, Targets


def detection(spec: Any, terms: TermsFn) -> Objective:
    """Objectness by the loss, boxes by CIoU, classes by cross-entropy; divided by the annotated objects."""

    def objective(output: CellOutput, batch: Batch, hyper: Hyper, key: Key[Array, ""]) -> Measures:
        assert batch.objects is not None  # the model's `needs` ask for them
        assigned = assign(
            batch.objects,
            batch.ground,
            output.boxes_yxyx_px,
            output.anchors_px,
            stride=spec.stride,
            heat=spec.head == "centre",
            ignore_iou=hyper.model["ignore_iou"],
        )
        targets = Targets(
            ground=assigned.targets.ground,
            label=assigned.targets.annotated.astype(jnp.int32),
            average=of_cells(batch.average, spec.stride),
        )
        result = terms(output.objectness[..., None], targets, hyper.loss, key)
        weight = assigned.background_weight
        result = dataclasses.replace(result, values=result.values * weight, capped=result.capped * weight)
        return measures(
            jax.nn.sigmoid(output.objectness),
            targets,
            result,
            weight=total(assigned.matched),
            name="objectness_loss",
            parts=_other_terms(output, assigned, hyper),
            counts={
                "collisions": total(assigned.collisions),
                "left_out": total(batch.objects.left_out),
            },
            average=of_pixels(result.average, spec.stride),
        )

    return objective


def _other_terms(output: CellOutput, assigned: Assignment, hyper: Hyper) -> dict[str, Any]:
    matched = assigned.targets.annotated
    # Elsewhere the target is the prediction itself: no gradient, and no division by an empty box.
    boxes = jnp.where(matched[..., None], assigned.boxes_yxyx_px, jax.lax.stop_gradient(output.boxes_yxyx_px))
    box = jnp.where(matched, ciou_loss(output.boxes_yxyx_px, boxes), 0.0)
    parts = {"box_loss": (hyper.model["box_weight"], total(box))}
    if output.classes.shape[-1] > 1:
        label = assigned.targets.label
        known = matched & (label > 0)
        log_p = jax.nn.log_softmax(output.classes)
        own = jax.nn.one_hot(label - 1, output.classes.shape[-1], dtype=bool)
        term = jnp.where(known, -jnp.sum(jnp.where(own, log_p, 0.0), axis=-1), 0.0)
        parts["class_loss"] = (hyper.model["class_weight"], total(term))
    return parts


def ciou_loss(predicted: Float[Array, "*b 4"], target: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """1 - IoU + d^2 / c^2 + alpha v: Zheng et al. 2020, https://arxiv.org/abs/1911.08287.

    d is the distance of the centres, c the diagonal of the box round both, v the difference of the aspect
    ratios. Chosen over L1 + IoU: it has no unit, so its weight is the same for small and large cells, at
    20x and 40x, and its gradient lives where the boxes do not overlap.

    >>> float(ciou_loss(jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([0.0, 0.0, 2.0, 2.0])).round(6))
    0.0
    """
    shared, union = shared_and_union(predicted, target)
    overlap = shared / jnp.maximum(union, 1e-6)
    low = jnp.minimum(predicted[..., :2], target[..., :2])
    high = jnp.maximum(predicted[..., 2:], target[..., 2:])
    diagonal = jnp.sum(jnp.square(high - low), axis=-1)
    between = 0.5 * (predicted[..., :2] + predicted[..., 2:] - target[..., :2] - target[..., 2:])
    distance = jnp.sum(jnp.square(between), axis=-1) / jnp.maximum(diagonal, 1e-6)
    angles = [
        jnp.arctan2(box[..., 3] - box[..., 1], jnp.maximum(box[..., 2] - box[..., 0], 1e-6))
        for box in (predicted, target)
    ]
    v = (4.0 / math.pi**2) * jnp.square(angles[0] - angles[1])
    alpha = jax.lax.stop_gradient(v / jnp.maximum(1.0 - overlap + v, 1e-6))
    return 1.0 - overlap + distance + alpha * v
