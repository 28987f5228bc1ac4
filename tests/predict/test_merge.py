"""Suppression over tiles against a sequential loop over everything at once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics.matching import box_iou
from sparseshot_jax.predict.candidates import Candidates
from sparseshot_jax.predict.merge import Status, Suppression, TileMerger, decide

WIDTH, HEIGHT = 120, 90


def candidates(
    seed: int, count: int, *, levels: int = 0, spread: float = 1.0, classes: int = 2
) -> Candidates:
    """Random boxes: `levels` > 0 gives ties in score; `spread` is that of the sizes' logarithm."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform((0, 0), (WIDTH, HEIGHT), (count, 2))
    half = np.exp(rng.normal(1.5, spread, (count, 2)))
    score = rng.integers(0, levels, count) / levels if levels else rng.uniform(size=count)
    p = rng.uniform(size=(count, classes)).astype(np.float32)
    return Candidates(
        boxes_xyxy_px=np.concatenate([centre - half, centre + half], axis=1),
        score=score.astype(np.float32),
        class_p=p / p.sum(axis=1, keepdims=True),
        place=rng.permutation(count).astype(np.int64),
    )


def sequential(found: Candidates, rule: Suppression) -> set[int]:
    """Places of what greedy suppression keeps, one candidate after the other."""
    kept: list[int] = []
    best, box, centre = found.class_p.argmax(axis=1), found.boxes_xyxy_px, found.centres_xy_px
    for i in np.lexsort((found.place, -found.score)).tolist():
        others = np.array([j for j in kept if not rule.class_aware or best[i] == best[j]], int)
        if rule.by == "iou":
            near = box_iou(np.repeat(box[[i]], len(others), axis=0), box[others]) > rule.iou
        else:
            near = np.hypot(*(centre[others] - centre[i]).T) < rule.distance_px
        if not near.any():
            kept.append(i)
    return set(found.place[kept].tolist())


def tiled(found: Candidates, rule: Suppression, xs: list[int], ys: list[int], seed: int, out: float = 0.0):
    """Places of what the merger keeps for tiles with these edges, and the most that ever waited."""
    columns, rows = [0, *xs, WIDTH], [0, *ys, HEIGHT]
    # Who is given with which tile: by a position up to `out` from the centre.
    moved = found.centres_xy_px + np.random.default_rng(seed).uniform(-out, out, (len(found), 2))
    merger = TileMerger(width=WIDTH, height=HEIGHT, rule=rule, classes=2, reach_out_px=out)
    column = np.searchsorted(columns[1:-1], moved[:, 0], side="right")
    row = np.searchsorted(rows[1:-1], moved[:, 1], side="right")
    kept, most = [], 0
    for (r, (y0, y1)), (c, (x0, x1)) in itertools.product(
        enumerate(itertools.pairwise(rows)), enumerate(itertools.pairwise(columns))
    ):
        own = found.take((column == c) & (row == r))
        kept += merger.add(own if len(own) else None, x0=x0, y0=y0, x1=x1, y1=y1).place.tolist()
        most = max(most, merger.waiting)
    assert merger.waiting == 0
    assert len(kept) == len(set(kept))
    return set(kept), most


