import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import evidence, log_odds
from sparseshot_jax.losses.evidence import evidence_of, threshold_logit
from sparseshot_jax.types import Ground, Targets


def test_log_odds_are_those_of_the_softmax():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, (50, 4)), jnp.float32)
    for k in range(4):
        p = jax.nn.sigmoid(log_odds(logits, jnp.full(50, k)))
        # float32, two logsumexps
        np.testing.assert_allclose(p, jax.nn.softmax(logits)[:, k], rtol=1e-5)


def test_evidence_of_background_and_of_a_class():
    logits = jnp.log(jnp.array([[0.5, 0.2, 0.3], [0.5, 0.2, 0.3]]))
    z = evidence(logits, jnp.array([0, 2]))
    # 0.5 foreground against 0.5 background; 0.3 of class 2 against 0.7 of all others.
    np.testing.assert_allclose(z, [0.0, math.log(3 / 7)], rtol=1e-6, atol=1e-7)


def test_extreme_logits_keep_values_and_gradients_finite():
    logits = jnp.array([[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4], [100.0, 100.0, 100.0]])
    for label in (0, 1, 2):
        out = jax.value_and_grad(lambda z, y=label: evidence(z, jnp.full(3, y)).sum())(logits)
        chex.assert_tree_all_finite(out)


def test_a_class_that_does_not_exist_is_loud():
    loss = jax.nn.softplus(-evidence(jnp.zeros((1, 3)), jnp.array([3])))
    assert jnp.isinf(loss[0])


def test_one_logit_is_no_softmax():
    with pytest.raises(InputError, match=r"two classes or more .* got shape \(5, 1\)"):
        evidence(jnp.zeros((5, 1)), jnp.zeros(5, int))


def test_labels_count_on_annotated_ground_only():
    logits = jnp.log(jnp.array([[0.5, 0.2, 0.3]] * 4))
    targets = Targets(ground=jnp.arange(4, dtype=jnp.uint8), label=jnp.full(4, 2))
    z = evidence_of(logits, targets)
    assert targets.ground[1] == Ground.ANNOTATED
    np.testing.assert_allclose(z, [0.0, math.log(3 / 7), 0.0, 0.0], rtol=1e-6, atol=1e-7)


def test_threshold_logit():
    np.testing.assert_allclose(threshold_logit(0.75), math.log(3), rtol=1e-6)
    limits = np.finfo(np.float32)
    assert threshold_logit(0.0) == limits.min
    assert threshold_logit(1.0) == threshold_logit(7) == limits.max
