"""RUN/tiles: which tiles every step was given, a file for each process.

feed = Prefetch(batches, layout.place)
feed = LoggedTiles(feed, batches.held, folder=folder / "tiles", resume_step=start)

Rows: {"event": "tiles", "step": 1, "sequence": [0, 1], "places": [17, 4]}, an entry for each row of the
process's batch: its number in the sequence of all tiles, and its place in the training set; -1 for a tile
that only fills up an end. Steps count from 1, as in the log.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from sparseshot_jax.data import storage
from sparseshot_jax.training.log import JsonlLog
from sparseshot_jax.training.recorder import PlacedBatches
from sparseshot_jax.types import Batch

_FILE = re.compile(r"process-(\d+)\.jsonl")

Held = Callable[[dict[str, Any]], tuple[list[int], list[int]]]  # position -> numbers and places of its batch


class LoggedTiles:
    """The batches given, and a row for each as it is handed to its step.

    A row follows from the position after its batch, so what was read ahead does not matter. On resume rows
    beyond `resume_step` are cut off all files, those of processes that are no more included.
    """

    def __init__(
        self,
        batches: PlacedBatches,
        held: Held,
        *,
        folder: epath.PathLike,
        resume_step: int,
        process_index: int | None = None,
        process_count: int | None = None,
    ):
        """`folder` is made where it does not exist. `process_index` and `_count`: JAX's where None."""
        index = jax.process_index() if process_index is None else process_index
        count = jax.process_count() if process_count is None else process_count
        storage.make_folder(folder)
        for name in storage.list_names(folder):
            number = int(match[1]) if (match := _FILE.fullmatch(name)) else -1
            if number >= count and number % count == index:
                JsonlLog(storage.join(folder, name), resume_step=resume_step).close()
        self._log = JsonlLog(storage.join(folder, f"process-{index}.jsonl"), resume_step=resume_step)
        self._batches, self._held, self._step = batches, held, resume_step

    def next(self) -> tuple[Batch, int]:
        """The next batch, and how many tiles it has over all processes."""
        given = self._batches.next()
        self._step += 1
        sequence, places = self._held(self._batches.get_state())
        self._log.write("tiles", self._step, sequence=sequence, places=places)
        return given

    def get_state(self) -> dict[str, Any]:
        """The position of the batches. A checkpoint will hold it, so the rows before it are written."""
        self._log.flush()
        return self._batches.get_state()

    def close(self) -> None:
        """Close the file; the batches stay open."""
        self._log.close()
