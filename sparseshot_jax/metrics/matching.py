"""One-to-one matches between two sets: as many pairs as possible, then the best sum.

Pairs beyond the gate are no candidates at all. Candidates come from a spatial index and fall into
small groups of rivals, each settled by the Hungarian method on its own, so that nothing is quadratic
in the number of objects.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import shapely
from jaxtyping import Bool, Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import KDTree

from sparseshot_jax.errors import InputError

_DENSE = 250_000  # entries of the largest table that the dense solver gets: 2 MB


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of a true and a predicted object: candidates, or matches among them."""

    truth: Int64[np.ndarray, " k"]  # index of the true object
    predicted: Int64[np.ndarray, " k"]  # index of the predicted one
    value: Float64[np.ndarray, " k"]  # distance, or IoU
    gain: Float64[np.ndarray, " k"]  # [0, 1], larger is better: 1 - distance / gate, or IoU

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, chosen: Bool[np.ndarray, " k"] | Int64[np.ndarray, " m"]) -> "Pairs":
        """The chosen pairs, by a mask or by indices."""
        return Pairs(**{name: value[chosen] for name, value in vars(self).items()})


def match_points(
    truth: Float[np.ndarray, "m 2"], predicted: Float[np.ndarray, "n 2"], *, gate: float
) -> Pairs:
    """One-to-one matches no further apart than `gate`: as many as possible, then the smallest sum of
    distances.

    Args:
        truth: centres, in any unit.
        predicted: centres, in the same unit.
        gate: largest distance of a match, in that unit.

    >>> match_points(np.array([[0.0, 0], [9, 0]]), np.array([[2.0, 0], [1, 0]]), gate=3.0).predicted
    array([1])

    Raises:
        InputError: `gate` is not above 0.
    """
    candidates = point_pairs(truth, predicted, gate=gate)
    return candidates.take(one_to_one(candidates.truth, candidates.predicted, candidates.gain))


def match_boxes(truth: Float[np.ndarray, "m 4"], predicted: Float[np.ndarray, "n 4"], *, iou: float) -> Pairs:
    """One-to-one matches with IoU >= `iou`: as many as possible, then the largest sum of IoU.

    Args:
        truth: x0, y0, x1, y1 (or y0, x0, y1, x1), in any unit; a box without area matches nothing.
        predicted: likewise.
        iou: smallest intersection over union of a match, (0, 1].

    Raises:
        InputError: `iou` is outside (0, 1].
    """
    candidates = box_pairs(truth, predicted, iou=iou)
    return candidates.take(one_to_one(candidates.truth, candidates.predicted, candidates.gain))


def point_pairs(
    truth: Float[np.ndarray, "m 2"], predicted: Float[np.ndarray, "n 2"], *, gate: float
) -> Pairs:
    """Every pair no further apart than `gate`."""
    if not gate > 0:
        raise InputError(f"The gate on the distance must be above 0; got {gate}. Try 3 um.")
    if not len(truth) or not len(predicted):
        return _no_pairs()
    found = KDTree(truth).sparse_distance_matrix(KDTree(predicted), gate, output_type="ndarray")
    i, j = found["i"].astype(np.int64), found["j"].astype(np.int64)
    return Pairs(truth=i, predicted=j, value=found["v"], gain=np.maximum(1 - found["v"] / gate, 0.0))


def box_pairs(truth: Float[np.ndarray, "m 4"], predicted: Float[np.ndarray, "n 4"], *, iou: float) -> Pairs:
    """Every pair with IoU >= `iou`."""
    if not 0 < iou <= 1:
        raise InputError(f"iou must lie in (0, 1]; got {iou}. Try 0.5.")
    if not len(truth) or not len(predicted):
        return _no_pairs()
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    tree = shapely.STRtree(shapely.box(*predicted.T))
    i, j = tree.query(shapely.box(*truth.T))  # boxes that touch
    value = box_iou(truth[i], predicted[j])
    passes = value >= iou
    value = value[passes]
    return Pairs(
        truth=i[passes].astype(np.int64), predicted=j[passes].astype(np.int64), value=value, gain=value
    )


