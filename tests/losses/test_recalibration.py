import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sparseshot_jax import losses
from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import BRL
from sparseshot_jax.types import Ground, Targets

NUMBERS = {"threshold": 0.7, "alpha": 0.3, "gamma": 1.5, "beta": 0.6}


def reference(p_of, ground, *, threshold=0.5, alpha=0.25, gamma=2.0, beta=1.0):
    """METHOD.md's row in float64 probabilities, one element at a time."""
    out = []
    for p, code in zip(p_of, np.asarray(ground)):
        if code == Ground.IGNORED:
            out.append(0.0)
        elif code == Ground.BACKGROUND:
            out.append(-math.log(1 - p))
        elif code == Ground.ANNOTATED:
            out.append(-alpha * (1 - p) ** gamma * math.log(p))
        elif 1 - p >= threshold:
            out.append(-(1 - alpha) * p**gamma * math.log(1 - p))
        else:
            out.append(-beta * (1 - alpha) * (1 - p) ** gamma * math.log(p))
    return np.array(out)


def sample(n=400, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, n).astype(np.float32)
    ground = rng.integers(0, 4, n)
    return jnp.asarray(z), jnp.asarray(ground), 1 / (1 + np.exp(-z.astype(np.float64)))


def grounds(ground):
    return {
        "annotated": ground == Ground.ANNOTATED,
        "known_background": ground == Ground.BACKGROUND,
        "valid": ground != Ground.IGNORED,
    }


def test_hand_constants():
    z, annotated = jnp.array([0.0, 0.0, math.log(3), -math.log(3)]), jnp.array([True, False, False, False])
    # p = 1/2, 1/2, 3/4 and 1/4: the third is mirrored, and worth what its mirror image is
    quarter = 0.75 * 0.0625 * -math.log(0.75)
    expected = [0.0625 * math.log(2), 0.1875 * math.log(2), quarter, quarter]
    np.testing.assert_allclose(losses.brl(z, annotated), expected, rtol=2e-6)


@pytest.mark.parametrize("numbers", [{}, NUMBERS])
def test_against_the_loop(numbers):
    z, ground, p = sample()
    values = losses.brl(z, **grounds(ground), **numbers)
    unannotated = ground == Ground.UNANNOTATED
    assert 0 < (unannotated & (p > 0.5)).sum() < unannotated.sum()
    np.testing.assert_allclose(values, reference(p, ground, **numbers), rtol=1e-5)  # exp(gamma log p)


def test_more_classes_through_the_same_evidence():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(0, 2, (200, 4)), jnp.float32)
    ground, labels = jnp.asarray(rng.integers(0, 4, 200), jnp.uint8), rng.integers(1, 4, 200)
    spec = BRL(**NUMBERS)
    terms = spec.terms(logits, Targets(ground=ground, label=jnp.asarray(labels)), spec.hyper(0.0))
    softmax = np.exp(np.asarray(logits, np.float64))
    softmax /= softmax.sum(-1, keepdims=True)
    p = np.where(ground == Ground.ANNOTATED, softmax[np.arange(200), labels], 1 - softmax[:, 0])
    np.testing.assert_allclose(terms.values, reference(p, ground, **NUMBERS), rtol=2e-5, atol=1e-7)


def test_limits():
    z, ground, _ = sample()
    numbers = {"alpha": 0.3, "gamma": 1.5}
    focal = losses.focal(z, **grounds(ground), **numbers)
    chex.assert_trees_all_equal(losses.brl(z, **grounds(ground), **numbers, threshold=0.0), focal)
    turned = losses.brl(z, **grounds(ground), **numbers, threshold=1.0)
    as_objects = losses.focal(-z, jnp.zeros(z.shape, bool), **numbers)
    unannotated = ground == Ground.UNANNOTATED
    chex.assert_trees_all_equal(turned, jnp.where(unannotated, as_objects, focal))
    # beta 0: exclusive of what looks like an object
    dropped = losses.brl(z, **grounds(ground), **numbers, beta=0.0)
    chex.assert_trees_all_equal(dropped, jnp.where(unannotated & (z > 0), 0.0, focal))


def test_the_threshold_belongs_to_the_background():
    """At 1 - p = t itself the element is background: its gradient is positive."""
    gradient = jax.grad(lambda z: losses.brl(z, jnp.zeros(3, bool)).sum())(jnp.array([-1e-3, 0.0, 1e-3]))
    assert (gradient > 0).tolist() == [True, True, False]


def test_numerical_gradients_away_from_the_threshold():
    z, annotated = jnp.array([-2.0, -0.5, 0.7, 2.0] * 2), jnp.repeat(jnp.array([True, False]), 4)
    # Central differences in float32: error eps^2 + 1e-7 / eps. The side changes at z = 0.
    check_grads(
        lambda z: losses.brl(jnp.asarray(z), annotated).sum(),
        (z,),
        order=1,
        modes=("rev",),
        atol=1e-2,
        eps=1e-2,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_extreme_logits_are_finite(dtype, threshold):
    z = jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4], dtype)
    for annotated in (True, False):
        out = jax.value_and_grad(
            lambda z, a=annotated: losses.brl(z, jnp.full(z.shape, a), threshold=threshold).sum()
        )(z)
        assert out[0].dtype == jnp.float32
        chex.assert_tree_all_finite(out)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 1.1}, "threshold must be >= 0.0 and <= 1.0"),
        ({"alpha": -0.1}, "alpha must be"),
        ({"gamma": math.nan}, "gamma must be"),
        ({"beta": -1.0}, "beta must be"),
    ],
)
def test_bad_numbers_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        BRL(**fields)
