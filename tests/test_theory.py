"""What docs/method.md claims and tests/losses do not hold already.

There: the speed and the curvature of a term in float32, the fixed point without a focal exponent, the drift
to 1, the capped gradient of the specs, the weight against Elkan and Noto in closed form.
"""

import functools
import importlib.util
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax import losses
from sparseshot_jax.losses import schedules
from sparseshot_jax.losses.share import share_weight

ROOT = Path(__file__).parents[1]
PAIR = jnp.array([True, False])  # an element that is annotated beside its look-alike that is not


# --- speed and curvature -------------------------------------------------------------------------


def along_the_flow(rate, loss):
    """d/dt of rate(z) while dz/dt = -dL/dz, forward through jax."""
    return lambda z: jax.jvp(rate, (z,), (-jax.grad(loss)(z),))[1]


@functools.partial(jax.jit, static_argnames="loss")
def derivatives(p, *, loss):
    """dL/dt, d2L/dt2, and the slope in p of the latter, in the precision of p."""
    speed = along_the_flow(loss, loss)
    bend = along_the_flow(speed, loss)

    def of_p(p):
        return bend(jnp.log(p) - jnp.log1p(-p))

    z = jnp.log(p) - jnp.log1p(-p)
    return jax.vmap(speed)(z), jax.vmap(bend)(z), jax.vmap(jax.grad(of_p))(p)


def background(z):
    return jax.nn.softplus(z)


def foreground(z):
    return jax.nn.softplus(-z)


def test_derivatives_in_float64():
    with jax.enable_x64(True):
        p = jnp.linspace(0.01, 0.99, 99, dtype=jnp.float64)
        speed, bend, slope = derivatives(p, loss=background)
        assert bend.dtype == jnp.float64
        np.testing.assert_allclose(speed, -(p**2), rtol=1e-12)
        np.testing.assert_allclose(bend, 2 * p**3 * (1 - p), rtol=1e-12)
        np.testing.assert_allclose(slope, 6 * p**2 - 8 * p**3, rtol=1e-10, atol=1e-12)
        speed, bend, slope = derivatives(p, loss=foreground)
        np.testing.assert_allclose(speed, -((1 - p) ** 2), rtol=1e-12)
        np.testing.assert_allclose(bend, 2 * p * (1 - p) ** 3, rtol=1e-12)
        np.testing.assert_allclose(slope, 2 * (1 - p) ** 2 * (1 - 4 * p), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("term", "top"), [(background, 0.75), (foreground, 0.25)])
def test_the_curvature_has_one_maximum(term, top):
    with jax.enable_x64(True):
        _, at_top, slope = derivatives(jnp.array([top], jnp.float64), loss=term)
        np.testing.assert_allclose(slope, 0.0, atol=1e-12)
        np.testing.assert_allclose(at_top, 27 / 128, rtol=1e-12)
        p = jnp.linspace(0.001, 0.999, 997, dtype=jnp.float64)
        _, bend, slope = derivatives(p, loss=term)
        assert jnp.all((slope > 0) == (p < top))
        assert jnp.all(bend < at_top)


def test_equation_5_holds_just_below_one_half():
    """Of the library's own terms: an unannotated element bends less than an annotated one iff p < 1/2."""

    def bend(z, annotated):
        def loss(z):
            return losses.exclusive_cross_entropy(z, jnp.asarray(annotated), threshold=1.0)

        return along_the_flow(along_the_flow(loss, loss), loss)(z)

    p = jnp.concatenate([jnp.linspace(0.02, 0.499, 40), jnp.linspace(0.501, 0.98, 40)])
    z = jnp.log(p) - jnp.log1p(-p)
    of_background, of_foreground = (
        jax.jit(jax.vmap(lambda z, annotated=annotated: bend(z, annotated)))(z) for annotated in (False, True)
    )
    np.testing.assert_array_equal(of_background < of_foreground, p < 0.5)


