"""The JSONL log of a run: one object a line, cut back to the checkpoint on resume."""

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any, TextIO

from etils import epath

from sparseshot_jax.data import storage
from sparseshot_jax.errors import InputError
from sparseshot_jax.training.tensorboard import Mirror

LOG_KEYS = {"event": str, "step": int}  # what every row of a log has
_SHOWN = 60  # characters of a line in a message
_UPLOAD_S = 30.0  # rows on an object store are at most so old, unless nothing is written at all


class JsonlLog:
    """Rows on disk as soon as they are written; a half-written last line is dropped on the next start.

    An object store takes no appended lines: there all rows are put again, as one object, when the last
    time is half a minute past, and by `flush` and `close`.
    """

    def __init__(self, path: epath.PathLike, *, resume_step: int, mirror: Mirror | None = None):
        """Open `path`, keeping of it only rows up to step `resume_step`. `mirror` is shown every new row.

        Raises:
            InputError: it cannot be written; a row that is there is damaged, and the file stays as it is.
        """
        self.path = path
        self._mirror = mirror
        self._file: TextIO | None = None
        kept = [row for row in read_rows(path) if row["step"] <= resume_step]
        self._lines = [json.dumps(row) + "\n" for row in kept]  # of an object store
        try:
            self._upload()
            if storage.is_local(path):
                self._lines = []
                self._file = storage.local_path(path).open("a", buffering=1)
        except (OSError, InputError) as error:
            raise InputError(
                f"cannot write the log {path}: {error}. Choose a writable run folder with --run."
            ) from error

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one row.

        Raises:
            InputError: the disk is full; the storage cannot be reached.
        """
        line = json.dumps({"event": event, "step": step, **values}) + "\n"
        if self._file is None:
            self._lines.append(line)
            self._changed = True
            if time.monotonic() - self._uploaded >= _UPLOAD_S:
                self.flush()
        else:
            try:
                self._file.write(line)
            except OSError as error:
                raise self._unwritable(error) from error
        if self._mirror is not None:
            self._mirror.write(event, step, values)

    def flush(self) -> None:
        """Until every row is where the log is: to be called before a checkpoint, which they belong to.

        Raises:
            InputError: the storage cannot be reached.
        """
        if self._file is None and self._changed:
            try:
                self._upload()
            except InputError as error:
                raise self._unwritable(error) from error

    def close(self) -> None:
        """Close; what a full disk did not take was reported by `write`."""
        with contextlib.suppress(OSError, InputError):
            self.flush()
            if self._file is not None:
                self._file.close()
        if self._mirror is not None:
            self._mirror.close()

    def _upload(self) -> None:
        storage.write_bytes(self.path, "".join(self._lines).encode())
        self._uploaded, self._changed = time.monotonic(), False

    def _unwritable(self, error: Exception) -> InputError:
        return InputError(
            f"cannot write the log {self.path}: {error}. Free some space, then give the same command "
            "again: it goes on from the last whole checkpoint."
        )


def read_rows(path: epath.PathLike, keys: Mapping[str, type] = LOG_KEYS) -> list[dict[str, Any]]:
    """All rows of a file of JSON lines; an empty list where there is no file.

    A last line without its end that is no JSON is what a killed process was writing, and is passed over. Any
    other is an error: whoever writes the file anew would lose what stands there.

    Args:
        path: of the file.
        keys: what every row has, and of which type.

    Raises:
        InputError: it cannot be read; or the line that is damaged, or is no such row.
    """
    if not storage.exists(path):
        return []
    *ended, last = storage.read_bytes(path).split(b"\n")
    rows = []
    for number, line in enumerate([*ended, last], 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            if number > len(ended):
                break
            raise InputError(
                f"{path}, line {number}: must be JSON; got {_start(line)} ({error}). {_MEND}"
            ) from error
        if not isinstance(row, dict) or not all(type(row.get(key)) is kind for key, kind in keys.items()):
            wanted = " and ".join(f"{key!r} ({_KINDS[kind]})" for key, kind in keys.items())
            raise InputError(
                f"{path}, line {number}: must be a JSON object with {wanted}; got {_start(line)}. {_MEND}"
            )
        rows.append(row)
    return rows


_KINDS = {str: "a text", int: "a whole number"}
_MEND = "Correct that line, or remove it: the other rows are good without it."


def _start(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
