"""A run's log for TensorBoard, beside the JSONL; tensorboardX is an extra and needs no TensorFlow."""

from typing import Any, Protocol, runtime_checkable

from etils import epath

from sparseshot_jax.data import storage
from sparseshot_jax.errors import InputError


@runtime_checkable
class Mirror(Protocol):
    """Whoever is shown every row of a log."""

    def write(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Take one row."""
        ...

    def close(self) -> None:
        """No more rows come."""
        ...


class TensorBoard:
    """Scalars of every row under EVENT/NAME. `resume_step`: what was written after it is hidden.

    Raises:
        InputError: tensorboardX is not installed; the folder is not local.
    """

    def __init__(self, folder: epath.PathLike, *, resume_step: int):
        check_tensorboard(folder)
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                "train.tensorboard needs the package tensorboardX. Install it "
                '(pip install "sparseshot-jax[tensorboard]"), or leave it off: log.jsonl is written always.'
            ) from error
        self._writer = SummaryWriter(str(storage.local_path(folder)), purge_step=resume_step + 1)

    def write(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Add the row's numbers."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


def check_tensorboard(folder: epath.PathLike) -> None:
    """Refuse a folder that tensorboardX appends to only by putting all of it again.

    Raises:
        InputError: the folder is not local.
    """
    if not storage.is_local(folder):
        raise InputError(
            f"train.tensorboard needs a local run folder; got {folder}. Leave it off: log.jsonl has the same "
            "numbers."
        )
