"""What is remembered after several steps against a simulation in NumPy, from predictions that are known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import EarlyLearning
from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.training import memory as memories
from sparseshot_jax.training import sharding
from sparseshot_jax.training.augment import AugmentSpec, augment, put_back
from sparseshot_jax.training.memory import blank_memory, of_cells, of_pixels, recalled, remembered
from sparseshot_jax.training.step import init_state, make_train_step
from sparseshot_jax.training.tasks import TASKS
from sparseshot_jax.types import Batch, CellOutput, Ground, Hyper, Objects

TURNED = AugmentSpec(dihedral=True, stain=0.0, brightness=0.0, contrast=0.0)
TILES, SIDE, STRIDE = 4, 8, 4
CANVAS = (30, 21)
BETA, STRENGTH = 0.6, 2.0
DETECTOR = YolloSpec(stride=STRIDE, anchors=2, max_objects=1)


class Echo(nnx.Module):
    """Pixels: z = 2 red. Turned with the image, as no trained model is."""

    def __init__(self):
        self.scale = nnx.Param(jnp.array(2.0))

    def __call__(self, image, *, valid, train):
        return self.scale[...] * image[..., :1]


class CellEcho(Echo):
    """Cells: z = 2 and 4 times the mean of red over the cell, for two anchors."""

    def __call__(self, image, *, valid, train):
        b, h, w, _ = image.shape
        red = image[..., 0].reshape(b, h // STRIDE, STRIDE, w // STRIDE, STRIDE).mean(axis=(2, 4))
        z = self.scale[...] * red[..., None] * jnp.array([1.0, 2.0])[None, None, None]
        return CellOutput(
            objectness=z,
            boxes_yxyx_px=jnp.zeros((*z.shape, 4)),
            classes=jnp.zeros((*z.shape, 1)),
            anchors_px=jnp.array([[4.0, 4.0], [8.0, 8.0]]),
        )


def draw(seed, *, objects=False):
    """Tiles of noise, two of which overlap and one of which is not there."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 4, (TILES, SIDE, SIDE)).astype(np.uint8)
    place = np.stack([rng.integers(0, size - SIDE + 1, TILES) for size in CANVAS], axis=1)
    place[1] = np.clip(place[0] + [2, -3], 0, np.array(CANVAS) - SIDE)
    valid = np.array([True, True, False, True])
    place[2] = 0
    ground[2] = Ground.IGNORED
    found = None
    if objects:
        ground[:] = Ground.UNANNOTATED
        found = Objects(
            boxes_yxyx_px=np.zeros((TILES, 1, 4), np.float32),
            label=np.zeros((TILES, 1), np.uint8),
            present=np.zeros((TILES, 1), bool),
            left_out=np.zeros(TILES, np.int32),
        )
    return Batch(
        image=rng.integers(0, 256, (TILES, SIDE, SIDE, 3), np.uint8),
        ground=ground,
        label=(ground == Ground.ANNOTATED).astype(np.uint8),
        valid=valid,
        objects=found,
        place=place.astype(np.int32),
    )


HYPER = Hyper(
    loss={"beta": np.float32(BETA), "strength": np.float32(STRENGTH)},
    model={name: np.float32(value) for name, value in (("ignore_iou", 0.6), ("box_weight", 1.0))},
    learning_rate=np.float32(0.0),  # predictions stay what they are
    ema_decay=np.float32(0.0),
    seed=np.uint32(5),
)


@functools.cache
def build(task, parts, **options):
    """A start and the jitted step of an echo."""
    model = CellEcho() if task == "detection" else Echo()
    optimizer = optax.identity()
    graphdef, state = init_state(model, optimizer, ema=False)
    objective = TASKS[task].objective(DETECTOR if task == "detection" else UNetSpec(), EarlyLearning().terms)
    step = make_train_step(
        graphdef=graphdef,
        objective=objective,
        optimizer=optimizer,
        augmentation=TURNED,
        micro_batches=parts,
        **options,
    )
    numbers = TASKS[task].elements(DETECTOR)
    return dataclasses.replace(state, memory=blank_memory(numbers, CANVAS, value=0.5)), jax.jit(step)


