import dataclasses

import jax
import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.augment import AugmentSpec, augment
from sparseshot_jax.types import Batch, Ground

vary = jax.jit(augment, static_argnums=2)

SIDE = 6
MOVES = AugmentSpec(dihedral=True, stain=0.0, brightness=0.0, contrast=0.0)


def addressed(tiles=8):
    """Every pixel tells its row and column; ground and label are functions of them."""
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.stack([y, x, y * SIDE + x], axis=-1).astype(np.uint8)
    ground = ((y * 3 + x) % 4).astype(np.uint8)
    label = ((y * 7 + x * 5) % 200).astype(np.uint8)
    one = Batch(image=image, ground=ground, label=label, valid=np.ones((), bool))
    return jax.tree.map(lambda leaf: np.stack([leaf] * tiles), one)


def pixels(image):
    return np.round((np.asarray(image) + 1.0) * 127.5).astype(int)


def test_moves_are_the_eight_of_the_square_and_everything_moves_together():
    batch = addressed(tiles=64)
    image, moved = vary(jax.random.key(0), batch, MOVES)
    image = pixels(image)
    base = batch.image[0].astype(int)
    square = [np.rot90(b, k) for b in (base, base[:, ::-1]) for k in range(4)]
    seen = [next(i for i, element in enumerate(square) if (element == tile).all()) for tile in image]
    assert set(seen) == set(range(8))
    y, x = image[..., 0], image[..., 1]
    np.testing.assert_array_equal(moved.ground, (y * 3 + x) % 4)
    np.testing.assert_array_equal(moved.label, (y * 7 + x * 5) % 200)
    np.testing.assert_array_equal(pixels(moved.image / 127.5 - 1.0), image)


def test_no_change_is_the_plain_scaling_of_the_pixels(batch, unchanged):
    image, same = vary(jax.random.key(3), batch, unchanged)
    np.testing.assert_allclose(image, batch.image / 127.5 - 1.0, atol=1e-6)  # float32 rounding
    jax.tree.map(np.testing.assert_array_equal, same, batch)


def test_the_stain_matrix_alone_changes_nothing(batch):
    faint = AugmentSpec(dihedral=False, stain=1e-9, brightness=0.0, contrast=0.0)
    image, _ = vary(jax.random.key(3), batch, faint)
    # an intensity of 0 has no logarithm and is taken as 1 of 255: 2 / 255 in [-1, 1]
    np.testing.assert_allclose(image, batch.image / 127.5 - 1.0, atol=2 / 255 + 1e-4)


def test_stain_jitter_scales_optical_densities(batch):
    """In the basis of the stains the density of each is scaled by one factor an image."""
    image, _ = vary(
        jax.random.key(5), batch, AugmentSpec(dihedral=False, stain=0.2, brightness=0.0, contrast=0.0)
    )
    stains = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    after = (np.asarray(image, np.float64) + 1.0) / 2.0
    before = np.maximum(batch.image / 255.0, 1 / 255)
    unmixed = [
        -np.log(x.reshape(len(x), -1, 3)) @ np.linalg.inv(stains) for x in (before, np.maximum(after, 1e-9))
    ]
    inside = ((after > 1e-6) & (after < 1 - 1e-6)).all(-1).reshape(len(after), -1)  # not clipped
    factors = []
    for k in range(len(after)):
        a, b = (u[k][inside[k]] for u in unmixed)
        scale = (a * b).sum(0) / (a * a).sum(0)
        np.testing.assert_allclose(b, a * scale, atol=1e-3)  # float32 logarithms
        factors.append(scale)
    factors = np.array(factors)
    assert (np.abs(factors[:, :2] - 1) <= 0.2 + 1e-3).all()
    assert factors[:, :2].std(axis=0).min() > 0.02
    np.testing.assert_allclose(factors[:, 2], 1.0, atol=1e-3)


def test_strong_changes_stay_in_range_and_differ_from_tile_to_tile():
    strong = AugmentSpec(dihedral=False, stain=0.9, brightness=0.9, contrast=0.9)
    image, _ = vary(jax.random.key(0), addressed(tiles=32), strong)
    image = np.asarray(image)
    assert np.isfinite(image).all()
    assert image.min() >= -1.0
    assert image.max() <= 1.0
    assert len({round(float(tile.mean()), 4) for tile in image}) > 8


def test_brightness_and_contrast_follow_their_equation():
    y, x = np.mgrid[:SIDE, :SIDE]
    flat = np.stack([100 + y, 100 + x, 130 + 0 * y], axis=-1).astype(np.uint8)
    batch = dataclasses.replace(addressed(1), image=flat[None])
    colour = AugmentSpec(dihedral=False, stain=0.0, brightness=0.05, contrast=0.3)
    for seed in range(4):
        image = (np.asarray(vary(jax.random.key(seed), batch, colour)[0][0]) + 1) / 2
        before = flat / 255.0
        deviation = before - before.mean()
        gain = ((image - image.mean()) * deviation).sum() / (deviation**2).sum()
        shift = image.mean() - before.mean()
        assert abs(gain - 1) <= 0.3
        assert abs(shift) <= 0.05 + 1e-6
        np.testing.assert_allclose(image, deviation * gain + before.mean() + shift, atol=1e-5)


def test_one_key_gives_one_result_and_another_key_another(batch):
    spec = AugmentSpec()
    first, _ = vary(jax.random.key(1), batch, spec)
    again, _ = vary(jax.random.key(1), batch, spec)
    other, _ = vary(jax.random.key(2), batch, spec)
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 0.1


def test_padding_tiles_stay_ignored(batch):
    ground = batch.ground.copy()
    ground[5:] = Ground.IGNORED
    padded = dataclasses.replace(batch, ground=ground, valid=np.arange(8) < 5)
    _, moved = vary(jax.random.key(0), padded, AugmentSpec())
    assert (np.asarray(moved.ground)[5:] == Ground.IGNORED).all()
    np.testing.assert_array_equal(moved.valid, padded.valid)


@pytest.mark.parametrize("wrong", [{"stain": 1.0}, {"brightness": -0.1}, {"contrast": 2.0}])
def test_strengths_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        AugmentSpec(**wrong)
