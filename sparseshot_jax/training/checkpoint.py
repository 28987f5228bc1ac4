"""Checkpoints of a run: state, data position and config, whole or not at all. The door to orbax.

On a disk a checkpoint is written under another name and renamed when it is whole. Object stores cannot rename
a folder: there it is whole once it holds `commit_success.txt`, which is written last. Orbax does the one for
local paths and the other for gs://; for s3:// it is told to (its own choice there would be a copy, file by
file, that a kill can leave half done), and `checkpoint_s3` lets it put arrays there.

Tested on disks; on s3:// against moto's server (tensorstore's own driver, s3fs); on gs:// orbax alone against
gcp-storage-emulator. Not tested: real buckets, whose rights and throttling no emulator has.
"""

import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from sparseshot_jax.data import storage
from sparseshot_jax.errors import InputError
from sparseshot_jax.training import checkpoint_s3, processes
from sparseshot_jax.types import TrainState

_MEMORY = ".memory"  # what a loss remembers of the training pixels
_COMMITTED = ocp.path.atomicity.COMMIT_SUCCESS_FILE  # orbax writes it last


class Checkpoints:
    """The checkpoints under one folder. Saving is asynchronous and atomic; use as a context manager.

    In a job of many processes all of them make one of these over the same folder, and call each method
    at the same steps: an array is written by the processes that hold its parts.

    Leaves are stored under their paths in the tree ("params['head'].kernel"), so that a checkpoint does
    not depend on how flax or optax nest their containers, only on what they name. `config`, JSON values,
    goes into each for the record: nothing is read from there.

    Raises:
        InputError: the folder cannot be made or read, or is not one that all processes share.
    """

    def __init__(self, folder: epath.PathLike, *, config: Mapping[str, Any] | None = None, keep: int = 2):
        self._local = storage.is_local(folder)
        self.folder = epath.Path(storage.local_path(folder).resolve() if self._local else folder)
        self._config = dict(config or {})
        # Drivers of object stores raise errors of their own libraries.
        self._faults: tuple[type[Exception], ...] = (OSError, ValueError) if self._local else (Exception,)
        if self._local:
            self._make_shared()
        else:
            storage.list_names(self.folder)  # a missing driver or right shows here, in words
        if str(self.folder).startswith("s3://"):
            checkpoint_s3.teach_orbax()
        try:
            self._manager = ocp.CheckpointManager(
                self.folder,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(),
                    "position": ocp.JsonCheckpointHandler(),
                    "config": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=True,
                    enable_async_checkpointing=True,
                    single_host_load_and_broadcast=True,  # all go on from the step that the first one sees
                    temporary_path_class=None if self._local else ocp.path.atomicity.CommitFileTemporaryPath,
                ),
            )
        except self._faults as error:
            raise _unwritable(self.folder, error) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._manager.close()
        except self._faults as error:
            if kind is None:  # else the error on its way says it already, or something worse
                raise _unwritable(self.folder, error) from error

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, the same in all processes; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, position: dict[str, Any]) -> None:
        """Begin to save; returns before it is written.

        Raises:
          InputError: the folder cannot be written (full, read-only), now or at the save before this one.
            The older checkpoints stay.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        self._check_space(state)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_by_path(state)),
                    position=ocp.args.JsonSave(position),
                    config=ocp.args.JsonSave(self._config),
                ),
            )
        except self._faults as error:
            raise _unwritable(self.folder, error) from error

    def wait(self) -> None:
        """Until what was begun is on disk."""
        try:
            self._manager.wait_until_finished()
        except self._faults as error:
            raise _unwritable(self.folder, error) from error

    def restore(self, like: TrainState, *, step: int | None = None) -> tuple[TrainState, dict]:
        """State and data position of `step` (None: the newest), placed as `like` is.

        Args:
            like: arrays, or their shapes and types (`jax.ShapeDtypeStruct`) with shardings. The mesh and the
                number of processes may be others than at saving. A leaf without a sharding comes whole to
                this process's first device. Without a memory the stored one is left where it is.
            step: of the checkpoint.

        Raises:
          InputError: there is none, or it holds another model or optimiser.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise InputError(f"no checkpoint in {self.folder}. Train first, or name another run.")
        flat = {name: _placed(leaf) for name, leaf in _by_path(like).items()}
        try:
            self._check_shapes(step, flat)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        item=flat,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(flat),
                        partial_restore=True,  # of the memory alone: `_check_shapes`
                    ),
                    position=ocp.args.JsonRestore(),
                ),
            )
        except InputError:
            raise
        except (*self._faults, KeyError) as error:
            raise InputError(
                f"checkpoint {self.folder / str(step)} cannot be read: {error}. Remove that folder: the "
                "same command then goes on from the checkpoint before it."
            ) from error
        tree = jax.tree.structure(like)
        return jax.tree.unflatten(tree, [restored["state"][name] for name in flat]), restored["position"]

    def _make_shared(self) -> None:
        """Before orbax, which would wait for ever where only one process sees the folder."""
        try:
            if processes.is_lead():
                storage.make_folder(self.folder)
        except InputError as error:
            raise _unwritable(self.folder, error) from error
        processes.barrier("checkpoints")
        there = processes.gather(self.folder.exists())
        if not all(there):
            blind = ", ".join(str(k) for k, found in enumerate(there) if not found)
            raise InputError(
                f"{self.folder} must be one folder for all processes; process {blind} does not see what "
                "process 0 made. Name a run folder on a disk that all machines share, on gs:// or s3://."
            )

    def _check_space(self, state: TrainState) -> None:
        """Sooner than orbax, whose threads fill the screen when a write fails. Object stores have room."""
        if not self._local:
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + (1 << 20)  # of whole arrays
        # What one process sees is what all act on: else some would wait for others that have stopped.
        free = processes.gather(shutil.disk_usage(self.folder).free)[0]
        if free < needed:
            missing = f"it needs {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} are free"
            raise _unwritable(self.folder, missing)

    def _check_shapes(self, step: int, flat: dict[str, Any]) -> None:
        stored = {name: leaf.shape for name, leaf in self._manager.item_metadata(step)["state"].tree.items()}
        asked = {name: leaf.shape for name, leaf in flat.items()}
        if _MEMORY not in asked:  # to evaluate
            stored.pop(_MEMORY, None)
        wrong = [name for name in sorted(stored | asked) if stored.get(name) != asked.get(name)]
        if wrong:
            shapes = f"{stored.get(wrong[0], 'absent')} in place of {asked.get(wrong[0], 'nothing')}"
            raise InputError(
                f"checkpoint {self.folder / str(step)} does not fit the model of this config: {len(wrong)} "
                f"arrays differ, {wrong[0]} is {shapes}. Use the config.json beside it, or start in a new "
                "run folder."
            )


def whole_steps(folder: epath.PathLike) -> list[int]:
    """Steps of the whole checkpoints in a folder, oldest first; a save that was cut off is none.

    Raises:
        InputError: the storage cannot be reached, or its driver is not installed.
    """
    names = [name for name in storage.list_names(folder) if name.isdigit()]
    if not storage.is_local(folder):
        names = [name for name in names if storage.exists(storage.join(folder, name, _COMMITTED))]
    return sorted(map(int, names))


def _placed(leaf: Any) -> Any:
    """The leaf, on this process's first device where it does not say."""
    if getattr(leaf, "sharding", None) is not None:
        return leaf
    here = jax.device_put(0, jax.local_devices()[0]).sharding
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)


def _by_path(state: TrainState) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _unwritable(folder: epath.Path, error: Exception | str) -> InputError:
    return InputError(
        f"cannot write a checkpoint to {folder}: {error}. Free some space or make the folder writable, "
        "then give the same command again: it goes on from the last whole checkpoint."
    )
