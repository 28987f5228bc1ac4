"""The names at which a forward pass can be cut: less is kept, and the gradient stays the same."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.models.layers import BLOCK, CONVOLUTION

MODELS = {
    "unet": UNetSpec(base=4, depth=1),
    "unet_textbook": UNetSpec(base=4, depth=1, form="textbook"),
    "yollo": YolloSpec(width=4, depth=1, stride=4),
}


def loss_of(spec, *, kept):
    """(parameters, images) -> a number, the model under `jax.checkpoint` where `kept` is a name."""
    graphdef, params, stats = nnx.split(spec.build(classes=1, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def apply(params, image):
        return jax.tree.leaves(nnx.merge(graphdef, params, stats, copy=True)(image, train=True))

    if kept:
        apply = jax.checkpoint(apply, policy=jax.checkpoint_policies.save_only_these_names(kept))

    def loss(params, image):
        return sum(jnp.mean(jnp.sin(y)) for y in apply(params, image))

    return loss, params


def kept_bytes(spec, *, kept):
    loss, params = loss_of(spec, kept=kept)
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    residuals = jax.eval_shape(lambda params, image: jax.vjp(loss, params, image)[1], params, image)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


@pytest.mark.parametrize("name", MODELS)
def test_fewer_names_keep_less(name):
    everything, convolutions, blocks = (
        kept_bytes(MODELS[name], kept=kept) for kept in (None, CONVOLUTION, BLOCK)
    )
    assert convolutions < 0.5 * everything
    assert blocks < 0.9 * convolutions


@pytest.mark.parametrize("kept", [CONVOLUTION, BLOCK])
@pytest.mark.parametrize("name", ["unet", "yollo"])
def test_what_is_computed_again_changes_no_gradient(name, kept):
    image = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    (plain, params), (cut, _) = (loss_of(MODELS[name], kept=k) for k in (None, kept))
    expected, actual = (jax.jit(jax.grad(loss))(params, image) for loss in (plain, cut))
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        scale = float(jnp.max(jnp.abs(theirs)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale + 1e-8)  # order of float32 sums
