"""The mesh of devices and where arrays lie on it: the only module that knows of either.

`jax.jit` over a mesh replaces `jax.pmap`: arguments carry their sharding, the compiler inserts the
collectives, and sums over a batch are sums over the global batch by construction.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Batch

AXES = ("data", "fsdp", "space")


def make_mesh(data: int = -1) -> Mesh:
    """A mesh of `data` devices (-1: all of them); one device is a mesh of one.

    Raises:
      InputError: fewer devices exist than are asked for.
    """
    devices = jax.devices()
    size = len(devices) if data == -1 else data
    if not 1 <= size <= len(devices):
        raise InputError(
            f"devices must be -1 (all) or between 1 and {len(devices)}, the number that JAX sees "
            f"here; got {data}. Try -1, or start with more devices."
        )
    grid = np.array(devices[:size]).reshape(size, 1, 1)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device: parameters, optimiser state, hyper-parameters."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the mesh's "data" axis: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Global arrays from this process's share of a batch (all of it where there is one process)."""
    sharding = over_batch(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int) -> None:
    """A batch must split evenly over the devices, in each of its micro-batches.

    Raises:
      InputError: with the nearest sizes that do.
    """
    unit = mesh.shape["data"] * accumulate
    if batch_size % unit:
        lower, upper = batch_size // unit * unit, -(-batch_size // unit) * unit
        raise InputError(
            f"train.batch_size must be divisible by {mesh.shape['data']} devices x {accumulate} "
            f"micro-batches; got {batch_size}. Try {' or '.join(str(n) for n in (lower, upper) if n)}."
        )
