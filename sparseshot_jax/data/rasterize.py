"""Objects to pixels: exact at pixel centres, all objects of a window at once."""

import numpy as np
from jaxtyping import Float64, Int32, Int64

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations
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
    touching = annotations.touching(window)
    touching = touching[~annotations.is_point[touching]]
    if not len(touching):
        return drawn
    objects = annotations.take(touching)
    # Pixel centres become whole numbers: row i is the line y = i.
    xy = (objects.xy_px - (window.x_px, window.y_px)) / window.scale - 0.5
    owner = np.repeat(np.arange(len(objects)), np.diff(objects.object_offsets))
    owner = np.repeat(owner, np.diff(objects.ring_offsets))
    starts, ends, owner = _spans(xy, xy[rings.following(objects.ring_offsets)], owner, drawn.shape)
    _fill(drawn.reshape(-1), starts, ends, (touching + 1).astype(np.int32)[owner])
    return drawn


def _spans(
    start: Float64[np.ndarray, "e 2"],
    end: Float64[np.ndarray, "e 2"],
    owner: Int64[np.ndarray, "e"],
    shape: tuple[int, int],
) -> tuple[Int64[np.ndarray, "s"], Int64[np.ndarray, "s"], Int64[np.ndarray, "s"]]:
    """Runs of covered pixels [start, end) in the flat image, with their object, sorted by object."""
    height, width = shape
    # From the upper end to the lower one, whichever way the ring runs: the two owners of a shared edge
    # then compute the same crossing to the last bit.
    down = (start[:, 1] <= end[:, 1])[:, None]
    upper, lower = np.where(down, start, end), np.where(down, end, start)
    # An edge crosses row i iff upper y <= i < lower y: a vertex on a row counts once, a level edge never.
    first = np.ceil(np.clip(upper[:, 1], 0, height)).astype(np.int64)
    last = np.ceil(np.clip(lower[:, 1], 0, height)).astype(np.int64)
    crossed = np.flatnonzero(last > first)
    counts = (last - first)[crossed]
    row = rings.ranges(first[crossed], counts)
    upper, lower = upper[crossed], lower[crossed]
    slope = (lower[:, 0] - upper[:, 0]) / (lower[:, 1] - upper[:, 1])
    edge = np.repeat(np.arange(len(crossed)), counts)
    x = upper[edge, 0] + (row - upper[edge, 1]) * slope[edge]
    # Column j lies behind a crossing iff j >= x, hence from column ceil(x) on; `width` is past the end.
    column = np.ceil(np.clip(x, 0, width)).astype(np.int64)
    # Every ring crosses a row an even number of times, so that sorted crossings pair up into runs.
    key = np.sort((owner[crossed][edge] * height + row) * (width + 1) + column)
    line, column = np.divmod(key, width + 1)
    begin, stop = column[0::2], column[1::2]
    line = line[0::2]
    at = (line % height) * width
    return at + begin, at + stop, line // height


def _fill(
    pixels: Int32[np.ndarray, "p"],
    starts: Int64[np.ndarray, "s"],
    ends: Int64[np.ndarray, "s"],
    values: Int32[np.ndarray, "s"],
) -> None:
    """Write the runs in order; where runs overlap numpy keeps the last value assigned."""
    lengths = ends - starts
    done = np.cumsum(lengths)
    cuts = np.searchsorted(done, np.arange(0, done[-1] if len(done) else 0, FILL_CHUNK), "right")
    for low, high in zip(cuts, [*cuts[1:], len(lengths)]):
        run = lengths[low:high]
        pixels[rings.ranges(starts[low:high], run)] = np.repeat(values[low:high], run)