def box_iou(
    first: Float64[np.ndarray, "k 4"], second: Float64[np.ndarray, "k 4"]
) -> Float64[np.ndarray, " k"]:
    """Intersection over union of box with box, row by row; 0 where neither has an area."""
    shared = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    intersection = np.maximum(shared, 0.0).prod(-1)
    union = sum((b[:, 2:] - b[:, :2]).prod(-1) for b in (first, second)) - intersection
    return np.divide(intersection, union, out=np.zeros(len(first)), where=union > 0)


def join_pairs(pairs: Sequence[Pairs], sizes: Sequence[tuple[int, int]]) -> Pairs:
    """Pairs of several images, numbered through: image k has sizes[k] true and predicted objects."""
    truth, predicted = np.cumsum([(0, 0), *sizes], axis=0)[:-1].T
    return Pairs(
        truth=np.concatenate([one.truth + start for one, start in zip(pairs, truth)]),
        predicted=np.concatenate([one.predicted + start for one, start in zip(pairs, predicted)]),
        value=np.concatenate([one.value for one in pairs]),
        gain=np.concatenate([one.gain for one in pairs]),
    )


def one_to_one(
    i: Int64[np.ndarray, " k"], j: Int64[np.ndarray, " k"], gain: Float64[np.ndarray, " k"]
) -> Int64[np.ndarray, " m"]:
    """Choose among candidate pairs (i, j), each named once: as many as possible, then the largest sum.

    Args:
        i: first object of each pair.
        j: second object of each pair.
        gain: of each pair, [0, 1].

    Returns:
        Positions of the chosen pairs, ascending.
    """
    if not len(i):
        return np.zeros(0, np.int64)
    rivals = (np.bincount(i)[i] > 1) | (np.bincount(j)[j] > 1)
    chosen = [np.flatnonzero(~rivals)]
    rest = np.flatnonzero(rivals)
    nodes = i.max() + 1
    links = coo_array((np.ones(len(rest)), (i[rest], nodes + j[rest])), shape=(nodes + j.max() + 1,) * 2)
    group = connected_components(links, directed=False)[1][i[rest]]
    order = np.lexsort((-gain[rest], group))  # the best of a group first
    rest, group = rest[order], group[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    # Where all pairs of a group share one object, one match is possible: the best.
    shared = [np.minimum.reduceat(x[rest], starts) == np.maximum.reduceat(x[rest], starts) for x in (i, j)]
    star = shared[0] | shared[1] if len(starts) else np.zeros(0, bool)
    chosen.append(rest[starts[star]])
    ends = np.append(starts[1:], len(rest))
    for start, end in zip(starts[~star], ends[~star]):
        members = rest[start:end]
        chosen.append(members[_settle(i[members], j[members], gain[members])])
    return np.sort(np.concatenate(chosen))


def _settle(i: np.ndarray, j: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The chosen pairs of one group of rivals."""
    rows, row = np.unique(i, return_inverse=True)
    columns, column = np.unique(j, return_inverse=True)
    if len(rows) * len(columns) > _DENSE:
        return _settle_sparse(row, column, gain, (len(rows), len(columns)))
    # One more match outweighs any sum of gains; a pair beyond the gate gains nothing.
    table = np.zeros((len(rows), len(columns)))
    table[row, column] = gain + min(table.shape)
    pair = np.full(table.shape, -1)
    pair[row, column] = np.arange(len(i))
    picked = pair[linear_sum_assignment(table, maximize=True)]
    return picked[picked >= 0]


def _settle_sparse(
    row: np.ndarray, column: np.ndarray, gain: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """The same for a large group: each row may also take a place of its own, dearer than any sum."""
    k, (rows, columns) = np.arange(len(row)), shape
    own = np.arange(rows)
    cost = np.concatenate([2.0 - gain, np.full(rows, 3.0 + min(shape))])  # above 0: 0 is no link
    links = coo_array(
        (cost, (np.append(row, own), np.append(column, columns + own))), shape=(rows, columns + rows)
    )
    found_row, found_column = min_weight_full_bipartite_matching(links.tocsr())
    real = found_column < columns
    position = coo_array((k + 1, (row, column)), shape=shape).tocsr()
    return np.asarray(position[found_row[real], found_column[real]]).ravel() - 1


def _no_pairs() -> Pairs:
    none, nothing = np.zeros(0, np.int64), np.zeros(0)
    return Pairs(truth=none, predicted=none, value=nothing, gain=nothing)
