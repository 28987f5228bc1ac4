import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from sparseshot_jax import losses
from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import Exclusive, FocalExclusive
from sparseshot_jax.types import Ground, LabelFacts, Targets

# float32 carries 7 digits; a softplus and an exponential cost about one.
RTOL = 2e-6


# --- an independent reference: one element at a time, in float64, in probabilities ---------------


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def reference(z, ground, rho, *, alpha=1.0, gamma=0.0, two_sided=False):
    out = []
    for z_i, ground_i in zip(np.asarray(z, np.float64), ground):
        p, q = sigmoid(z_i), sigmoid(-z_i)
        if ground_i == Ground.IGNORED:
            out.append(0.0)
        elif ground_i == Ground.ANNOTATED:
            out.append(-math.log(p))
        elif ground_i == Ground.BACKGROUND:
            out.append(-math.log(q))
        else:
            confident = max(p, q) if two_sided else p
            keep = rho >= 1 or confident < rho
            out.append(alpha * p**gamma * -math.log(q) if keep else 0.0)
    return np.array(out)


def sample(seed=0, n=400, scale=4.0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, scale, n).astype(np.float32)
    ground = rng.integers(0, 4, n).astype(np.uint8)
    return jnp.asarray(z), jnp.asarray(ground)


def grounds(ground):
    return {
        "annotated": ground == Ground.ANNOTATED,
        "known_background": ground == Ground.BACKGROUND,
        "valid": ground != Ground.IGNORED,
    }


def targets(ground, label=None):
    annotated = ground == Ground.ANNOTATED
    label = annotated.astype(jnp.int32) if label is None else label
    return Targets(ground=jnp.asarray(ground, jnp.uint8), label=label)


# --- values --------------------------------------------------------------------------------------


def test_hand_constants():
    z = jnp.array([0.0, 0.0, math.log(3.0), 5.0, 5.0, 5.0])  # p = 1/2, 1/2, 3/4, 0.993...
    ground = jnp.array([1, 0, 1, 0, 2, 3])
    values = losses.exclusive_cross_entropy(z, **grounds(ground), threshold=0.75)
    expected = [math.log(2), math.log(2), math.log(4 / 3), 0.0, 5.006715348, 0.0]
    np.testing.assert_allclose(values, expected, rtol=RTOL)


def test_the_edge_itself_is_dropped():
    # eq. 7 keeps p < rho strictly; p = 1/2 is exact in every format.
    values = losses.exclusive_cross_entropy(jnp.array([0.0, -1e-6]), jnp.zeros(2, bool), threshold=0.5)
    assert values[0] == 0.0
    assert values[1] > 0.69


def test_focal_hand_constants():
    z, annotated = jnp.array([0.0, 0.0]), jnp.array([True, False])
    values = losses.focal_exclusive_cross_entropy(z, annotated, threshold=0.75)
    # Annotated ground is not weighted; unannotated: 0.2 * 0.5^0.1 * log 2.
    np.testing.assert_allclose(values, [math.log(2), 0.129345837], rtol=RTOL)


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.5, 0.75, 0.95, 1.0, 1.5])
@pytest.mark.parametrize("two_sided", [False, True])
def test_against_the_loop(rho, two_sided):
    z, ground = sample()
    plain = losses.exclusive_cross_entropy(z, **grounds(ground), threshold=rho, two_sided=two_sided)
    expected = reference(z, ground, rho, two_sided=two_sided)
    np.testing.assert_allclose(plain, expected, rtol=RTOL)
    focal = losses.focal_exclusive_cross_entropy(
        z, **grounds(ground), threshold=rho, alpha=0.3, gamma=0.7, two_sided=two_sided
    )
    expected = reference(z, ground, rho, two_sided=two_sided, alpha=0.3, gamma=0.7)
    np.testing.assert_allclose(focal, expected, rtol=RTOL)


