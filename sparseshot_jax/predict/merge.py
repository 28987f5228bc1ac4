"""Suppression across tile borders: of boxes that lie too near, the best stays, as if all had come at once.

Greedy by score: a candidate falls iff one that stays, of higher score (of equal scores: of lower place),
lies too near. A tile decides what nothing outside it can touch, a row of tiles what only it touches; what
may still meet tiles to come waits.
"""

import dataclasses
import enum
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from scipy.spatial import KDTree

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics.matching import box_iou
from sparseshot_jax.predict.candidates import Candidates

RULES = ("iou", "distance")
_SLACK = 1e-6  # of a reach, so that no pair is lost to rounding; pairs are then tested exactly


class Status(enum.IntEnum):
    """What became of a candidate."""

    SUPPRESSED = 0  # one that is kept, a better one, is too near
    KEPT = 1
    UNDECIDED = 2  # hangs on candidates of tiles to come


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suppression:
    """When two candidates are too near.

    Raises:
        InputError: a number out of range.
    """

    by: str = "iou"  # "iou" of their boxes, or "distance" of their centres
    iou: float = 0.5  # too near above it, (0, 1]
    distance_px: float = 6.0  # too near below it, map pixels, > 0
    class_aware: bool = False  # only candidates of one most likely class are compared

    def __post_init__(self):
        if self.by not in RULES:
            raise InputError(f"suppression must be by one of {', '.join(RULES)}; got {self.by!r}.")
        if not 0.0 < self.iou <= 1.0 or not 0.0 < self.distance_px < np.inf:
            raise InputError(
                "iou must lie in (0, 1] and distance_px be positive; got "
                f"{self.iou} and {self.distance_px}. Try 0.5 and 6."
            )

    def reach_xy_px(self, candidates: Candidates) -> Float64[np.ndarray, "n 2"]:
        """How far from each candidate's centre those lie, at most, that are too near.

        The IoU of two boxes is at most that of their shadows on either axis. So, at IoU > t, widths u
        and v have v < u / t and centres nearer than (u + v) (1 - t) / (2 (1 + t)) < u (1 - t) / (2 t).
        """
        if self.by == "distance":
            return np.full((len(candidates), 2), self.distance_px * (1 + _SLACK))
        return candidates.sizes_xy_px * ((1 - self.iou) / (2 * self.iou) * (1 + _SLACK)) + _SLACK

    def pairs(self, candidates: Candidates) -> Int64[np.ndarray, "e 2"]:
        """Every two candidates that are too near, once, as indices."""
        if self.by == "distance":
            near = self._pairs_by_distance(candidates)
        else:
            near = self._near_boxes(candidates)
            boxes = candidates.boxes_xyxy_px
            near = near[box_iou(boxes[near[:, 0]], boxes[near[:, 1]]) > self.iou]
        if self.class_aware:
            best = candidates.class_p.argmax(axis=1)
            near = near[best[near[:, 0]] == best[near[:, 1]]]
        return near

    def _pairs_by_distance(self, candidates: Candidates) -> Int64[np.ndarray, "e 2"]:
        centre = candidates.centres_xy_px
        radius = self.distance_px * (1 + _SLACK)
        near = KDTree(centre).query_pairs(radius, output_type="ndarray").astype(np.int64).reshape(-1, 2)
        apart = centre[near[:, 0]] - centre[near[:, 1]]
        return near[np.hypot(apart[:, 0], apart[:, 1]) < self.distance_px]

    def _near_boxes(self, candidates: Candidates) -> Int64[np.ndarray, "e 2"]:
        """Pairs among which all are whose IoU is above the limit.

        Boxes are sorted into classes of area. At IoU > t areas differ by less than a factor 1 / t: only
        boxes of one class or of two that follow each other can be too near, and few huge boxes do not
        make the search among the small ones wide.
        """
        areas = candidates.sizes_xy_px.prod(axis=1)
        solid = np.flatnonzero(areas > 0.0)  # the others overlap nothing
        group = np.floor(np.log(areas[solid]) / max(-np.log(self.iou), np.log(2.0))).astype(np.int64)
        centre, reach = candidates.centres_xy_px, self.reach_xy_px(candidates).max(axis=1, initial=0.0)
        found = [np.zeros((0, 2), np.int64)]
        smaller: tuple[int, np.ndarray, KDTree, float] | None = None
        for number in np.unique(group).tolist():
            members = solid[group == number]
            tree, radius = KDTree(centre[members]), float(reach[members].max())
            found.append(members[tree.query_pairs(radius, p=np.inf, output_type="ndarray").reshape(-1, 2)])
            if smaller is not None and smaller[0] == number - 1:
                _, others, other_tree, other_radius = smaller
                near = other_tree.sparse_distance_matrix(tree, other_radius, np.inf, output_type="ndarray")
                found.append(np.stack([others[near["i"]], members[near["j"]]], axis=1))
            smaller = number, members, tree, radius
        return np.concatenate(found).astype(np.int64)


