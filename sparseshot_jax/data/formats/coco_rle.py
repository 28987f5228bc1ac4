"""COCO's run-length masks: runs of 0 and 1 in turn, down the columns, and their compact text.

A run is written in pieces of five bits, the lowest first, each plus 48 as one ASCII character; 32 marks
that more follow, and the highest bit of the last piece is the sign. From the fourth run on the text
holds the difference from the run two places before.
"""

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int64

MAX_SIDE = 1 << 24  # pixels; the product of two sides, and of differences of runs, stays within 64 bits
_MAX_PIECES = 12  # of five bits


def decode_counts(text: str) -> Int64[np.ndarray, "k"]:
    """The runs of a compact text.

    >>> decode_counts("061M").tolist()
    [0, 6, 1, 3]

    Raises:
        ValueError: the text is none that COCO's tools write.
    """
    piece = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not len(piece):
        return np.zeros(0, np.int64)
    if piece.min() < 0 or piece.max() > 63:
        raise ValueError("its text holds characters that no COCO tool writes")
    last = np.flatnonzero(piece < 32)
    if not len(last) or last[-1] != len(piece) - 1:
        raise ValueError("its text ends within a number")
    first = np.append(0, last[:-1] + 1)
    length = last - first + 1
    if length.max() > _MAX_PIECES:
        raise ValueError("its text holds a number beyond 60 bits")
    shift = 5 * (np.arange(len(piece)) - np.repeat(first, length))
    values = np.add.reduceat((piece & 31) << shift, first)
    values -= np.where(piece[last] & 16, np.int64(1) << (5 * length), 0)
    if np.abs(values).max() > MAX_SIDE**2:
        raise ValueError("its text holds a run longer than any picture")
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def encode_counts(counts: Int64[np.ndarray, "k"]) -> str:
    """The compact text of runs.

    >>> encode_counts(np.array([0, 6, 1, 3]))
    '061M'
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    text = []
    for value in values.tolist():
        while True:
            piece, value = value & 31, value >> 5
            more = value != (-1 if piece & 16 else 0)
            text.append(chr(48 + piece + 32 * more))
            if not more:
                break
    return "".join(text)


def runs_of_ones(
    counts: Int64[np.ndarray, "k"], height: int, width: int
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
    """Start and end of every run of ones, counted down the columns.

    Raises:
        ValueError: the runs do not fill the picture.
    """
    if len(counts) and (counts.min() < 0 or counts.max() > MAX_SIDE**2):
        raise ValueError("a run is negative or longer than any picture")
    total = sum(counts.tolist())  # Python's numbers: the sum of a broken file may pass 64 bits
    if total != height * width:
        raise ValueError(f"its runs must fill the {height} x {width} pixels; they count {total}")
    ends = np.cumsum(counts)
    starts = ends - counts
    ones = np.arange(1, len(counts), 2)
    ones = ones[counts[ones] > 0]
    return starts[ones], ends[ones]


def outline(
    counts: Int64[np.ndarray, "k"], height: int, width: int
) -> list[list[Float64[np.ndarray, "v 2"]]]:
    """The polygons of a mask along its pixels' edges: for each part its rings, the outer one first.

    No pixel is ever drawn: the work grows with the number of runs, whatever size the picture claims.
    """
    starts, ends = runs_of_ones(counts, height, width)
    if not len(starts):
        return []
    column, stop = starts // height, (ends - 1) // height
    top, bottom = starts % height, (ends - 1) % height + 1
    several, inner = stop > column, stop > column + 1
    # A run over several columns: the lower end of the first, whole ones between, the upper end of the last.
    boxes = shapely.box(
        np.concatenate([column, (column + 1)[inner], stop[several]]),
        np.concatenate([top, np.zeros(inner.sum()), np.zeros(several.sum())]),
        np.concatenate([column + 1, stop[inner], (stop + 1)[several]]),
        np.concatenate([np.where(several, height, bottom), np.full(inner.sum(), height), bottom[several]]),
    )
    parts = shapely.get_parts(shapely.union_all(boxes))
    return [
        [_corners(shapely.get_coordinates(ring)[:-1]) for ring in (part.exterior, *part.interiors)]
        for part in parts
    ]


def counts_of(
    mask: Bool[np.ndarray, "h w"], x: int, y: int, height: int, width: int
) -> Int64[np.ndarray, "k"]:
    """The runs of a picture of `height` x `width` that is False but for `mask`, its corner at (x, y)."""
    padded = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    padded[:, 1:-1] = mask.T
    step = np.diff(padded, axis=1)
    columns, first = np.nonzero(step == 1)
    last = np.nonzero(step == -1)[1]
    base = (x + columns) * height + y
    starts, ends = base + first, base + last
    if not len(starts):
        return np.array([height * width])
    # A run to the foot of one column goes on at the head of the next.
    joined = starts[1:] == ends[:-1]
    starts, ends = starts[np.append(True, ~joined)], ends[np.append(~joined, True)]
    edges = np.stack([starts, ends], axis=1).reshape(-1)
    counts = np.diff(edges, prepend=0, append=height * width)
    return counts[:-1] if counts[-1] == 0 else counts


def _corners(ring: Float64[np.ndarray, "v 2"]) -> Float64[np.ndarray, "w 2"]:
    """The ring without vertices on straight runs; exact, since all are whole numbers."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