def test_limits():
    z, ground = sample()
    cross_entropy = losses.cross_entropy(z, **grounds(ground))
    for rho in (1.0, 2.0):
        chex.assert_trees_all_equal(
            losses.exclusive_cross_entropy(z, **grounds(ground), threshold=rho), cross_entropy
        )
    unweighted = losses.focal_exclusive_cross_entropy(
        z, **grounds(ground), threshold=0.6, alpha=1.0, gamma=jnp.float32(0.0)
    )
    chex.assert_trees_all_equal(
        unweighted, losses.exclusive_cross_entropy(z, **grounds(ground), threshold=0.6)
    )


def test_the_mask_is_exact_in_bfloat16():
    # Every bfloat16 from 2 to 4: as bfloat16 probabilities they fall on 13 values.
    z = jnp.arange(2.0, 4.0, 2.0**-6).astype(jnp.bfloat16)
    kept = losses.keep_mask(z, threshold=0.95)
    assert kept.tolist() == [sigmoid(float(x)) < 0.95 for x in z]


def test_a_diverged_logit_shows():
    z = jnp.array([jnp.nan])
    assert jnp.isnan(losses.exclusive_cross_entropy(z, jnp.array([False]), threshold=0.5)[0])


# --- gradients -----------------------------------------------------------------------------------


def total(loss, z, ground, **numbers):
    return jnp.sum(loss(z, **grounds(ground), **numbers))


@pytest.mark.parametrize("two_sided", [False, True])
def test_gradient_is_exactly_zero_where_dropped_and_only_there(two_sided):
    z, ground = sample()
    for loss in (losses.exclusive_cross_entropy, losses.focal_exclusive_cross_entropy):
        gradient = jax.grad(total, argnums=1)(loss, z, ground, threshold=0.7, two_sided=two_sided)
        kept = losses.keep_mask(z, threshold=0.7, two_sided=two_sided)
        silent = (ground == Ground.IGNORED) | ((ground == Ground.UNANNOTATED) & ~kept)
        assert jnp.all(gradient[silent] == 0.0)
        assert jnp.all(gradient[~silent] != 0.0)
        assert jnp.all((gradient < 0) == (ground == Ground.ANNOTATED))


def test_the_focal_weight_is_not_detached():
    z, ground = jnp.array([-1.0]), jnp.array([0])
    numbers = {"threshold": 0.9, "alpha": 0.5, "gamma": 2.0}
    gradient = jax.grad(total, argnums=1)(losses.focal_exclusive_cross_entropy, z, ground, **numbers)
    p = sigmoid(-1.0)
    expected = 0.5 * (2 * p**2 * (1 - p) * -math.log(1 - p) + p**2 * p)
    np.testing.assert_allclose(gradient, [expected], rtol=RTOL)


def test_numerical_gradients_away_from_the_edge():
    z = jnp.array([-3.0, -1.0, 0.5, 2.5, -2.0, 1.5])  # the edge, at rho 0.75, is z = 1.0986
    ground = jnp.array([0, 0, 0, 0, 1, 2])
    for loss in (losses.exclusive_cross_entropy, losses.focal_exclusive_cross_entropy):
        # Central differences in float32: error eps^2 + 1e-7 / eps.
        check_grads(
            lambda z, loss=loss: total(loss, jnp.asarray(z), ground, threshold=0.75),
            (z,),
            order=1,
            modes=("fwd", "rev"),
            atol=2e-2,
            rtol=2e-2,
            eps=1e-2,
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_are_finite_in_value_and_gradient(dtype):
    extremes = jnp.array([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], dtype)
    z = jnp.tile(extremes, len(Ground))
    ground = jnp.repeat(jnp.arange(len(Ground)), len(extremes))

    @jax.jit
    def value_and_gradients(z, rho, alpha, gamma):
        def loss(z, alpha, gamma):
            values = losses.focal_exclusive_cross_entropy(
                z, **grounds(ground), threshold=rho, alpha=alpha, gamma=gamma
            )
            assert values.dtype == jnp.float32
            return values.sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(z, alpha, gamma)

    for rho in (0.0, 0.5, 1.0):
        for gamma in (0.0, 0.1, 2.0):
            chex.assert_tree_all_finite(value_and_gradients(z, rho, 0.2, gamma))


@pytest.mark.parametrize("spec", [Exclusive(), FocalExclusive(), FocalExclusive(two_sided=True)])
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("classes", [1, 3])
def test_gradient_equals_that_of_the_capped_loss(spec, rho, classes):
    _, ground = sample(n=60)
    k = classes if classes == 1 else classes + 1
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 3, (60, k)), jnp.float32)
    label = jnp.asarray(np.random.default_rng(2).integers(1, classes + 1, 60))
    hyper = spec.hyper(0.5) | {"rho": rho}

    def part(logits, name):
        return getattr(spec.terms(logits, targets(ground, label), hyper), name).sum()

    chex.assert_trees_all_equal(jax.grad(part)(logits, "values"), jax.grad(part)(logits, "capped"))


