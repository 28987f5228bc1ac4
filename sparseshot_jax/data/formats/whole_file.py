"""Files that appear under their name only when they are complete."""

import contextlib
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from sparseshot_jax.errors import InputError


@contextlib.contextmanager
def whole_file(path: Path, *, packed: bool = False) -> Iterator[BinaryIO]:
    """A stream to write to; the file appears when the block ends, and not at all after an exception.

    Args:
        path: the file; one that stood there before is replaced. Its folder must exist.
        packed: write gzip.

    Raises:
        InputError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            if packed:
                # No name and no time inside: equal objects give equal files.
                with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as inner:
                    yield cast(BinaryIO, inner)
            else:
                yield stream
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror or error}. Check that its folder exists, may be "
            "written to and has space left."
        ) from error
    finally:
        # Gone already where all went well.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
