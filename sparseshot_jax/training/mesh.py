"""The devices as a mesh of three axes. What lies where on it: `sharding`.

data   copies of the model, each with its part of the batch
fsdp   also parts of the batch; parameters, moments and averages are split over them (Zhao et al. 2023,
       https://arxiv.org/abs/2304.11277), gathered where they are used
space  parts of a tile, split along its height: convolutions exchange the rows at the borders
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from sparseshot_jax.errors import InputError

AXES = ("data", "fsdp", "space")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """How many devices share what."""

    data: int = -1  # copies of the model, each with its tiles; -1: as many as there are devices for
    fsdp: int = 1  # devices over which a copy's state is split, each with tiles of its own; -1: the rest
    space: int = 1  # devices over which the rows of a tile are split; -1: the rest
    slices: int = 1  # islands of fast links (TPU slices) that "data" spans; the slow network joins them
    shard_from: int = 65536  # elements from which on an array is split over "fsdp"

    def __post_init__(self) -> None:
        sizes = [getattr(self, axis) for axis in AXES]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise InputError(
                "mesh sizes must be at least 1, and one of them may be -1 (the rest); got "
                f"data={self.data}, fsdp={self.fsdp}, space={self.space}. Try data=-1, fsdp=1, space=1."
            )
        if self.slices < 1 or self.shard_from < 0:
            raise InputError(
                f"mesh.slices must be at least 1 and mesh.shard_from at least 0; got {self.slices} and "
                f"{self.shard_from}. Try 1 and 65536."
            )


def make_mesh(spec: MeshSpec | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a spec over `devices` (None: all of the job); one device is a mesh of one.

    Neighbours on an axis are neighbours in the machine where JAX knows its shape (TPU).

    Raises:
      InputError: the sizes do not make up the devices.
    """
    spec = spec or MeshSpec()
    devices = jax.devices() if devices is None else list(devices)
    shape = _shape(spec, len(devices))
    devices = devices[: math.prod(shape)]
    if spec.slices > 1:
        grid = _hybrid(spec, shape, devices)
    elif devices[0].platform == "tpu":
        _check_one_slice(devices)
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _shape(spec: MeshSpec, count: int) -> tuple[int, ...]:
    sizes = [getattr(spec, axis) for axis in AXES]
    given = math.prod(size for size in sizes if size > 0)
    fits = count % given == 0 if -1 in sizes else given <= count
    if not fits or given > count:
        asked = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes))
        what = "divide" if -1 in sizes else "be at most"
        raise InputError(
            f"the sizes of the mesh must {what} {count}, the devices that JAX sees; got {asked}. Try "
            f"train.mesh.data=-1 with fsdp and space 1, or start with more devices."
        )
    return tuple(count // given if size == -1 else size for size in sizes)


def _check_one_slice(devices: Sequence[Any]) -> None:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        raise InputError(f"these devices are {slices} TPU slices. Give train.mesh.slices={slices}.")


def _hybrid(spec: MeshSpec, shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """ "data" spans the slices; what lies within a step of it, and the other axes, stay inside one."""
    if shape[0] % spec.slices:
        raise InputError(
            f"mesh.data must be divisible by mesh.slices; got {shape[0]} and {spec.slices}. The other axes "
            "must fit into one slice."
        )
    inner = (shape[0] // spec.slices, *shape[1:])
    known = len({getattr(device, "slice_index", None) for device in devices}) == spec.slices
    hosts = len({device.process_index for device in devices})
    if not known and hosts != spec.slices:
        raise InputError(
            f"mesh.slices is {spec.slices}, but these devices are of one slice and {hosts} processes. "
            "Give the number of slices, or of processes, or 1."
        )
    return mesh_utils.create_hybrid_device_mesh(
        inner, (spec.slices, 1, 1), devices, process_is_granule=not known
    )
