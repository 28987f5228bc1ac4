"""nnPU and GE-KL against float64 loops, their gradients too; batches that lack a set; many devices."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sparseshot_jax import losses
from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import GEKL, NNPU
from sparseshot_jax.types import Ground, LabelFacts, Targets

F, U, B, IGNORED = Ground.ANNOTATED, Ground.UNANNOTATED, Ground.BACKGROUND, Ground.IGNORED
# float32 means of softplus against float64 ones
RTOL = 2e-6
# A model that has learnt the annotated objects by heart: z far apart. And one that has not.
SHIFTS = {"bracket above 0": 0.0, "bracket below 0": 4.0}


def softplus(x):
    return np.logaddexp(0.0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else 0.0


def nnpu_parts(z, ground, prior):
    """pi E_F[l(z)] and the bracket."""
    objects = prior * mean(softplus(-x) for x, g in zip(z, ground) if g == F)
    unannotated = [softplus(x) for x, g in zip(z, ground) if g == U]
    if not unannotated:
        return objects, 0.0
    return objects, mean(unannotated) - prior * mean(softplus(x) for x, g in zip(z, ground) if g == F)


def with_known(risk, z, ground):
    """The mean over valid elements: R at each of F and U, softplus(z) at known background."""
    ground = np.asarray(ground)
    known = math.fsum(softplus(x) for x in z[ground == B])
    total = ((ground == F) | (ground == U)).sum() * risk + known
    return total / max((ground != IGNORED).sum(), 1)


def nnpu(z, ground, prior, beta=0.0):
    objects, bracket = nnpu_parts(z, ground, prior)
    return with_known(objects + max(-beta, bracket), z, ground)


def nnpu_gradient(z, ground, prior, gamma=1.0):
    """Of the step, by hand: of the risk, or of minus gamma times the bracket."""
    ground, p = np.asarray(ground), sigmoid(z)
    _, bracket = nnpu_parts(z, ground, prior)
    n_f, n_u, n = (ground == F).sum(), (ground == U).sum(), (ground != IGNORED).sum()
    of_bracket = np.where(ground == U, p / max(n_u, 1), np.where(ground == F, -prior * p / max(n_f, 1), 0.0))
    if bracket < 0:
        out = -gamma * of_bracket
    else:
        out = of_bracket + np.where(ground == F, -prior * (1 - p) / max(n_f, 1), 0.0)
    return (n_f + n_u) / n * out + np.where(ground == B, p, 0.0) / n


def ge_kl(z, ground, prior, weight):
    """METHOD.md's row, q as a plain mean of probabilities."""
    risk = mean(softplus(-x) for x, g in zip(z, ground) if g == F)
    p = [sigmoid(x) for x, g in zip(z, ground) if g == U]
    if p:
        q = mean(p)
        on = prior * math.log(prior / q) if prior else 0.0
        risk += weight * (on + (1 - prior) * math.log((1 - prior) / (1 - q)))
    return with_known(risk, z, ground)


def sample(n=300, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 4, n)
    z = rng.normal(0, 1.5, n) + np.where(ground == F, shift, -shift)
    return z.astype(np.float32), ground


def grounds(ground):
    ground = jnp.asarray(ground)
    return {"annotated": ground == F, "known_background": ground == B, "valid": ground != IGNORED}


def targets(ground, label=None):
    ground = jnp.asarray(ground, jnp.uint8)
    return Targets(ground=ground, label=(ground == F).astype(jnp.int32) if label is None else label)


def spec_risk(spec, logits, ground, label=None):
    hyper = spec.hyper(0.0)
    return losses.reduce.mean(spec.terms(logits, targets(ground, label), hyper))


# --- values --------------------------------------------------------------------------------------


