import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax import losses
from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import Official
from sparseshot_jax.types import Ground, Targets

RTOL = 1e-5  # float32 through a softmax and an exponential, against float64


def reference(logits, labels, threshold, *, alpha=0.2, gamma=0.1):
    """The authors' order of events: cross-entropy first, its weight from exp(-ce)."""
    out = []
    for row, y in zip(np.asarray(logits, np.float64), np.asarray(labels)):
        ce = np.log(np.sum(np.exp(row - row.max()))) + row.max() - row[y]
        second, first = np.sort(row)[-2:]
        if y > 0:
            out.append(ce)
        else:
            keep = abs(first - second) <= threshold
            out.append(keep * alpha * (1 - math.exp(-ce)) ** gamma * ce)
    return np.array(out)


def sample(k, n=300, seed=0):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(0, 1, (n, k)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, k, n) * rng.integers(0, 2, n))
    return logits, labels


def spec_targets(ground, label=0):
    ground = jnp.asarray(ground, jnp.uint8)
    return Targets(ground=ground, label=jnp.full(ground.shape, label))


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 3.0, 100.0])
def test_against_the_loop(k, threshold):
    logits, labels = sample(k)
    values = losses.official_exclusive_cross_entropy(logits, labels, threshold=threshold)
    np.testing.assert_allclose(values, reference(logits, labels, threshold), rtol=RTOL)


def test_confident_background_is_dropped_too():
    logits, labels = losses.two_logits(jnp.array([-2.0, -0.3, 0.3, 2.0])), jnp.zeros(4, int)
    values = losses.official_exclusive_cross_entropy(logits, labels, threshold=0.5)
    assert (values > 0).tolist() == [False, True, True, False]


def test_the_threshold_is_a_margin_and_reached_inclusively():
    logits = losses.two_logits(jnp.array([0.5]))
    assert losses.official_exclusive_cross_entropy(logits, jnp.array([0]), threshold=0.5)[0] > 0


def test_their_binary_class_is_one_sided_in_the_raw_logit():
    z, annotated = jnp.array([-2.0, 0.4, 0.6, 0.6]), jnp.array([False, False, False, True])
    values = losses.official_binary_exclusive_cross_entropy(z, annotated, threshold=0.5)
    two = losses.two_logits(z)
    expected = reference(two, annotated.astype(int), 100.0)
    expected[2] = 0.0
    np.testing.assert_allclose(values, expected, rtol=RTOL)


def test_ties_have_no_confidence():
    logits = jnp.array([[1.0, 1.0, 0.0]])
    assert losses.official_exclusive_cross_entropy(logits, jnp.array([0]), threshold=0.0)[0] > 0


def test_the_background_is_sampled_at_its_rate_and_nothing_else_is():
    n = 20_000
    logits, key = jnp.zeros((n, 2)), jax.random.key(0)
    numbers = {"threshold": 0.5, "keep_rate": 0.3, "key": key}
    loss = losses.official_exclusive_cross_entropy
    background = loss(logits, jnp.zeros(n, int), **numbers)
    # Three standard deviations of a binomial share: 3 sqrt(0.3 * 0.7 / n) = 0.0097.
    assert float(jnp.mean(background > 0)) == pytest.approx(0.3, abs=0.01)
    assert jnp.all(loss(logits, jnp.ones(n, int), **numbers) > 0)
    known = loss(logits, jnp.zeros(n, int), known_background=jnp.ones(n, bool), **numbers)
    np.testing.assert_allclose(known, math.log(2), rtol=RTOL)
    again = loss(logits, jnp.zeros(n, int), **numbers)
    chex.assert_trees_all_equal(background, again)
    other = loss(logits, jnp.zeros(n, int), **numbers | {"key": jax.random.key(1)})
    assert jnp.any(background != other)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_ends_of_the_rate(rate):
    values = losses.official_exclusive_cross_entropy(
        jnp.zeros((1000, 2)),
        jnp.zeros(1000, int),
        threshold=0.5,
        keep_rate=rate,
        key=jax.random.key(0),
    )
    assert jnp.all((values > 0) == bool(rate))


