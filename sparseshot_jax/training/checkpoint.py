"""Checkpoints of a run: state, data position and config, whole or not at all. The only orbax import."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from sparseshot_jax.errors import InputError
from sparseshot_jax.types import TrainState


class Checkpoints:
    """The checkpoints under one folder. Saving is asynchronous and atomic; use as a context manager.

    Leaves are stored under their paths in the tree ("params['head'].kernel"), so that a checkpoint does
    not depend on how flax or optax nest their containers, only on what they name. `config`, JSON values,
    goes into each for the record: nothing is read from there.
    """

    def __init__(self, folder: Path, *, config: Mapping[str, Any] | None = None, keep: int = 2):
        self.folder = folder.resolve()
        self._config = dict(config or {})
        try:
            self._manager = ocp.CheckpointManager(
                self.folder,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(),
                    "position": ocp.JsonCheckpointHandler(),
                    "config": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, create=True, enable_async_checkpointing=True
                ),
            )
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._manager.close()
        except (OSError, ValueError) as error:
            if kind is None:  # else the error on its way says it already, or something worse
                raise _unwritable(self.folder, error) from error

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint; None where there is none."""
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
        except (OSError, ValueError) as error:
            raise _unwritable(self.folder, error) from error

    def wait(self) -> None:
        """Until what was begun is on disk."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise _unwritable(self.folder, error) from error

    def restore(self, like: TrainState, *, step: int | None = None) -> tuple[TrainState, dict]:
        """State and data position of `step` (None: the newest), placed as `like` is.

        Raises:
          InputError: there is none, or it holds another model or optimiser.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise InputError(f"no checkpoint in {self.folder}. Train first, or name another run.")
        flat = _by_path(like)
        try:
            self._check_shapes(step, flat)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        item=flat, restore_args=ocp.checkpoint_utils.construct_restore_args(flat)
                    ),
                    position=ocp.args.JsonRestore(),
                ),
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"checkpoint {self.folder / str(step)} cannot be read: {error}. Remove that folder: the "
                "same command then goes on from the checkpoint before it."
            ) from error
        tree = jax.tree.structure(like)
        return jax.tree.unflatten(tree, [restored["state"][name] for name in flat]), restored["position"]

    def _check_space(self, state: TrainState) -> None:
        """Sooner than orbax, whose threads fill the screen when a write fails."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + (1 << 20)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            missing = f"it needs {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} are free"
            raise _unwritable(self.folder, missing)

    def _check_shapes(self, step: int, flat: dict[str, jax.Array]) -> None:
        stored = {name: leaf.shape for name, leaf in self._manager.item_metadata(step)["state"].tree.items()}
        asked = {name: leaf.shape for name, leaf in flat.items()}
        wrong = [name for name in sorted(stored | asked) if stored.get(name) != asked.get(name)]
        if wrong:
            shapes = f"{stored.get(wrong[0], 'absent')} in place of {asked.get(wrong[0], 'nothing')}"
            raise InputError(
                f"checkpoint {self.folder / str(step)} does not fit the model of this config: {len(wrong)} "
                f"arrays differ, {wrong[0]} is {shapes}. Use the config.json beside it, or start in a new "
                "run folder."
            )


def _by_path(state: TrainState) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _unwritable(folder: Path, error: Exception | str) -> InputError:
    return InputError(
        f"cannot write a checkpoint to {folder}: {error}. Free some space or make the folder writable, "
        "then give the same command again: it goes on from the last whole checkpoint."
    )
