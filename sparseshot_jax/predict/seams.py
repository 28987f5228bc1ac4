"""Tiles of a probability map in raster order -> its objects, bit for bit as if contoured at once.

A tile is contoured together with the last row and column of the tiles before it, so that the domains of
neighbouring tiles abut on a line of shared samples, a seam. An outline enters and leaves a tile only where
it crosses a seam, at a point computed from the same two samples on both sides. So its chains are joined by
equal end points, with no geometry and no tolerance.
"""

import dataclasses
from collections import defaultdict

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.predict.contours import Regions, contour

_Key = tuple[float, ...]  # a seam point: x, y, direction of the seam, offset along it
_Closed = tuple[list[np.ndarray], float, int]  # rings, sum and count of p


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Open:
    """What a band of rows leaves to be joined with the bands above and below it."""

    top: int  # first row of the band in the map
    first: Float64[np.ndarray, "w_plus_1"]  # samples -1..width-1 of its first row
    last: Float64[np.ndarray, "w_plus_1"]  # and of its last
    groups: "dict[_Key, _Group]"  # seam point at the border -> what waits there


class SeamlessContours:
    """Takes the tiles of one probability map in raster order, gives its objects as they are complete.

    It holds one row and one column of samples, and of the objects that reach over a seam to a tile still
    to come only their outlines and sums.
    """

    def __init__(self, *, width: int, height: int, threshold: float, top: int = 0) -> None:
        """`width`, `height`: of the map in pixels; beyond it p is 0. `threshold`: in (0, 1), strict.

        `top`: row of the first tile. Above it lie tiles of which others know: what touches them stays open.
        """
        self._width, self._height, self._top = width, height, top
        self._first = np.zeros(width + 1)  # samples of row `top`
        self._threshold = float(np.float32(threshold))  # p is float32: 0.3 must not exceed "0.3"
        self._above = self._below = np.zeros(width + 1)  # samples -1..width-1 of the bands' last rows
        self._left = np.zeros(0)
        self._open: dict[_Key, _Group] = {}  # seam point seen from one side -> its group

    def add(self, x: int, y: int, p: Float[np.ndarray, "h w"] | None, *, size: int = 0) -> Regions:
        """The objects that the tile with first pixel (x, y) completes.

        `p` None stands for a tile of `size`^2 pixels, cut to the map, in which p is 0.
        """
        if p is None:
            p = np.zeros((min(size, self._height - y), min(size, self._width - x)), np.float32)
        domain = self._domain(x, y, p)
        y -= 1
        if y + 1 == self._top > 0:
            domain, y = domain[1:], y + 1
        return self._contoured(domain, x - 1, y)

    def rest(self) -> Open:
        """After the last tile of a band: what waits for others."""
        groups = {key: _root(group) for key, group in self._open.items()}
        return Open(top=self._top, first=self._first, last=self._below, groups=groups)

    def bridge(self, band: Open, *, size: int) -> list[Regions]:
        """The objects that a band completes with those above it. Bands come in order, without tiles.

        `size`: of the tiles, pixels: the strip between two bands is contoured in their columns.
        """
        self._open |= band.groups
        strip = np.zeros((2, self._width + 2))
        strip[0, :-1], strip[1, :-1] = self._below, band.first
        self._below = band.last
        found = []
        for x in range(0, self._width, size) if band.top else ():
            width = min(size, self._width - x)
            domain = strip[:, x : x + width + 1 + (x + width == self._width)]
            found.append(self._contoured(domain, x - 1, band.top - 1))
        return found

    @property
    def waiting(self) -> int:
        """Seam points whose other side is still to come; 0 after the last tile."""
        return len(self._open)

    def _domain(self, x: int, y: int, p: Float[np.ndarray, "h w"]) -> Float64[np.ndarray, "H W"]:
        """The tile, the samples it shares with those before it, and zeros beyond the map's end."""
        height, width = p.shape
        if x == 0:
            self._above, self._below = self._below, np.zeros(self._width + 1)
            self._left = np.zeros(height)
        last_column, last_row = x + width == self._width, y + height == self._height
        domain = np.zeros((height + 1 + last_row, width + 1 + last_column))
        domain[1 : height + 1, 1 : width + 1] = p
        domain[0, : width + 1] = self._above[x : x + width + 1]
        domain[1 : height + 1, 0] = self._left
        self._below[x + 1 : x + width + 1] = p[-1]
        if y == self._top:
            self._first[x + 1 : x + width + 1] = p[0]
        self._left = p[:, -1].astype(float)
        return domain

    def _contoured(self, domain: Float64[np.ndarray, "H W"], x: int, y: int) -> Regions:
        """The objects that a domain with first sample (x, y) completes."""
        if min(domain.shape) < 2:
            return Regions.empty()  # a band of a single row lies between its strips
        pieces = contour(domain, threshold=self._threshold, x=x, y=y)
        height, width = domain.shape
        return self._merge(pieces, x + 0.5, y + 0.5, x + width - 0.5, y + height - 0.5)

    def _merge(self, pieces: Regions, left: float, top: float, right: float, bottom: float) -> Regions:
        """Passes on the pieces that touch no seam; files the others and closes what became complete.

        The four numbers bound the domain. Where it ends with the map its samples are 0: nothing touches.
        """
        outlines = pieces.outlines
        xy = outlines.xy_px
        on_seam = np.concatenate([xy == (left, top), xy == (right, bottom)], axis=1)
        sizes = np.diff(outlines.ring_offsets[outlines.object_offsets])
        vertex_piece = np.repeat(np.arange(len(pieces)), sizes)
        touching = np.zeros(len(pieces), bool)
        touching[vertex_piece[on_seam.any(axis=1)]] = True
        keys = _seam_points(xy, vertex_piece, on_seam, left, top)
        touched: dict[int, _Group] = {}
        for k in np.flatnonzero(touching):
            group = self._file(_piece_group(pieces, int(k), on_seam), keys[int(k)])
            touched[id(group)] = group
        complete = {id(g): g for g in map(_root, touched.values()) if g.open == 0}
        return _joined(pieces, ~touching, [group.close() for group in complete.values()])

    def _file(self, group: "_Group", keys: list[_Key]) -> "_Group":
        """Unites a piece with what waits at its seam points, and waits at the others."""
        for key in keys:
            other = self._open.pop(key, None)
            if other is None:
                self._open[key] = group
                group.open += 1
            else:
                group = _unite(group, _root(other))
                group.open -= 1
        return group


