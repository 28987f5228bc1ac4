"""Objects to pixels: exact at pixel centres, all objects of a window at once."""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int32, Int64

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.types import Window

FILL_CHUNK = 1 << 22  # pixels written at once: bounds the index memory (8 bytes a pixel) on whole slides


def rasterize(annotations: Annotations, window: Window) -> Int32[np.ndarray, "h w"]:
    """Which object covers the centre of each pixel.

    A pixel belongs to an object iff its centre is inside by the even-odd rule over all rings of the
    object. A centre exactly on an edge belongs to the side right of it (below it, for a level edge), so
    that polygons that share an edge leave no gap and no overlap. Points draw nothing.

    Args:
        annotations: objects in level-0 pixels.
        window: the pixels to draw; see `Window` for where their centres are.

    Returns:
        0 where no object is, k + 1 where object k is; a later object overwrites an earlier one.

    >>> square = [[1, 1], [3, 1], [3, 2], [1, 2]]
    >>> one = Annotations.from_polygons([[square]])
    >>> rasterize(one, Window(x_px=0, y_px=0, width=4, height=3))
    array([[0, 0, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]], dtype=int32)
    """
    drawn = np.zeros((window.height, window.width), np.int32)
    runs = covered(annotations, window)
    fill(runs, (drawn, (runs.objects + 1).astype(np.int32)))
    return drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """Pixels that objects cover, as pieces of rows, sorted by object."""

    starts: Int64[np.ndarray, "s"]  # first pixel of a piece in the flat window
    ends: Int64[np.ndarray, "s"]  # one past its last
    objects: Int64[np.ndarray, "s"]  # whose it is


def covered(annotations: Annotations, window: Window) -> Runs:
    """Which pixels of a window each object covers, by the rule of `rasterize`."""
    touching = annotations.touching(window)
    touching = touching[annotations.kind[touching] != Kind.POINT]
    # The rings of one object follow each other: so do its vertices.
    first, last = (annotations.object_offsets[touching + k] for k in (0, 1))
    rings_each = last - first
    which = first if (rings_each == 1).all() else rings.ranges(first, rings_each)
    begin = annotations.ring_offsets[which]
    lengths = annotations.ring_offsets[which + 1] - begin
    offsets = rings.offsets_of(lengths)
    xy = annotations.xy_px[rings.ranges(begin, lengths)]
    # Pixel centres become whole numbers, counted from the image's corner and not from the window's: the
    # pixels of an object are the same, to the last bit, in all windows of one grid.
    (column, row), (right, down) = grid_place(window)
    x = xy[:, 0] / window.scale - (0.5 + right)
    y = xy[:, 1] / window.scale - (0.5 + down)
    owner = np.repeat(np.repeat(np.arange(len(touching)), rings_each), lengths)
    frame = row, column, window.height, window.width
    starts, ends, owner = _spans(x, y, rings.following(offsets), owner, frame)
    return Runs(starts=starts, ends=ends, objects=touching[owner])


def grid_place(window: Window) -> tuple[tuple[int, int], tuple[float, float]]:
    """Column and row of a window's corner in the grid of its pixels, and what is left over, x and y."""
    place = [origin / window.scale for origin in (window.x_px, window.y_px)]
    whole = [round(p) for p in place]
    # A window at a whole pixel times the scale is rounded: that much is not meant.
    left = [p - k if abs(p - k) > 1e-6 else 0.0 for p, k in zip(place, whole)]
    return (whole[0], whole[1]), (left[0], left[1])


def _spans(
    x: Float64[np.ndarray, "e"],
    y: Float64[np.ndarray, "e"],
    after: Int64[np.ndarray, "e"],
    owner: Int64[np.ndarray, "e"],
    frame: tuple[int, int, int, int],
) -> tuple[Int64[np.ndarray, "s"], Int64[np.ndarray, "s"], Int64[np.ndarray, "s"]]:
    """Runs of covered pixels [start, end) in the flat image, with their object, sorted by object.

    Edge k goes from vertex k to vertex after[k]. The frame is the first row and column of the window,
    its height and its width.
    """
    first_row, first_column, height, width = frame
    end_y = y[after]
    # An edge crosses row i iff upper y <= i < lower y: a vertex on a row counts once, a level edge never.
    rows = first_row, first_row + height
    first = np.ceil(np.minimum(y, end_y).clip(*rows)).astype(np.int64)
    counts = np.ceil(np.maximum(y, end_y).clip(*rows)).astype(np.int64) - first
    crossed = np.flatnonzero(counts)
    # From the upper end to the lower one, whichever way the ring runs: the two owners of a shared edge
    # then compute the same crossing to the last bit.
    end = after[crossed]
    down = y[crossed] <= y[end]
    upper, lower = np.where(down, crossed, end), np.where(down, end, crossed)
    top, left = y[upper], x[upper]
    slope = (x[lower] - left) / (y[lower] - top)
    counts, first = counts[crossed], first[crossed]
    edge = np.repeat(np.arange(len(crossed)), counts)
    row = rings.ranges(first, counts)
    # Column j lies behind a crossing iff j >= x, hence from column ceil(x) on; `width` is past the end.
    column = left[edge] + (row - top[edge]) * slope[edge] - first_column
    column = np.ceil(column.clip(0, width)).astype(np.int64)
    # Every ring crosses a row an even number of times, so that sorted crossings pair up into runs.
    key = ((owner[crossed] * height - first_row)[edge] + row) * (width + 1) + column
    key = np.sort(key.astype(np.int32) if len(key) and key.max() < 1 << 31 else key).astype(np.int64)
    line, begin = np.divmod(key[0::2], width + 1)
    stop = key[1::2] - line * (width + 1)
    owner, row = np.divmod(line, height)
    at = row * width
    return at + begin, at + stop, owner


def fill(runs: Runs, *planes: tuple[np.ndarray, np.ndarray | int]) -> None:
    """Write the runs in order into planes of the window; where runs overlap the last one stays.

    Args:
        runs: what to cover.
        planes: each an array [h, w], contiguous, and a value for each run or one for all.
    """
    lengths = runs.ends - runs.starts
    done = np.cumsum(lengths)
    cuts = np.searchsorted(done, np.arange(0, done[-1] if len(done) else 0, FILL_CHUNK), "right")
    for low, high in zip(cuts, [*cuts[1:], len(lengths)]):
        run = lengths[low:high]
        pixels = rings.ranges(runs.starts[low:high], run)
        for plane, values in planes:
            each = np.repeat(values[low:high], run) if isinstance(values, np.ndarray) else values
            plane.reshape(-1)[pixels] = each
