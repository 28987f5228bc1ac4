"""Early-learning regularisation against its equations in float64, and what it does to wrong labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import (
    CrossEntropy,
    EarlyLearning,
    Remembers,
    early_learning_cross_entropy,
    evidence,
    next_average,
)
from sparseshot_jax.types import Ground, Targets

SPEC = EarlyLearning()


def draw(k=1, shape=(3, 7, 7), scale=3.0):
    rng = np.random.default_rng(2)
    ground = rng.integers(0, 4, shape).astype(np.uint8)
    label = rng.integers(1, max(k, 2), shape) * (ground == Ground.ANNOTATED)
    logits = rng.normal(0, scale, (*shape, k)).astype(np.float32)
    average = rng.uniform(0, 1, shape).astype(np.float32)
    return logits, Targets(
        ground=jnp.asarray(ground), label=jnp.asarray(label, jnp.int32), average=jnp.asarray(average)
    )


def clipped(p):
    return np.clip(p, 1e-4, 1 - 1e-4)


def reference(z, ground, average, beta=0.7, strength=3.0):
    """Value, derivative by z and the next average of each element: METHOD's row, in float64."""
    z, average = z.astype(np.float64), average.astype(np.float64)
    p = 1 / (1 + np.exp(-z))
    t = beta * average + (1 - beta) * clipped(p)
    inner = (1 - t) * (1 - clipped(p)) + t * clipped(p)  # <t, p>
    slope = np.where((p > 1e-4) & (p < 1 - 1e-4), p * (1 - p), 0.0)
    pulled = -strength * (2 * t - 1) * slope / (1 - inner)
    regulariser = strength * np.log(1 - inner)
    kinds = [ground == g for g in (Ground.ANNOTATED, Ground.UNANNOTATED, Ground.BACKGROUND)]
    positive, background = np.logaddexp(0, -z), np.logaddexp(0, z)
    value = np.select(kinds, [positive + regulariser, background + regulariser, background])
    derivative = np.select(kinds, [p - 1 + pulled, p + pulled, p])
    return value, derivative, t


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_value_gradient_and_average_are_the_equations(scale):
    logits, targets = draw(scale=scale)
    assert (np.abs(logits) > 9.3).any() == (scale == 6.0)  # the clip acts, or not

    def total(z):
        terms = SPEC.terms(z, targets, SPEC.hyper(0.3))
        return terms.values.sum(), terms

    (_, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(logits))
    value, derivative, average = reference(
        logits[..., 0], np.asarray(targets.ground), np.asarray(targets.average)
    )
    # float32; a p near the clip is known to 1e-7, of 1e-4
    np.testing.assert_allclose(terms.values, value, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gradient[..., 0], derivative, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(terms.average, average, rtol=1e-6, atol=1e-7)
    assert terms.kept.all()
    np.testing.assert_array_equal(terms.capped, terms.values)


def test_strength_zero_is_cross_entropy_to_the_bit():
    """Operation by operation: a compiler may fuse and reorder the one and the other differently."""
    logits, targets = draw()

    def value_and_gradient(spec):
        def total(z):
            terms = spec.terms(z, targets, spec.hyper(0.0))
            return terms.values.sum(), terms.values

        return jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))

    ours, plain = value_and_gradient(EarlyLearning(strength=0.0)), value_and_gradient(CrossEntropy())
    jax.tree.map(np.testing.assert_array_equal, ours, plain)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sure_predictions_stay_finite_and_bounded(dtype):
    z, average, annotated = np.meshgrid(
        [-1e4, -40.0, -9.0, 0.0, 9.0, 40.0, 1e4], [0.0, 1e-4, 0.5, 1.0], [False, True], indexing="ij"
    )
    average, annotated = jnp.asarray(average, jnp.float32), jnp.asarray(annotated)

    @jax.jit
    def parts(z):
        def loss(z, strength):
            values = early_learning_cross_entropy(z, annotated, average=average, strength=strength)
            return values.sum(), values

        gradient, values = jax.grad(loss, has_aux=True)(z, 3.0)
        return values - loss(z, 0.0)[1], gradient, next_average(z, average)

    regulariser, gradient, after = (np.asarray(x, np.float32) for x in parts(jnp.asarray(z, dtype)))
    assert np.isfinite(gradient).all()
    assert ((after >= 0) & (after <= 1)).all()
    # a difference of float32 near 1e4, where the logit is
    assert (regulariser >= 3 * np.log(1e-4) - 1e-2).all()
    assert (regulariser <= 1e-2).all()
    infinite = next_average(jnp.array([-jnp.inf, jnp.inf], dtype), jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(infinite, 0.35 + 0.3 * np.array([1e-4, 1 - 1e-4]), rtol=1e-6)


def test_a_label_that_the_average_contradicts_is_outweighed_and_one_it_confirms_is_not():
    z, annotated = jnp.full(3, 2.0), jnp.array([False, False, True])  # p = 0.88
    average = jnp.array([0.5, 0.9, 0.9])

    def loss(z):
        return early_learning_cross_entropy(z, annotated, average=average).sum()

    no_opinion, contradicted, confirmed = jax.jit(jax.grad(loss))(z).tolist()
    assert no_opinion == pytest.approx(0.88, abs=0.01)  # cross-entropy
    assert contradicted < -0.3  # p rises against its label
    assert confirmed < -1.0


def test_no_gradient_flows_into_the_average():
    logits, targets = draw()
    z = jnp.asarray(logits[..., 0])

    def through(average):
        return early_learning_cross_entropy(z, targets.annotated, average=average).sum()

    assert not np.asarray(jax.grad(through)(targets.average)).any()
    assert not np.asarray(jax.grad(lambda z: next_average(z, targets.average).sum())(z)).any()


def test_more_classes_are_remembered_by_their_evidence():
    logits, targets = draw(k=4)
    terms = SPEC.terms(jnp.asarray(logits), targets, SPEC.hyper(0.0))
    z = np.asarray(evidence(jnp.asarray(logits), targets.label))
    value, _, average = reference(z, np.asarray(targets.ground), np.asarray(targets.average))
    np.testing.assert_allclose(terms.values, value, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(terms.average, average, rtol=1e-6, atol=1e-7)


def test_it_warns_of_a_start_at_which_the_labels_are_outweighed():
    """At t = p below (lambda - 2) / (2 lambda - 2), 1/4 at lambda 3; nowhere up to lambda 2."""
    (caution,) = SPEC.cautions(0.05)
    assert "--model.prior 0.25" in caution
    assert SPEC.cautions(0.25) == EarlyLearning(strength=2.0).cautions(0.01) == []


def test_it_says_what_it_needs():
    logits, targets = draw()
    bare = Targets(ground=targets.ground, label=targets.label)
    with pytest.raises(InputError, match=r"loss elr needs Targets\.average"):
        SPEC.terms(jnp.asarray(logits), bare, SPEC.hyper(0.0))
    assert isinstance(SPEC, Remembers)
    assert not isinstance(CrossEntropy(), Remembers)


@pytest.mark.parametrize("wrong", [{"beta": 1.0}, {"beta": -0.1}, {"strength": -1.0}, {"strength": np.inf}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=rf"{next(iter(wrong))}.*Try"):
        EarlyLearning(**wrong)
