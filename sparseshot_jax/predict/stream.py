"""A slide through a model, tile by tile: what comes out equals one pass over the whole.

Each tile is read with a halo at least as wide as the model looks, and its input begins at a multiple of the
model's stride from the input of a single pass: so neither the tile's border nor the phase of the pooling
shows. Outside the slide is white.
"""

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

# RGB [b, h, w, 3] -> p of each class [b, h, w, C], NumPy or JAX. A jitted function works while the host
# turns the batch before into objects; one that returns NumPy arrays makes it wait.
Probability = Callable[[UInt8[np.ndarray, "b h w 3"]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The cores of the tiles, edge to edge over the map that a slide becomes at the model's resolution."""

    width: int  # of the map, pixels
    height: int  # of the map, pixels
    scale: float  # level-0 pixels a map pixel
    core_px: int  # side of a core, map pixels
    halo_px: int  # read round a core, map pixels

    @classmethod
    def over(
        cls,
        slide: Slide,
        *,
        mpp: float,
        model_mpp: float,
        core_px: int = 512,
        halo_px: int,
        multiple: int = 1,
    ) -> "Grid":
        """The grid for a slide and a model.

        Args:
            slide: only its size is used.
            mpp: micrometres a level-0 pixel.
            model_mpp: micrometres a pixel of the map.
            core_px: divisible by `multiple`. Halved while the whole map fits into a half.
            halo_px: the model's receptive radius; rounded up to a multiple.
            multiple: what the model's input must be divisible by.

        Raises:
            InputError: a resolution or size that cannot be used.
        """
        if not (0.0 < mpp < math.inf and 0.0 < model_mpp < math.inf):
            raise InputError(
                f"{slide.path or 'image'}: mpp and model_mpp must be positive numbers of micrometres a "
                f"pixel; got {mpp} and {model_mpp}. Give the slide's mpp where its file has none."
            )
        if core_px < 1 or core_px % multiple or halo_px < 0:
            near = max(multiple, round(core_px / multiple) * multiple)
            raise InputError(
                f"core_px must be positive and divisible by {multiple}, halo_px at least 0; got "
                f"{core_px} and {halo_px}. Try core_px {near}."
            )
        scale = model_mpp / mpp
        # The slack is for ratios like 3 * 0.1: 1000 / (0.3 / 0.1) must not lose a pixel.
        width, height = (max(1, int(n / scale + 1e-6)) for n in (slide.width, slide.height))
        while core_px % (2 * multiple) == 0 and core_px // 2 >= max(width, height):
            core_px //= 2
        halo_px = -(-halo_px // multiple) * multiple
        return cls(width=width, height=height, scale=scale, core_px=core_px, halo_px=halo_px)

    def origins(self) -> list[tuple[int, int]]:
        """First pixel x, y of every core in raster order."""
        return [
            (x, y) for y in range(0, self.height, self.core_px) for x in range(0, self.width, self.core_px)
        ]

    def window(self, x: int, y: int) -> Window:
        """What is read for the core at (x, y): all windows have one size."""
        side = self.core_px + 2 * self.halo_px
        left, top = (x - self.halo_px) * self.scale, (y - self.halo_px) * self.scale
        return Window(x_px=left, y_px=top, width=side, height=side, scale=self.scale)


def probability_tiles(
    probability: Probability,
    slide: Slide,
    grid: Grid,
    origins: Sequence[tuple[int, int]],
    *,
    batch_size: int,
    threads: int,
) -> Iterator[Float32[np.ndarray, "h w C"]]:
    """p of the cores at `origins`, in their order, each cut to the map.

    At most two batches are in the model and two more, or one tile a thread, are read ahead. Every batch
    has the same shape; the last is filled up with white.

    Raises:
        InputError: the slide is damaged, or p is no probability.
    """
    inner = slice(grid.halo_px, grid.halo_px + grid.core_px)
    for output, places in computed(
        lambda batch: probability(batch)[:, inner, inner],  # the halo never leaves the device
        slide,
        grid,
        origins,
        batch_size=batch_size,
        threads=threads,
    ):
        yield from _cores(output, places, grid)


def computed(
    program: Callable[[UInt8[np.ndarray, "b h w 3"]], Any],
    slide: Slide,
    grid: Grid,
    origins: Sequence[tuple[int, int]],
    *,
    batch_size: int,
    threads: int,
) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
    """Outputs of a program for batches of tiles, halo included, each with the origins of its tiles.

    An output may have more rows than origins: the last batch is filled up. Memory as in
    `probability_tiles`.
    """
    windows = [grid.window(x, y) for x, y in origins]
    place = iter(origins)
    for output, count in computed_windows(program, slide, windows, batch_size=batch_size, threads=threads):
        yield output, list(itertools.islice(place, count))


def computed_windows(
    program: Callable[[UInt8[np.ndarray, "b h w 3"]], Any],
    slide: Slide,
    windows: Sequence[Window],
    *,
    batch_size: int,
    threads: int,
) -> Iterator[tuple[Any, int]]:
    """Outputs of a program for batches of windows of one size, in order, and how many rows of each count.

    Memory as in `probability_tiles`.
    """
    batch_size = max(1, min(batch_size, len(windows)))
    images = _read_ahead(slide, windows, threads, max(2 * batch_size, threads))
    running: deque[tuple[Any, int]] = deque()
    for batch, count in _batches(images, batch_size):
        running.append((program(batch), count))
        if len(running) > 1:
            yield running.popleft()
    yield from running


def probability_map(
    probability: Probability,
    slide: Slide,
    *,
    mpp: float,
    model_mpp: float,
    core_px: int = 512,
    halo_px: int,
    multiple: int = 1,
    batch_size: int = 4,
    threads: int = 4,
) -> Float32[np.ndarray, "h w C"]:
    """p of every class over a whole image that fits into memory; arguments as in `Grid.over`."""
    grid = Grid.over(
        slide,
        mpp=mpp,
        model_mpp=model_mpp,
        core_px=core_px,
        halo_px=halo_px,
        multiple=multiple,
    )
    origins = grid.origins()
    tiles = probability_tiles(probability, slide, grid, origins, batch_size=batch_size, threads=threads)
    first = next(tiles)
    whole = np.empty((grid.height, grid.width, first.shape[-1]), np.float32)
    whole[: first.shape[0], : first.shape[1]] = first
    for (x, y), p in zip(origins[1:], tiles):
        whole[y : y + p.shape[0], x : x + p.shape[1]] = p
    return whole


def _read_ahead(
    slide: Slide, windows: Sequence[Window], threads: int, ahead: int
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Pixels of the windows in order; up to `ahead` of them wait read."""
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="read")
    try:
        reads: deque[Future] = deque()
        for window in windows:
            reads.append(pool.submit(slide.read, window))
            if len(reads) > ahead:
                yield reads.popleft().result()
        while reads:
            yield reads.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(
    images: Iterator[UInt8[np.ndarray, "h w 3"]], size: int
) -> Iterator[tuple[UInt8[np.ndarray, "b h w 3"], int]]:
    """Stacks of `size` images and how many of each are real."""
    part: list[np.ndarray] = []
    for image in images:
        part.append(image)
        if len(part) == size:
            yield np.stack(part), size
            part = []
    if part:
        white = np.full_like(part[0], 255)
        yield np.stack(part + [white] * (size - len(part))), len(part)


def _cores(
    output: Any, places: Sequence[tuple[int, int]], grid: Grid
) -> Iterator[Float32[np.ndarray, "h w C"]]:
    cores: Float[np.ndarray, "b h w C"] = np.asarray(output, np.float32)
    for core, (x, y) in zip(cores, places):
        p = core[: grid.height - y, : grid.width - x]
        if not (p.min() >= 0.0 and p.max() <= 1.0):  # false for NaN
            raise InputError(
                f"the model's p must lie in [0, 1]; got {p.min()} to {p.max()} in the tile at map pixel "
                f"({x}, {y}). The parameters are damaged or training diverged: use another checkpoint."
            )
        yield p