def probabilities(batch, task):
    """Of each tile and number, as the tiles lie: [b, m, h, w] or [b, m, gh, gw]; float64."""
    red = batch.image[..., 0].astype(np.float64) / 127.5 - 1.0
    z = 2.0 * red[:, None]
    if task == "detection":
        z = z.reshape(TILES, 1, SIDE // STRIDE, STRIDE, SIDE // STRIDE, STRIDE).mean(axis=(3, 5))
        z = np.concatenate([z, 2.0 * z], axis=1)
    return 1 / (1 + np.exp(-z))


def simulate(memory, batch, task):
    """The memory after a step, and t of each tile; every tile was told what came before the step."""
    old, memory, averages = memory.copy(), memory.copy(), []
    for (top, left), valid, p in zip(batch.place, batch.valid, probabilities(batch, task)):
        there = (slice(None), slice(top, top + SIDE), slice(left, left + SIDE))
        part = old[there]
        if task == "detection":
            cells = (len(part), SIDE // STRIDE, STRIDE, SIDE // STRIDE, STRIDE)
            part = part.reshape(cells).mean(axis=(2, 4))
        t = BETA * part + (1 - BETA) * p
        averages.append(t)
        if valid:
            memory[there] = np.kron(t, np.ones((STRIDE, STRIDE))) if task == "detection" else t
    return memory, np.stack(averages)


@pytest.mark.parametrize(("task", "parts"), [("segmentation", 2), ("detection", 1)])
def test_it_holds_what_a_simulation_holds(task, parts):
    state, step = build(task, parts)
    expected = np.full(state.memory.shape, 0.5)
    for seed in range(5):
        batch = draw(seed, objects=task == "detection")
        state, measures = step(state, batch, HYPER)
        expected, averages = simulate(expected, batch, task)
        np.testing.assert_allclose(state.memory, expected, atol=1e-6)
        # The loss was told t where it belongs, whichever way the tile was turned.
        p = probabilities(batch, task)
        inner = (1 - p) * (1 - averages) + p * averages
        ground = np.full(p.shape, Ground.UNANNOTATED) if task == "detection" else batch.ground[:, None]
        if task == "detection":
            inside = np.ones(p.shape, bool)
        else:
            inside = np.isin(ground, [Ground.UNANNOTATED, Ground.ANNOTATED])
        label = ground == Ground.ANNOTATED
        plain = np.where(label, -np.log(p), -np.log(1 - p))
        total = (plain + STRENGTH * np.log(1 - inner))[inside].sum() + plain[
            ground == Ground.BACKGROUND
        ].sum()
        assert float(measures.loss) == pytest.approx(total, rel=1e-5)
        assert measures.average is None
    seen = np.abs(expected - 0.5).max(axis=0) > 0
    assert 0.2 < seen.mean() < 1.0


@pytest.mark.parametrize("mesh", [{"data": 4}, {"data": 2, "fsdp": 2, "space": 2}], ids=str)
def test_many_devices_remember_what_one_does(mesh):
    layout = sharding.make_layout(sharding.MeshSpec(**mesh, shard_from=64))
    state, step = build("segmentation", 1, spread=layout.spread)
    state = layout.place_state(state)
    split = "fsdp" in mesh
    assert state.memory.sharding.is_fully_replicated != split
    expected = np.full(state.memory.shape, 0.5)
    for seed in range(2):
        batch = draw(seed)
        state, _ = step(state, layout.place(batch), HYPER)
        expected, _ = simulate(expected, batch, "segmentation")
        np.testing.assert_allclose(state.memory, expected, atol=1e-6)


def test_a_tile_is_turned_back_the_way_it_was_turned():
    rng = np.random.default_rng(0)
    batch = dataclasses.replace(draw(0), average=rng.uniform(size=(TILES, 3, SIDE, SIDE)).astype(np.float32))

    @jax.jit
    def turned_and_back(key, batch):
        average = augment(key, batch, TURNED)[1].average
        return average, put_back(key, average, TURNED)

    moved = 0
    for seed in range(8):  # 32 turns
        turned, back = turned_and_back(jax.random.key(seed), batch)
        np.testing.assert_array_equal(back, batch.average)
        moved += (np.asarray(turned) != batch.average).any()
    assert moved == 8
    average = jnp.asarray(batch.average)
    assert put_back(jax.random.key(0), average, AugmentSpec(dihedral=False)) is average


def test_average_and_ground_turn_alike():
    batch = draw(1)
    batch = dataclasses.replace(batch, average=batch.ground[:, None].astype(np.float32))
    _, turned = jax.jit(augment, static_argnums=2)(jax.random.key(3), batch, TURNED)
    np.testing.assert_array_equal(turned.average[:, 0], turned.ground)
    assert (np.asarray(turned.ground) != batch.ground).any()


def test_cells_are_means_of_pixels_and_pixels_copies_of_cells():
    rng = np.random.default_rng(0)
    average = jnp.asarray(rng.uniform(size=(2, 3, 8, 12)), jnp.float32)
    cells = of_cells(average, 4)
    assert cells.shape == (2, 2, 3, 3)
    assert float(cells[1, 1, 2, 0]) == pytest.approx(float(average[1, 0, 4:, 8:].mean()))
    pixels = of_pixels(cells, 4)
    assert pixels.shape == average.shape
    np.testing.assert_allclose(of_cells(pixels, 4), cells, rtol=1e-6)
    assert float(pixels[1, 0, 5, 9]) == float(cells[1, 1, 2, 0])
    assert of_cells(None, 4) is of_pixels(None, 4) is None


def test_where_nothing_is_remembered_nothing_changes():
    batch, memory = draw(0), jnp.zeros((1, *CANVAS))
    assert recalled(None, batch) is batch
    assert remembered(None, batch, None) is None
    assert remembered(memory, batch, None) is memory
    with pytest.raises(InputError, match=r"places=True"):
        recalled(memory, dataclasses.replace(batch, place=None))


def test_a_state_without_memory_is_refused_by_the_loss():
    state, step = build("segmentation", 1)
    with pytest.raises(InputError, match=r"loss elr needs Targets\.average.*fresh_state"):
        step(dataclasses.replace(state, memory=None), draw(0), HYPER)


def test_more_than_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(memories, "MEMORY_BYTES", 1 << 20)
    assert blank_memory(1, (512, 512), value=0.25).nbytes == 1 << 20
    with pytest.raises(InputError, match=r"loss elr.*513 x 512 pixels.*larger tiles\.mpp"):
        blank_memory(1, (513, 512), value=0.25)