def test_sampling_without_a_key_is_refused():
    with pytest.raises(InputError, match="key=None"):
        losses.official_exclusive_cross_entropy(
            jnp.zeros((1, 2)), jnp.array([0]), threshold=0.5, keep_rate=0.5
        )
    with pytest.raises(InputError, match="two classes or more"):
        losses.official_exclusive_cross_entropy(jnp.zeros((1, 1)), jnp.array([0]), threshold=0.5)


def test_gradient_is_exactly_zero_where_dropped():
    logits, labels = sample(3)

    def total(logits):
        return losses.official_exclusive_cross_entropy(logits, labels, threshold=0.5).sum()

    gradient = jax.jit(jax.grad(total))(logits)
    dropped = (labels == 0) & (jnp.diff(jnp.sort(logits), axis=-1)[:, -1] > 0.5)
    assert 0 < dropped.sum() < len(labels)
    assert jnp.all(gradient[dropped] == 0)
    assert jnp.all(jnp.any(gradient[~dropped] != 0, axis=-1))


def test_the_spec_follows_both_schedules():
    assert Official().hyper(50 / 300) == pytest.approx(
        {"rho": 0.25, "alpha": 0.2, "gamma": 0.1, "keep_rate": 0.5 / (1 + math.exp(10))}
    )
    assert Official(keep_rate=1.0).hyper(0.5)["keep_rate"] == 0.5


def test_the_spec_takes_one_logit_as_two_and_says_what_it_kept():
    z = jnp.array([-2.0, 0.3, 2.0, 2.0, 2.0])
    hyper = Official().hyper(1.0) | {"rho": 0.5}
    terms = Official(sampling=False).terms(z[:, None], spec_targets([0, 0, 0, 2, 3]), hyper)
    assert terms.kept.tolist() == [False, True, False, True, True]
    assert terms.weights.tolist() == [1, 1, 1, 1, 0]
    held = np.array([-0.5, 0.3, 0.5])
    p = 1 / (1 + np.exp(-held))
    np.testing.assert_allclose(terms.capped[:3], 0.2 * p**0.1 * -np.log(1 - p), rtol=RTOL)
    np.testing.assert_allclose(terms.values[3:], [math.log1p(math.exp(2)), 0.0], rtol=RTOL)
    expected = losses.official_exclusive_cross_entropy(
        losses.two_logits(z[:3]), jnp.zeros(3, int), threshold=0.5
    )
    chex.assert_trees_all_equal(terms.values[:3], expected)


def test_the_spec_samples_with_its_key():
    logits, targets = jnp.zeros((10_000, 1)), spec_targets(np.full(10_000, Ground.UNANNOTATED))
    hyper = Official().hyper(1.0)
    terms = Official().terms(logits, targets, hyper, jax.random.key(0))
    # Three standard deviations: 3 sqrt(0.25 / n) = 0.015.
    assert float(terms.kept.mean()) == pytest.approx(0.5, abs=0.016)
    chex.assert_trees_all_equal(terms.values > 0, terms.kept)
    # The capped curve is free of the draw's noise.
    assert float(jnp.ptp(terms.capped)) == 0.0
    with pytest.raises(InputError, match="key"):
        jax.eval_shape(lambda hyper: Official().terms(logits, targets, hyper, None), hyper)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_rate": 0.0}, "keep_rate must be > 0.0 and <= 1.0"),
        ({"keep_rate": 1.5}, "keep_rate"),
        ({"rho": -1.0}, "rho"),
        ({"alpha": -0.1}, "alpha"),
        ({"schedule": "offical"}, "Try 'official'"),
    ],
)
def test_bad_numbers_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Official(**fields)


def test_a_margin_may_exceed_one():
    assert Official(schedule="fixed", rho=5.0).hyper(0.0)["rho"] == 5.0
