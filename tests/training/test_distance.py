"""The distance channel's loss: hand constants, limits, gradients, and who counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.distance import distance_terms
from sparseshot_jax.types import Batch, Ground


def batch_of(distance, ground=Ground.ANNOTATED) -> Batch:
    distance = np.asarray(distance, np.uint8).reshape(1, 1, -1)
    return Batch(
        image=np.zeros((*distance.shape, 3), np.uint8),
        ground=np.broadcast_to(np.asarray(ground, np.uint8), distance.shape).copy(),
        label=np.ones(distance.shape, np.uint8),
        valid=np.ones(1, bool),
        distance=distance,
    )


def row(*z: float) -> jax.Array:
    return jnp.array(z).reshape(1, 1, -1)


def test_values_equal_an_independent_loop():
    rng = np.random.default_rng(0)
    z, distance = rng.normal(scale=4, size=50), rng.integers(1, 256, 50)
    expected = []
    for logit, depth in zip(z, distance / 255):
        p = 1 / (1 + np.exp(-logit))
        rest = (1 - depth) * np.log((1 - depth) / (1 - p)) if depth < 1 else 0.0
        expected.append(depth * np.log(depth / p) + rest)
    values = distance_terms(row(*z), batch_of(distance)).values
    np.testing.assert_allclose(values[0, 0], expected, rtol=1e-4, atol=1e-6)  # float32


def test_only_annotated_pixels_of_an_object_count():
    ground = [Ground.ANNOTATED, Ground.ANNOTATED, Ground.UNANNOTATED, Ground.BACKGROUND, Ground.IGNORED]
    batch = batch_of([200, 0, 200, 200, 200], ground)
    terms = distance_terms(row(3.0, 3.0, 3.0, 3.0, 3.0), batch)
    np.testing.assert_array_equal(terms.weights[0, 0], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(terms.values[0, 0] > 0, [True, False, False, False, False])
    slope = jax.grad(lambda z: distance_terms(z, batch).values.sum())(row(3.0, 3.0, 3.0, 3.0, 3.0))
    assert (slope[0, 0, 1:] == 0).all()


def test_the_gradient_is_p_minus_depth():
    z, distance = row(-3.0, 0.0, 0.5, 4.0), np.array([1, 128, 255, 255])
    slope = jax.grad(lambda z: distance_terms(z, batch_of(distance)).values.sum())(z)
    np.testing.assert_allclose(slope[0, 0], jax.nn.sigmoid(z)[0, 0] - distance / 255, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_far_logits_are_finite_and_a_hit_costs_nothing(dtype):
    z = row(-100.0, 100.0, 100.0, 0.0).astype(dtype)
    values = distance_terms(z, batch_of([255, 1, 255, 128])).values[0, 0]
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values[:2], [100.0, 100 * 254 / 255], atol=0.1)  # less the entropy of 1/255
    np.testing.assert_allclose(values[2:], 0.0, atol=1e-4)  # 128/255 is not quite 1/2


def test_a_batch_without_distance_is_refused():
    with pytest.raises(InputError, match=r"Batch.distance; the batch has none"):
        distance_terms(row(0.0), dataclasses.replace(batch_of([1]), distance=None))
