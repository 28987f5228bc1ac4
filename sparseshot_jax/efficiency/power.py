"""Inverse power law: score(n) = a - b n^-g, fitted to many sets of scores at once.

For a given g the least squares in a and b are solved exactly, bounds included, so that the search has one
dimension: no start to choose, and no local optimum to be caught in.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize_scalar

# Below, the law is a logarithm in all but name; above, a step. Both say so: see `Power.edge`.
EXPONENTS: Float64[np.ndarray, "g"] = np.geomspace(0.05, 4.0, 120)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Powers:
    """Laws a - b (n / scale)^-g, one an entry; `scale` keeps b near the scores' size."""

    a: Float64[np.ndarray, "r"]  # score of endless labels, [0, 1]
    b: Float64[np.ndarray, "r"]  # what is missing of it at `scale` objects, >= 0
    g: Float64[np.ndarray, "r"]  # exponent, within `EXPONENTS`
    scale: float  # objects

    def at(self, n: Float64[np.ndarray, "k"]) -> Float64[np.ndarray, "r k"]:
        """Scores expected with n annotated objects; the law may be below 0 for very few."""
        return self.a[:, None] - self.b[:, None] * (n / self.scale) ** -self.g[:, None]

    def needed(self, score: Float64[np.ndarray, "r"]) -> Float64[np.ndarray, "r"]:
        """Objects with which each law reaches its score; infinite where it never does."""
        left = self.a - score
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            n = self.scale * (self.b / left) ** (1.0 / self.g)
        return np.where(left > 0.0, n, np.where(self.b == 0.0, np.where(left == 0.0, 0.0, np.inf), np.inf))


def fit_powers(n: Float64[np.ndarray, "m"], scores: Float64[np.ndarray, "r m"]) -> Powers:
    """The least-squares law of every row of scores, its exponent one of `EXPONENTS`.

    Args:
        n: annotated objects of each point, > 0.
        scores: a row a set of scores at these points.
    """
    scale = float(n.max())
    u = (n / scale) ** -EXPONENTS[:, None]  # [g, m]
    a, b, error = _linear(u, scores)
    best = np.argmin(error, axis=1)
    rows = np.arange(len(scores))
    return Powers(a=a[rows, best], b=b[rows, best], g=EXPONENTS[best], scale=scale)


def fit_power(n: Float64[np.ndarray, "m"], score: Float64[np.ndarray, "m"]) -> Powers:
    """The least-squares law of one set of scores; the exponent is searched between those of `EXPONENTS`."""
    scale = float(n.max())
    found = fit_powers(n, score[None])
    at = int(np.flatnonzero(found.g[0] == EXPONENTS)[0])
    low, high = EXPONENTS[max(at - 1, 0)], EXPONENTS[min(at + 1, len(EXPONENTS) - 1)]

    def error(log_g: float) -> float:
        u = (n / scale) ** -np.exp(log_g)
        a, b, _ = _linear(u[None], score[None])
        return float(((a[0, 0] - b[0, 0] * u - score) ** 2).sum())

    bounds = (float(np.log(low)), float(np.log(high)))
    better = minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    if better.fun >= error(float(np.log(found.g[0]))):  # pyright: ignore[reportAttributeAccessIssue]
        return found
    g = np.exp([better.x])  # pyright: ignore[reportAttributeAccessIssue]
    a, b, _ = _linear((n / scale) ** -g[:, None], score[None])
    return Powers(a=a[0], b=b[0], g=g, scale=scale)


def _linear(
    u: Float64[np.ndarray, "g m"], y: Float64[np.ndarray, "r m"]
) -> tuple[Float64[np.ndarray, "r g"], Float64[np.ndarray, "r g"], Float64[np.ndarray, "r g"]]:
    """a in [0, 1] and b >= 0 that minimise |y - a + b u|^2, and the minimum, for every row and exponent.

    The problem is convex: where the free optimum is out of bounds, the best point of an edge is it.
    """
    m = y.shape[1]
    mean_u, mean_y = u.mean(1), y.mean(1)[:, None]
    centred = u - mean_u[:, None]
    suu, suy = (centred**2).sum(1), y @ centred.T
    free = -np.divide(suy, suu, out=np.zeros_like(suy), where=suu > 0.0)
    square = (u**2).sum(1)
    candidates = [(mean_y + free * mean_u, free)]
    for a in (0.0, 1.0):
        candidates.append((np.full_like(suy, a), np.maximum(0.0, ((a - y) @ u.T) / square)))
    flat = np.clip(mean_y, 0.0, 1.0)
    candidates.append((np.broadcast_to(flat, suy.shape), np.zeros_like(suy)))
    spread = ((y - mean_y) ** 2).sum(1)[:, None]
    best_a, best_b = candidates[0]
    best = np.full_like(suy, np.inf)
    for a, b in candidates:
        # Sums of squares around the means, so that no large terms cancel.
        error = spread + m * (a - b * mean_u - mean_y) ** 2 + 2.0 * b * suy + b**2 * suu
        allowed = (a >= 0.0) & (a <= 1.0) & (b >= 0.0)
        better = allowed & (error < best)
        best_a, best_b, best = (
            np.where(better, new, old) for new, old in ((a, best_a), (b, best_b), (error, best))
        )
    return best_a, best_b, best
