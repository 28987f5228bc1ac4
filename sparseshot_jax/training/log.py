"""The JSONL log of a run: one object a line, appended, cut back to the checkpoint on resume."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.tensorboard import Mirror


class JsonlLog:
    """Rows on disk as soon as they are written; a half-written last line is dropped on the next start."""

    def __init__(self, path: Path, *, resume_step: int, mirror: Mirror | None = None):
        """Open `path`, keeping of it only rows up to step `resume_step`. `mirror` is shown every new row."""
        self.path = path
        self._mirror = mirror
        temporary = path.with_suffix(".tmp")
        try:
            kept = [row for row in read_rows(path) if row.get("step", 0) <= resume_step]
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
            os.replace(temporary, path)
            self._file = path.open("a", buffering=1)
        except OSError as error:
            raise InputError(
                f"cannot write the log {path}: {error}. Choose a writable run folder with --run."
            ) from error

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one row."""
        try:
            self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write the log {self.path}: {error}. Free some space, then give the same command "
                "again: it goes on from the last whole checkpoint."
            ) from error
        if self._mirror is not None:
            self._mirror.write(event, step, values)

    def close(self) -> None:
        """Close; what a full disk did not take was reported by `write`."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._mirror is not None:
            self._mirror.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a log; an empty list where there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the line a killed process was writing
            break
    return rows
