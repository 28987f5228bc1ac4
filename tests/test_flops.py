import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from sparseshot_jax.config import load_config, override
from sparseshot_jax.flops import flops
from sparseshot_jax.label_facts import without_data
from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.programs import abstract_state, form_of, hyper_schedule, step_of
from sparseshot_jax.training.sharding import MeshSpec, make_layout
from sparseshot_jax.types import Batch

SIDE = 32


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def convolution(x, kernel, **more):
    more = {"window_strides": (1, 1), "padding": "SAME", **more}
    return lax.conv_general_dilated(x, kernel, **more, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def forward_macs(base, depth, side):
    """Products of a U-Net's forward pass on one tile, padding left out: from its description alone."""

    def three(i, o, n):  # a 3 x 3 convolution on n x n pixels: three rows at each but the two at the border
        return i * o * (3 * n - 2) ** 2

    total = 0
    for level in range(depth + 1):
        width, n = base * 2**level, side // 2**level
        total += three(3 if level == 0 else width // 2, width, n) + three(width, width, n)
        if level < depth:
            total += 2 * width * width * n * n + three(2 * width, width, n) + three(width, width, n)
    return total + base * side * side  # the head


def test_a_convolution_meets_no_padding():
    x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
    # Of 16 pixels, 4 see nine others, 8 see six, 4 see four: just what the sum over ones is.
    assert flops(convolution, x, kernel) == 2 * int(convolution(x, kernel).sum()) == 2 * 100


@pytest.mark.parametrize(
    "more",
    [
        {"window_strides": (2, 2), "padding": "VALID"},
        {"lhs_dilation": (2, 2), "padding": ((1, 1), (1, 1))},
        {"rhs_dilation": (2, 2), "padding": ((2, 0), (0, 2))},
    ],
)
def test_strides_and_gaps_as_a_sum_over_ones(more):
    x, kernel = jnp.ones((2, 9, 7, 5)), jnp.ones((3, 3, 5, 4))
    assert flops(lambda x, k: convolution(x, k, **more), x, kernel) == 2 * int(
        convolution(x, kernel, **more).sum()
    )


def test_grouped_convolution():
    x, kernel = jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 2, 9))
    count = flops(lambda x, k: convolution(x, k, feature_group_count=3), x, kernel)
    assert count == 2 * int(convolution(x, kernel, feature_group_count=3).sum())


def test_a_loop_counts_its_turns_and_a_choice_its_dearest_arm():
    def product(x, _=None):
        return x @ x, None

    x = array(4, 4)
    assert flops(lambda x: lax.scan(product, x, length=5)[0], x) == 5 * 2 * 64
    assert flops(lambda x: lax.cond(True, lambda x: x @ x, lambda x: x, x), x) == 2 * 64


def test_what_is_computed_again_counts_again():
    def deep(w, x):
        return jnp.sum(jnp.sin(jnp.sin(x @ w) @ w) ** 2)

    w, x = array(8, 8), array(2, 8)
    plain, again = (flops(jax.grad(f), w, x) for f in (deep, jax.checkpoint(deep)))
    one = 2 * 2 * 8 * 8
    assert plain == 5 * one  # two forward, two for the weights, one for the input of the second
    assert again > plain


@pytest.mark.parametrize("form", ["textbook", "cpu"])
def test_unet_forward_by_hand(form):
    model = UNetSpec(base=8, depth=3, form=form).build(classes=1, rngs=nnx.Rngs(0))
    count = flops(lambda x: model(x), array(1, SIDE, SIDE, 3))
    assert count == 2 * forward_macs(8, 3, SIDE)


def step_and_arguments(config, tiles, side):
    layout = make_layout(MeshSpec(data=1), jax.devices()[:1])
    byte = jnp.uint8
    batch = Batch(
        image=array(tiles, side, side, 3, dtype=byte),
        ground=array(tiles, side, side, dtype=byte),
        label=array(tiles, side, side, dtype=byte),
        valid=array(tiles, dtype=jnp.bool_),
    )
    return step_of(form_of(config), layout), (
        abstract_state(config),
        batch,
        hyper_schedule(without_data(config))(0),
    )


@pytest.fixture(scope="module")
def config():
    config = load_config("configs/unet_tnbc.py")
    for field, value in (("base", "48"), ("depth", "2"), ("form", "textbook")):
        config = override(config, f"model.{field}", value)
    return override(config, "train.steps", "10")


def test_a_step_is_three_forward_passes_but_for_the_first_layers_input(config):
    step, given = step_and_arguments(config, 2, SIDE)
    first = 3 * 48 * (3 * SIDE - 2) ** 2
    network = 2 * 2 * (3 * forward_macs(48, 2, SIDE) - first)
    assert network <= flops(step, *given) <= 1.001 * network  # the stains' matrices come on top


def test_a_step_of_large_arrays_counts_the_same_in_every_form(config):
    large = 512  # 2 x 512 x 512 x 48 elements: a CPU's form takes the kernel's gradient in strips
    cpu = override(config, "model.form", "cpu")
    ours, textbook = (
        flops(step, *given) for step, given in (step_and_arguments(c, 2, large) for c in (cpu, config))
    )
    # Strips are of a padded array: its border columns count, 2 of 3 x 128 pairs or fewer.
    assert textbook <= ours <= (1 + 2 / (3 * 128)) * textbook


def test_a_step_agrees_with_the_compilers_count(config):
    step, given = step_and_arguments(config, 2, SIDE)
    theirs = jax.jit(step).lower(*given).cost_analysis()["flops"]
    assert flops(step, *given) == pytest.approx(theirs, rel=0.05)


def test_the_detector_agrees_with_the_compilers_count():
    model = YolloSpec(width=32, depth=1, form="textbook").build(classes=1, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, image):
        return jnp.sum(nnx.merge(graphdef, params, rest)(image).objectness)

    given = params, array(1, 2 * SIDE, 2 * SIDE, 3)
    theirs = jax.jit(jax.grad(loss)).lower(*given).cost_analysis()["flops"]
    assert flops(jax.grad(loss), *given) == pytest.approx(theirs, rel=0.05)