def test_hand_constants():
    z, annotated = jnp.array([0.0, 0.0, math.log(3)]), jnp.array([True, False, False])
    # l(0) = log 2 on either side; the other unannotated element has p = 3/4, l(-z) = log 4
    log2 = math.log(2)
    np.testing.assert_allclose(losses.nnpu(z, annotated, prior=0.5), 1.5 * log2, rtol=RTOL)
    # q = 5/8: KL(1/2 || 5/8) = log(4/5) / 2 + log(4/3) / 2
    kl = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    np.testing.assert_allclose(
        losses.ge_kl(z, annotated, prior=0.5, weight=2.0), log2 + 2 * kl, rtol=RTOL, atol=1e-7
    )


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("beta", [0.0, 0.02])
@pytest.mark.parametrize("prior", [0.05, 0.3])
def test_nnpu_against_the_loop(shift, beta, prior):
    z, ground = sample(shift=shift)
    _, bracket = nnpu_parts(z, ground, prior)
    assert (bracket < -beta) == (shift > 0)
    value = losses.nnpu(jnp.asarray(z), **grounds(ground), prior=prior, beta=beta)
    np.testing.assert_allclose(value, nnpu(z.astype(np.float64), ground, prior, beta), rtol=RTOL)


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("prior", [0.0, 0.05, 0.3])
def test_ge_kl_against_the_loop(shift, prior):
    z, ground = sample(shift=shift)
    value = losses.ge_kl(jnp.asarray(z), **grounds(ground), prior=prior, weight=3.0)
    expected = ge_kl(z.astype(np.float64), ground, prior, 3.0)
    np.testing.assert_allclose(value, expected, rtol=RTOL, atol=3e-7)  # log(1 - q) near 0, times 3


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("spec", [NNPU(prior=0.3, beta=0.01), GEKL(prior=0.3, weight=3.0)])
def test_the_terms_of_a_spec_add_up_to_the_function(spec, shift):
    z, ground = sample(shift=shift)
    terms = spec.terms(jnp.asarray(z)[:, None], targets(ground), spec.hyper(0.5))
    function = losses.nnpu if isinstance(spec, NNPU) else losses.ge_kl
    expected = function(jnp.asarray(z), **grounds(ground), **spec.hyper(0.5))
    np.testing.assert_allclose(losses.reduce.mean(terms), expected, rtol=RTOL)
    chex.assert_trees_all_equal(terms.capped, terms.values)
    assert terms.kept.all()
    of_known = np.asarray(terms.values)[ground == B]
    np.testing.assert_allclose(of_known, softplus(z[ground == B].astype(np.float64)), rtol=RTOL)


def test_more_classes():
    """l(z) on F is -log p of the class; l(-z), on F as on U, -log p of background."""
    rng = np.random.default_rng(1)
    logits, labels = jnp.asarray(rng.normal(0, 2, (300, 4)), jnp.float32), rng.integers(1, 4, 300)
    ground = rng.integers(0, 4, 300)
    log_p = np.asarray(logits, np.float64) - np.log(np.exp(np.asarray(logits, np.float64)).sum(-1))[:, None]
    of_class, of_background = -log_p[np.arange(300), labels], -log_p[:, 0]
    known = of_background[ground == B]
    n, valid = ((ground == F) | (ground == U)).sum(), (ground != IGNORED).sum()

    bracket = of_background[ground == U].mean() - 0.1 * of_background[ground == F].mean()
    assert bracket > 0
    risk = 0.1 * of_class[ground == F].mean() + bracket
    found = spec_risk(NNPU(prior=0.1), logits, ground, jnp.asarray(labels))
    np.testing.assert_allclose(found, (n * risk + known.sum()) / valid, rtol=1e-5)

    q = 1 - np.exp(log_p[ground == U, 0]).mean()
    kl = 0.1 * np.log(0.1 / q) + 0.9 * np.log(0.9 / (1 - q))
    risk = of_class[ground == F].mean() + 10 * kl
    found = spec_risk(GEKL(prior=0.1), logits, ground, jnp.asarray(labels))
    np.testing.assert_allclose(found, (n * risk + known.sum()) / valid, rtol=1e-5)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_nnpu_steps_down_the_risk_or_up_the_bracket(shift, gamma):
    z, ground = sample(shift=shift)
    spec = NNPU(prior=0.3, gamma=gamma)
    for loss in (
        lambda z: losses.nnpu(z, **grounds(ground), prior=0.3, gamma=gamma),
        lambda z: spec_risk(spec, z[:, None], ground),
    ):
        expected = nnpu_gradient(z.astype(np.float64), ground, 0.3, gamma)
        np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(z)), expected, rtol=1e-5, atol=1e-9)


