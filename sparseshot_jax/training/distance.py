"""The loss of a U-Net's distance channel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Batch, Ground, Terms


def distance_terms(logit: Float[Array, "b h w"], batch: Batch) -> Terms:
    """KL(Bern(d) || Bern(sigmoid(z))), d the depth in (0, 1], on annotated pixels of an object alone.

    That is cross-entropy with the soft target d, less its least value: 0 where sigmoid(z) = d. Its gradient
    is sigmoid(z) - d, at the rim (d near 0) as in the middle (d near 1), where that of an L1 distance
    between sigmoid(z) and d vanishes with the slope of the sigmoid; and it asks for the mean of d, not for
    its median, so that doubt about where two objects meet lowers the depth there.

    What lies between annotated objects is not told 0: in sparse labels it may be an object.

    Args:
        logit: z of every pixel: the second result of `models.unet.split_distance`.
        batch: its ground and distance, after augmentation.

    Raises:
        InputError: the batch has no distance.

    >>> ground = jnp.full((1, 1, 2), Ground.ANNOTATED, jnp.uint8).at[0, 0, 1].set(Ground.UNANNOTATED)
    >>> batch = Batch(image=jnp.zeros((1, 1, 2, 3), jnp.uint8), ground=ground, label=ground,
    ...               valid=jnp.ones(1, bool), distance=jnp.full((1, 1, 2), 255, jnp.uint8))
    >>> print(distance_terms(jnp.zeros((1, 1, 2)), batch).values.round(4))
    [[[0.6931 0.    ]]]
    """
    if batch.distance is None:
        raise InputError(
            "the distance channel is trained on Batch.distance; the batch has none. Cut the tiles for a "
            "model with distance=True."
        )
    z, d = logit.astype(jnp.float32), batch.distance.astype(jnp.float32) / 255.0
    inside = (batch.ground == Ground.ANNOTATED) & (batch.distance > 0)
    entropy = -jax.scipy.special.xlogy(d, d) - jax.scipy.special.xlogy(1.0 - d, 1.0 - d)
    values = jnp.where(inside, jax.nn.softplus(z) - d * z - entropy, 0.0)
    return Terms(
        values=values,
        weights=inside.astype(jnp.float32),
        kept=jnp.ones_like(inside),
        capped=values,
    )