def test_the_gradient_is_that_of_a_capped_logit():
    """d/dz softplus(min(z, z_rho)), to the last bit, and the focal form likewise."""
    z, rho = jnp.linspace(-6.0, 6.0, 240), 0.75
    edge = math.log(rho / (1 - rho))
    unmarked = jnp.zeros(z.shape, bool)

    def values(z, loss, **numbers):
        return loss(z, unmarked, **numbers).sum()

    def held(z):
        return jnp.where(z < edge, z, jax.lax.stop_gradient(edge))

    def gradient(loss, **numbers):
        return jax.jit(jax.grad(lambda z: values(z, loss, **numbers)))(z)

    expected = jax.jit(jax.grad(lambda z: jax.nn.softplus(jnp.minimum(z, edge)).sum()))(z)
    np.testing.assert_array_equal(gradient(losses.exclusive_cross_entropy, threshold=rho), expected)
    focal = functools.partial(losses.focal_exclusive_cross_entropy, alpha=0.3, gamma=0.7)
    expected = jax.jit(jax.grad(lambda z: values(held(z), focal, threshold=1.0)))(z)
    np.testing.assert_array_equal(gradient(focal, threshold=rho), expected)


# --- where look-alikes settle --------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="loss")
def flow(share, start, rho, numbers, *, loss=losses.focal_exclusive_cross_entropy):
    """p over time of the one logit of look-alikes of which `share` are annotated; Euler, dt = 0.5."""

    def pull(z, threshold):
        terms = loss(jnp.stack([z, z]), PAIR, threshold=threshold, **numbers)
        return share * terms[0] + (1 - share) * terms[1]

    def step(z, threshold):
        z = z - 0.5 * jax.grad(pull)(z, threshold)
        return z, jax.nn.sigmoid(z)

    return jax.lax.scan(step, jnp.log(start) - jnp.log1p(-start), rho)[1]


def settle(share, weight, *, rho, gamma=0.0, start=0.02):
    numbers = {"alpha": jnp.float32(weight), "gamma": jnp.float32(gamma)}
    return float(flow(jnp.float32(share), jnp.float32(start), jnp.asarray(rho, jnp.float32), numbers)[-1])


NO_MASK, FIXED = np.ones(3000), np.full(3000, 0.75)
RISING = schedules.sigmoid(np.linspace(0.0, 1.0, 3000))


