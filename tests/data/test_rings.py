import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.data import rings


def regular(count, turns=1, scale=(1.0, 1.0), at=(0.0, 0.0)):
    angle = np.arange(count) * 2 * np.pi * turns / count
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * scale + np.array(at)


def surely_simple(*outlines):
    lengths = np.array([len(outline) for outline in outlines])
    return rings.surely_simple(np.concatenate(outlines).astype(float), rings.offsets_of(lengths)).tolist()


def test_convex_rings_are_simple_either_way_round():
    cells = [regular(3), regular(24)[::-1], regular(200, scale=(1, 1e-3)), regular(24, at=(1e6, -1e6))]
    assert surely_simple(*cells) == [True] * 4


def test_star_shaped_rings_are_simple():
    star = regular(10) * np.where(np.arange(10) % 2, 1, 0.3)[:, None]
    assert surely_simple(star, star[::-1]) == [True, True]


@pytest.mark.parametrize(
    "outline",
    [
        regular(5, turns=2),  # a pentagram: always to the left, but twice round
        regular(24, turns=5),
        np.concatenate([regular(6), regular(6)]),  # run through twice
        np.array([[0, 0], [4, 4], [4, 0], [0, 4]]),  # an eight
        np.array([[0, 0], [1, 1], [2, 2]]),  # flat
        np.array([[3, 3], [3, 3], [3, 3]]),
        np.array([[0, 0], [0, 0], [4, 0], [4, 4]]),  # a vertex twice
        np.array([[5, 5]]),  # a point
        np.array([[0, 0], [4, 0], [4, 4], [1, 4], [1, -1], [0, -1]]),
    ],
)
def test_doubtful_rings_are_left_to_the_full_test(outline):
    assert surely_simple(regular(8), outline, regular(9)) == [True, False, True]


def test_no_ring():
    assert rings.surely_simple(np.zeros((0, 2)), np.zeros(1, np.int64)).tolist() == []


COORDINATE = st.integers(-4, 4) | st.floats(-1e6, 1e6) | st.sampled_from([1e-9, 1e6 + 1e-9, 1e12, -1e12])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=7), min_size=1, max_size=20))
def test_what_is_surely_simple_is_valid(outlines):
    found = surely_simple(*map(np.array, outlines))
    valid = [bool(shapely.is_valid(shapely.polygons(np.array(outline, float)))) for outline in outlines]
    assert all(v for simple, v in zip(found, valid) if simple)


def test_most_uneven_cells_need_no_full_test():
    rng = np.random.default_rng(0)
    cells = [regular(24) * rng.uniform(4, 6, (24, 1)) + rng.uniform(0, 1e5, 2) for _ in range(500)]
    assert np.mean(surely_simple(*cells)) > 0.95
