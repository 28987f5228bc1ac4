"""Tiles to the arrays of a batch, and these to a `Batch`."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sparseshot_jax.data.buffers import Buffers
from sparseshot_jax.data.faults import Fault
from sparseshot_jax.data.tile_objects import OBJECT_KEYS
from sparseshot_jax.types import Batch, Ground, Objects

Tile = dict[str, Any]  # image, ground, label, distance: uint8; `OBJECT_KEYS`; valid: bool scalar

_OUTSIDE = {"ground": Ground.IGNORED}  # of a tile that only fills up; all else of it is 0
_BUFFERS = Buffers()


@runtime_checkable
class Readable(Protocol):
    """A tile that is not read yet."""

    def read(self) -> Tile:
        """Its arrays, and under "fault" why it could not be read; no arrays where none tells their shape."""
        ...


def blank_like(tile: Tile) -> Tile:
    """A tile of the same shape that is not valid: all ground ignored, no object."""
    return {key: np.full_like(array, _OUTSIDE.get(key, 0)) for key, array in tile.items()}


def read_stacked(draws: Sequence[Readable]) -> dict[str, Any]:
    """Arrays of a batch, its faults, and how many tiles were asked for; no arrays where no tile has any.

    Each tile is copied into the batch before the next is read: memory that stays in use as long as one
    tile does is faster than fresh memory for all of them.
    """
    faults: list[Fault] = []
    arrays: dict[str, np.ndarray] = {}
    asked = 0
    for k, draw in enumerate(draws):
        tile = draw.read()
        fault = tile.pop("fault") if "fault" in tile else None
        if fault is not None:
            faults.append(fault)
        asked += bool(tile.get("valid", False)) or fault is not None
        if not arrays and tile:
            arrays = _BUFFERS.arrays({key: ((len(draws), *a.shape), a.dtype) for key, a in tile.items()})
            for key in arrays:
                arrays[key][:k] = _OUTSIDE.get(key, 0)
        for key in arrays:
            arrays[key][k] = tile.get(key, _OUTSIDE.get(key, 0))
    return {**arrays, "faults": faults, "tiles": asked}


def as_batch(arrays: dict[str, Any]) -> Batch:
    """The arrays of a batch, by the names of `Tile`, as one value."""
    fields = {key: array for key, array in arrays.items() if key not in OBJECT_KEYS}
    if len(fields) == len(arrays):
        return Batch(**fields)
    boxes, label, present, left_out = (arrays[key] for key in OBJECT_KEYS)
    objects = Objects(boxes_yxyx_px=boxes, label=label, present=present, left_out=left_out)
    return Batch(**fields, objects=objects)
