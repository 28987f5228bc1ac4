"""One step on every mesh is the step of one device; and what its compiled program sends between devices."""

import dataclasses
import functools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sparseshot_jax import programs
from sparseshot_jax.losses import LOSSES, Official, Remembers
from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.optimizer import OptimizerSpec
from sparseshot_jax.training.sharding import MeshSpec, make_layout
from sparseshot_jax.training.step import init_state
from sparseshot_jax.types import Batch, Ground, Hyper, LabelFacts, Objects

TILES, SIDE, CLASSES = 8, 32, 2
CANVAS = (120, 72)  # pixels that a loss may remember
ONE = (1, 1, 1)
MESHES = [(8, 1, 1), (4, 2, 1), (2, 1, 4), (1, 1, 8)]
ALL_AXES = (2, 2, 2)
UNCHANGED = AugmentSpec(dihedral=False, stain=0.0, brightness=0.0, contrast=0.0)
PLAIN = (("augment", UNCHANGED), ("micro_batches", 1), ("remat", "none"), ("padding", 0), ("ema", False))
# Everything is on that touches the batch or the state.
FULL = (("augment", AugmentSpec()), ("micro_batches", 2), ("remat", "blocks"), ("padding", 3), ("ema", True))
# p = 0.5 at the start, so that every mask drops some: see `start`.
MODELS = {
    "unet": UNetSpec(base=4, depth=1, prior=0.5),
    "yollo": YolloSpec(width=4, depth=1, stride=4, max_objects=6, prior=0.5),
}
SLOW = pytest.mark.slow

# The update is the gradient, and so is what the optimiser keeps: nothing hides or amplifies a difference.
KEPT = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda grads, state, params: (grads, grads),
)


def draw(kind, tiles=TILES, side=SIDE, padding=0):
    """Tiles of noise with every kind of ground, and boxes for a detector; the last `padding` not valid."""
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.ones(4), size=tiles)
    ground = np.stack([rng.choice(4, size=(side, side), p=share) for share in shares]).astype(np.uint8)
    objects = None
    if kind == "yollo":
        ground[:] = Ground.UNANNOTATED
        ground[:, :8], ground[:, -8:, :8] = Ground.BACKGROUND, Ground.IGNORED
        centre, half = rng.uniform(0, side, (tiles, 6, 2)), rng.uniform(2, 8, (tiles, 6, 2))
        present = rng.random((tiles, 6)) < 0.7
        boxes = np.concatenate([centre - half, centre + half], -1) * present[..., None]
        objects = Objects(
            boxes_yxyx_px=boxes.astype(np.float32),
            label=(rng.integers(0, CLASSES + 1, (tiles, 6)) * present).astype(np.uint8),
            present=present,
            left_out=np.zeros(tiles, np.int32),
        )
    valid = np.arange(tiles) < tiles - padding
    ground[~valid] = Ground.IGNORED
    if objects is not None:
        objects = jax.tree.map(lambda x: x * valid.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype), objects)
    label = rng.integers(1, CLASSES + 1, ground.shape) * (ground == Ground.ANNOTATED)
    return Batch(
        image=rng.integers(0, 256, (tiles, side, side, 3), np.uint8),
        ground=ground,
        label=label.astype(np.uint8),
        valid=valid,
        objects=objects,
    )


@functools.cache
def start(spec, ema):
    """Where training starts, its last kernel larger: logits on both sides of every threshold."""
    model = spec.build(classes=CLASSES, rngs=nnx.Rngs(1))
    model.head[...] = (100.0 if isinstance(spec, YolloSpec) else 40.0) * model.head[...]
    return jax.device_get(init_state(model, KEPT, ema=ema)[1])