def test_the_capped_loss_is_eq_7_of_a_capped_logit_and_continuous():
    rho = 0.75
    z = jnp.linspace(-4.0, 4.0, 801)
    terms = Exclusive().terms(z[:, None], targets(jnp.zeros(801)), {"rho": rho})
    edge = math.log(rho / (1 - rho))
    expected = np.log1p(np.exp(np.minimum(np.asarray(z, np.float64), edge)))
    np.testing.assert_allclose(terms.capped, expected, rtol=RTOL)
    assert np.max(np.abs(np.diff(terms.capped))) < 0.01  # slope p < 1 times the spacing 0.01
    assert np.max(np.abs(np.diff(terms.values))) > 1.0  # the values jump, by log 4
    chex.assert_trees_all_equal(terms.kept, z < edge)


# --- one compilation -----------------------------------------------------------------------------


def test_one_trace_serves_every_number_and_schedule():
    chex.clear_trace_counter()
    z, ground = sample(n=16)
    form = losses.form(FocalExclusive())

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(hyper):
        return losses.reduce.mean(form.terms(z[:, None], targets(ground), hyper))

    specs = [
        FocalExclusive(schedule=name, alpha=alpha, gamma=gamma)
        for name in losses.SCHEDULES
        for alpha, gamma in [(0.2, 0.1), (1.0, 0.0), (0.06, 2.0)]
    ]
    for spec in specs:
        assert losses.form(spec) == form
        for t in (0.0, 0.5, 1.0):
            hyper = spec.hyper(t)
            expected = reference(z, ground, hyper["rho"], alpha=spec.alpha, gamma=spec.gamma).sum() / np.sum(
                np.asarray(ground) != Ground.IGNORED
            )
            np.testing.assert_allclose(step(hyper), expected, rtol=RTOL)


# --- more classes --------------------------------------------------------------------------------


def reference_multiclass(logits, labels, rho, *, alpha, gamma, mask_by, two_sided):
    out = []
    for row, y in zip(np.asarray(logits, np.float64), labels):
        p = np.exp(row - row.max())
        p /= p.sum()
        if y > 0:
            out.append(-math.log(p[y]))
            continue
        confident = 1 - p[0] if mask_by == "foreground" else max(p[1:])
        keep = confident < rho and not (two_sided and p[0] >= rho)
        out.append(alpha * (1 - p[0]) ** gamma * -math.log(p[0]) if keep else 0.0)
    return np.array(out)


@pytest.mark.parametrize("mask_by", ["foreground", "max"])
@pytest.mark.parametrize("two_sided", [False, True])
def test_multiclass_against_the_loop(mask_by, two_sided):
    rng = np.random.default_rng(3)
    logits = jnp.asarray(rng.normal(0, 2, (300, 4)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, 300) * rng.integers(0, 2, 300))
    options = {"mask_by": mask_by, "two_sided": two_sided}
    plain = losses.exclusive_cross_entropy_multiclass(logits, labels, threshold=0.6, **options)
    expected = reference_multiclass(logits, labels, 0.6, alpha=1, gamma=0, **options)
    np.testing.assert_allclose(plain, expected, rtol=1e-5)  # a logsumexp more
    focal = losses.focal_exclusive_cross_entropy_multiclass(
        logits, labels, threshold=0.6, alpha=0.3, gamma=0.7, **options
    )
    expected = reference_multiclass(logits, labels, 0.6, alpha=0.3, gamma=0.7, **options)
    np.testing.assert_allclose(focal, expected, rtol=1e-5)
    assert (expected == 0).any()


