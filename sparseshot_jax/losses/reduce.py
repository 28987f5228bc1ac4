"""The one place where a loss is divided.

Sums run over whatever the arrays span. Under `jax.jit` with a batch sharded over devices and processes
that is the global batch; micro-batches add up their `totals` and divide once.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from sparseshot_jax.types import Terms


def totals(terms: Terms) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the values, and of the weights: what micro-batches add before they divide."""
    return jnp.sum(terms.values), jnp.sum(terms.weights)


def mean(terms: Terms) -> Float[Array, ""]:
    """Sum of the values / number of valid elements, kept and dropped ones alike.

    So an empty keep set gives 0 from unannotated ground, and a batch with nothing valid gives 0.

    >>> terms = Terms(values=jnp.array([2.0, 0.0]), weights=jnp.array([1.0, 1.0]),
    ...               kept=jnp.array([True, False]), capped=jnp.array([2.0, 1.0]))
    >>> float(mean(terms))
    1.0
    """
    values, weights = totals(terms)
    return values / jnp.maximum(weights, 1.0)


def per_object(terms: Terms, objects: ScalarLike) -> Float[Array, ""]:
    """Sum of the values / number of annotated objects, at least 1: for detection."""
    return jnp.sum(terms.values) / jnp.maximum(objects, 1.0)
