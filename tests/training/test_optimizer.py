import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.optimizer import OptimizerSpec, make_optimizer, rate_schedule

PARAMS = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full((3,), 2.0)}


def test_the_chain_is_adamw_by_hand():
    """Three steps against Adam in float64 (Kingma and Ba 2015), clipping before, decay after."""
    optimizer = make_optimizer(OptimizerSpec(weight_decay=0.1, clip_norm=0.5))
    rng = np.random.default_rng(0)
    params = {name: np.asarray(value, np.float64) for name, value in PARAMS.items()}
    mean = {name: 0.0 for name in params}
    square = {name: 0.0 for name in params}
    state = optimizer.init(PARAMS)
    for step in range(1, 4):
        grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
        updates, state = optimizer.update(
            jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads), state, PARAMS
        )
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, g in grads.items():
            g = g * min(1.0, 0.5 / norm)
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.999 * square[name] + 0.001 * g**2
            adam = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8)
            decay = 0.1 * params[name] if name == "kernel" else 0.0
            np.testing.assert_allclose(updates[name], adam + decay, rtol=2e-4)  # 1 - 0.999^t in float32


def test_decay_acts_on_kernels_alone():
    optimizer = make_optimizer(OptimizerSpec(weight_decay=0.25))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["kernel"], 0.5)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_small_gradients_are_not_scaled():
    spec = OptimizerSpec(clip_norm=1.0)
    grads = {"kernel": jnp.full((2, 3), 0.1), "bias": jnp.zeros(3)}
    _, clipped = make_optimizer(spec).update(grads, make_optimizer(spec).init(PARAMS), PARAMS)
    _, plain = optax.scale_by_adam().update(grads, optax.scale_by_adam().init(PARAMS))
    adam = next(s for s in clipped if isinstance(s, optax.ScaleByAdamState))
    jax.tree.map(np.testing.assert_array_equal, adam.mu, plain.mu)


def test_warm_up_rises_linearly_then_a_cosine_falls():
    rate = rate_schedule(OptimizerSpec(warmup=0.1, final_share=0.2), 200)
    values = np.array([float(rate(step)) for step in range(201)])
    np.testing.assert_allclose(values[:21], np.arange(21) / 20, atol=1e-6)
    t = (np.arange(20, 201) - 20) / 180
    np.testing.assert_allclose(values[20:], 0.2 + 0.8 * (1 + np.cos(np.pi * t)) / 2, atol=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 10), (0.05, 1), (0.05, 4), (0.99, 10), (0.999, 3)])
def test_short_runs_and_extreme_warm_ups_have_finite_rates(warmup, steps):
    rate = rate_schedule(OptimizerSpec(warmup=warmup), steps)
    values = np.array([float(rate(step)) for step in range(steps)])
    assert ((values >= 0) & (values <= 1)).all()
    if warmup == 0.0:
        assert values[0] == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup": 1.0},
        {"final_share": 1.5},
        {"weight_decay": -1e-4},
        {"clip_norm": 0.0},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        OptimizerSpec(**wrong)
