"""Which objects training is told of: nested subsets of several regimes, and a spatial hold-out."""

import dataclasses
import hashlib
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.spatial import KDTree

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import DROPPED, LabelSpec, Role, roles
from sparseshot_jax.errors import InputError

_FINE = 16  # steps a pixel, of the coordinates that regimes compare


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
    return _first(_order(n, _key(dataset, image, seed)), keep)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The objects of an image that may be kept, and what a regime may look at."""

    objects: Annotations
    key: str  # data set, image and seed
    order: Int64[np.ndarray, "n"]  # the permutation of `nested_subset`
    field_px: float  # side of a field of view, level-0 pixels
    cluster_objects: int  # objects a cluster, on average
    class_ratio: float  # share of a class over that of the next more frequent one


def sparse_subset(
    annotations: Annotations,
    wanted_mask: Bool[np.ndarray, "n"],
    keep: float,
    *,
    regime: str = "uniform",
    seed: int,
    dataset: str,
    image: str,
    field_px: float = 256.0,
    cluster_objects: int = 20,
    class_ratio: float = 2.0,
) -> Bool[np.ndarray, "n"]:
    """Which objects stay marked: ceil(keep m) of the m wanted ones, and all others.

    Every regime puts the wanted objects in one fixed order per (dataset, image, seed) and keeps its
    beginning. So subsets are nested, and the same on every machine.

    Args:
        annotations: everything marked in the image, in the order of its file.
        wanted_mask: True for the objects that training is to find; regions stay, whatever `keep`.
        keep: share of the wanted objects that stays marked, (0, 1].
        regime: a key of `REGIMES`.
        seed: of the order.
        dataset: name of the data set.
        image: name of the image.
        field_px: "per-field": side of a field in level-0 pixels, > 0.
        cluster_objects: "clustered": mean number of objects a cluster, >= 1.
        class_ratio: "class-biased": how much larger the share of a rarer class is, >= 1.

    Raises:
        InputError: an argument is outside its range, or no such regime.
    """
    if regime not in REGIMES:
        raise InputError(f"regime must be one of {', '.join(REGIMES)}; got {regime!r}.")
    if not (field_px > 0.0 and cluster_objects >= 1 and class_ratio >= 1.0):
        raise InputError(
            "the side of a field must be above 0, a cluster must have 1 object or more, and the class "
            f"ratio must be 1 or more; got {field_px} pixels, {cluster_objects} and {class_ratio}."
        )
    index = np.flatnonzero(wanted_mask)
    key = _key(dataset, image, seed)
    candidates = Candidates(
        objects=annotations.take(index),
        key=key,
        order=_order(len(index), key),
        field_px=field_px,
        cluster_objects=cluster_objects,
        class_ratio=class_ratio,
    )
    stays = ~wanted_mask
    stays[index] = _first(REGIMES[regime](candidates), keep)
    return stays


def uniform(given: Candidates) -> Int64[np.ndarray, "n"]:
    """Every object as likely as any other: METHOD's protocol, the subsets of `nested_subset`."""
    return given.order


def clustered(given: Candidates) -> Int64[np.ndarray, "n"]:
    """One cluster after the other, each from its middle outwards; the last one kept may be cut.

    The first n / cluster_objects objects of the permutation are middles, and every object belongs to
    the nearest of them.
    """
    n = len(given.objects)
    if n == 0:
        return given.order
    centres = _centres(given.objects)
    middles = given.order[: math.ceil(n / given.cluster_objects)]
    # Several neighbours, since which of equally near ones a tree finds first is not defined.
    nearest = min(8, len(middles))
    _, found = KDTree(centres[middles]).query(centres, k=nearest)
    found = np.asarray(found).reshape(n, nearest)
    away = ((centres[:, None] - centres[middles][found]) ** 2).sum(-1)
    best = np.asarray(np.lexsort((found, away)))[:, 0]
    rows = np.arange(n)
    return np.lexsort((rows, away[rows, best], found[rows, best]))


def per_field(given: Candidates) -> Int64[np.ndarray, "n"]:
    """One square field of view after the other, each wholly marked; the last one up to a vertical line.

    Fields lie on a grid from the upper left corner. Between its objects a field stays unannotated, as the
    other regimes leave it: METHOD's protocol tells training of objects alone.
    """
    centres = _centres(given.objects)
    cells = np.floor_divide(centres, max(1, round(given.field_px * _FINE)))
    filled, owner = np.unique(cells, axis=0, return_inverse=True)
    owner = owner.reshape(-1)
    # Fields in their own order, not in that of their objects: else crowded fields would come first.
    place = np.argsort(_order(len(filled), f"{given.key}\0fields"))
    return np.lexsort((np.arange(len(owner)), centres[:, 1], centres[:, 0], place[owner]))


def class_biased(given: Candidates) -> Int64[np.ndarray, "n"]:
    """Rare classes are kept longer: each has `class_ratio` times the share of the next more frequent one.

    Shares end at 1: what a class has no objects for goes to the others. Classes are those of the file,
    ranked by their number in this image (then by name); within a class the permutation decides, so that
    an image of one class has the "uniform" subset. METHOD knows no such protocol: this is ours.
    """
    ids, names = given.objects.class_ids, given.objects.class_names
    counts = np.bincount(ids, minlength=len(names))
    ranked = sorted(range(len(names)), key=lambda k: (-counts[k], names[k]))
    key = np.zeros(len(ids))
    weight = 1.0
    for k in ranked:
        members = given.order[ids[given.order] == k]
        key[members] = (np.arange(len(members)) + 0.5) / (max(1, len(members)) * weight)
        weight *= given.class_ratio if len(members) else 1.0
    place = np.argsort(given.order)
    return np.lexsort((place, key))


# name -> the order in which objects are kept, indices into the candidates
REGIMES: dict[str, Callable[[Candidates], Int64[np.ndarray, "n"]]] = {
    "uniform": uniform,
    "clustered": clustered,
    "per-field": per_field,
    "class-biased": class_biased,
}


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


def _first(order: np.ndarray, keep: float) -> np.ndarray:
    """True for the first ceil(keep n) of an order."""
    if not 0.0 < keep <= 1.0:
        raise InputError(f"keep must be a share in (0, 1]; got {keep}. 0.3 keeps 30 % of the objects.")
    chosen = np.zeros(len(order), bool)
    # 0.7 * 10 is 7.000000000000001 in floating point: that is 7 objects
    chosen[order[: math.ceil(keep * len(order) - 1e-9)]] = True
    return chosen


def _centres(objects: Annotations) -> Int64[np.ndarray, "n 2"]:
    """Centres of the bounding boxes in 16ths of a pixel.

    Unlike area centroids they come out the same to the last bit on every machine; whole numbers have
    exact distances.
    """
    box = objects.bounds_px
    return np.rint((box[:, :2] + box[:, 2:]) * (_FINE / 2)).astype(np.int64)


def _key(dataset: str, image: str, seed: int) -> str:
    return f"{dataset}\0{image}\0{seed}"


def _blocks(xy: np.ndarray, side: float) -> np.ndarray:
    cells = np.floor(xy / side).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)


def _order(n: int, key: str) -> np.ndarray:
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    # bit generators promise their raw stream, Generator.permutation promises nothing (NEP 19)
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(n)
    return np.argsort(np.asarray(raw, np.uint64).reshape(-1), kind="stable")
