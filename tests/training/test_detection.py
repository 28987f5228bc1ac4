"""The objective of detection, against float64 loops; a step that learns; boxes that move with pixels."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sparseshot_jax import losses
from sparseshot_jax.models import YolloSpec
from sparseshot_jax.training import sharding
from sparseshot_jax.training.augment import AugmentSpec, augment
from sparseshot_jax.training.detection import ciou_loss, detection
from sparseshot_jax.training.step import init_state, make_train_step
from sparseshot_jax.types import Batch, CellOutput, Ground, Hyper, Objects

SIDE, STRIDE = 32, 8
LOSS = losses.FocalExclusive()


def draw(seed=0, tiles=2, places=6, classes=3):
    """Tiles with objects, some of them absent, some of unknown class; and ground of all kinds."""
    rng = np.random.default_rng(seed)
    centre, half = rng.uniform(0, SIDE, (tiles, places, 2)), rng.uniform(3, 8, (tiles, places, 2))
    present = rng.random((tiles, places)) < 0.7
    ground = np.zeros((tiles, SIDE, SIDE), np.uint8)
    ground[:, :8], ground[:, 24:, :16] = Ground.BACKGROUND, Ground.IGNORED
    boxes = np.concatenate([centre - half, centre + half], -1) * present[..., None]
    return Batch(
        image=rng.integers(0, 256, (tiles, SIDE, SIDE, 3), np.uint8),
        ground=ground,
        label=np.zeros_like(ground),
        valid=np.ones(tiles, bool),
        objects=Objects(
            boxes_yxyx_px=boxes.astype(np.float32),
            label=(rng.integers(0, classes + 1, (tiles, places)) * present).astype(np.uint8),
            present=present,
            left_out=np.full(tiles, 2, np.int32),
        ),
    )


def output_of(seed, tiles=2, classes=3):
    rng, grid = np.random.default_rng(seed), (tiles, SIDE // STRIDE, SIDE // STRIDE, 1)
    centre, half = rng.uniform(0, SIDE, (*grid, 2)), rng.uniform(3, 8, (*grid, 2))
    return CellOutput(
        objectness=jnp.asarray(rng.normal(0, 2, grid), jnp.float32),
        boxes_yxyx_px=jnp.asarray(np.concatenate([centre - half, centre + half], -1), jnp.float32),
        classes=jnp.asarray(rng.normal(size=(*grid, classes)), jnp.float32),
        anchors_px=jnp.array([[11.0, 11.0]]),
    )


def hyper(**model):
    numbers = {"rho": 0.6, "alpha": 0.3, "gamma": 0.2}
    return Hyper(
        loss={k: jnp.float32(v) for k, v in numbers.items()},
        model={"ignore_iou": 0.6, "box_weight": 1.0, "class_weight": 1.0} | model,
        learning_rate=jnp.float32(1e-2),
        ema_decay=jnp.float32(0.0),
        seed=jnp.uint32(0),
    )


def ciou(a, b):
    """Equations 8 to 11 of Zheng et al., yxyx."""
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    iou = shared / (sum(areas) - shared)
    d2 = sum(((a[k] + a[k + 2]) / 2 - (b[k] + b[k + 2]) / 2) ** 2 for k in (0, 1))
    c2 = sum((max(a[k + 2], b[k + 2]) - min(a[k], b[k])) ** 2 for k in (0, 1))
    v = (
        4
        / math.pi**2
        * (math.atan((a[3] - a[1]) / (a[2] - a[0])) - math.atan((b[3] - b[1]) / (b[2] - b[0]))) ** 2
    )
    return 1 - iou + d2 / c2 + (v / (1 - iou + v) * v if v else 0.0)


def iou_of(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / (sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - shared)


def test_the_objective_is_that_of_the_equations():
    batch, output = draw(3), output_of(4)
    spec = YolloSpec(stride=STRIDE)
    found = detection(spec, LOSS.terms)(
        output, as_jax(batch), hyper(box_weight=2.0, class_weight=0.5), jax.random.key(0)
    )
    z, boxes = np.asarray(output.objectness, np.float64)[..., 0], np.asarray(output.boxes_yxyx_px, np.float64)
    log_p = np.asarray(jax.nn.log_softmax(output.classes), np.float64)[:, :, :, 0]
    objects = batch.objects
    main = box = cls = 0.0
    count = {"F": 0, "U": 0, "kept": 0, "ignored": 0, "known": 0}
    for b, row, column in np.ndindex(z.shape):
        in_cell = []
        for k in np.flatnonzero(objects.present[b]):
            truth = objects.boxes_yxyx_px[b, k].astype(np.float64)
            y, x = (truth[0] + truth[2]) / 2, (truth[1] + truth[3]) / 2
            if batch.ground[b, int(y), int(x)] != Ground.IGNORED and (y // STRIDE, x // STRIDE) == (
                row,
                column,
            ):
                in_cell.append((math.hypot(y / STRIDE - row - 0.5, x / STRIDE - column - 0.5), k, truth))
        value, own = z[b, row, column], boxes[b, row, column, 0]
        if in_cell:
            _, k, truth = min(in_cell)
            count["F"] += 1
            main += np.logaddexp(0, -value)
            box += ciou(own, truth)
            if objects.label[b, k]:
                cls -= log_p[b, row, column, objects.label[b, k] - 1]
            continue
        ground = batch.ground[b, row * STRIDE, column * STRIDE]  # whole cells are of one kind
        overlaps = [iou_of(own, t) for t in objects.boxes_yxyx_px[b][objects.present[b]]]
        if ground == Ground.IGNORED or max(overlaps, default=0) > 0.6:
            count["ignored"] += 1
        elif ground == Ground.BACKGROUND:
            count["known"] += 1
            main += np.logaddexp(0, value)
        else:
            count["U"] += 1
            p = 1 / (1 + np.exp(-value))
            if p < 0.6:
                count["kept"] += 1
                main += 0.3 * p**0.2 * np.logaddexp(0, value)
    assert min(count.values()) > 0
    assert 0 < count["kept"] < count["U"]
    expected = {
        "loss": main + 2.0 * box + 0.5 * cls,
        "weight": count["F"],
        "unannotated": count["U"],
        "kept": count["kept"],
        "annotated": count["F"],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(float(getattr(found, name)), value, rtol=1e-5, err_msg=name)
    row = found.ratios()
    np.testing.assert_allclose(row["objectness_loss"], main / count["F"], rtol=1e-5)
    np.testing.assert_allclose(row["box_loss"], box / count["F"], rtol=1e-5)
    np.testing.assert_allclose(row["class_loss"], cls / count["F"], rtol=1e-5)
    assert row["left_out"] == 4


def as_jax(batch):
    return jax.tree.map(jnp.asarray, batch)


def test_nothing_annotated_divides_by_one():
    batch = draw()
    batch = dataclasses.replace(
        batch, objects=dataclasses.replace(batch.objects, present=np.zeros_like(batch.objects.present))
    )
    found = detection(YolloSpec(), LOSS.terms)(output_of(0), as_jax(batch), hyper(), jax.random.key(0))
    assert float(found.weight) == 0.0
    assert found.ratios()["loss"] == pytest.approx(float(found.loss))
    assert found.ratios()["box_loss"] == 0.0


def test_box_and_class_terms_touch_matched_cells_alone():
    batch, output = draw(3), output_of(4)

    def of(output, name):
        return detection(YolloSpec(), LOSS.terms)(output, as_jax(batch), hyper(), jax.random.key(0)).parts[
            name
        ]

    loss = jax.grad(
        lambda o: detection(YolloSpec(), LOSS.terms)(o, as_jax(batch), hyper(), jax.random.key(0)).loss
    )
    slope = loss(output)
    matched = np.abs(np.asarray(slope.boxes_yxyx_px)).sum(-1) > 0
    assert 0 < matched.sum() < matched.size
    assert not np.asarray(slope.classes)[~matched].any()
    assert of(output, "box_loss") > 0


def test_ciou_is_that_of_the_equations_and_slopes_where_boxes_are_apart():
    rng = np.random.default_rng(0)
    one, other = (np.sort(rng.uniform(0, 20, (50, 2, 2)), axis=1).reshape(50, 4) for _ in range(2))
    found = ciou_loss(jnp.asarray(one, jnp.float32), jnp.asarray(other, jnp.float32))
    # float32: areas of nearly empty boxes
    np.testing.assert_allclose(found, [ciou(a, b) for a, b in zip(one, other)], rtol=1e-4)
    far = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([10.0, 10.0, 12.0, 12.0])
    assert (np.asarray(jax.grad(lambda a: ciou_loss(a, far[1]))(far[0]))[2:] < 0).all()  # grows towards it
    for flat in (jnp.zeros(4), jnp.full(4, 5.0)):
        assert np.isfinite(np.asarray(jax.grad(lambda a: ciou_loss(a, far[1]))(flat))).all()


@pytest.mark.parametrize("head", ["anchor", "centre"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_learns_the_boxes_and_traces_once(head, parts):
    spec = YolloSpec(width=4, depth=1, head=head, norm="group")
    model = spec.build(classes=3, rngs=nnx.Rngs(0))
    optimizer = optax.scale_by_adam()
    graphdef, state = init_state(model, optimizer, ema=True)
    plain = AugmentSpec(dihedral=False, stain=0.0, brightness=0.0, contrast=0.0)
    step = make_train_step(
        graphdef=graphdef,
        objective=detection(spec, losses.CrossEntropy().terms),
        optimizer=optimizer,
        augmentation=plain,
        micro_batches=parts,
    )
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(step, n=1))
    batch, rows = draw(), []
    for k in range(60):
        numbers = dataclasses.replace(
            hyper(box_weight=1.0 + 0.01 * k), loss={"background_weight": jnp.float32(1.0)}
        )
        state, measures = step(state, batch, numbers)
        rows.append(measures.ratios())
    for name in ("objectness_loss", "box_loss", "class_loss"):
        assert rows[-1][name] < 0.7 * rows[0][name], name


def test_micro_batches_sum_to_one_batch():
    spec = YolloSpec(width=4, depth=1, norm="group")
    graphdef, state = init_state(spec.build(classes=3, rngs=nnx.Rngs(0)), optax.identity(), ema=False)
    plain = AugmentSpec(dihedral=False, stain=0.0, brightness=0.0, contrast=0.0)
    found = []
    for parts in (1, 2):
        step = make_train_step(
            graphdef=graphdef, objective=detection(spec, LOSS.terms), optimizer=optax.identity(),
            augmentation=plain, micro_batches=parts,
        )  # fmt: skip
        found.append(jax.jit(step)(state, draw(tiles=4), hyper())[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)


def test_eight_devices_give_what_one_gives():
    spec = YolloSpec(width=4, depth=1)
    graphdef, state = init_state(spec.build(classes=3, rngs=nnx.Rngs(0)), optax.identity(), ema=False)
    step = make_train_step(
        graphdef=graphdef, objective=detection(spec, LOSS.terms), optimizer=optax.identity(),
        augmentation=AugmentSpec(),
    )  # fmt: skip
    found = []
    for devices in (1, 8):
        layout = sharding.make_layout(sharding.MeshSpec(data=devices))
        placed = layout.place(draw(tiles=8))
        assert len(placed.objects.present.sharding.device_set) == devices
        after, measured = jax.jit(step)(layout.place_state(state), placed, hyper())
        found.append((after.params, measured))
    # float32 sums over devices in another order, through batch statistics
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *found)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_move_with_the_pixels(seed):
    """Each object's box is painted into `ground`: after augmentation it must still cover its paint."""
    rng = np.random.default_rng(seed)
    n = 16
    ground, boxes = np.zeros((n, SIDE, SIDE), np.uint8), np.zeros((n, 2, 4), np.float32)
    for b in range(n):
        top, left = rng.integers(0, 20, 2)
        boxes[b, 0] = top, left, top + 5, left + 9
        ground[b, top : top + 5, left : left + 9] = 1
    batch = Batch(
        image=np.zeros((n, SIDE, SIDE, 3), np.uint8),
        ground=ground,
        label=ground,
        valid=np.ones(n, bool),
        distance=ground,
        objects=Objects(
            boxes_yxyx_px=boxes,
            label=np.ones((n, 2), np.uint8),
            present=np.tile([True, False], (n, 1)),
            left_out=np.zeros(n, np.int32),
        ),
    )
    _, moved = augment(
        jax.random.key(seed), as_jax(batch), AugmentSpec(stain=0.0, brightness=0.0, contrast=0.0)
    )
    changed = 0
    for b in range(n):
        painted = np.argwhere(np.asarray(moved.ground[b]))
        top, left = painted.min(0)
        bottom, right = painted.max(0) + 1
        assert moved.objects.boxes_yxyx_px[b, 0].tolist() == [top, left, bottom, right]
        changed += [top, left, bottom, right] != boxes[b, 0].tolist()
    assert changed > n // 2
    assert not np.asarray(moved.objects.boxes_yxyx_px[:, 1]).any()  # no object, no box
    np.testing.assert_array_equal(moved.distance, moved.ground)
