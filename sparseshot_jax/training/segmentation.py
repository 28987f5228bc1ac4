"""Segmentation: every pixel is an element of the loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sparseshot_jax import losses, models
from sparseshot_jax.training.distance import distance_terms
from sparseshot_jax.training.objective import Objective, TermsFn, measures, total
from sparseshot_jax.types import Batch, Hyper, Measures, Targets


def segmentation(spec: Any, terms: TermsFn) -> Objective:
    """Sum over the pixels; divided by the valid ones, kept and dropped alike.

    A model with a distance channel adds that of its annotated pixels.
    """

    def objective(
        logits: Float[Array, "b h w k"], batch: Batch, hyper: Hyper, key: Key[Array, ""]
    ) -> Measures:
        parts = {}
        if spec.needs.distance:
            logits, depth = models.split_distance(logits)
            distance = total(distance_terms(depth, batch).values)
            parts["distance_loss"] = (hyper.model["distance_weight"], distance)
        targets = Targets(
            ground=batch.ground,
            label=batch.label.astype(jnp.int32),
            average=None if batch.average is None else batch.average[:, 0],
        )
        result = terms(logits, targets, hyper.loss, key)
        return measures(
            models.foreground(logits),
            targets,
            result,
            weight=losses.reduce.totals(result)[1],
            name="pixel_loss",
            parts=parts,
            average=None if result.average is None else result.average[:, None],
        )

    return objective


def probabilities(spec: Any) -> Callable[[Array], Array]:
    """Logits -> p of each class [b, h, w, C]; the depth in [0, 1] behind it where the model has one."""

    def infer(logits: Float[Array, "b h w k"]) -> Float[Array, "b h w c"]:
        if not spec.needs.distance:
            return models.class_probabilities(logits)
        logits, depth = models.split_distance(logits)
        return jnp.concatenate(
            [models.class_probabilities(logits), jax.nn.sigmoid(depth)[..., None]], axis=-1
        )

    return infer