def test_a_step_up_raises_the_bracket_and_the_value_does_not_show_it():
    z, ground = sample(shift=4.0)
    z = jnp.asarray(z)

    def loss(z):
        return losses.nnpu(z, **grounds(ground), prior=0.3)

    def bracket(z):
        return nnpu_parts(np.asarray(z, np.float64), ground, 0.3)[1]

    stepped = z - 100.0 * jnp.where(jnp.asarray(ground) == B, 0.0, jax.grad(loss)(z))
    assert bracket(z) < bracket(stepped) < 0
    assert loss(stepped) >= loss(z)  # the objects' own risk, of which nothing is asked meanwhile


def test_ge_kl_gradient_against_finite_differences():
    (z, ground), prior = sample(), 0.05
    gradient = jax.grad(lambda z: losses.ge_kl(z, **grounds(ground), prior=prior, weight=10.0))(
        jnp.asarray(z)
    )
    expected, step = [], 1e-5
    for i in range(len(z)):
        up, down = (z + sign * step * (np.arange(len(z)) == i) for sign in (1.0, -1.0))
        expected.append((ge_kl(up, ground, prior, 10.0) - ge_kl(down, ground, prior, 10.0)) / (2 * step))
    # float64 differences are good to 1e-10 / step; the rest is float32
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_ge_kl_is_at_rest_where_the_expectation_is_met():
    z = jnp.array([-1.0, 0.0, 1.0])  # q = 1/2
    out = jax.value_and_grad(lambda z: losses.ge_kl(z, jnp.zeros(3, bool), prior=0.5))(z)
    np.testing.assert_allclose(out[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(out[1], 0.0, atol=1e-6)


# --- sets that are empty, elements that do not count, logits without end --------------------------


@pytest.mark.parametrize("codes", [[U, U, B], [F, F, B], [B, B, B], [IGNORED] * 3, [F, F, F], [U, U, U]])
def test_a_batch_without_one_of_the_sets(codes):
    z = jnp.array([2.0, -1.0, 0.5])
    for function, loop in ((losses.nnpu, nnpu), (losses.ge_kl, ge_kl)):
        numbers = {"prior": 0.3} | ({"weight": 10.0} if function is losses.ge_kl else {})
        value, gradient = jax.value_and_grad(lambda z, f=function, n=numbers: f(z, **grounds(codes), **n))(z)
        expected = loop(np.asarray(z, np.float64), codes, *numbers.values())
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
        chex.assert_tree_all_finite(gradient)
        if U not in codes:  # objects are never pushed down where nothing says what background is
            assert jnp.all(gradient[jnp.asarray(codes) == F] < 0)


@pytest.mark.parametrize("name", ["nnpu", "ge_kl"])
def test_the_ignored_change_nothing(name):
    z, ground = sample()
    function = getattr(losses, name)
    mask = ground == IGNORED
    other = np.where(mask, 50.0, z).astype(np.float32)
    found = [
        jax.value_and_grad(lambda z: function(z, **grounds(ground), prior=0.2))(jnp.asarray(values))
        for values in (z, other)
    ]
    chex.assert_trees_all_equal(*found)
    assert jnp.all(found[0][1][mask] == 0)
    assert jnp.all(found[0][1][~mask] != 0)
    alone = function(jnp.asarray(z[~mask]), **grounds(ground[~mask]), prior=0.2)
    np.testing.assert_allclose(found[0][0], alone, rtol=RTOL)
    bare = function(jnp.asarray(z), jnp.asarray(ground == F), prior=0.2)  # all else is unannotated
    rest = np.where(ground == F, F, U)
    np.testing.assert_allclose(bare, function(jnp.asarray(z), **grounds(rest), prior=0.2), rtol=RTOL)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["nnpu", "ge_kl"])
def test_extreme_logits_are_finite(name, dtype):
    _, ground = sample()
    known = grounds(ground)
    both = jax.jit(jax.value_and_grad(lambda z: getattr(losses, name)(z, **known, prior=0.2)))
    for extreme in (-1e4, -100.0, 100.0, 1e4):
        for z in (np.full(300, extreme), np.where(ground == F, -extreme, extreme)):
            out = both(jnp.asarray(z, dtype))
            assert out[0].dtype == jnp.float32
            chex.assert_tree_all_finite(out)


def test_ge_kl_where_every_probability_rounds_to_one_end():
    """1 - q of logits of 40 is 4e-18, not 0; q of logits of -200 is no float32 number at all."""
    for z in (40.0, -200.0):
        value = losses.ge_kl(jnp.full(8, z), jnp.zeros(8, bool), prior=0.5, weight=1.0)
        # KL(1/2 || q) = -log 2 + |z| / 2, as the other logarithm is 0
        np.testing.assert_allclose(value, abs(z) / 2 - math.log(2), rtol=RTOL)


# --- the step's view -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nnpu", "ge_kl"])
def test_one_trace_for_every_number(name):
    chex.clear_trace_counter()
    z, ground = sample(40)
    seen = set()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(hyper):
        return getattr(losses, name)(jnp.asarray(z), **grounds(ground), **hyper)

    other = "gamma" if name == "nnpu" else "weight"
    for prior in (0.01, 0.1, 0.9):
        seen.add(float(loss({"prior": prior, other: prior})))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("spec", "shift"), [(NNPU(prior=0.3), 0.0), (NNPU(prior=0.3), 4.0), (GEKL(prior=0.3), 0.0)]
)
def test_eight_devices_see_one_batch(spec, shift):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    mesh = jax.make_mesh((8,), ("data",))
    z, ground = sample(64, shift=shift)
    ground[:8], ground[8:16] = U, F  # one device without annotations, one with nothing else
    logits, code = jnp.asarray(z).reshape(8, 8, 1), jnp.asarray(ground, jnp.uint8).reshape(8, 8)

    @jax.jit
    def loss(logits, code):
        return jax.value_and_grad(lambda x: spec_risk(spec, x, code))(logits)

    rows = NamedSharding(mesh, PartitionSpec("data"))
    many = loss(jax.device_put(logits, rows), jax.device_put(code, rows))
    assert len(many[1].sharding.device_set) == 8
    # sums over devices in another order
    chex.assert_trees_all_close(many, loss(logits, code), rtol=1e-5, atol=1e-8)


