"""The U-Net: shapes, reach, start, and independence of what it must not depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparseshot_jax.errors import InputError
from sparseshot_jax.models import MODELS, UNetSpec, class_probabilities, foreground
from sparseshot_jax.models.unet import split_distance
from sparseshot_jax.types import Needs


@functools.cache
def _initial(classes, seed, fields):
    return nnx.split(UNetSpec(**dict(fields)).build(classes=classes, rngs=nnx.Rngs(seed)))


def build(classes: int = 1, seed: int = 0, **fields):
    fields = {"base": 4, "depth": 2, **fields}
    return nnx.merge(*_initial(classes, seed, tuple(fields.items())), copy=True)


def images(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), (*shape, 3), minval=-1.0, maxval=1.0)


def with_wide_head(model):
    """A head that does not shrink the differences that a test looks for."""
    model.head[...] = 100 * model.head[...]
    return model


@pytest.mark.parametrize(("classes", "logits"), [(1, 1), (2, 3), (5, 6)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes(call, classes, logits, dtype):
    model = build(classes, dtype=dtype)
    z = call(model, images(2, 8, 12), train=True)
    assert z.shape == (2, 8, 12, logits)
    assert z.dtype == jnp.float32
    assert foreground(z).shape == (2, 8, 12)
    assert class_probabilities(z).shape == (2, 8, 12, classes)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("prior", [0.01, 0.05, 0.5])
def test_every_pixel_starts_near_the_prior(call, classes, prior):
    z = call(build(classes, prior=prior), images(2, 32, 32), train=True)
    p = class_probabilities(z)
    # Head weights of 0.01 move logits by about 0.02: p by 2 %, at most some 10 %.
    np.testing.assert_allclose(foreground(z), prior, rtol=0.2)
    np.testing.assert_allclose(p.mean((0, 1, 2)), prior / classes, rtol=0.1)


def test_foreground_and_classes_agree_with_softmax_and_keep_small_probabilities():
    z = jnp.array([[0.5, -1.0, 2.0], [60.0, 1.0, 2.0]])
    softmax = np.exp(np.asarray(z, np.float64))
    softmax /= softmax.sum(-1, keepdims=True)
    np.testing.assert_allclose(foreground(z), softmax[:, 1:].sum(-1), rtol=1e-5)
    np.testing.assert_allclose(class_probabilities(z), softmax[:, 1:], rtol=1e-5)
    assert foreground(z)[1] > 0  # 1 - p_0 would be 0 in float32


@pytest.mark.parametrize(
    ("size", "message"),
    [((250, 256), r"height must be divisible by 16 .*250.*240 or 256"),
     ((256, 8), r"width must be divisible by 16 .*got 8. Try 16\.")],
)  # fmt: skip
def test_a_size_that_does_not_halve_is_refused_with_the_nearest_that_does(size, message):
    model = build(depth=4)
    with pytest.raises(InputError, match=message):
        model(jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize(
    "fields",
    [{"base": 0}, {"depth": 0}, {"depth": 9}, {"norm": "layer"}, {"dtype": "float16"},
     {"prior": 0.0}, {"prior": 1.0}, {"prior": float("nan")}, {"form": "tpu"},
     {"distance_weight": -0.1}, {"distance_weight": float("nan")}],
)  # fmt: skip
def test_a_field_out_of_range_is_refused_by_name(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        UNetSpec(**fields)


def test_no_class_is_refused():
    with pytest.raises(InputError, match="at least one wanted class"):
        UNetSpec().build(classes=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("base", "depth", "classes"), [(4, 2, 1), (3, 1, 4)])
def test_parameter_count(base, depth, classes):
    def double(inputs, width):  # two kernels, two scales and shifts
        return 9 * width * (inputs + width) + 4 * width

    widths = [base * 2**level for level in range(depth + 1)]
    down = sum(double(inputs, width) for inputs, width in zip([3, *widths], widths))
    up = sum(4 * 2 * w * w + double(2 * w, w) for w in widths[:-1])
    logits = 1 if classes == 1 else classes + 1
    params = nnx.state(build(classes, base=base, depth=depth), nnx.Param)
    assert sum(p.size for p in jax.tree.leaves(params)) == down + up + base * logits + logits


@pytest.mark.parametrize("classes", [1, 3])
def test_distance_is_one_more_channel_and_leaves_the_others_as_they_start(call, classes):
    plain, deep = build(classes), build(classes, distance=True)
    z = call(deep, images(2, 32, 32), train=True)
    logits, depth = split_distance(z)
    assert logits.shape[-1] == (1 if classes == 1 else classes + 1)
    assert depth.shape == (2, 32, 32)
    # Head weights of 0.01 move logits by about 0.02.
    np.testing.assert_allclose(jax.nn.sigmoid(depth), 1 / 3, rtol=0.2)
    np.testing.assert_allclose(foreground(logits), 0.05, rtol=0.2)
    sizes = ([p.size for p in jax.tree.leaves(nnx.state(m, nnx.Param))] for m in (plain, deep))
    assert sum(map(int.__sub__, *reversed(list(sizes)))) == 4 + 1  # a weight a channel, and a bias


def test_distance_decides_what_the_model_needs():
    assert UNetSpec().needs == Needs()
    assert UNetSpec(distance=True).needs == Needs(distance=True)


def test_one_logit_has_no_distance():
    with pytest.raises(InputError, match="2 or more; got 1"):
        split_distance(jnp.zeros((1, 4, 4, 1)))


def gradients(model, image, valid=None):
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradient(params):
        z = nnx.merge(graphdef, params, stats, copy=True)(image, valid=valid, train=True)
        return jnp.mean(jnp.square(z - 1.0))

    return jax.tree.leaves_with_path(gradient(params))


@pytest.mark.parametrize("norm", ["batch", "group", "channel"])
def test_a_gradient_reaches_every_parameter(norm):
    for path, leaf in gradients(build(2, norm=norm), images(2, 16, 16)):
        assert jnp.all(jnp.isfinite(leaf)), jax.tree_util.keystr(path)
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("form", ["cpu", "split"])
def test_forms_give_the_same_model(call, form):
    """Same parameters, same logits, same gradients: a checkpoint serves every back end."""
    image = images(2, 16, 16)
    ours, textbook = (build(form=form) for form in (form, "textbook"))
    # Sums in another order, through 10 normalised layers.
    logits = (call(model, image, train=True) for model in (ours, textbook))
    np.testing.assert_allclose(*logits, atol=1e-5)
    for (path, a), (_, b) in zip(gradients(ours, image), gradients(textbook, image)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))


def test_a_padding_tile_changes_neither_statistics_nor_other_tiles(call):
    alone, padded = with_wide_head(build()), with_wide_head(build())
    image = images(3, 16, 16)
    expected = call(alone, image, train=True)
    batch = jnp.concatenate([image, 50 * images(1, 16, 16, seed=1)])
    z = call(padded, batch, jnp.array([True, True, True, False]), train=True)
    np.testing.assert_allclose(z[:3], expected, atol=1e-4)  # sums in another order
    for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.BatchStat)) for m in (alone, padded))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_batch_of_padding_alone_is_finite(call):
    model = build()
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    z = call(model, images(2, 8, 8), jnp.zeros(2, bool), train=True)
    assert jnp.all(jnp.isfinite(z))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model, nnx.BatchStat))
    for path, leaf in gradients(model, images(2, 8, 8), valid=jnp.zeros(2, bool)):
        assert jnp.all(jnp.isfinite(leaf)), jax.tree_util.keystr(path)


def test_inference_changes_no_state_and_training_does(call):
    model = build()
    before = jax.tree.map(np.asarray, nnx.state(model))
    call(model, images(1, 8, 8))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    call(model, images(1, 8, 8), train=True)
    assert np.any(before["down"][0]["first_norm"]["mean"] != model.down[0].first_norm.mean[...])


def test_bfloat16_is_close_to_float32(call):
    image = images(2, 32, 32)
    exact, coarse = (with_wide_head(build(dtype=d)) for d in ("float32", "bfloat16"))
    z, rounded = (call(model, image, train=True) for model in (exact, coarse))
    # 2^-8 a layer, through 10 layers, against logits whose spread is 1 or more.
    assert jnp.std(z) > 0.5
    assert jnp.sqrt(jnp.mean(jnp.square(z - rounded))) < 0.05 * jnp.std(z)


def reach(call, depth: int, y: int, x: int) -> np.ndarray:
    """Which outputs [h, w] depend on input pixel (y, x): NaN passes through all that it touches."""
    size = 16 * 2**depth
    image = images(1, size, size).at[0, y, x].set(jnp.nan)
    return np.isnan(np.asarray(call(build(base=1, depth=depth), image))[0, ..., 0])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_receptive_radius_is_exact(call, depth):
    spec = UNetSpec(depth=depth)
    middle = 8 * spec.multiple
    farthest = 0
    for offset in range(spec.multiple):  # every place in the pooling grid
        y, x = middle + offset, middle + spec.multiple - 1 - offset
        rows, columns = np.nonzero(reach(call, depth, y, x))
        farthest = max(farthest, np.abs(rows - y).max(), np.abs(columns - x).max())
    assert farthest == spec.receptive_radius_px


def test_a_tile_gives_what_the_whole_image_gives(call):
    """Away from its margin, wherever its origin is a multiple of 2^depth."""
    model = with_wide_head(build())
    whole = images(1, 96, 96)
    call(model, whole, train=True)  # running statistics that do something
    expected, margin = np.asarray(call(model, whole)), model.spec.receptive_radius_px
    assert margin < 32

    def difference(y, x):
        tile = np.asarray(call(model, whole[:, y : y + 64, x : x + 64]))
        outside = expected[:, y : y + 64, x : x + 64]
        return np.abs(tile - outside)[:, margin:-margin, margin:-margin].max()

    for y, x in ((0, 0), (4, 12), (20, 8)):
        assert difference(y, x) < 1e-4  # a convolution may sum in another order
    assert difference(1, 0) > 1e-2  # not a multiple: the pooling grid moves


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    a, b, c = (build(seed=seed).down[0].first[...] for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert jnp.any(a != c)


def test_variance_is_kept_by_the_initial_weights():
    kernel = build(base=64, depth=1).down[0].second[...]
    np.testing.assert_allclose(jnp.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.05)  # 37,000 draws


def test_registry():
    assert MODELS["unet"]() == UNetSpec()
    assert (UNetSpec().multiple, UNetSpec().receptive_radius_px) == (16, 107)
