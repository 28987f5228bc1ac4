"""Greedy suppression of detections that lie too near a better one, exactly, in fixed shapes.

Hard suppression drops them; soft suppression (Bodla et al. 2017, https://arxiv.org/abs/1704.04503) lowers
their scores.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from sparseshot_jax.errors import InputError
from sparseshot_jax.models.nearness import Nearness, Ranked, overlap
from sparseshot_jax.models.suppress_cells import CellGrid, by_cells
from sparseshot_jax.types import Scalar


def suppress(
    boxes_yxyx_px: Float[Array, "b n 4"],
    score: Float[Array, "b n"],
    class_ids: Integer[Array, "b n"],
    valid: Bool[Array, "b n"],
    *,
    by: str,
    limit: Scalar,
    class_aware: bool = False,
    grid: CellGrid | None = None,
) -> Bool[Array, "b n"]:
    """Which candidates are kept by greedy suppression by score (ties: the lower index goes first).

    A candidate is suppressed if and only if a kept one of higher score is too near: by="iou", their IoU is
    above `limit`; by="distance", their centres are less than `limit` pixels apart. With `class_aware` only
    candidates of one class suppress one another. Boxes without area overlap nothing.

    Scores and boxes of valid candidates are finite. `grid` (static) makes it fast and changes no result.

    Raises:
        InputError: for an unknown `by`, or a grid of another number of candidates.

    >>> boxes = jnp.array([[[0.0, 0, 10, 10], [0, 1, 10, 11], [30, 0, 40, 10]]])
    >>> of_one_class = (jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool))
    >>> print(suppress(boxes, jnp.array([[0.8, 0.9, 0.7]]), *of_one_class, by="iou", limit=0.5))
    [[False  True  True]]
    """
    rule = Nearness(by=by, limit=limit)
    if grid and grid.places != score.shape[1]:
        raise InputError(
            f"a grid of {grid.height} x {grid.width} cells with {grid.anchors} candidates each holds "
            f"{grid.places}; got {score.shape[1]}. Give the grid of these candidates, or none."
        )
    if not score.size:
        return jnp.zeros(score.shape, bool)
    ranked = Ranked(
        rule=rule,
        fields=rule.fields(boxes_yxyx_px, valid),
        score=jnp.where(valid, score.astype(jnp.float32), -jnp.inf),
        groups=class_ids.astype(jnp.int32) if class_aware else jnp.zeros(score.shape, jnp.int32),
        valid=valid,
    )
    if grid is None:
        return one_by_one(ranked)
    return by_cells(ranked, boxes_yxyx_px, grid, otherwise=one_by_one)


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


def one_by_one(ranked: Ranked) -> Bool[Array, "b n"]:
    """Who is kept: take the best that is left, strike those near it, and again; a step each."""

    def more(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[0])

    def take(state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, kept = state
        best, _ = _first_best(jnp.where(left, ranked.score, -jnp.inf))
        picked = (_places(left) == best) & left  # nobody, in an image that is done before the others
        hit = ranked.rule.near(ranked.fields, jnp.take_along_axis(ranked.fields, best[None], axis=2))
        hit &= ranked.groups == jnp.take_along_axis(ranked.groups, best, axis=1)
        return left & ~picked & ~hit, kept | picked

    return jax.lax.while_loop(more, take, (ranked.valid, jnp.zeros_like(ranked.valid)))[1]


def _first_best(score: Float[Array, "b n"]) -> tuple[Int[Array, "b 1"], Float[Array, "b 1"]]:
    """The place of the highest score, the first of several, and that score.

    Two plain reductions: on CPUs several times as fast as an argmax.
    """
    top = jnp.max(score, axis=1, keepdims=True)
    places = jnp.where(score == top, _places(score), score.shape[1] - 1)
    return jnp.min(places, axis=1, keepdims=True), top


def _places(flat: Float[Array, "b n"] | Bool[Array, "b n"]) -> Int[Array, "b n"]:
    return jax.lax.broadcasted_iota(jnp.int32, flat.shape, 1)