edges = st.lists(st.integers(1, 89), max_size=6, unique=True).map(sorted)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 120),
    levels=st.sampled_from([0, 1, 4]),
    spread=st.sampled_from([0.0, 0.3, 2.0]),
    by=st.sampled_from(["iou", "distance"]),
    limit=st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0]),
    class_aware=st.booleans(),
    xs=edges,
    ys=edges,
    out=st.sampled_from([0.0, 9.0]),
)
def test_any_tiling_gives_what_one_loop_gives(
    seed, count, levels, spread, by, limit, class_aware, xs, ys, out
):
    rule = Suppression(by=by, iou=limit, distance_px=20 * limit, class_aware=class_aware)
    found = candidates(seed, count, levels=levels, spread=spread)
    assert tiled(found, rule, xs, ys, seed, out)[0] == sequential(found, rule)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), limit=st.sampled_from([0.02, 0.5, 0.95]), spread=st.sampled_from([0.1, 3.0])
)
def test_every_pair_that_is_too_near_is_found_once(seed, limit, spread):
    found = candidates(seed, 80, spread=spread)
    box = found.boxes_xyxy_px
    # Concentric boxes whose areas are at the limit, equal boxes, flat ones, and one over everything.
    scale = np.sqrt(np.array([limit * 1.01, limit * 0.99, 1.0]))[:, None] * 8.0
    nested = np.concatenate([50.0 - scale, 50.0 - scale, 50.0 + scale, 50.0 + scale], axis=1)
    flat = np.array([[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 5.0, 9.0], [-1e3, -1e3, 1e3, 1e3]])
    boxes = np.concatenate([box, box[:5], nested, flat])
    n = len(boxes)
    every = Candidates(
        boxes_xyxy_px=boxes,
        score=np.zeros(n, np.float32),
        class_p=np.ones((n, 1), np.float32),
        place=np.arange(n),
    )
    i, j = np.triu_indices(n, 1)
    near = box_iou(boxes[i], boxes[j]) > limit
    pairs = np.sort(Suppression(iou=limit).pairs(every), axis=1)
    assert sorted(map(tuple, pairs.tolist())) == list(zip(i[near].tolist(), j[near].tolist()))


def test_exposed_candidates_wait_and_so_does_what_depends_on_them():
    # A row of boxes, each too near its neighbours alone: scores fall from left to right.
    left = np.arange(6.0) * 3
    row = Candidates(
        boxes_xyxy_px=np.stack([left, np.zeros(6), left + 10, np.full(6, 10.0)], axis=1),
        score=np.linspace(0.9, 0.4, 6, dtype=np.float32),
        class_p=np.ones((6, 1), np.float32),
        place=np.arange(6),
    )
    rule, none = Suppression(iou=0.5), np.zeros(6, bool)
    kept, fell, open_ = Status.KEPT, Status.SUPPRESSED, Status.UNDECIDED
    assert decide(row, none, rule).tolist() == [kept, fell] * 3
    assert decide(row, np.arange(6) == 0, rule).tolist() == [open_] * 6
    # The second falls to the first whoever else is near it; of the fifth nobody knows.
    assert decide(row, np.isin(np.arange(6), [1, 4]), rule).tolist() == [kept, fell, kept, fell, open_, open_]


def test_what_waits_is_near_the_borders_of_one_row_of_tiles():
    rng = np.random.default_rng(0)
    n, side = 20_000, 1000
    centre = rng.uniform(0, side, (n, 2))
    found = Candidates(
        boxes_xyxy_px=np.concatenate([centre - 4, centre + 4], axis=1),
        score=rng.uniform(size=n).astype(np.float32),
        class_p=np.ones((n, 1), np.float32),
        place=np.arange(n),
    )
    merger = TileMerger(width=side, height=side, rule=Suppression(), classes=1, reach_out_px=0.0)
    cell, most, kept = (centre // 100).astype(int), 0, []
    for row, column in itertools.product(range(10), range(10)):
        own = found.take((cell == (column, row)).all(axis=1))
        box = {"x0": column * 100, "y0": row * 100, "x1": column * 100 + 100, "y1": row * 100 + 100}
        kept.append(merger.add(own, **box))
        most = max(most, merger.waiting)
    # A border of 4 px on each side is 15 % of a tile; chains make it a little more. A row has 2000.
    assert 0 < most < 0.25 * n / 10
    alone = decide(found, np.zeros(n, bool), Suppression())
    assert (
        sorted(Candidates.concatenate(kept).place.tolist()) == np.flatnonzero(alone == Status.KEPT).tolist()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "size"}, "one of iou, distance"),
        ({"iou": 0.0}, r"iou must lie in \(0, 1\]"),
        ({"iou": 1.01}, r"iou must lie in \(0, 1\]"),
        ({"distance_px": 0.0}, "distance_px be positive"),
    ],
)
def test_bad_rules_are_named(change, message):
    with pytest.raises(InputError, match=message):
        Suppression(**change)
