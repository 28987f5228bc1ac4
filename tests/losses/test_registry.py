"""What holds of every loss in LOSSES, and of the import of the room."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax import losses
from sparseshot_jax.losses import LOSSES
from sparseshot_jax.types import Ground, LabelFacts, Targets

every_loss = pytest.mark.parametrize("name", sorted(LOSSES))
KEY = jax.random.key(0)


def spec_of(name):
    """The loss with its defaults, what they leave open filled in from data."""
    spec = LOSSES[name]()
    return spec.fitted(LabelFacts(share=0.3, annotated_fraction=0.1)) if hasattr(spec, "fitted") else spec


def batch(k, seed=0, shape=(2, 8, 8)):
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 4, shape).astype(np.uint8)
    label = (ground == Ground.ANNOTATED) * rng.integers(1, max(k, 2), shape)
    logits = jnp.asarray(rng.normal(0, 2, (*shape, k)), jnp.float32)
    average = jnp.asarray(rng.uniform(size=shape), jnp.float32)  # for a loss that remembers
    targets = Targets(ground=jnp.asarray(ground), label=jnp.asarray(label, jnp.uint8), average=average)
    return logits, targets


@every_loss
@pytest.mark.parametrize("k", [1, 2, 4])
def test_terms_of_a_segmentation_batch(name, k):
    spec = spec_of(name)
    logits, targets = batch(k)
    terms = jax.jit(spec.terms)(logits, targets, spec.hyper(0.5), KEY)
    chex.assert_shape(jax.tree.leaves(terms), targets.ground.shape)
    chex.assert_tree_all_finite(terms)
    assert terms.values.dtype == terms.weights.dtype == terms.capped.dtype == jnp.float32
    ignored = targets.ground == Ground.IGNORED
    chex.assert_trees_all_equal(terms.weights, 1.0 - ignored)
    for part in (terms.values, terms.capped):
        assert jnp.all(part[ignored] == 0)
    assert jnp.all(terms.values[~terms.kept] == 0)
    assert jnp.all(terms.kept | (targets.ground == Ground.UNANNOTATED))


@every_loss
@pytest.mark.parametrize("k", [1, 3])
def test_known_background_is_never_masked_weighted_or_sampled(name, k):
    spec = spec_of(name)
    logits, targets = batch(k)
    known = Targets(
        ground=jnp.full_like(targets.ground, Ground.BACKGROUND),
        label=jnp.zeros_like(targets.label),
        average=targets.average,
    )
    full = losses.two_logits(logits[..., 0]) if k == 1 else logits
    expected = -jax.nn.log_softmax(full)[..., 0]
    for t in (0.0, 1.0):
        terms = spec.terms(logits, known, spec.hyper(t), KEY)
        # float32, one softmax against another
        np.testing.assert_allclose(terms.values, expected, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_equal(terms.values, terms.capped)
        assert terms.kept.all()


@every_loss
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_are_finite_in_value_and_gradient(name, k, dtype):
    spec = spec_of(name)
    logits, targets = batch(k)

    @jax.jit
    def value_and_gradient(z, hyper):
        def loss(z):
            return losses.reduce.mean(spec.terms(z, targets, hyper, KEY))

        return jax.value_and_grad(loss)(z)

    for scale in (100.0, 1e4):
        extreme = (jnp.sign(logits) * scale).astype(dtype)
        for t in (0.0, 1.0):
            chex.assert_tree_all_finite(value_and_gradient(extreme, spec.hyper(t)))


@every_loss
def test_two_classes_are_one_logit(name):
    spec = spec_of(name)
    logits, targets = batch(1)
    hyper = spec.hyper(0.7)
    one = spec.terms(logits, targets, hyper, KEY)
    two = spec.terms(losses.two_logits(logits[..., 0]), targets, hyper, KEY)
    chex.assert_trees_all_equal(one, two)


@every_loss
def test_every_number_is_traced(name):
    chex.clear_trace_counter()
    spec = spec_of(name)
    logits, targets = batch(1)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(hyper, key):
        return losses.reduce.mean(spec.terms(logits, targets, hyper, key))

    for t in (0.0, 0.5, 1.0):
        hyper = spec.hyper(t)
        assert all(type(value) is float for value in hyper.values())
        np.testing.assert_allclose(
            step(hyper, KEY),
            losses.reduce.mean(spec.terms(logits, targets, hyper, KEY)),
            rtol=1e-5,  # compiled and not: another order of summation
        )
        for field in hyper:
            step(hyper | {field: hyper[field] * 0.9}, KEY)


def test_import_needs_no_input_pipeline_or_checkpoints():
    heavy = ("grain", "orbax", "tensorflow_datasets", "flax", "tyro", "matplotlib", "shapely")
    code = f"import sys, sparseshot_jax.losses; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
