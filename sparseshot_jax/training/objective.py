"""What is minimised, whatever the task: a model's output and a batch -> the sums of one step.

An objective hands its elements to the loss, which knows nothing of tasks: pixels in segmentation, cells in
detection. Nothing is divided here; the step divides once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sparseshot_jax.types import Batch, Hyper, Measures, Scalar, Targets, Terms

TermsFn = Callable[[Array, Targets, Mapping[str, Scalar], Key[Array, ""]], Terms]  # of a loss
Objective = Callable[[Any, Batch, Hyper, Key[Array, ""]], Measures]


def total(x: Array) -> Float[Array, ""]:
    """Sum in float32."""
    return jnp.sum(x, dtype=jnp.float32)


def measures(
    p: Float[Array, "*b"],
    targets: Targets,
    terms: Terms,
    *,
    weight: Float[Array, ""],
    name: str = "",
    parts: Mapping[str, tuple[Scalar, Float[Array, ""]]] | None = None,
    counts: Mapping[str, Float[Array, ""]] | None = None,
    average: Float[Array, "b m h w"] | None = None,
) -> Measures:
    """The sums of one step; a gradient flows through `loss` alone.

    Args:
        p: probability of an object at each element.
        targets: what is known of each element.
        terms: the loss's.
        weight: what the loss is to be divided by.
        name: of the loss's own sum in the log, where there are other parts.
        parts: name -> weight and sum of another term of the loss.
        counts: name -> how often something odd came.
        average: of each pixel, what the loss remembers.
    """
    p = jax.lax.stop_gradient(p)
    unannotated = targets.valid & ~targets.annotated & ~targets.known_background
    main = total(terms.values)
    others = sum((w * value for w, value in (parts or {}).values()), start=jnp.zeros(()))
    shown = {name: main, **{part: value for part, (_, value) in parts.items()}} if parts else {}
    return Measures(
        loss=main + others,
        capped=jax.lax.stop_gradient(total(terms.capped) + others),
        weight=weight,
        unannotated=total(unannotated),
        kept=total(terms.kept & unannotated),
        annotated=total(targets.annotated),
        p_unannotated=total(jnp.where(unannotated, p, 0.0)),
        p_annotated=total(jnp.where(targets.annotated, p, 0.0)),
        parts=jax.lax.stop_gradient(shown),
        counts=counts or {},
        average=average,
    )