def test_max_keeps_more_than_foreground():
    logits, labels = jnp.log(jnp.array([[0.3, 0.35, 0.35]])), jnp.array([0])
    loss = losses.exclusive_cross_entropy_multiclass
    assert loss(logits, labels, threshold=0.5)[0] == 0.0
    np.testing.assert_allclose(
        loss(logits, labels, threshold=0.5, mask_by="max"), [-math.log(0.3)], rtol=RTOL
    )


@pytest.mark.parametrize("mask_by", ["foreground", "max"])
@pytest.mark.parametrize("two_sided", [False, True])
def test_one_class_through_the_softmax_is_the_binary_loss(mask_by, two_sided):
    z, ground = sample()
    known = grounds(ground)
    labels = known.pop("annotated").astype(jnp.int32)
    two = losses.two_logits(z)
    chex.assert_trees_all_equal(
        losses.focal_exclusive_cross_entropy_multiclass(
            two, labels, **known, threshold=0.7, two_sided=two_sided, mask_by=mask_by
        ),
        losses.focal_exclusive_cross_entropy(z, **grounds(ground), threshold=0.7, two_sided=two_sided),
    )
    # And it only sees differences of logits.
    shifted = losses.exclusive_cross_entropy_multiclass(two + 1.0, labels, **known, threshold=0.7)
    binary = losses.exclusive_cross_entropy(z, **grounds(ground), threshold=0.7)
    np.testing.assert_allclose(shifted, binary, rtol=1e-4, atol=1e-6)  # z + 1 - 1 rounds


def test_labels_of_ignored_elements_may_be_anything():
    logits = jnp.zeros((3, 3))
    labels, valid = jnp.array([255, -100, 2]), jnp.array([False, False, True])

    def loss(logits):
        return losses.exclusive_cross_entropy_multiclass(logits, labels, threshold=0.7, valid=valid).sum()

    value, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, math.log(3), rtol=RTOL)
    assert jnp.all(gradient[:2] == 0)


# --- the theory ----------------------------------------------------------------------------------


def along_the_flow(rate, loss):
    """d/dt of rate(z) while dz/dt = -dL/dz."""
    return lambda z: -jax.grad(rate)(z) * jax.grad(loss)(z)


@pytest.mark.parametrize("on_annotated", [False, True])
def test_speed_and_acceleration_of_the_terms(on_annotated):
    def loss(z):
        return losses.exclusive_cross_entropy(z, jnp.asarray(on_annotated), threshold=1.0)

    speed = along_the_flow(loss, loss)
    accelerations = jax.jit(jax.vmap(along_the_flow(speed, loss)))
    p = jnp.linspace(0.01, 0.99, 99)
    z = jnp.log(p) - jnp.log1p(-p)
    if on_annotated:
        np.testing.assert_allclose(jax.jit(jax.vmap(speed))(z), -((1 - p) ** 2), rtol=1e-5)
        expected = 2 * p * (1 - p) ** 3
    else:
        np.testing.assert_allclose(jax.jit(jax.vmap(speed))(z), -(p**2), rtol=1e-5)
        expected = 2 * p**3 * (1 - p)
        assert p[jnp.argmax(accelerations(z))] == pytest.approx(0.75)
    # Three derivatives, and 1 - p near 1: five digits remain.
    np.testing.assert_allclose(accelerations(z), expected, rtol=1e-4)


def settle(share, alpha, *, rho, start):
    """Gradient descent on the one logit that a cluster of look-alikes shares; its p at the end."""

    def loss(z):
        both = losses.focal_exclusive_cross_entropy(
            jnp.stack([z, z]), jnp.array([True, False]), threshold=rho, alpha=alpha, gamma=0.0
        )
        return share * both[0] + (1 - share) * both[1]

    def step(_, z):
        return z - 1.0 * jax.grad(loss)(z)

    z = jax.jit(lambda z: jax.lax.fori_loop(0, 3000, step, z))(jnp.float32(start))
    return float(jax.nn.sigmoid(z))


