"""Greedy suppression of detections that lie too near a better one, exactly, in fixed shapes.

Hard suppression drops them; soft suppression (Bodla et al. 2017, https://arxiv.org/abs/1704.04503) lowers
their scores.
"""

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

from sparseshot_jax.errors import InputError
from sparseshot_jax.models.nearness import Nearness, Ranked, overlap
from sparseshot_jax.models.suppress_cells import CellGrid, by_cells
from sparseshot_jax.types import Scalar


class Status(enum.IntEnum):
    """What became of a candidate."""

    SUPPRESSED = 0  # a kept, better one is too near; or it was no candidate
    KEPT = 1
    UNDECIDED = 2  # hangs on candidates beyond the border of what is known


def suppress(
    boxes_yxyx_px: Float[Array, "b n 4"],
    score: Float[Array, "b n"],
    class_ids: Integer[Array, "b n"],
    valid: Bool[Array, "b n"],
    exposed: Bool[Array, "b n"] | None = None,
    *,
    by: str,
    limit: Scalar,
    class_aware: bool = False,
    grid: CellGrid | None = None,
) -> UInt8[Array, "b n"]:
    """`Status` of each candidate under greedy suppression by score (ties: the lower index goes first).

    A candidate is suppressed if and only if a kept one of higher score is too near: by="iou", their IoU is
    above `limit`; by="distance", their centres are less than `limit` pixels apart. With `class_aware` only
    candidates of one class suppress one another. Boxes without area overlap nothing.

    An `exposed` candidate may have unseen neighbours: nobody keeps it here, so that it ends suppressed (by
    a kept, better one) or undecided, and what hangs on it is undecided too. Deciding the undecided ones
    later, with the unseen neighbours, gives what suppression of everything at once would have given.

    Scores and boxes of valid candidates are finite. `grid` (static) makes it fast and changes no result.

    Raises:
        InputError: for an unknown `by`, or a grid of another number of candidates.

    >>> boxes = jnp.array([[[0.0, 0, 10, 10], [0, 1, 10, 11], [30, 0, 40, 10]]])
    >>> of_one_class = (jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool))
    >>> print(suppress(boxes, jnp.array([[0.8, 0.9, 0.7]]), *of_one_class, by="iou", limit=0.5))
    [[0 1 1]]
    """
    rule = Nearness(by=by, limit=limit)
    if grid and grid.places != score.shape[1]:
        raise InputError(
            f"a grid of {grid.height} x {grid.width} cells with {grid.anchors} candidates each holds "
            f"{grid.places}; got {score.shape[1]}. Give the grid of these candidates, or none."
        )
    if not score.size:
        return jnp.zeros(score.shape, jnp.uint8)
    ranked = Ranked(
        rule=rule,
        fields=rule.fields(boxes_yxyx_px, valid),
        score=jnp.where(valid, score.astype(jnp.float32), -jnp.inf),
        groups=class_ids.astype(jnp.int32) if class_aware else jnp.zeros(score.shape, jnp.int32),
        valid=valid,
        exposed=jnp.zeros_like(valid) if exposed is None else exposed,
    )
    if grid is None:
        kept, undecided = one_by_one(ranked)
    else:
        kept, undecided = by_cells(ranked, boxes_yxyx_px, grid, otherwise=one_by_one)
    return jnp.where(undecided, Status.UNDECIDED, kept).astype(jnp.uint8)


def soften(
    boxes_yxyx_px: Float[Array, "b n 4"],
    score: Float[Array, "b n"],
    class_ids: Integer[Array, "b n"],
    valid: Bool[Array, "b n"],
    *,
    sigma: Scalar,
    threshold: Scalar,
    class_aware: bool = False,
) -> Float[Array, "b n"]:
    """Scores after Gaussian soft suppression; 0 for what ends at or below `threshold`, which is >= 0.

    The best candidate left is taken, all others left are multiplied by exp(-IoU^2 / sigma), and so on until
    none is above `threshold`. With `class_aware` only candidates of one class weaken one another. One pick
    follows the other: the time grows with the number of objects.
    """
    if not score.size:
        return jnp.zeros(score.shape, jnp.float32)
    fields = Nearness(by="iou", limit=0.0).fields(boxes_yxyx_px, valid)
    start = jnp.where(valid, score.astype(jnp.float32), 0.0)

    def more(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[0] > threshold)

    def take(state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, done = state
        best, top = _first_best(left)
        picked = _places(left) == best
        shared, union = overlap(fields, jnp.take_along_axis(fields, best[None], axis=2))
        share = jnp.where(shared > 0.0, shared / union, 0.0)
        weight = jnp.exp(-jnp.square(share) / sigma)
        if class_aware:
            weight = jnp.where(class_ids == jnp.take_along_axis(class_ids, best, axis=1), weight, 1.0)
        done = jnp.where(picked & (top > threshold), top, done)
        return jnp.where(picked, 0.0, left * weight), done

    return jax.lax.while_loop(more, take, (start, jnp.zeros_like(start)))[1]


def one_by_one(ranked: Ranked) -> tuple[Bool[Array, "b n"], Bool[Array, "b n"]]:
    """Kept and undecided: take the best that is left, strike those near it, and again; a step each."""

    def more(state: tuple[Array, Array, Array, Array]) -> Array:
        return jnp.any(state[0])

    def take(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        left, doubtful, kept, undecided = state
        best, _ = _first_best(jnp.where(left, ranked.score, -jnp.inf))
        picked = (_places(left) == best) & left  # nobody, in an image that is done before the others
        unsure = jnp.take_along_axis(doubtful, best, axis=1)
        hit = ranked.rule.near(ranked.fields, jnp.take_along_axis(ranked.fields, best[None], axis=2))
        hit &= ranked.groups == jnp.take_along_axis(ranked.groups, best, axis=1)
        left = left & ~picked & (unsure | ~hit)
        return left, doubtful | (hit & unsure), kept | (picked & ~unsure), undecided | (picked & unsure)

    nobody = jnp.zeros_like(ranked.valid)
    start = (ranked.valid, ranked.exposed, nobody, nobody)
    return jax.lax.while_loop(more, take, start)[2:]


def _first_best(score: Float[Array, "b n"]) -> tuple[Int[Array, "b 1"], Float[Array, "b 1"]]:
    """The place of the highest score, the first of several, and that score.

    Two plain reductions: on CPUs several times as fast as an argmax.
    """
    top = jnp.max(score, axis=1, keepdims=True)
    places = jnp.where(score == top, _places(score), score.shape[1] - 1)
    return jnp.min(places, axis=1, keepdims=True), top


def _places(flat: Float[Array, "b n"] | Bool[Array, "b n"]) -> Int[Array, "b n"]:
    return jax.lax.broadcasted_iota(jnp.int32, flat.shape, 1)
