import dataclasses
import functools

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sparseshot_jax import losses, models
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training import sharding
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.optimizer import OptimizerSpec, make_optimizer
from sparseshot_jax.training.segmentation import segmentation
from sparseshot_jax.training.step import REMAT, init_state, make_eval_step, make_train_step
from sparseshot_jax.types import Ground, Hyper

LOSS = losses.FocalExclusive()
RATE = 0.5


def hyper(*, rho=0.6, alpha=0.3, gamma=0.2, rate=RATE, decay=0.0, seed=0):
    numbers = {"rho": rho, "alpha": alpha, "gamma": gamma}
    return Hyper(
        loss={name: np.float32(value) for name, value in numbers.items()},
        learning_rate=np.float32(rate),
        ema_decay=np.float32(decay),
        seed=np.uint32(seed),
    )


@functools.cache
def build(norm, *, ema=False, optimizer=None, **options):
    """The static half, a start, and a jitted step: traced once, its update the bare gradient unless told
    otherwise. Tests share it, for its compilation."""
    optimizer = optimizer or optax.identity()
    # p = 0.5 at the start, so that the mask at rho 0.6 has something to drop once the head is larger
    model = UNetSpec(base=4, depth=1, norm=norm, prior=0.5).build(classes=1, rngs=nnx.Rngs(1))
    model.head[...] = 100.0 * model.head[...]
    graphdef, state = init_state(model, optimizer, ema=ema)
    objective = segmentation(model.spec, LOSS.terms)
    step = make_train_step(graphdef=graphdef, objective=objective, optimizer=optimizer, **options)
    return graphdef, state, jax.jit(step)


def gradient(before, after):
    """What the bare-gradient step went down, times the rate."""
    return jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / RATE, before.params, after.params)


def norm_of(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def assert_near(ours, theirs, tolerance):
    """Within `tolerance` of the largest entry of `theirs`, over the whole tree."""
    difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), ours, theirs)
    assert norm_of(difference) <= tolerance * norm_of(theirs)


def test_the_step_divides_by_what_losses_reduce_says(batch, unchanged, monkeypatch):
    asked = []
    monkeypatch.setattr(losses.reduce, "denominator", lambda weight: asked.append(weight) or weight)
    graphdef, state, _ = build("group", augmentation=unchanged)
    step = make_train_step(
        graphdef=graphdef,
        objective=segmentation(UNetSpec(base=4, depth=1, norm="group"), LOSS.terms),
        optimizer=optax.identity(),
        augmentation=unchanged,
        micro_batches=2,
    )
    jax.eval_shape(step, state, batch, hyper())
    assert len(asked) == 1  # once, whatever the micro-batches


def test_a_step_is_the_hand_written_one(batch, unchanged):
    graphdef, state, step = build("group", augmentation=unchanged)
    after, measures = step(state, batch, hyper())

    def logits_of(params):
        model = nnx.merge(graphdef, params, state.stats, copy=True)
        return model(jnp.asarray(batch.image, jnp.float32) / 127.5 - 1.0, train=True)[..., 0]

    # METHOD.md's table in float64, from the logits
    z = np.asarray(jax.jit(logits_of)(state.params), np.float64)
    p = 1 / (1 + np.exp(-z))
    f, u, b = (batch.ground == g for g in (Ground.ANNOTATED, Ground.UNANNOTATED, Ground.BACKGROUND))
    kept = u & (p < 0.6)
    focal = 0.3 * p**0.2
    softplus = np.logaddexp
    count = (batch.ground != Ground.IGNORED).sum()
    total = softplus(0, -z)[f].sum() + softplus(0, z)[b].sum() + (focal * softplus(0, z))[kept].sum()
    assert 0.1 < kept.sum() / u.sum() < 0.9  # the mask acts
    expected = {
        "loss": total,
        "weight": count,
        "unannotated": u.sum(),
        "kept": kept.sum(),
        "annotated": f.sum(),
        "p_unannotated": p[u].sum(),
        "p_annotated": p[f].sum(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(float(getattr(measures, name)), value, rtol=1e-5, err_msg=name)
    assert float(measures.capped) > float(measures.loss)

    def mean_loss(params):
        z = logits_of(params)
        weight = 0.3 * jnp.exp(0.2 * jax.nn.log_sigmoid(z))
        values = jnp.where(f, jax.nn.softplus(-z), 0.0) + jnp.where(b, jax.nn.softplus(z), 0.0)
        return jnp.sum(values + jnp.where(kept, weight * jax.nn.softplus(z), 0.0)) / count

    value, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    ratios = measures.ratios()
    assert ratios["loss"] == pytest.approx(float(value), rel=1e-5)
    assert ratios["keep_rate"] == pytest.approx(kept.sum() / u.sum(), rel=1e-6)
    # 1e-5: float32 sums in another order, and the parameters' own rounding at rate 0.5
    assert_near(gradient(state, after), grads, 1e-5)
    assert int(after.step) == 1
    downhill, _ = jax.jit(jax.value_and_grad(mean_loss))(
        jax.tree.map(lambda x, g: x - 1e-3 * g, state.params, gradient(state, after))
    )
    assert float(downhill) < float(value)


def test_micro_batches_sum_to_one_batch(batch, unchanged):
    """The parts have very unequal numbers of valid elements: a mean of means would be another."""
    ground = batch.ground.copy()
    ground[0::4] = np.where(np.arange(16) < 14, Ground.IGNORED, ground[0::4])
    ground[5] = Ground.IGNORED
    batch = dataclasses.replace(batch, ground=ground)
    results = []
    for parts in (1, 2, 4):
        _, state, step = build("group", augmentation=unchanged, micro_batches=parts)
        after, measures = step(state, batch, hyper())
        results.append((gradient(state, after), measures))
    whole, measured = results[0]
    for grads, measures in results[1:]:
        assert_near(grads, whole, 1e-5)  # float32 sums in another order
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), measures, measured)