def hyper(spec, loss):
    numbers = loss.hyper(0.5)
    if isinstance(loss, Official):
        numbers["rho"] = 2.0  # a margin that logits this large are inside of, and outside
    return Hyper(
        loss={name: np.float32(value) for name, value in numbers.items()},
        model={field.name: np.float32(getattr(spec, field.name)) for field in programs._traced_fields(spec)},
        learning_rate=np.float32(0.1),
        ema_decay=np.float32(0.75),
        seed=np.uint32(3),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What one step did, and the program that did it."""

    before: object  # the state, placed
    after: object
    measures: object
    text: str  # the compiled program


def loss_of(name):
    """With its defaults, what they leave open filled in from data."""
    loss = LOSSES[name]()
    return loss.fitted(LabelFacts(share=0.3, annotated_fraction=0.1)) if hasattr(loss, "fitted") else loss


@functools.cache
def step(kind, loss_name, mesh, options=PLAIN, form="cpu", tiles=TILES, side=SIDE):
    """One step of a model and loss on a mesh, by the program that training runs."""
    options, loss = dict(options), loss_of(loss_name)
    spec = dataclasses.replace(MODELS[kind], form=form)
    layout = make_layout(MeshSpec(**dict(zip(("data", "fsdp", "space"), mesh)), shard_from=64))
    shape = programs.Form(
        model=programs.without_traced(spec),
        loss=loss,
        optimizer=OptimizerSpec(),
        classes=CLASSES,
        **{name: options[name] for name in ("augment", "micro_batches", "remat")},
    )
    with mock.patch.object(programs, "make_optimizer", return_value=KEPT):
        pure = programs.step_of(shape, layout)
    before = start(spec, options["ema"])
    batch = draw(kind, tiles, side, options["padding"])
    if isinstance(loss, Remembers):  # some of the tiles overlap
        memory = np.random.default_rng(1).uniform(size=(1, *CANVAS)).astype(np.float32)
        place = np.random.default_rng(2).integers(0, np.array(CANVAS) - side + 1, (tiles, 2))
        before = dataclasses.replace(before, memory=memory)
        batch = dataclasses.replace(batch, place=place.astype(np.int32))
    before, batch = layout.place_state(before), layout.place(batch)
    # Code that is made quickly: it runs once.
    jitted = jax.jit(pure, compiler_options={"xla_backend_optimization_level": 0})
    compiled = jitted.lower(before, batch, hyper(spec, loss)).compile()
    after, measures = compiled(before, batch, hyper(spec, loss))
    return Step(before=before, after=after, measures=jax.device_get(measures), text=compiled.as_text())


def assert_leaves_near(ours, theirs, tolerance):
    """Each leaf within `tolerance` of its largest entry."""
    for (path, one), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        worst, largest = np.abs(one - other).max(), np.abs(other).max()
        assert worst <= tolerance * largest, f"{jax.tree_util.keystr(path)}: {worst} of {largest}"


def assert_same_step(ours, one):
    # No element crossed a threshold or changed its ground: counts are whole numbers.
    for name in ("kept", "unannotated", "annotated", "weight", "counts"):
        jax.tree.map(np.testing.assert_array_equal, getattr(ours.measures, name), getattr(one.measures, name))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours.measures, one.measures)
    # Sums over devices in another order, through batch statistics.
    assert_leaves_near(ours.after.opt_state, one.after.opt_state, 1e-4)
    assert_leaves_near(ours.after.stats, one.after.stats, 1e-5)
    assert_leaves_near(ours.after.params, one.after.params, 1e-4)
    assert_leaves_near(ours.after.ema, one.after.ema, 1e-4)
    assert_leaves_near(ours.after.memory, one.after.memory, 1e-5)


def assert_worth_comparing(one, loss_name):
    """Gradients everywhere, statistics that moved, a mask that drops some where the loss has one."""
    for path, leaf in jax.tree.leaves_with_path(one.after.opt_state):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    moved = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), one.after.stats, one.before.stats
    )
    assert max(jax.tree.leaves(moved)) > 1e-3
    share = float(one.measures.kept / one.measures.unannotated)
    masks = loss_name in ("exclusive", "focal_exclusive", "official")
    assert 0.02 < share < 0.98 if masks else share == 1.0, share


def check(kind, loss_name, mesh, options):
    one = step(kind, loss_name, ONE, options)
    assert_worth_comparing(one, loss_name)
    ours = step(kind, loss_name, mesh, options)
    assert_same_step(ours, one)
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), ours.after, ours.before)
    assert all(jax.tree.leaves(same)), "the state stays where it was"


def named(mesh):
    return "x".join(map(str, mesh))


@pytest.mark.parametrize("mesh", MESHES, ids=named)
def test_unet(mesh):
    check("unet", "focal_exclusive", mesh, PLAIN)


@pytest.mark.parametrize("mesh", [(4, 2, 1), (1, 1, 8)], ids=named)
def test_detector(mesh):
    check("yollo", "focal_exclusive", mesh, PLAIN)


@pytest.mark.parametrize(
    ("kind", "loss_name"), [("unet", "official"), pytest.param("yollo", "exclusive", marks=SLOW)]
)
def test_augmented_padded_in_micro_batches_with_an_average(kind, loss_name):
    """On a mesh of all three axes, parts of the forward pass computed again."""
    check(kind, loss_name, ALL_AXES, FULL)


@SLOW
@pytest.mark.parametrize("kind", list(MODELS))
def test_what_a_loss_remembers(kind):
    """Read and written on a mesh of all three axes, the memory split over one of them."""
    check(kind, "elr", ALL_AXES, FULL)
    one = step(kind, "elr", ONE, FULL)
    changed = np.asarray(one.after.memory) != np.asarray(one.before.memory)
    assert 0.3 < changed.mean() < 0.9


@SLOW
@pytest.mark.parametrize("options", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("mesh", [*MESHES, ALL_AXES], ids=named)
@pytest.mark.parametrize("loss_name", list(LOSSES))
@pytest.mark.parametrize("kind", list(MODELS))
def test_every_loss_on_every_mesh(kind, loss_name, mesh, options):
    check(kind, loss_name, mesh, options)


def test_fsdp_splits_parameters_moments_and_averages():
    after = step("unet", "official", ALL_AXES, FULL).after
    whole = jax.tree.map(lambda leaf: leaf.sharding.shard_shape(leaf.shape) == leaf.shape, after)
    large = jax.tree.map(lambda leaf: leaf.size >= 64, after)
    assert jax.tree.leaves(whole) == [not is_large for is_large in jax.tree.leaves(large)]
    for part in (after.params, after.opt_state, after.ema):
        held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(part))
        assert held < 0.6 * sum(leaf.nbytes for leaf in jax.tree.leaves(part))


# What the program of a mesh with "space" sends.

_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<name>all-gather|all-to-all|ragged-all-to-all|all-reduce|reduce-scatter"
    r"|collective-broadcast|collective-permute)(?:-start)?\("
)


def sent(text):
    """(collective, type, elements) of every array that a collective of a compiled program gives."""
    found = []
    for line in text.splitlines():
        if match := _COLLECTIVE.search(line):
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", match["result"]):
                found.append((match["name"], dtype, math.prod(int(n) for n in shape.split(",") if n)))
    return found


def assert_nothing_is_gathered(one, *, image, row):
    """Nothing larger than a kernel is sent but the rows at borders, and the bytes of an image that is turned.

    A flip or a rotation of an image whose rows are split must send it; it does so as bytes, once a step. A
    detector's cells are few: those of this one are no more than its largest kernel, and may be sent.

    Args:
        image: elements of a device's part of the images.
        row: elements of the largest row of a device's maps.
    """
    kernel = max(leaf.size for leaf in jax.tree.leaves(one.after.params))
    found = sent(one.text)
    assert "collective-permute" in {name for name, _, _ in found}
    for name, dtype, elements in found:
        limit = kernel
        if name == "collective-permute":
            limit = max(row, image if dtype == "u8" else 0)
        elif name == "all-to-all" and dtype == "u8":
            limit = image
        assert elements <= limit, f"{name} of {elements} {dtype}; at most {limit}"


def test_collectives_are_found_in_a_program():
    layout = make_layout(MeshSpec(data=1, space=8))
    split = jax.NamedSharding(layout.mesh, jax.P("space"))
    text = jax.jit(lambda x: x[::-1] @ x, in_shardings=split).lower(jnp.zeros((64, 64))).compile().as_text()
    assert ("all-gather", "f32", 64 * 64) in sent(text)


@pytest.mark.parametrize(("kind", "form"), [("unet", "cpu"), ("yollo", "cpu"), ("unet", "split")])
def test_rows_are_exchanged_and_no_map_is_gathered(kind, form):
    one = step(kind, "focal_exclusive", (1, 1, 8), PLAIN, form)
    assert_nothing_is_gathered(one, image=0, row=TILES * SIDE * 8)


@SLOW
@pytest.mark.parametrize("options", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("mesh", [(2, 1, 4), (1, 1, 8)], ids=named)
@pytest.mark.parametrize("form", ["cpu", "split"])
@pytest.mark.parametrize("loss_name", ["focal_exclusive", "official"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_large_tiles_are_never_gathered(kind, loss_name, form, mesh, options):
    tiles, side, (data, _, space) = 4, 128, mesh
    one = step(kind, loss_name, mesh, options, form, tiles=tiles, side=side)
    device = tiles // data * side
    # 8 channels: two maps of 4, one behind the other
    assert_nothing_is_gathered(one, image=device * side // space * 3, row=device * 8)