def decide(
    candidates: Candidates, exposed: Bool[np.ndarray, "n"], rule: Suppression
) -> UInt8[np.ndarray, "n"]:
    """`Status` of each candidate: what holds whatever the unknown neighbours of the exposed ones are.

    An exposed candidate is never kept here; it falls where one that is kept lies too near. Whatever
    depends on an undecided one is undecided. Without exposed ones this is greedy suppression.
    """
    status = np.full(len(candidates), Status.UNDECIDED, np.uint8)
    rank = np.empty(len(candidates), np.int64)
    rank[np.lexsort((candidates.place, -candidates.score))] = np.arange(len(candidates))
    one, other = rule.pairs(candidates).T
    first = rank[one] < rank[other]
    better, worse = np.where(first, one, other), np.where(first, other, one)
    while True:
        waits = exposed.copy()
        waits[worse] = True  # for a better one that is undecided
        new = (status == Status.UNDECIDED) & ~waits
        if not new.any():
            return status
        status[new] = Status.KEPT
        status[worse[new[better]]] = Status.SUPPRESSED
        open_ = status == Status.UNDECIDED
        both = open_[better] & open_[worse]
        better, worse = better[both], worse[both]


class TileMerger:
    """Takes the candidates of tiles in raster order, gives the objects as they are decided.

    Memory: the candidates near the borders of a row of tiles.

    Args:
        width: of the map, pixels.
        height: of the map, pixels.
        rule: when two are too near.
        classes: number of classes.
        reach_out_px: how far centres may lie outside the tile that they are given with.
        top: top of the first tile. Above it lie tiles of which others know: what they touch stays undecided.
    """

    def __init__(
        self, *, width: int, height: int, rule: Suppression, classes: int, reach_out_px: float, top: int = 0
    ):
        self._width, self._height, self._top = width, height, top
        self._rule, self._out = rule, reach_out_px
        self._row: list[Candidates] = []
        self._above = self._none = Candidates.empty(classes)

    @property
    def waiting(self) -> int:
        """Candidates that are not decided; 0 after the last tile."""
        return len(self._above) + sum(map(len, self._row))

    def add(self, candidates: Candidates | None, *, x0: int, y0: int, x1: int, y1: int) -> Candidates:
        """The objects that a tile decides. Tiles fill the map without overlap, row after row.

        Args:
            candidates: of the tile; None where it was not computed.
            x0: its left edge, map pixels.
            y0: its top.
            x1: its right edge; the last tile of a row reaches the map's width at least.
            y1: its bottom.
        """
        kept = self._none
        if candidates is not None and len(candidates):
            kept, open_ = self._settle(candidates, self._bounds(x0, y0, x1, y1))
            self._row.append(open_)
        if x1 < self._width or not self.waiting:
            return kept
        whole_row, self._row = Candidates.concatenate([self._above, *self._row]), []
        # Nothing comes from the sides or from above any more.
        more, self._above = self._settle(whole_row, self._bounds(0, self._top, self._width, y1))
        return Candidates.concatenate([kept, more])

    def rest(self) -> Candidates:
        """After the last tile of a band: the candidates that hang on tiles of others."""
        return Candidates.concatenate([self._above, *self._row])

    def join(self, rests: Iterable[Candidates]) -> Candidates:
        """The objects among all that the bands of a slide left undecided."""
        undecided = Candidates.concatenate([self._none, *rests])
        return self._settle(undecided, self._bounds(0, 0, self._width, self._height))[0]

    def _bounds(self, x0: int, y0: int, x1: int, y1: int) -> Float64[np.ndarray, "4"]:
        """Between these no centre of another tile lies: left, top, right, bottom."""
        return np.array(
            [
                x0 + self._out if x0 > 0 else -np.inf,
                y0 + self._out if y0 > 0 else -np.inf,
                x1 - self._out if x1 < self._width else np.inf,
                y1 - self._out if y1 < self._height else np.inf,
            ]
        )

    def _settle(
        self, candidates: Candidates, bounds: Float64[np.ndarray, "4"]
    ) -> tuple[Candidates, Candidates]:
        """Those that are kept, and those that are undecided."""
        centre, reach = candidates.centres_xy_px, self._rule.reach_xy_px(candidates)
        exposed = np.any((centre - reach <= bounds[:2]) | (centre + reach >= bounds[2:]), axis=1)
        status = decide(candidates, exposed, self._rule)
        return candidates.take(status == Status.KEPT), candidates.take(status == Status.UNDECIDED)
