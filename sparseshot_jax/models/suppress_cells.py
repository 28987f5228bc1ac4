"""Greedy suppression on a detector's grid: each candidate meets only those of the cells round it.

Sequential greedy suppression asks of each candidate, best first: is one that was kept too near? Here that
is settled for all at once, in rounds: whoever has a kept, better one near is suppressed; whoever has only
suppressed better ones near is kept. The order of work changes no answer, and a round settles at least the
best that is left.

How far round a cell to look follows from the boxes at hand. The few that are too large for that, or too
far from their cells, are compared with all; if they are many, the caller's other way is taken.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped, UInt32

from sparseshot_jax.models.nearness import Ranked

# Cells on either side: a row of neighbours, the cell's own place included, is one 32-bit word.
_REACH = 15
# Centres of candidates may lie this far from their cells' centres, along an axis; inside a cell: 0.5.
_ASTRAY = 4.0
# More than a rounding error of float32 coordinates, in cells.
_SLACK = 0.01
# Candidates that are compared with all, in every round.
_MANY = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellGrid:
    """How n candidates are laid out: as [height, width, anchors]."""

    height: int  # cells
    width: int  # cells
    anchors: int = 1  # candidates a cell
    stride_px: int  # side of a cell; the first covers [0, stride_px]

    @property
    def places(self) -> int:
        """n."""
        return self.height * self.width * self.anchors

    def planes(self, flat: Shaped[Array, "*b n"]) -> Shaped[Array, "*b a h w"]:
        """A plane for each anchor."""
        split = flat.reshape(*flat.shape[:-1], self.height, self.width, self.anchors)
        return jnp.moveaxis(split, -1, -3)

    def flat(self, planes: Shaped[Array, "*b a h w"]) -> Shaped[Array, "*b n"]:
        """Back again."""
        return jnp.moveaxis(planes, -3, -1).reshape(*planes.shape[:-3], self.places)


def by_cells(
    ranked: Ranked,
    boxes_yxyx_px: Float[Array, "b n 4"],
    grid: CellGrid,
    *,
    otherwise: Callable[[Ranked], Bool[Array, "b n"]],
) -> Bool[Array, "b n"]:
    """Who is kept; through `otherwise` where too many candidates reach too far."""
    reach, astray = _reach_cells(ranked, boxes_yxyx_px, grid)
    wild = ranked.valid & (astray > _ASTRAY)
    # Centres of candidates whose cells are k apart are at least k - margin apart.
    margin = 2 * jnp.max(jnp.where(ranked.valid & ~wild, astray, 0.0)) + _SLACK
    far = wild | (ranked.valid & (reach + margin > _REACH + 1))
    widest = jnp.max(jnp.where(ranked.valid & ~far, reach, 0.0))
    radius = jnp.ceil(widest + margin).astype(jnp.int32) - 1
    return jax.lax.cond(
        jnp.max(jnp.sum(far, axis=1)) <= _MANY,
        lambda: _settle(ranked, far, jnp.clip(radius, 0, _REACH), grid),
        lambda: otherwise(ranked),
    )


def _reach_cells(
    ranked: Ranked, boxes: Float[Array, "b n 4"], grid: CellGrid
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """How far each candidate reaches, and how far its centre is from its cell's, in cells along an axis."""
    boxes = jnp.where(ranked.valid[..., None], boxes.astype(jnp.float32), 0.0)
    row, rest = jnp.divmod(jnp.arange(grid.places), grid.width * grid.anchors)
    cell = jnp.stack([row, rest // grid.anchors], axis=-1)[None]
    centre = (boxes[..., :2] + boxes[..., 2:]) / (2 * grid.stride_px)
    return ranked.rule.reach_px(boxes) / grid.stride_px, jnp.max(jnp.abs(centre - cell - 0.5), axis=-1)


def _settle(
    ranked: Ranked, far: Bool[Array, "b n"], radius: Int[Array, ""], grid: CellGrid
) -> Bool[Array, "b n"]:
    """Rounds until nobody is left: at most as many as the longest chain of near candidates."""
    better = _better_near(ranked, radius, grid)

    def settle(state: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, left = state
        asked = jnp.stack([kept, left])
        met = grid.flat(_met_by_cells(better, grid.planes(asked), radius)) | _met_by_far(ranked, far, asked)
        keep = left & ~met[0] & ~met[1]
        return kept | keep, left & ~met[0] & ~keep

    start = (jnp.zeros_like(ranked.valid), ranked.valid)
    return jax.lax.while_loop(lambda state: jnp.any(state[1]), settle, start)[0]


def _better_near(ranked: Ranked, radius: Int[Array, ""], grid: CellGrid) -> UInt32[Array, "rows b a a h w"]:
    """Of each candidate, those of the cells round it that are better and too near.

    Bit dx + _REACH of row dy + _REACH, [b, anchor, the other's anchor, h, w], speaks of the candidate dy
    cells below and dx cells to the right.
    """
    fields, score, groups = (grid.planes(x) for x in (ranked.fields, ranked.score, ranked.groups))
    around, score_around, groups_around = (_bordered(x) for x in (fields, score, groups))
    # The border has no candidates: its score is the lowest.
    border = _bordered(jnp.ones(score.shape, bool))
    score_around = jnp.where(border, score_around, -jnp.inf)
    anchor = jnp.arange(grid.anchors)
    anchor_before = (anchor[None, :] < anchor[:, None])[None, :, :, None, None]

    def row(dy: Int[Array, ""], words: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
        def bit(dx: Int[Array, ""], word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
            window = functools.partial(_window, dy=dy, dx=dx, grid=grid)
            other, mine = window(score_around)[:, None], score[:, :, None]
            before = (dy < 0) | ((dy == 0) & ((dx < 0) | ((dx == 0) & anchor_before)))
            found = (other > mine) | ((other == mine) & before)
            found &= window(groups_around)[:, None] == groups[:, :, None]
            found &= ranked.rule.near(fields[:, :, :, None], window(around)[:, :, None])
            return word | _bit(found, dx)

        word = jax.lax.fori_loop(-radius, radius + 1, bit, jnp.zeros_like(words[0]))
        return words.at[dy + _REACH].set(word)

    b, a, h, w = score.shape
    start = jnp.zeros((2 * _REACH + 1, b, a, a, h, w), jnp.uint32)
    return jax.lax.fori_loop(-radius, radius + 1, row, start)


def _met_by_cells(
    better: UInt32[Array, "rows b a a h w"], asked: Bool[Array, "m b a h w"], radius: Int[Array, ""]
) -> Bool[Array, "m b a h w"]:
    """Whether one of the better ones near, of the cells round it, is among those asked for."""
    height, width = asked.shape[-2:]
    around = _bordered(asked)

    def bit(dx: Int[Array, ""], word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
        return word | _bit(jax.lax.dynamic_slice_in_dim(around, dx + _REACH, width, axis=4), dx)

    start = jnp.zeros((*around.shape[:-1], width), jnp.uint32)
    words = jax.lax.fori_loop(-radius, radius + 1, bit, start)

    def row(dy: Int[Array, ""], met: Bool[Array, "..."]) -> Bool[Array, "..."]:
        others = jax.lax.dynamic_slice_in_dim(words, dy + _REACH, height, axis=3)
        both = better[dy + _REACH][None] & others[:, :, None]
        return met | jnp.any(both != 0, axis=3)

    return jax.lax.fori_loop(-radius, radius + 1, row, jnp.zeros_like(asked))


def _met_by_far(ranked: Ranked, far: Bool[Array, "b n"], asked: Bool[Array, "m b n"]) -> Bool[Array, "m b n"]:
    """The same where one of the two is a far one: those are taken one by one, and compared with all."""
    index = jax.lax.broadcasted_iota(jnp.int32, far.shape, 1)

    def take(state: tuple[Array, Array]) -> tuple[Array, Array]:
        waiting, met = state
        place = jnp.argmax(waiting, axis=1)[:, None]
        itself = (index == place) & waiting  # nowhere, in an image that is done before the others

        def its(values: Shaped[Array, "*m b n"]) -> Shaped[Array, "*m b 1"]:
            return jnp.take_along_axis(values, place.reshape((1,) * (values.ndim - 2) + place.shape), -1)

        near = ranked.rule.near(ranked.fields, its(ranked.fields)) & (ranked.groups == its(ranked.groups))
        near &= its(waiting)
        first = (its(ranked.score) > ranked.score) | ((its(ranked.score) == ranked.score) & (place < index))
        met |= (near & first)[None] & its(asked)
        better_asked = (near & ~first & ~itself)[None] & asked
        return waiting & ~itself, met | (itself[None] & jnp.any(better_asked, axis=-1, keepdims=True))

    start = (far, jnp.zeros_like(asked))
    return jax.lax.while_loop(lambda state: jnp.any(state[0]), take, start)[1]


def _bordered(planes: Shaped[Array, "*b h w"]) -> Shaped[Array, "*b y x"]:
    """With `_REACH` cells of zeros on every side."""
    sides = ((0, 0),) * (planes.ndim - 2) + ((_REACH, _REACH),) * 2
    return jnp.pad(planes, sides)


def _window(
    around: Shaped[Array, "*b y x"], *, dy: Int[Array, ""], dx: Int[Array, ""], grid: CellGrid
) -> Shaped[Array, "*b h w"]:
    """The planes without their border, moved: what lies dy below and dx to the right."""
    rows = jax.lax.dynamic_slice_in_dim(around, dy + _REACH, grid.height, axis=around.ndim - 2)
    return jax.lax.dynamic_slice_in_dim(rows, dx + _REACH, grid.width, axis=around.ndim - 1)


def _bit(found: Bool[Array, "..."], dx: Integer[Array, ""]) -> UInt32[Array, "..."]:
    return found.astype(jnp.uint32) << (dx + _REACH).astype(jnp.uint32)
