"""Tissue masks on disk: finding the tissue of a slide takes seconds, and it is asked for at every start.

A file of the cache that is broken, or of another slide, counts as absent; a folder that cannot be written
to only means that the mask is found anew the next time.
"""

import contextlib
import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from sparseshot_jax.data import storage
from sparseshot_jax.errors import InputError

_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def cache_key(path: str, *settings: object) -> str | None:
    """What a mask depends on, as text; None = it cannot be known (no file, an image in memory)."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return repr((os.path.abspath(path), status.st_size, status.st_mtime_ns, *settings))


def load_mask(key: str) -> Bool[np.ndarray, "h w"] | None:
    """The mask kept under a key; None = there is none."""
    with contextlib.suppress(*_BROKEN):
        data = io.BytesIO(_file(key).read_bytes())  # numpy would leave a broken file open
        kept = np.load(data, allow_pickle=False)
        height, width = (int(n) for n in kept["shape"])
        if str(kept["key"]) == key:
            return np.unpackbits(kept["bits"], count=height * width).reshape(height, width).astype(bool)
    return None


def save_mask(key: str, mask: Bool[np.ndarray, "h w"]) -> None:
    """Keep a mask, if the folder can be written to."""
    data = io.BytesIO()
    np.savez_compressed(data, key=np.array(key), shape=np.array(mask.shape), bits=np.packbits(mask))
    with contextlib.suppress(InputError):
        storage.write_bytes(str(_file(key)), data.getvalue())


def _file(key: str) -> Path:
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
    return storage.cache_folder() / "tissue" / f"{digest}.npz"
