"""Where arrays lie on the mesh of devices; with `mesh` the only module that knows of either.

`jax.jit` over a mesh replaces `jax.pmap`: arguments carry their sharding, the compiler inserts the
collectives, and sums over a batch are sums over the global batch by construction.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparseshot_jax.errors import InputError
from sparseshot_jax.training import processes
from sparseshot_jax.training.mesh import AXES as AXES
from sparseshot_jax.training.mesh import MeshSpec as MeshSpec
from sparseshot_jax.training.mesh import make_mesh as make_mesh
from sparseshot_jax.types import Batch

_BATCH = ("data", "fsdp")  # the axes that share the tiles of a batch
_MAPS = ("image", "ground", "label", "distance")  # fields of a batch that have a height


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of training lie. Hashable: a program is compiled once for each."""

    mesh: Mesh
    shard_from: int = MeshSpec.shard_from  # elements

    @property
    def replicated(self) -> NamedSharding:
        """The same array on every device."""
        return self._sharding()

    @property
    def tiles(self) -> NamedSharding:
        """Images alone, split over "data" and "fsdp"."""
        return self._sharding(_BATCH)

    @property
    def batch_parts(self) -> int:
        """Parts into which a batch is split."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def platform(self) -> str:
        """What the devices are: "cpu", "gpu" or "tpu"; described ones need not be JAX's default."""
        return self.mesh.devices.flat[0].platform

    @property
    def splits_rows(self) -> bool:
        """Whether the rows of a tile lie on several devices."""
        return self.mesh.shape["space"] > 1

    def state(self, tree: Any) -> Any:
        """A sharding for each array: large ones are split over "fsdp" along their longest axis that divides.

        Moments and averages have the shapes of their parameters, and so lie like them.
        """
        return jax.tree.map(lambda leaf: self._sharding(*self._split(leaf.shape)), tree)

    def batch(self, batch: Batch) -> Batch:
        """A sharding for each array: tiles over "data" and "fsdp", the rows of maps over "space"."""

        def of(path: tuple, leaf: Any) -> NamedSharding:
            del leaf
            rows = ("space",) if path[0].name in _MAPS else ()
            return self._sharding(_BATCH, *rows)

        return jax.tree_util.tree_map_with_path(of, batch)

    def place_state(self, state: Any) -> Any:
        """The arrays where `state` says, from values that every process has whole."""

        def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

        return jax.tree.map(put, state, self.state(state))

    def place(self, batch: Batch) -> Batch:
        """Global arrays from this process's tiles (`share`)."""
        mine, count = self._parts(jax.process_index()), self.share[1]

        def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
            size = len(leaf) // len(mine)  # tiles a part

            def part(index: Any) -> Any:  # a slice for each axis
                at = mine.index((index[0].start or 0) // size) * size
                return leaf[(slice(at, at + size), *index[1:])]

            return jax.make_array_from_callback((len(leaf) * count, *leaf.shape[1:]), sharding, part)

        return jax.tree.map(put, batch, self.batch(batch))

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many equal shares of a batch this process reads.

        Processes that hold rows of the same tiles read the same share.
        """
        shares = self._shares()
        return shares.index(self._parts(jax.process_index())), len(shares)

    def _shares(self) -> list[tuple[int, ...]]:
        """The parts of a batch that belong together because the same processes hold them."""
        owners = {device.process_index for device in self.mesh.devices.flat}
        return sorted({self._parts(owner) for owner in owners})

    def _check_shares(self) -> None:
        shares = self._shares()
        if sum(map(len, shares)) != self.batch_parts or len({len(parts) for parts in shares}) > 1:
            raise InputError(
                "the mesh splits tiles over processes unevenly: their shares of a batch must be equal. Let "
                f"mesh.space ({self.mesh.shape['space']}) divide the devices of a process, or be a multiple "
                "of them."
            )

    def _parts(self, process: int) -> tuple[int, ...]:
        """The parts of a batch that devices of a process hold, in order."""
        grid = self.mesh.devices.reshape(self.batch_parts, -1)
        return tuple(k for k, row in enumerate(grid) if any(d.process_index == process for d in row))

    def constrain(self, tree: Any) -> Any:
        """Inside a program: arrays that stay where `state` says."""
        return jax.lax.with_sharding_constraint(tree, self.state(tree))

    def spread(self, batch: Batch) -> Batch:
        """Inside a program: a batch that stays where `batch` says, whatever was done to it."""
        return jax.lax.with_sharding_constraint(batch, self.batch(batch))

    def whole(self, params: Any) -> Any:
        """Inside a program: parameters gathered for use; their gradients are summed into the parts."""
        if self.mesh.shape["fsdp"] == 1:
            return params

        @jax.custom_vjp
        def gathered(tree: Any) -> Any:
            return jax.lax.with_sharding_constraint(tree, self.replicated)

        gathered.defvjp(lambda tree: (gathered(tree), None), lambda _, g: (self.constrain(g),))
        return gathered(params)

    def _sharding(self, *spec: Any) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def _split(self, shape: tuple[int, ...]) -> tuple[str | None, ...]:
        parts = self.mesh.shape["fsdp"]
        longest = max((n for n in shape if n % parts == 0), default=0)
        if parts == 1 or not longest or math.prod(shape) < self.shard_from:
            return ()
        at = len(shape) - 1 - shape[::-1].index(longest)
        return tuple("fsdp" if axis == at else None for axis in range(at + 1))


def make_layout(spec: MeshSpec | None = None, devices: Sequence[Any] | None = None) -> Layout:
    """The layout of a spec over `devices` (None: all of the job).

    Raises:
      InputError: as of `make_mesh`; or processes whose tiles overlap in part.
    """
    spec = spec or MeshSpec()
    if devices is None and jax.process_count() > 1 and not processes.joined():
        raise InputError(
            f"this is one of {jax.process_count()} processes, which the program does not know. Call "
            "sparseshot_jax.training.processes.start() before JAX is used, in place of jax.distributed."
        )
    layout = Layout(make_mesh(spec, devices), spec.shard_from)
    if devices is None and len({d.process_index for d in layout.mesh.devices.flat}) < jax.process_count():
        raise InputError(
            f"the mesh leaves out some of the job's {jax.process_count()} processes. Let one of its sizes be "
            "-1, or start fewer processes."
        )
    layout._check_shares()
    return layout


def meet(layout: Layout) -> None:
    """Open the connections between CPU processes that programs over a layout will use; all must call it.

    gloo lets a group of devices wait 30 s for each other when they first meet, and for hours later. A first
    meeting in a training step would come after its compilation, which may take unequal minutes.
    """
    mesh = layout.mesh
    if not processes.joined() or mesh.devices.flat[0].platform != "cpu":
        return
    axes = [name for name, size in mesh.shape.items() if size > 1]
    groups = [group for n in range(1, len(axes) + 1) for group in itertools.combinations(axes, n)]

    def sums() -> list[jax.Array]:
        return [jax.lax.psum(jax.lax.axis_index(group), group) for group in groups]

    program = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=(), out_specs=PartitionSpec()))
    program = program.lower().compile()
    processes.barrier("meet")
    jax.block_until_ready(program())


def check_batch_size(batch_size: int, layout: Layout, micro_batches: int) -> None:
    """A batch must split evenly over the devices, in each of its micro-batches.

    Raises:
      InputError: with the nearest sizes that do.
    """
    unit = layout.batch_parts * micro_batches
    if batch_size % unit:
        lower, upper = batch_size // unit * unit, -(-batch_size // unit) * unit
        raise InputError(
            f"train.batch_size must be divisible by {layout.batch_parts} parts (mesh.data x mesh.fsdp) x "
            f"{micro_batches} micro-batches; got {batch_size}. Try "
            f"{' or '.join(str(n) for n in (lower, upper) if n)}."
        )


def check_height(tile_px: int, layout: Layout, multiple: int) -> None:
    """The rows of a tile must split evenly over "space", at every resolution of the model.

    Raises:
      InputError: with the nearest sizes that do.
    """
    unit = layout.mesh.shape["space"] * multiple
    if layout.mesh.shape["space"] > 1 and tile_px % unit:
        lower, upper = tile_px // unit * unit, -(-tile_px // unit) * unit
        raise InputError(
            f"tiles.tile_px must be divisible by {layout.mesh.shape['space']} devices x {multiple}, which "
            f"the model asks for; got {tile_px}. Try {' or '.join(str(n) for n in (lower, upper) if n)}."
        )


def local_copy(tree: Any) -> Any:
    """Every array whole, on the first of this process's own devices.

    What is split over devices is gathered: in a job of many processes all of them call this.
    """
    leaves = jax.tree.leaves(tree)
    if not all(leaf.is_fully_replicated for leaf in leaves):
        tree = jax.jit(_same, out_shardings=NamedSharding(leaves[0].sharding.mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _same(tree: Any) -> Any:
    return tree
