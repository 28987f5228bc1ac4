"""Tiles through a model against one pass, and the limits of what is held."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict import Grid, probability_map
from sparseshot_jax.predict.stream import probability_tiles
from sparseshot_jax.types import Window


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def darkness(batch: np.ndarray) -> np.ndarray:
    """A stand-in for a model that looks at one pixel: p = 1 - red, 1 - green."""
    return 1 - batch[..., :2].astype(np.float32) / 255


RADIUS_PX, MULTIPLE = 10, 4  # of `network`


@pytest.fixture(scope="module")
def network():
    """Two poolings between 3 x 3 convolutions, and a skip; p moves by much within a few pixels."""
    rng = np.random.default_rng(0)
    first, second, third = (0.3 * rng.normal(size=(3, 3, n, 8)).astype(np.float32) for n in (3, 8, 8))
    last = rng.normal(size=(1, 1, 16, 1)).astype(np.float32)
    traces = []

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def pool(x):
        b, h, w, c = x.shape
        return jax.nn.relu(x).reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))

    @jax.jit
    def probability(batch):
        traces.append(batch.shape)
        skip = convolve(batch / 255.0 - 0.5, first)
        deep = convolve(pool(convolve(pool(skip), second)), third)
        wide = jnp.repeat(jnp.repeat(deep, 4, axis=1), 4, axis=2)
        return jax.nn.sigmoid(convolve(jnp.concatenate([skip, wide], -1), last))

    return probability, traces


@pytest.mark.parametrize("core_px", [32, 44, 64])
def test_tiled_p_is_the_p_of_one_pass(network, core_px):
    probability, _ = network
    pixels = image(150, 133)
    slide = ArraySlide(pixels, mpp=0.5)
    tiled = probability_map(
        probability,
        slide,
        mpp=0.5,
        model_mpp=0.5,
        core_px=core_px,
        halo_px=RADIUS_PX,
        multiple=MULTIPLE,
    )
    halo = 12  # RADIUS_PX, rounded up
    whole = Window(x_px=-halo, y_px=-halo, width=136 + 2 * halo, height=152 + 2 * halo)
    one = np.asarray(probability(slide.read(whole)[None]))[0, halo : halo + 150, halo : halo + 133]
    assert one.std() > 0.05  # else agreement would mean nothing
    # float32 sums in another order: 1e-4 is what is promised, 1e-5 what so small a network keeps.
    np.testing.assert_allclose(tiled, one, atol=1e-5)


def test_a_halo_that_is_too_narrow_shows(network):
    probability, _ = network
    slide = ArraySlide(image(96, 96), mpp=0.5)
    maps = [
        probability_map(probability, slide, mpp=0.5, model_mpp=0.5, core_px=32, halo_px=halo, multiple=4)
        for halo in (4, RADIUS_PX)
    ]
    assert np.abs(maps[0] - maps[1]).max() > 1e-2


def test_one_compiled_shape_for_full_and_last_batches(network):
    probability, traces = network
    del traces[:]
    for size in (150, 160):  # 9 tiles, of them one in the last batch; edges cut differently
        slide = ArraySlide(image(size, size), mpp=0.5)
        probability_map(probability, slide, mpp=0.5, model_mpp=0.5, core_px=56, halo_px=12, multiple=4)
    assert traces == [(4, 80, 80, 3)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 1), (70, 33), (5, 200)])
def test_map_of_any_size_is_in_place(height, width):
    pixels = image(height, width)
    p = probability_map(darkness, ArraySlide(pixels, mpp=1.0), mpp=1.0, model_mpp=1.0, core_px=32, halo_px=3)
    np.testing.assert_array_equal(p, darkness(pixels))


def test_other_resolution_lands_on_whole_window():
    pixels = np.repeat(np.repeat(image(40, 30), 2, axis=0), 2, axis=1)
    slide = ArraySlide(pixels, mpp=0.25)
    p = probability_map(darkness, slide, mpp=0.25, model_mpp=0.5, core_px=16, halo_px=4)
    whole = slide.read(Window(x_px=0, y_px=0, width=30, height=40, scale=2.0))
    # Resampling weights are rounded to a grey level, once for each window that is read.
    np.testing.assert_allclose(p, darkness(whole), atol=1.01 / 255)


def test_core_shrinks_to_a_small_image():
    grid = Grid.over(ArraySlide(image(60, 100), mpp=0.5), mpp=0.5, model_mpp=0.5, halo_px=90, multiple=16)
    assert (grid.core_px, grid.halo_px, grid.window(0, 0).width) == (128, 96, 128 + 192)


def test_tiles_in_flight_are_bounded_and_stopped():
    class Counting(ArraySlide):
        reads = 0
        lock = threading.Lock()

        def read(self, window):
            with self.lock:
                self.reads += 1
            return super().read(window)

    slide = Counting(image(320, 320), mpp=1.0)
    grid = Grid.over(slide, mpp=1.0, model_mpp=1.0, core_px=16, halo_px=0)
    tiles = probability_tiles(darkness, slide, grid, grid.origins(), batch_size=4, threads=2)
    next(tiles)
    tiles.close()
    assert slide.reads <= 2 * 4 + 8 + 1  # two batches computed, eight tiles ahead, one submitted


def test_model_that_diverged_is_named():
    slide = ArraySlide(image(8, 8), mpp=1.0)
    with pytest.raises(InputError, match="p must lie in"):
        probability_map(
            lambda batch: jnp.full((*batch.shape[:3], 1), jnp.nan),
            slide,
            mpp=1.0,
            model_mpp=1.0,
            halo_px=0,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"core_px": 250}, "divisible by 16.*Try core_px 256"),
        ({"mpp": 0.0}, "mpp and model_mpp must be positive"),
        ({"halo_px": -1}, "halo_px at least 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    slide = ArraySlide(image(8, 8), mpp=1.0)
    arguments = {"mpp": 1.0, "model_mpp": 1.0, "core_px": 256, "halo_px": 0, "multiple": 16} | change
    with pytest.raises(InputError, match=message):
        Grid.over(slide, **arguments)