def test_eight_devices_give_what_one_gives(batch, unchanged):
    found = []
    for devices in (1, 8):
        layout = sharding.make_layout(sharding.MeshSpec(data=devices))
        _, state, step = build("batch", augmentation=unchanged)
        state = layout.place_state(state)
        placed = layout.place(batch)
        assert len(placed.image.sharding.device_set) == devices
        after, measures = step(state, placed, hyper())
        found.append((gradient(state, after), after.stats, measures))
    (one, stats_one, measures_one), (eight, stats_eight, measures_eight) = found
    assert_near(eight, one, 1e-4)  # sums over devices in another order, through batch statistics
    assert_near(stats_eight, stats_one, 1e-5)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), stats_one, state.stats)
    assert norm_of(moved) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), measures_eight, measures_one)


def test_augmentation_does_not_depend_on_devices(batch):
    found = []
    for devices in (1, 8):
        layout = sharding.make_layout(sharding.MeshSpec(data=devices))
        _, state, step = build("group", augmentation=AugmentSpec())
        placed = layout.place(batch)
        state = layout.place_state(state)
        found.append(step(state, placed, hyper(seed=3))[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)


def bytes_into_the_backward_pass(jaxpr):
    """Of the arrays that the part under `jax.checkpoint` is given again; 0 where there is no such part."""
    size = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("checkpoint", "remat2"):
            size += sum(v.aval.size * v.aval.dtype.itemsize for v in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            size += bytes_into_the_backward_pass(inner)
    return size


def test_what_is_computed_again_is_the_same_and_less_is_kept(batch, unchanged):
    found = {}
    for remat in REMAT:
        _, state, step = build("batch", augmentation=unchanged, remat=remat)
        kept = bytes_into_the_backward_pass(jax.make_jaxpr(step)(state, batch, hyper()).jaxpr)
        found[remat] = (kept, step(state, batch, hyper())[0])
    none, whole = found["none"]
    assert none == 0
    for remat in ("convolutions", "blocks"):
        # the same sums; the compiler may fuse them otherwise
        assert_near(found[remat][1].params, whole.params, 1e-6)
        assert_near(found[remat][1].stats, whole.stats, 1e-6)
    assert 0 < found["blocks"][0] < 0.7 * found["convolutions"][0]


def test_every_number_of_a_step_is_traced(batch, unchanged):
    _, state, jitted = build("group", augmentation=unchanged)
    step = jax.jit(chex.assert_max_traces(jitted.__wrapped__, n=1))
    losses_seen = set()
    for numbers in (
        {"rho": 0.5},
        {"rho": 0.9},
        {"rho": 1.0},
        {"alpha": 0.05},
        {"gamma": 0.0},
        {"rate": 0.0},
        {"decay": 0.5, "seed": 7},
    ):
        _, measures = step(state, batch, hyper(**numbers))
        losses_seen.add(float(measures.loss))
    assert len(losses_seen) == 6  # rate, decay and seed change nothing of this first loss


def test_padding_tiles_change_neither_gradient_nor_statistics(make_batch, unchanged):
    real, noise = make_batch(0, tiles=6), make_batch(1, tiles=2)
    results = []
    for filling in (0, 255, None):
        image = noise.image if filling is None else np.full_like(noise.image, filling)
        padding = dataclasses.replace(
            noise, image=image, ground=np.full_like(noise.ground, Ground.IGNORED), valid=np.zeros(2, bool)
        )
        results.append(jax.tree.map(lambda a, b: np.concatenate([a, b]), real, padding))
    _, state, step = build("batch", augmentation=unchanged)
    expected, measures = step(state, real, hyper())
    for padded in results:
        after, same = step(state, padded, hyper())
        assert_near(gradient(state, after), gradient(state, expected), 1e-4)  # as between devices
        assert_near(after.stats, expected.stats, 1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), same, measures)


def test_a_batch_of_padding_alone_changes_nothing(batch, unchanged):
    empty = dataclasses.replace(
        batch, ground=np.full_like(batch.ground, Ground.IGNORED), valid=np.zeros(8, bool)
    )
    _, state, step = build("batch", augmentation=unchanged)
    after, measures = step(state, empty, hyper())
    chex.assert_trees_all_equal(after.params, state.params)
    assert float(measures.weight) == 0.0
    assert all(np.isfinite(value) for value in measures.ratios().values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.stats))