@pytest.mark.parametrize(("share", "alpha"), [(0.3, 1.0), (0.3, 0.2), (0.1, 0.2), (0.5, 0.5)])
def test_a_cluster_settles_at_its_weighted_share_below_the_threshold(share, alpha):
    fixed_point = share / (share + (1 - share) * alpha)
    assert settle(share, alpha, rho=0.75, start=-3.0) == pytest.approx(fixed_point, abs=1e-4)
    # Plain cross-entropy at the same weight goes to the same place: no bug.
    assert settle(share, alpha, rho=1.0, start=-3.0) == pytest.approx(fixed_point, abs=1e-4)


def test_what_rises_above_the_threshold_drifts_to_one():
    assert settle(0.3, 0.06, rho=0.75, start=-3.0) > 0.99  # its fixed point 0.88 lies above rho
    assert settle(0.3, 1.0, rho=0.75, start=1.2) > 0.99  # started above
    assert settle(0.3, 1.0, rho=1.0, start=1.2) == pytest.approx(0.3, abs=1e-4)


# --- properties ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    z=st.floats(-50, 50, width=32),
    low=st.floats(0.015625, 0.984375, width=32),
    high=st.floats(0.015625, 0.984375, width=32),
)
def test_a_higher_threshold_never_drops_more(z, low, high):
    low, high = sorted((low, high))
    kept = [bool(losses.keep_mask(jnp.float32(z), threshold=rho)) for rho in (low, high)]
    assert kept[1] or not kept[0]


# --- specs ---------------------------------------------------------------------------------------


def test_hyper_holds_every_number():
    assert Exclusive(schedule="fixed", rho=0.6).hyper(0.3) == {"rho": 0.6}
    spec = FocalExclusive(schedule="linear", alpha=1.0, gamma=0.5)
    assert spec.hyper(0.5) == {"rho": 0.375, "alpha": 1.0, "gamma": 0.5}


def test_kept_is_asked_on_unannotated_ground_only():
    logits = jnp.full((4, 1), 5.0)
    terms = Exclusive().terms(logits, targets(jnp.arange(4)), {"rho": 0.5})
    assert terms.kept.tolist() == [False, True, True, True]
    assert terms.weights.tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "sigmod"}, "Try 'sigmoid'"),
        ({"rho": 0.0}, "rho must be > 0.0; got 0.0"),
        ({"schedule": "fixed", "rho": 75.0}, "gives 75.0 at t = 0.0"),
        ({"alpha": -1.0}, "alpha must be >= 0.0; got -1.0. Try 0.2"),
        ({"gamma": math.nan}, "gamma must be >= 0.0; got nan"),
        ({"schedule": "fixed", "rho": 0.5, "two_sided": True}, "two_sided .* ends at 0.5"),
    ],
)
def test_bad_numbers_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        FocalExclusive(**fields)


def test_an_open_weight_follows_the_share_of_the_labels():
    """c tau / (1 - c tau): 0.5 * 0.4 / 0.8 = 0.25."""
    facts = LabelFacts(share=0.5, annotated_fraction=0.1)
    assert FocalExclusive(alpha=None, decision=0.4).fitted(facts).hyper(0.5)["alpha"] == pytest.approx(0.25)
    assert FocalExclusive(alpha=0.7).fitted(facts).hyper(0.5)["alpha"] == 0.7
    with pytest.raises(InputError, match="alpha was left open"):
        FocalExclusive(alpha=None).hyper(0.5)
    with pytest.raises(InputError, match="do not tell it"):
        FocalExclusive(alpha=None).fitted(LabelFacts(share=None, annotated_fraction=0.1))
    with pytest.raises(InputError, match="decision must be"):
        FocalExclusive(decision=1.0)


def test_the_weight_that_is_recommended_is_that_of_the_rule():
    """And not 0.5 c / (1 - c), which grows without bound and decides otherwise at every share."""
    words = " ".join((losses.focal_exclusive_cross_entropy.__doc__ or "").split())
    assert "c tau / (1 - c tau)" in words
    assert "0.5 c" not in words