class _Group:
    """An object in the making: the pieces of it that have come so far."""

    def __init__(self, p_sum: float, p_count: int) -> None:
        self.parent: _Group | None = None
        self.open = 0  # seam points whose other side has not come
        self.rings: list[np.ndarray] = []
        self.chains: list[np.ndarray] = []  # from one seam point to the next, the object on one side
        self.p_sum, self.p_count = p_sum, p_count

    def close(self) -> _Closed:
        """Joins the chains; gives the rings, outer first, and the sums."""
        starts = {tuple(chain[0]): chain for chain in self.chains}
        while starts:
            first, chain = starts.popitem()
            parts = [chain[:-1]]
            while (end := tuple(chain[-1])) != first:
                chain = starts.pop(end)
                parts.append(chain[:-1])
            self.rings.append(np.concatenate(parts))
        self.rings.sort(key=lambda ring: float(ring[:, 0].min()))  # the outer ring reaches furthest
        return self.rings, self.p_sum, self.p_count


def _root(group: _Group) -> _Group:
    while group.parent is not None:
        if group.parent.parent is not None:
            group.parent = group.parent.parent
        group = group.parent
    return group


def _unite(a: _Group, b: _Group) -> _Group:
    if a is b:
        return a
    if len(a.chains) + len(a.rings) > len(b.chains) + len(b.rings):
        a, b = b, a
    a.parent = b
    b.rings += a.rings
    b.chains += a.chains
    b.open += a.open
    b.p_sum += a.p_sum
    b.p_count += a.p_count
    a.rings, a.chains = [], []
    return b


def _piece_group(pieces: Regions, k: int, on_seam: Bool[np.ndarray, "v 4"]) -> _Group:
    """Piece `k` as a group of its own, its rings cut where they run along a seam."""
    group = _Group(float(pieces.p_sum[k]), int(pieces.p_count[k]))
    outlines = pieces.outlines
    for i in range(outlines.object_offsets[k], outlines.object_offsets[k + 1]):
        ring = slice(outlines.ring_offsets[i], outlines.ring_offsets[i + 1])
        xy, seams = outlines.xy_px[ring], on_seam[ring]
        along = np.flatnonzero((seams & np.roll(seams, -1, axis=0)).any(axis=1))
        if not len(along):
            group.rings.append(xy.copy())
            continue
        twice = np.concatenate([xy, xy])
        for start, stop in zip(along, [*along[1:], along[0] + len(xy)]):
            if stop > start + 1:
                group.chains.append(twice[start + 1 : stop + 1].copy())
    return group


def _seam_points(
    xy: Float64[np.ndarray, "v 2"],
    piece: Int64[np.ndarray, "v"],
    on_seam: Bool[np.ndarray, "v 4"],
    left: float,
    top: float,
) -> dict[int, list[_Key]]:
    """Of every piece the points by which it is known on the other side of a seam.

    They are where its outline crosses a seam, and the seam's two ends where the piece covers them. A seam
    is named by its direction and the tile's offset along it, for seams in line share their ends.
    """
    keys: dict[int, list[_Key]] = defaultdict(list)
    vertical, horizontal = on_seam[:, 0] | on_seam[:, 2], on_seam[:, 1] | on_seam[:, 3]
    between = (xy - 0.5) % 1.0 != 0.0
    for direction, offset, chosen in (
        (0.0, top, vertical & (between[:, 1] | horizontal)),
        (1.0, left, horizontal & (between[:, 0] | vertical)),
    ):
        for k, (x, y) in zip(piece[chosen].tolist(), xy[chosen].tolist()):
            keys[k].append((x, y, direction, offset))
    return keys


def _joined(pieces: Regions, whole: Bool[np.ndarray, "n"], closed: list[_Closed]) -> Regions:
    """The pieces that are whole, then the objects that became so."""
    kept = pieces.outlines.take(whole)
    sums, counts = pieces.p_sum[whole], pieces.p_count[whole]
    if not closed:
        return Regions(outlines=kept, p_sum=sums, p_count=counts)
    outlines, more_sums, more_counts = zip(*closed)
    return Regions(
        outlines=Annotations.concatenate([kept, Annotations.from_polygons(outlines)]),
        p_sum=np.concatenate([sums, more_sums]),
        p_count=np.concatenate([counts, more_counts]),
    )