# --- specs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NNPU, GEKL])
def test_an_open_prior_comes_from_the_data(kind):
    facts = LabelFacts(share=0.25, annotated_fraction=0.1)
    assert kind().fitted(facts).hyper(0.0)["prior"] == pytest.approx(1 / 3)
    assert kind(prior=0.2).fitted(facts).hyper(0.0)["prior"] == 0.2
    with pytest.raises(InputError, match="prior was left open"):
        kind().hyper(0.0)
    with pytest.raises(InputError, match="nobody knows"):
        kind().fitted(LabelFacts(share=None, annotated_fraction=0.1))


def test_with_all_annotated_nnpu_has_nothing_to_learn_from():
    facts = LabelFacts(share=1.0, annotated_fraction=0.1)
    with pytest.raises(InputError, match="cross_entropy where all objects are annotated"):
        NNPU().fitted(facts)
    assert NNPU(prior=0.2).fitted(facts).prior == 0.2
    assert GEKL().fitted(facts).prior == 0.0


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (NNPU, {"prior": 0.0}),
        (NNPU, {"prior": 1.0}),
        (NNPU, {"prior": math.nan}),
        (NNPU, {"beta": -0.1}),
        (NNPU, {"gamma": 1.5}),
        (GEKL, {"prior": 1.0}),
        (GEKL, {"weight": -1.0}),
    ],
)
def test_bad_numbers_are_refused(kind, fields):
    with pytest.raises(InputError, match=f"{next(iter(fields))} must be .* Try"):
        kind(**fields)