@pytest.mark.parametrize(("share", "alpha", "gamma"), [(0.1, 0.2, 0.1), (0.3, 0.2, 2.0), (0.6, 1.0, 0.5)])
def test_the_fixed_point_with_a_focal_exponent(share, alpha, gamma):
    """Where c (1 - p) = (1 - c) alpha p^gamma (p + gamma (1 - p) (-log(1 - p))); without gamma, the share."""
    p = settle(share, alpha, rho=NO_MASK, gamma=gamma)
    down = (1 - share) * alpha * p**gamma * (p - gamma * (1 - p) * math.log1p(-p))
    assert share * (1 - p) == pytest.approx(down, rel=1e-3)
    plain = settle(share, alpha, rho=NO_MASK)
    assert plain == pytest.approx(share / (share + (1 - share) * alpha), abs=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("rule", [lambda c: 1.0, lambda c: 0.2, share_weight])
@pytest.mark.parametrize("mask", [FIXED, RISING])
def test_a_mask_from_one_half_up_changes_no_decision_of_a_cluster_that_starts_low(share, rule, mask):
    """It makes a soft yes a hard one. What it can change beyond that it changes through shared parameters."""
    weight = rule(share)
    plain, masked = (settle(share, weight, rho=rho) for rho in (NO_MASK, mask))
    assert (masked > 0.5) == (plain > 0.5)
    # 1500 units of time: 1 - p falls as 1 / (c t).
    assert masked > 0.98 if plain > 0.7505 else masked == pytest.approx(plain, abs=1e-3) or masked > 0.98


def test_a_start_above_the_threshold_is_never_taken_back():
    for share, weight in ((0.1, 1.0), (0.3, 1.0), (0.3, 0.2)):
        assert settle(share, weight, rho=FIXED, start=0.8) > 0.98
        back = share / (share + (1 - share) * weight)
        assert settle(share, weight, rho=NO_MASK, start=0.8) == pytest.approx(back, abs=1e-3)


def test_a_threshold_that_starts_below_p_makes_everything_foreground():
    """Of 1000 elements 900 are background, 30 marked objects, 70 others. One feature and a bias."""
    feature = jnp.concatenate([jnp.ones(100), jnp.zeros(900)])
    annotated = jnp.arange(1000) < 30

    @jax.jit
    def background_p(start, rho, rate):
        def loss(weights, threshold):
            z = weights[0] * feature + weights[1]
            return losses.exclusive_cross_entropy(z, annotated, threshold=threshold).mean()

        def step(weights, threshold):
            return weights - rate * jax.grad(loss)(weights, threshold), None

        bias = jnp.log(start) - jnp.log1p(-start)
        return jax.nn.sigmoid(jax.lax.scan(step, jnp.stack([jnp.zeros(()), bias]), rho)[0][1])

    def ends(start, schedule, rate):
        rho = schedule(np.linspace(0.0, 1.0, 1000, dtype=np.float32))
        return float(background_p(jnp.float32(start), jnp.asarray(rho), jnp.float32(rate)))

    for rate in (2.0, 20.0):
        assert ends(0.5, schedules.sigmoid, rate) > 0.9  # rho(0) = 0.5: all background dropped at once
        assert ends(0.02, schedules.sigmoid, rate) < 0.05
    # rho(0) = 0 is below any start: a race between p and the threshold, that the faster learner loses.
    assert ends(0.02, schedules.linear, 2.0) < 0.05
    assert ends(0.02, schedules.linear, 20.0) > 0.75  # where that threshold ends


# --- the decision at p > 1/2 ---------------------------------------------------------------------


def odds_at_one_half(loss, **numbers):
    """Odds of being annotated at which the pulls of a loss at p = 1/2 are equal: above them p ends above."""

    def pulls(z):
        return loss(jnp.stack([z, z]), PAIR, **numbers)

    up, down = jax.jit(jax.jacfwd(pulls))(jnp.float32(0.0))
    return float(-down / up)


@pytest.mark.parametrize(
    ("loss", "numbers", "odds"),
    [
        (losses.cross_entropy, {"background_weight": 0.2}, 0.2),
        (losses.exclusive_cross_entropy, {"threshold": 0.75}, 1.0),
        (losses.huber, {"delta": 0.7}, 1.0),
        (losses.focal, {"alpha": 0.25, "gamma": 2.0}, 3.0),
        (
            losses.focal_exclusive_cross_entropy,
            {"threshold": 0.75, "alpha": 0.2, "gamma": 0.1},
            0.2 * 2**-0.1 * (1 + 0.1 * math.log(2)),
        ),
    ],
)
def test_the_odds_that_each_loss_asks_for(loss, numbers, odds):
    assert odds_at_one_half(loss, **numbers) == pytest.approx(odds, rel=1e-5)


def test_the_default_focal_exponent_leaves_the_decision_alone():
    assert 2**-0.1 * (1 + 0.1 * math.log(2)) == pytest.approx(1.0, abs=0.0025)


@pytest.mark.parametrize("factor", [0.25, 0.5])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.6, 0.9])
def test_the_older_rule_is_a_decision_that_rises_with_the_share(factor, share):
    """f c / (1 - c) is the calibrated weight of tau = f / (1 - c (1 - f)): f at c = 0, 1 at c = 1."""
    decision = factor / (1 - share * (1 - factor))
    assert share_weight(share, decision) == pytest.approx(factor * share / (1 - share))
    # A sure object settles at 1 / (1 + f) whatever the share.
    weight = factor * share / (1 - share)
    assert share / (share + (1 - share) * weight) == pytest.approx(1 / (1 + factor))


