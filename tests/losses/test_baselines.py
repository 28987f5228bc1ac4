import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sparseshot_jax import losses
from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import CrossEntropy, Focal, Huber
from sparseshot_jax.types import Ground, Targets

RTOL = 2e-6  # float32 against float64
FUNCTIONS = [losses.cross_entropy, losses.focal, losses.huber]


def huber(error, delta):
    return error**2 / 2 if error <= delta else delta * (error - delta / 2)


def reference(p_of, ground, positive, unannotated):
    """One term a ground: `positive` and `unannotated` are functions of the float64 probability."""
    out = []
    for p, code in zip(p_of, np.asarray(ground)):
        out.append(
            {
                Ground.ANNOTATED: positive,
                Ground.UNANNOTATED: unannotated,
                Ground.BACKGROUND: lambda p: -math.log(1 - p),
                Ground.IGNORED: lambda p: 0.0,
            }[Ground(int(code))](p)
        )
    return np.array(out)


def sample(n=300, seed=0):
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


def test_hand_constants_at_one_half():
    z, annotated = jnp.zeros(2), jnp.array([True, False])
    log2 = math.log(2)
    np.testing.assert_allclose(losses.cross_entropy(z, annotated), [log2, log2], rtol=RTOL)
    np.testing.assert_allclose(
        losses.focal(z, annotated), [0.25 * 0.25 * log2, 0.75 * 0.25 * log2], rtol=RTOL
    )
    np.testing.assert_allclose(losses.huber(z, annotated), [0.125, 0.125], rtol=RTOL)


def test_huber_beyond_the_parabola():
    z = jnp.array([math.log(4.0)])  # p = 0.8
    np.testing.assert_allclose(losses.huber(z, jnp.array([False])), [0.5 * 0.55], rtol=RTOL)
    np.testing.assert_allclose(losses.huber(z, jnp.array([True])), [0.02], rtol=1e-5)  # 1 - p


def test_cross_entropy_against_the_loop():
    z, ground, p = sample()
    values = losses.cross_entropy(z, **grounds(ground), background_weight=0.2)
    expected = reference(p, ground, lambda p: -math.log(p), lambda p: -0.2 * math.log(1 - p))
    np.testing.assert_allclose(values, expected, rtol=RTOL)


def test_focal_against_the_loop():
    z, ground, p = sample()
    values = losses.focal(z, **grounds(ground), alpha=0.3, gamma=1.5)
    expected = reference(
        p,
        ground,
        lambda p: -0.3 * (1 - p) ** 1.5 * math.log(p),
        lambda p: -0.7 * p**1.5 * math.log(1 - p),
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5)  # exp(1.5 log p)


def test_huber_against_the_loop():
    z, ground, p = sample()
    values = losses.huber(z, **grounds(ground), delta=0.4)
    expected = reference(p, ground, lambda p: huber(1 - p, 0.4), lambda p: huber(p, 0.4))
    np.testing.assert_allclose(values, expected, rtol=1e-5)  # squares double the relative error


def test_limits():
    z, ground, _ = sample()
    halved = losses.focal(z, **grounds(ground), alpha=0.5, gamma=0.0)
    cross_entropy = losses.cross_entropy(z, **grounds(ground))
    known = ground == Ground.BACKGROUND
    chex.assert_trees_all_equal(halved, jnp.where(known, cross_entropy, cross_entropy / 2))


@pytest.mark.parametrize("loss", FUNCTIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_are_finite(loss, dtype):
    z = jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4], dtype)
    for annotated in (True, False):
        value, gradient = jax.value_and_grad(
            lambda z, annotated=annotated: loss(z, jnp.full(z.shape, annotated)).sum()
        )(z)
        assert value.dtype == jnp.float32
        chex.assert_tree_all_finite((value, gradient))


@pytest.mark.parametrize("loss", FUNCTIONS)
def test_numerical_gradients_and_signs(loss):
    z, annotated = jnp.array([-2.0, -0.5, 0.7, 2.0] * 2), jnp.repeat(jnp.array([True, False]), 4)
    # Central differences in float32: error eps^2 + 1e-7 / eps. Huber's kink is at z = 0.
    check_grads(
        lambda z: loss(jnp.asarray(z), annotated).sum(), (z,), order=1, modes=("rev",), atol=1e-2, eps=1e-2
    )
    gradient = jax.grad(lambda z: loss(z, annotated).sum())(z)
    assert jnp.all((gradient < 0) == annotated)


@pytest.mark.parametrize("spec", [CrossEntropy(background_weight=0.3), Focal(), Huber()])
def test_more_classes_through_the_same_evidence(spec):
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(0, 2, (200, 4)), jnp.float32)
    ground = jnp.asarray(rng.integers(0, 4, 200), jnp.uint8)
    labels = rng.integers(1, 4, 200)
    terms = spec.terms(logits, Targets(ground=ground, label=jnp.asarray(labels)), spec.hyper(0.0))
    softmax = np.exp(np.asarray(logits, np.float64))
    softmax /= softmax.sum(-1, keepdims=True)
    # On annotated ground p is that of the class; elsewhere that of any foreground.
    p = np.where(ground == Ground.ANNOTATED, softmax[np.arange(200), labels], 1 - softmax[:, 0])
    positive, unannotated = {
        CrossEntropy: (lambda p: -math.log(p), lambda p: -0.3 * math.log(1 - p)),
        Focal: (
            lambda p: -0.25 * (1 - p) ** 2 * math.log(p),
            lambda p: -0.75 * p**2 * math.log(1 - p),
        ),
        Huber: (lambda p: huber(1 - p, 0.5), lambda p: huber(p, 0.5)),
    }[type(spec)]
    np.testing.assert_allclose(
        terms.values, reference(p, ground, positive, unannotated), rtol=2e-5, atol=1e-7
    )


def test_nothing_is_dropped():
    terms = CrossEntropy().terms(
        jnp.full((4, 1), 9.0),
        Targets(ground=jnp.arange(4, dtype=jnp.uint8), label=jnp.array([0, 1, 0, 0])),
        CrossEntropy().hyper(0.0),
    )
    assert terms.kept.all()
    chex.assert_trees_all_equal(terms.capped, terms.values)


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (CrossEntropy, {"background_weight": -0.1}),
        (Focal, {"alpha": 1.5}),
        (Focal, {"gamma": -1.0}),
        (Huber, {"delta": 0.0}),
        (Huber, {"delta": math.nan}),
    ],
)
def test_bad_numbers_are_refused(spec, fields):
    with pytest.raises(InputError, match=f"{next(iter(fields))} must be .* Try"):
        spec(**fields)