def test_the_average_moves_by_its_formula(batch, unchanged):
    _, state, step = build("batch", ema=True, augmentation=unchanged)
    after, _ = step(state, batch, hyper(decay=0.75))
    expected = jax.tree.map(
        lambda old, new: 0.75 * np.asarray(old) + 0.25 * np.asarray(new),
        state.ema,
        (after.params, after.stats),
    )
    assert norm_of(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after.ema, state.ema)) > 1e-3
    chex.assert_trees_all_close(after.ema, expected, rtol=1e-6, atol=1e-7)


def test_a_donated_state_is_used_up(batch, unchanged):
    _, state, step = build("batch", ema=True, augmentation=unchanged)
    # every leaf its own buffer, or donation of one would free two
    assert len({id(leaf) for leaf in jax.tree.leaves(state)}) == len(jax.tree.leaves(state))
    state = jax.tree.map(jnp.copy, state)
    after, _ = jax.jit(step, donate_argnums=0)(state, batch, hyper())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_the_seed_and_the_step_decide_the_augmentation(batch):
    _, state, step = build("group", augmentation=AugmentSpec())
    later = dataclasses.replace(state, step=state.step + 1)
    values = [
        float(step(at, batch, hyper(seed=seed))[1].loss) for at, seed in ((state, 0), (state, 1), (later, 0))
    ]
    assert len(set(values)) == 3
    assert values[0] == float(step(state, batch, hyper(seed=0))[1].loss)


def test_training_lowers_the_loss(batch, unchanged):
    optimizer = make_optimizer(OptimizerSpec())
    _, state, step = build("batch", optimizer=optimizer, augmentation=unchanged)
    values = []
    for _ in range(30):
        state, measures = step(state, batch, hyper(rho=1.0, rate=2e-2))
        values.append(measures.ratios()["loss"])
    assert values[-1] < 0.9 * values[0]


def test_evaluation_uses_running_statistics_and_gives_probabilities(batch, unchanged):
    graphdef, state, step = build("batch", augmentation=unchanged)
    after, _ = step(state, batch, hyper())
    evaluate = jax.jit(make_eval_step(graphdef, models.class_probabilities))
    p = evaluate((after.params, after.stats), batch.image)
    assert p.shape == (8, 16, 16, 1)
    assert p.dtype == jnp.float32
    alone = evaluate((after.params, after.stats), batch.image[:1])
    np.testing.assert_allclose(alone, p[:1], atol=1e-5)  # no statistics of the batch in it
    model = nnx.merge(graphdef, after.params, after.stats, copy=True)
    logits = model(jnp.asarray(batch.image[:1], jnp.float32) / 127.5 - 1.0)
    np.testing.assert_allclose(alone, models.class_probabilities(logits), atol=1e-5)
