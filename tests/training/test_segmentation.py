"""The objective of segmentation with a distance channel; the rest of it is in test_step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax import losses, models
from sparseshot_jax.training.distance import distance_terms
from sparseshot_jax.training.segmentation import probabilities, segmentation
from sparseshot_jax.training.tasks import TASKS
from sparseshot_jax.types import Ground, Hyper, Needs

LOSS = losses.CrossEntropy()


def hyper(weight):
    return Hyper(
        loss={"background_weight": jnp.float32(1.0)},
        model={"distance_weight": jnp.float32(weight)},
        learning_rate=0.0,
        ema_decay=0.0,
        seed=0,
    )


@pytest.fixture
def deep(batch):
    """A batch with the depth of each pixel in its object."""
    distance = np.where(batch.ground == Ground.ANNOTATED, 100, 0).astype(np.uint8)
    return jax.tree.map(jnp.asarray, dataclasses.replace(batch, distance=distance))


def test_the_distance_is_one_more_part(deep):
    spec, plain = models.UNetSpec(distance=True), models.UNetSpec()
    assert spec.needs == Needs(distance=True)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(*deep.ground.shape, 2)), jnp.float32)
    both = segmentation(spec, LOSS.terms)(z, deep, hyper(0.5), jax.random.key(0))
    alone = segmentation(plain, LOSS.terms)(z[..., :1], deep, hyper(0.5), jax.random.key(0))
    depth = float(distance_terms(z[..., 1], deep).values.sum())
    np.testing.assert_allclose(float(both.loss), float(alone.loss) + 0.5 * depth, rtol=1e-5)
    row = both.ratios()
    np.testing.assert_allclose(row["pixel_loss"], alone.ratios()["loss"], rtol=1e-6)
    np.testing.assert_allclose(row["distance_loss"], depth / float(both.weight), rtol=1e-5)
    assert "pixel_loss" not in alone.ratios()  # the whole loss is that
    for name in ("kept", "annotated", "p_annotated", "weight"):
        assert float(getattr(both, name)) == float(getattr(alone, name))


def test_probabilities_carry_the_depth_behind_the_classes():
    z = jnp.array([[[[1.0, 2.0, 3.0, 0.5]]]])
    found = probabilities(models.UNetSpec(distance=True))(z)
    np.testing.assert_allclose(found[..., :2], models.class_probabilities(z[..., :3]))
    np.testing.assert_allclose(found[..., 2], jax.nn.sigmoid(0.5))
    np.testing.assert_allclose(probabilities(models.UNetSpec())(z), models.class_probabilities(z))


def test_every_model_has_a_task():
    assert {spec().task for spec in models.MODELS.values()} == set(TASKS)
