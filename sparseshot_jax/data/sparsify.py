"""Which objects training is told of: nested subsets, and a spatial hold-out."""

import dataclasses
import hashlib
import math

import numpy as np
from jaxtyping import Bool, Float64

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import DROPPED, LabelSpec, Role, roles
from sparseshot_jax.errors import InputError


def nested_subset(n: int, keep: float, *, seed: int, dataset: str, image: str) -> Bool[np.ndarray, "n"]:
    """The first ceil(keep n) objects of one fixed permutation per (dataset, image, seed).

    METHOD, protocol: so the 80 % set is inside the 90 % set. The permutation sorts the raw output of
    a counter-based generator keyed by a hash of the names: the same on every machine and with every
    version of Python and NumPy.

    Args:
        n: number of objects of the image, in the order of its file.
        keep: share that stays annotated, (0, 1].
        seed: of the permutation.
        dataset: name of the data set.
        image: name of the image.

    Raises:
        InputError: keep is outside (0, 1].

    >>> nine, eight = (nested_subset(10, k, seed=0, dataset="d", image="i") for k in (0.9, 0.8))
    >>> int(nine.sum()), int(eight.sum()), bool((nine | ~eight).all())
    (9, 8, True)
    """
    if not 0.0 < keep <= 1.0:
        raise InputError(f"keep must be a share in (0, 1]; got {keep}. 0.3 keeps 30 % of the objects.")
    chosen = np.zeros(n, bool)
    # 0.7 * 10 is 7.000000000000001 in floating point: that is 7 objects
    chosen[_order(n, f"{dataset}\0{image}\0{seed}")[: math.ceil(keep * n - 1e-9)]] = True
    return chosen


def spatial_holdout(
    centroids_px: Float64[np.ndarray, "n 2"], share: float = 0.2, *, seed: int, block_px: float
) -> Bool[np.ndarray, "n"]:
    """About `share` of the objects, by whole square blocks, so that held-out ones have few neighbours
    in training.

    Blocks are taken in a fixed random order as long as they bring the count nearer to share * n. Where
    the marks lie so close that fewer than 5 / share blocks hold any, the blocks are halved until that
    many do, or until they are smaller than a 64th of `block_px`.

    Args:
        centroids_px: x, y in level-0 pixels.
        share: [0, 1); at least one object is held out of two or more where it is above 0.
        seed: of the block order.
        block_px: side of a block in level-0 pixels.

    Raises:
        InputError: share is outside [0, 1).
    """
    n = len(centroids_px)
    if not 0.0 <= share < 1.0:
        raise InputError(f"hold_out must be a share in [0, 1); got {share}.")
    held = np.zeros(n, bool)
    if share == 0.0 or n < 2:
        return held
    side = block_px
    owner = _blocks(centroids_px, side)
    while owner.max() + 1 < min(n, 5 / share) and side > block_px / 64:
        side /= 2
        owner = _blocks(centroids_px, side)
    goal, sizes = max(1.0, share * n), np.bincount(owner)
    taken = 0
    for block in _order(len(sizes), f"holdout\0{seed}"):
        size = int(sizes[block])
        if abs(taken + size - goal) < abs(taken - goal) and taken + size < n:
            held |= owner == block
            taken += size
    return held


def without(annotations: Annotations, gone: Bool[np.ndarray, "n"], spec: LabelSpec) -> Annotations:
    """The annotations as if the objects `gone` had never been marked: their pixels are unannotated.

    Inside an exhaustively annotated region, whose unmarked pixels count as background, they stay in
    the list under a reserved class that draws them as unannotated.
    """
    regions = annotations.bounds_px[roles(annotations, spec) == Role.EXHAUSTIVE]
    box = annotations.bounds_px
    meets = np.zeros(len(annotations), bool)
    for x0, y0, x1, y1 in regions:
        meets |= (box[:, 0] <= x1) & (box[:, 2] >= x0) & (box[:, 1] <= y1) & (box[:, 3] >= y0)
    hidden = annotations.take(gone & meets)
    kept = annotations.take(~gone)
    if not len(hidden):
        return kept
    return Annotations.concatenate([kept, _renamed(hidden, DROPPED)])


def _renamed(annotations: Annotations, name: str) -> Annotations:
    ids = np.zeros(len(annotations), np.int32)
    return dataclasses.replace(annotations, class_names=(name,), class_ids=ids)


def _blocks(xy: np.ndarray, side: float) -> np.ndarray:
    cells = np.floor(xy / side).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)


def _order(n: int, key: str) -> np.ndarray:
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    # bit generators promise their raw stream, Generator.permutation promises nothing (NEP 19)
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(n)
    return np.argsort(np.asarray(raw, np.uint64).reshape(-1), kind="stable")
