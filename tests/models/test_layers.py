"""Forms agree; normalisation follows its formula; tiles that pad a batch leave no trace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from sparseshot_jax.models.layers import (
    FORMS,
    NORMS,
    BatchNorm,
    ChannelNorm,
    GroupNorm,
    convolve_in_strips,
    forms,
    scale_image,
)

CPU, TEXTBOOK = FORMS["cpu"], FORMS["textbook"]

# Each form adds the same float32 products in its own order: differences of some 100 units in the last place.
CLOSE = {"rtol": 1e-5, "atol": 1e-4}


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, *arguments):
    """The value, and the gradient of every argument for one random cotangent."""
    value, pull = jax.vjp(function, *arguments)
    return value, pull(normal(9, *value.shape))


def assert_forms_equal(first, second, *arguments):
    pairs = zip(*(jax.tree.leaves(value_and_gradients(f, *arguments)) for f in (first, second)))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.parametrize("channels", [(3,), (20,), (5, 7), (2, 3, 4)])
def test_convolution_forms_are_equal(channels):
    inputs = [normal(i, 2, 6, 10, c) for i, c in enumerate(channels)]
    kernel = normal(8, 3, 3, sum(channels), 4)
    assert_forms_equal(
        lambda kernel, *inputs: CPU.convolve(*inputs, kernel=kernel),
        lambda kernel, *inputs: TEXTBOOK.convolve(*inputs, kernel=kernel),
        kernel,
        *inputs,
    )


def test_a_kernel_gradient_summed_over_strips_is_the_same():
    x, kernel = normal(0, 2, 6, 8, 5), normal(1, 3, 3, 5, 4)
    assert_forms_equal(convolve_in_strips, lambda x, kernel: TEXTBOOK.convolve(x, kernel=kernel), x, kernel)


def test_large_arrays_take_strips_and_small_ones_do_not():
    kernel = jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32)
    for side, strips in ((512, True), (64, False)):
        x = jax.ShapeDtypeStruct((1, side, side, 32), jnp.float32)
        program = jax.make_jaxpr(lambda x, kernel: CPU.convolve(x, kernel=kernel))(x, kernel)
        assert ("custom_vjp" in str(program)) == strips


def test_pooling_forms_are_equal():
    # Distinct values: where maxima are equal, the forms share out the gradient differently.
    x = jax.random.permutation(jax.random.key(0), jnp.arange(2 * 6 * 10 * 3.0)).reshape(2, 6, 10, 3)
    assert_forms_equal(CPU.pool, TEXTBOOK.pool, x)


def test_pooling_passes_on_the_whole_gradient_of_equal_maxima():
    for form in FORMS.values():
        gradient = jax.grad(lambda x, form=form: form.pool(x).sum())(jnp.ones((1, 4, 4, 1)))
        np.testing.assert_array_equal(gradient.reshape(2, 2, 2, 2).sum((1, 3)), 1.0)


def test_up_convolution_forms_are_equal():
    for form in ("cpu", "split"):
        assert_forms_equal(
            FORMS[form].up_convolve, TEXTBOOK.up_convolve, normal(0, 2, 3, 5, 6), normal(1, 2, 2, 6, 4)
        )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_up_convolution_puts_each_product_in_its_place(form):
    x, kernel = normal(0, 1, 3, 5, 6), normal(1, 2, 2, 6, 4)
    y = form.up_convolve(x, kernel)
    for a in range(2):
        for b in range(2):
            np.testing.assert_allclose(y[0, 4 + a, 6 + b], x[0, 2, 3] @ kernel[a, b], **CLOSE)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_convolution_correlates_with_zeros_outside(form):
    x, kernel = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 3)
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    expected = np.einsum("abc,abck->k", padded[0:3, 2:5], np.asarray(kernel))
    np.testing.assert_allclose(form.convolve(x, kernel=kernel)[0, 0, 2], expected, **CLOSE)


def test_the_back_end_chooses_the_form(monkeypatch):
    assert forms() is CPU  # tests run on CPU devices
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert forms() is TEXTBOOK
    assert forms("cpu") is CPU


def test_scale_image_spans_minus_one_to_one():
    image = scale_image(jnp.array([[0, 51, 255]], jnp.uint8))
    assert image.dtype == jnp.float32
    np.testing.assert_allclose(image, [[-1.0, -0.6, 1.0]], rtol=1e-6)  # float32 rounding


def test_batch_norm_normalises_with_the_statistics_of_the_batch(call):
    norm = BatchNorm(3)
    norm.scale[...], norm.shift[...] = jnp.array([1.0, 2.0, -1.0]), jnp.array([0.0, 1.0, 5.0])
    x = np.asarray(3 + 2 * normal(0, 4, 8, 8, 3))
    wide = x.astype(np.float64)
    expected = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-5)
    y = call(norm, jnp.asarray(x), train=True)
    np.testing.assert_allclose(y, expected * [1, 2, -1] + [0, 1, 5], **CLOSE)


def test_running_statistics_are_an_exponential_average(call):
    norm = BatchNorm(3, momentum=0.75)
    mean, variance = np.zeros(3), np.ones(3)
    for seed in range(3):
        x = 3 + 2 * normal(seed, 4, 8, 8, 3)
        call(norm, x, train=True)
        wide = np.asarray(x, np.float64)
        mean = 0.75 * mean + 0.25 * wide.mean((0, 1, 2))
        variance = 0.75 * variance + 0.25 * wide.var((0, 1, 2))
    np.testing.assert_allclose(norm.mean[...], mean, **CLOSE)
    np.testing.assert_allclose(norm.variance[...], variance, **CLOSE)
    x = normal(7, 1, 2, 2, 3)
    expected = (np.asarray(x) - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(call(norm, x), expected, **CLOSE)


@pytest.mark.parametrize("filler", [0.0, 1e4, np.nan])
def test_batch_norm_does_not_see_tiles_that_pad_the_batch(call, filler):
    x = normal(0, 3, 4, 4, 2)
    alone, padded = BatchNorm(2), BatchNorm(2)
    expected = call(alone, x, train=True)
    batch = jnp.concatenate([x, jnp.full((2, 4, 4, 2), filler)])
    y = call(padded, batch, jnp.arange(5) < 3, train=True)
    np.testing.assert_allclose(y[:3], expected, **CLOSE)
    np.testing.assert_allclose(padded.mean[...], alone.mean[...], **CLOSE)
    np.testing.assert_allclose(padded.variance[...], alone.variance[...], **CLOSE)


def test_batch_norm_of_no_valid_tile_uses_and_keeps_the_running_statistics(call):
    norm = BatchNorm(2)
    call(norm, 3 + normal(0, 4, 4, 4, 2), train=True)
    kept = np.asarray(norm.mean[...]), np.asarray(norm.variance[...])
    x = normal(1, 2, 4, 4, 2)
    y = call(norm, x, jnp.zeros(2, bool), train=True)
    np.testing.assert_array_equal(norm.mean[...], kept[0])
    np.testing.assert_array_equal(norm.variance[...], kept[1])
    np.testing.assert_array_equal(y, call(norm, x))


def test_group_norm_normalises_each_tile_by_groups(call):
    x = normal(0, 2, 4, 4, 6)
    wide = np.asarray(x, np.float64).reshape(2, 4, 4, 2, 3)
    expected = (wide - wide.mean((1, 2, 4), keepdims=True)) / np.sqrt(
        wide.var((1, 2, 4), keepdims=True) + 1e-5
    )
    y = call(GroupNorm(6, groups=2), x, train=True)
    np.testing.assert_allclose(y, expected.reshape(x.shape), **CLOSE)


def test_channel_norm_normalises_each_pixel(call):
    x = normal(0, 2, 4, 4, 6)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(call(ChannelNorm(6), x, train=True), expected, **CLOSE)


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_statistics_of_bfloat16_are_float32(call, norm):
    x = (100 + normal(0, 2, 64, 64, 8)).astype(jnp.bfloat16)
    y = call(norm(8), x, train=True)
    assert y.dtype == jnp.bfloat16
    exact = call(norm(8), x.astype(jnp.float32), train=True)
    # bfloat16 keeps 8 bits: half a unit in the last place is 2^-9 of the value.
    # Around a mean of 100, float32 itself is exact to 1e-5.
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2.0**-8, atol=1e-4)


def test_batch_statistics_are_global_over_a_sharded_batch(call):
    norm = BatchNorm(2)
    x = normal(0, 8, 4, 4, 2) + jnp.arange(8.0)[:, None, None, None]
    expected = call(norm, x, train=True)
    graphdef, state = nnx.split(BatchNorm(2))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))

    @jax.jit
    def normalise(state, x):
        model = nnx.merge(graphdef, state)
        return model(x, valid=None, train=True), nnx.state(model)

    y, state = normalise(state, spread)
    np.testing.assert_allclose(y, expected, **CLOSE)
    np.testing.assert_allclose(state["mean"][...], norm.mean[...], **CLOSE)
    assert lax.rsqrt(state["variance"][...]).shape == (2,)
