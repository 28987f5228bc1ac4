"""The detector: shapes, reach, start, anchors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparseshot_jax.errors import InputError
from sparseshot_jax.models import MODELS, Model, YolloSpec
from sparseshot_jax.models.yollo import Anchor, anchors_for, decode_boxes
from sparseshot_jax.types import Needs


@functools.cache
def _initial(classes, fields):
    return nnx.split(YolloSpec(**dict(fields)).build(classes=classes, rngs=nnx.Rngs(0)))


def build(classes=1, **fields):
    fields = {"width": 4, "depth": 1, "stride": 4, **fields}
    return nnx.merge(*_initial(classes, tuple(fields.items())), copy=True)


def images(*shape, seed=0):
    return jax.random.uniform(jax.random.key(seed), (*shape, 3), minval=-1.0, maxval=1.0)


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize(("classes", "anchors"), [(1, 1), (3, 1), (2, 2)])
def test_shapes_and_dtypes(call, stride, classes, anchors):
    output = call(
        build(classes, stride=stride, anchors=anchors, dtype="bfloat16"), images(2, 32, 48), train=True
    )
    grid = (2, 32 // stride, 48 // stride, anchors)
    assert output.objectness.shape == grid
    assert output.boxes_yxyx_px.shape == (*grid, 4)
    assert output.classes.shape == (*grid, classes)
    assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {jnp.dtype("float32")}


def test_it_is_a_model_with_a_name():
    assert MODELS["yollo"] is YolloSpec
    assert isinstance(YolloSpec(), Model)
    assert YolloSpec(max_objects=7).needs == Needs(objects=7)
    assert (YolloSpec().task, YolloSpec(stride=16).multiple) == ("detection", 16)


def test_every_cell_starts_at_the_prior_with_the_anchor_in_its_middle(call):
    model = build(classes=2, prior=0.02)
    model.anchors[...] = jnp.array([[6.0, 10.0]])
    output = call(model, images(2, 32, 32), train=True)
    # Head weights of 0.01 move logits by about 0.02.
    np.testing.assert_allclose(jax.nn.sigmoid(output.objectness), 0.02, rtol=0.2)
    box = np.asarray(output.boxes_yxyx_px)
    size = box[..., 2:] - box[..., :2]
    np.testing.assert_allclose(size, np.broadcast_to([6.0, 10.0], size.shape), rtol=0.1)
    middle = 0.5 * (box[..., 2:] + box[..., :2])
    cells = 4 * (np.stack(np.meshgrid(*2 * [np.arange(8)], indexing="ij"), -1) + 0.5)
    np.testing.assert_allclose(middle[:, :, :, 0], np.broadcast_to(cells, middle[:, :, :, 0].shape), atol=0.2)


def test_boxes_are_those_of_the_equations():
    rng = np.random.default_rng(0)
    t = rng.normal(size=(1, 2, 3, 2, 4))
    anchors = np.array([[8.0, 4.0], [20.0, 30.0]])
    found = decode_boxes(jnp.asarray(t, jnp.float32), jnp.asarray(anchors, jnp.float32), 16)
    for row, column, k in np.ndindex(2, 3, 2):
        ty, tx, th, tw = t[0, row, column, k]
        y, x = (1 / (1 + np.exp(-ty)) + row) * 16, (1 / (1 + np.exp(-tx)) + column) * 16
        h, w = anchors[k] * np.exp([th, tw])
        np.testing.assert_allclose(
            found[0, row, column, k], [y - h / 2, x - w / 2, y + h / 2, x + w / 2], rtol=1e-5
        )


@pytest.mark.parametrize(("stride", "depth"), [(4, 1), (8, 2), (16, 1)])
def test_receptive_radius_is_attained_and_not_exceeded(stride, depth):
    spec = YolloSpec(width=4, depth=depth, stride=stride)
    model = spec.build(classes=1, rngs=nnx.Rngs(0))
    radius, side = (
        spec.receptive_radius_px,
        32 * stride // 4 + 2 * spec.receptive_radius_px // stride * stride,
    )
    side = -(-side // stride) * stride
    cell = side // stride // 2

    def of_cell(image):
        return model(image).objectness[0, cell, cell, 0]

    seen = np.abs(np.asarray(jax.jit(jax.grad(of_cell))(images(1, side, side)))).max((0, 2, 3)) > 0
    rows = np.flatnonzero(seen)
    first, last = cell * stride, cell * stride + stride - 1
    assert max(first - rows[0], rows[-1] - last) == radius


@pytest.mark.parametrize(
    "fields",
    [{"width": 0}, {"depth": 0}, {"stride": 6}, {"anchors": 0}, {"norm": "layer"}, {"dtype": "float16"},
     {"prior": 0.0}, {"prior": float("nan")}, {"head": "heat"}, {"form": "tpu"}, {"max_objects": 0},
     {"box_weight": -1.0}, {"class_weight": -1.0}, {"ignore_iou": 1.5}, {"anchors": 2, "head": "centre"}],
)  # fmt: skip
def test_a_field_out_of_range_is_refused_by_name(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        YolloSpec(**fields)


def test_a_size_that_is_no_multiple_is_refused_with_the_nearest_that_is():
    with pytest.raises(InputError, match=r"height must be divisible by the stride 4; got 30\. Try 28 or 32"):
        build()(jnp.zeros((1, 30, 32, 3)))
    with pytest.raises(InputError, match="at least one wanted class"):
        YolloSpec().build(classes=0, rngs=nnx.Rngs(0))


def test_a_tile_and_a_larger_one_round_it_agree(call):
    """Running statistics: what a cell says depends on what it sees and on nothing else."""
    spec = YolloSpec(width=4, depth=1, stride=4)
    halo = -(-spec.receptive_radius_px // 4) * 4
    image = images(1, 32 + 2 * halo, 32 + 2 * halo)
    whole = call(build(), image).objectness
    shifted = call(build(), image[:, 4:, 4:]).objectness
    first = halo // 4
    # the same sums in another order
    np.testing.assert_allclose(
        shifted[:, first : first + 6, first : first + 6],
        whole[:, first + 1 : first + 7, first + 1 : first + 7],
        atol=1e-5,
    )


def test_one_anchor_is_the_median_box():
    sizes = np.array([[10.0, 12.0], [11.0, 30.0], [50.0, 13.0]])
    np.testing.assert_array_equal(anchors_for(sizes, 1), [[11.0, 13.0]])


def test_several_anchors_find_the_groups():
    rng = np.random.default_rng(0)
    small, large = rng.normal([8, 8], 0.5, (30, 2)), rng.normal([30, 40], 2.0, (20, 2))
    anchors = anchors_for(rng.permutation(np.concatenate([small, large])), 2)
    np.testing.assert_allclose(anchors, [np.median(small, axis=0), np.median(large, axis=0)])
    with pytest.raises(
        InputError, match=r"model\.anchors is 3, and the marked objects have 1 different sizes"
    ):
        anchors_for(sizes_px=np.ones((5, 2)), count=3)
    with pytest.raises(InputError, match=r"0 different sizes\. Mark objects"):
        anchors_for(sizes_px=np.zeros((5, 2)), count=1)


def test_anchors_are_kept_with_the_model_and_not_trained():
    model = build()
    model.fit_anchors(np.array([[5.0, 7.0]]))
    (anchors,) = jax.tree.leaves(nnx.state(model, Anchor))
    np.testing.assert_array_equal(anchors, [[5.0, 7.0]])
    assert not any(leaf.shape == (1, 2) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
