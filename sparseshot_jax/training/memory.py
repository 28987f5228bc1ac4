"""What a loss remembers of each training pixel, from one visit of a tile to the next.

The memory is one picture with all training cases one below the other (`CutTiles.canvas_px`), m numbers a
pixel, in the train state: checkpoints hold it, and a run goes on as if it had not stopped. A tile's part is
read before the tile is turned (`recalled`) and written as it lay (`remembered`).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Batch

MEMORY_BYTES = 1 << 31  # that a memory may have: every device and every checkpoint holds it


def blank_memory(numbers: int, canvas_px: tuple[int, int], *, value: float) -> Float[Array, "m rows columns"]:
    """A memory of `numbers` a pixel in which nothing was seen yet.

    Raises:
        InputError: it would be larger than `MEMORY_BYTES`.
    """
    shape = (numbers, *canvas_px)
    size = 4 * math.prod(shape)
    if size > MEMORY_BYTES:
        raise InputError(
            f"a loss that remembers (loss elr) keeps 4 bytes for each training pixel and anchor, at most "
            f"{MEMORY_BYTES / 2**30:.0f} GiB. These cases, one below the other, are {canvas_px[0]} x "
            f"{canvas_px[1]} pixels: {size / 2**30:.1f} GiB. Cut them to the regions that are annotated, "
            "train on fewer, with a larger tiles.mpp, or with another loss."
        )
    return jnp.full(shape, value, jnp.float32)


def recalled(memory: Float[Array, "m rows columns"] | None, batch: Batch) -> Batch:
    """The batch with what is remembered of its tiles; as it came where nothing ever is."""
    if memory is None:
        return batch
    if batch.place is None:
        raise InputError("a loss that remembers needs Batch.place: cut the tiles with places=True.")
    size = (len(memory), *batch.ground.shape[1:])
    average = jax.vmap(lambda place: jax.lax.dynamic_slice(memory, (0, *place), size))(batch.place)
    return dataclasses.replace(batch, average=average)


def remembered(
    memory: Float[Array, "m rows columns"] | None, batch: Batch, average: Float[Array, "b m h w"] | None
) -> Float[Array, "m rows columns"] | None:
    """The memory with the new `average` of the batch's valid tiles; where two overlap the later one's."""
    if memory is None or average is None:
        return memory
    place = batch.place
    assert place is not None  # `recalled` asks for it

    def write(k: Any, memory: Float[Array, "m rows columns"]) -> Float[Array, "m rows columns"]:
        at = (0, *place[k])
        old = jax.lax.dynamic_slice(memory, at, average.shape[1:])
        return jax.lax.dynamic_update_slice(memory, jnp.where(batch.valid[k], average[k], old), at)

    return jax.lax.fori_loop(0, len(average), write, memory)


def of_cells(average: Float[Array, "b m h w"] | None, stride: int) -> Float[Array, "b gh gw m"] | None:
    """The mean over the pixels of each cell of a grid: tiles lie anywhere, and so do their cells."""
    if average is None:
        return None
    b, m, h, w = average.shape
    cells = average.reshape(b, m, h // stride, stride, w // stride, stride).mean(axis=(3, 5))
    return jnp.moveaxis(cells, 1, -1)


def of_pixels(average: Float[Array, "b gh gw m"] | None, stride: int) -> Float[Array, "b m h w"] | None:
    """The number of its cell for each pixel."""
    if average is None:
        return None
    return jnp.moveaxis(average, -1, 1).repeat(stride, axis=2).repeat(stride, axis=3)