@pytest.mark.parametrize("believed", [0.15, 0.3, 0.6])
def test_a_wrong_share_shifts_the_decision_in_proportion(believed):
    """tau becomes tau c' / c: half the share asks for 1/4 in place of 1/2, double for certainty."""
    weight, true = share_weight(believed), 0.3
    chance = 0.5 * believed / true
    marked = true * chance
    assert marked / (marked + weight * (1 - marked)) == pytest.approx(0.5)


def scar_problem(share, n=20_000, seed=0):
    """Objects (a third) and background overlap on one feature; each object has the same chance of a mark."""
    rng = np.random.default_rng(seed)
    present = rng.random(n) < 1 / 3
    x = rng.normal(np.where(present, 1.0, -1.0), 1.0)
    chance = 1 / (1 + np.exp(-(2 * x + math.log(0.5))))  # P(object | x), by Bayes
    marked = present & (rng.random(n) < share)
    centres = np.linspace(-3.0, 3.0, 9)
    features = np.concatenate([np.ones((n, 1)), x[:, None], np.exp(-((x[:, None] - centres) ** 2))], 1)
    return jnp.asarray(features, jnp.float32), jnp.asarray(marked), chance


@jax.jit
def regression(features, marked, weight):
    """p of a logistic regression trained by the library's cross-entropy with this background weight."""

    def risk(beta):
        values = losses.cross_entropy(features @ beta, marked, background_weight=weight)
        return values.mean() + 1e-5 * beta @ beta

    def newton(_, beta):
        return beta - jnp.linalg.solve(jax.hessian(risk)(beta), jax.grad(risk)(beta))

    return jax.nn.sigmoid(features @ jax.lax.fori_loop(0, 20, newton, jnp.zeros(features.shape[1])))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_training_with_the_weight_is_thresholding_the_plain_model(share):
    """Elkan and Noto on a simulated SCAR problem: p_w > 1/2, p > c tau and P(object) > tau call the same."""
    features, marked, chance = scar_problem(share)
    plain = np.asarray(regression(features, marked, 1.0))
    for decision in (0.35, 0.5):
        weighted = np.asarray(regression(features, marked, share_weight(share, decision))) > 0.5
        # Both models are fitted: they meet but for elements within the noise of the edge.
        assert np.mean(weighted == (plain > share * decision)) > 0.985
        assert np.mean(weighted == (chance > decision)) > 0.97
    # And at w = 1 the plain model calls next to nothing where c < 1/2.
    assert np.mean(plain > 0.5) < 0.01 if share < 0.5 else np.mean(plain > 0.5) > 0.1


def test_f1_of_calibrated_chances_is_best_at_half_of_itself():
    """Lipton, Elkan and Naryanaswamy 2014, in expectation over a sample of known chances."""
    chance = np.sort(scar_problem(0.3)[2])[::-1]
    found = np.cumsum(chance)  # expected true positives when the k surest are called
    f1 = 2 * found / (np.arange(1, len(chance) + 1) + chance.sum())
    best = int(np.argmax(f1))
    assert 0.3 < f1[best] / 2 < 0.5
    # One element more or less: 1 / n.
    assert chance[best] >= f1[best] / 2 >= chance[best + 1] - 1e-9


# --- the figures ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("method_figures", ROOT / "scripts/method_figures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["method_figures"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["method_figures"]


def test_the_page_shows_every_figure_of_the_script(figures):
    page = (ROOT / "docs/method.md").read_text()
    for name in figures.FIGURES:
        assert f"(method_{name}.png)" in page
        assert (ROOT / f"docs/method_{name}.png").is_file()


def test_the_script_draws_them(figures, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 40)
    written = figures.main(figures.Options(folder=tmp_path / "docs"))
    assert [path.name for path in written] == [f"method_{name}.png" for name in figures.FIGURES]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
