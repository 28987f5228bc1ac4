import numpy as np
import pytest

from sparseshot_jax.efficiency import Powers, fit_power, fit_powers
from sparseshot_jax.efficiency.power import EXPONENTS

N = np.array([50.0, 100.0, 200.0, 400.0, 500.0])


def law(n, a, b, g):
    return a - b * (n / 500.0) ** -g


@pytest.mark.parametrize(
    ("a", "b", "g"), [(0.9, 0.2, 0.5), (0.85, 0.1, 1.0), (0.8, 0.5, 0.3), (1.0, 0.4, 0.2), (0.6, 0.02, 1.7)]
)
def test_a_law_without_noise_is_found(a, b, g):
    """To what the search in g leaves: its last bracket is 1e-9 of log g wide."""
    found = fit_power(N, law(N, a, b, g))
    assert found.g[0] == pytest.approx(g, abs=1e-4)
    assert found.a[0] == pytest.approx(a, abs=1e-4)
    assert found.b[0] == pytest.approx(b, abs=1e-4)
    assert found.at(np.array([2000.0]))[0, 0] == pytest.approx(law(2000.0, a, b, g), abs=1e-5)


def test_it_is_the_best_within_its_bounds():
    """Against a fine grid over all three numbers, on scores that no law fits and that pull at each bound."""
    scores = (
        [0.3, 0.5, 0.6, 0.62, 0.7],
        [0.5, 0.9, 0.99, 1.0, 1.0],
        [0.2, 0.3, 0.45, 0.8, 0.95],
        [0.0, 0.0, 0.0, 0.01, 0.0],
        [0.7, 0.6, 0.5, 0.5, 0.4],
    )
    a, b = np.meshgrid(np.linspace(0, 1, 101), np.linspace(0, 1, 101), indexing="ij")
    for row in scores:
        y = np.array(row)
        found = fit_power(N, y)
        assert 0.0 <= found.a[0] <= 1.0
        assert found.b[0] >= 0.0
        assert EXPONENTS[0] <= found.g[0] <= EXPONENTS[-1]
        ours = ((found.at(N)[0] - y) ** 2).sum()
        for g in EXPONENTS[::5]:
            u = (N / 500.0) ** -g
            theirs = ((a[..., None] - b[..., None] * u - y) ** 2).sum(-1).min()
            assert ours <= theirs + 1e-12


def test_many_rows_are_fitted_as_one_each():
    """The exponents of many are those of the grid, whose step is 3.7 %."""
    rng = np.random.default_rng(0)
    rows = law(N, 0.9, 0.2, 0.5) + rng.normal(size=(6, 5)) * 0.01
    together = fit_powers(N, rows)
    for k, row in enumerate(rows):
        alone = fit_power(N, row)
        assert together.g[k] == pytest.approx(alone.g[0], rel=0.04)
        assert together.at(N)[k] == pytest.approx(alone.at(N)[0], abs=1e-3)


def test_the_objects_needed_are_the_inverse():
    laws = Powers(
        a=np.array([0.9, 0.8, 0.7]), b=np.array([0.2, 0.3, 0.0]), g=np.array([0.5, 1.0, 1.0]), scale=500.0
    )
    n = laws.needed(np.array([0.8, 0.8, 0.6]))
    assert n[0] == pytest.approx(2000.0)
    assert laws.at(n[:1])[0, 0] == pytest.approx(0.8)
    assert n[1] == np.inf  # the plateau is reached by no number
    assert n[2] == 0.0  # a law that is flat above the score
    assert laws.needed(np.array([0.95, 0.95, 0.95])).tolist() == [np.inf] * 3
