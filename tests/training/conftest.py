import jax
import numpy as np
import pytest

from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.types import Batch, Ground

UNCHANGED = AugmentSpec(dihedral=False, stain=0.0, brightness=0.0, contrast=0.0)


def draw_batch(seed=0, tiles=8, side=16):
    """Tiles of noise; every kind of ground, in shares that differ from tile to tile."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(4), size=tiles)
    ground = np.stack([rng.choice(4, size=(side, side), p=share) for share in shares]).astype(np.uint8)
    return Batch(
        image=rng.integers(0, 256, (tiles, side, side, 3), np.uint8),
        ground=ground,
        label=(ground == Ground.ANNOTATED).astype(np.uint8),
        valid=np.ones(tiles, bool),
    )


@pytest.fixture
def unchanged():
    return UNCHANGED


@pytest.fixture
def batch():
    return draw_batch()


@pytest.fixture
def make_batch():
    return draw_batch


@pytest.fixture
def leaves():
    return lambda tree: [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
