"""Where no law is fitted: scores that rise or stay, with straight lines between the numbers of objects."""

import dataclasses

import numpy as np
from jaxtyping import Float64
from scipy.optimize import isotonic_regression


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """Monotone scores at a few numbers of objects; nothing is known beyond the last of them."""

    objects: Float64[np.ndarray, "k"]  # ascending, > 0
    levels: Float64[np.ndarray, "r k"]  # ascending along k

    def at(self, n: Float64[np.ndarray, "j"]) -> Float64[np.ndarray, "r j"]:
        """Scores, linear in log n; nan outside of the objects."""
        x, known = np.log(n), np.log(self.objects)
        return np.array([np.interp(x, known, row, left=np.nan, right=np.nan) for row in self.levels])

    def needed(self, score: Float64[np.ndarray, "r"]) -> Float64[np.ndarray, "r"]:
        """Fewest objects with which each row reaches its score; infinite where none of those known does."""
        known = np.log(self.objects)
        found = []
        for row, wanted in zip(self.levels, score):
            k = int(np.searchsorted(row, wanted))
            if k == 0:
                found.append(self.objects[0])
            elif k == len(row):
                found.append(np.inf)
            else:
                part = (wanted - row[k - 1]) / (row[k] - row[k - 1])
                found.append(np.exp(known[k - 1] + part * (known[k] - known[k - 1])))
        return np.array(found, float)


def fit_steps(
    objects: Float64[np.ndarray, "m"], scores: Float64[np.ndarray, "r m"], groups: Float64[np.ndarray, "m"]
) -> Steps:
    """The non-decreasing means of the groups (points of one fraction) that are nearest to every row."""
    _, owner = np.unique(groups, return_inverse=True)
    counts = np.bincount(owner).astype(float)
    mean = np.bincount(owner, weights=objects) / counts
    order = np.argsort(mean, kind="stable")
    # Two fractions of few objects may mark as many: one step.
    places, merged = np.unique(mean[order], return_inverse=True)
    member = np.zeros((len(places), len(objects)))
    member[merged[np.argsort(order)][owner], np.arange(len(objects))] = 1.0
    weight = member.sum(1)
    means = scores @ member.T / weight
    levels = np.array([isotonic_regression(row, weights=weight).x for row in means])
    return Steps(objects=places, levels=levels)
