"""The one place that says what a loss is divided by.

`mean` and `per_object` are for a loop of your own: terms in, the number to be minimised out. The training
step adds up sums and weights over its micro-batches first, and divides once, by the same `denominator`.
Sums run over whatever the arrays span: under `jax.jit` with a batch sharded over devices and processes that
is the global batch.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from sparseshot_jax.types import Terms


def totals(terms: Terms) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the values, and of the weights: what micro-batches add before they divide."""
    return jnp.sum(terms.values), jnp.sum(terms.weights)


def denominator(weight: ScalarLike) -> Float[Array, ""]:
    """What a sum is divided by: the weight that goes with it, at least 1, so that of nothing comes 0.

    >>> float(denominator(0.0)), float(denominator(4.0))
    (1.0, 4.0)
    """
    return jnp.maximum(jnp.asarray(weight, jnp.float32), 1.0)


def mean(terms: Terms) -> Float[Array, ""]:
    """Sum of the values / number of valid elements, kept and dropped ones alike.

    So an empty keep set gives 0 from unannotated ground, and a batch with nothing valid gives 0.

    >>> terms = Terms(values=jnp.array([2.0, 0.0]), weights=jnp.array([1.0, 1.0]),
    ...               kept=jnp.array([True, False]), capped=jnp.array([2.0, 1.0]))
    >>> float(mean(terms))
    1.0
    """
    values, weights = totals(terms)
    return values / denominator(weights)


def per_object(terms: Terms, objects: ScalarLike) -> Float[Array, ""]:
    """Sum of the values / number of annotated objects, at least 1: for detection."""
    return totals(terms)[0] / denominator(objects)
