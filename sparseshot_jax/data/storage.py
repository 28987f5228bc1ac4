"""Files by path or URL: local ones, gs://, s3:// and whatever else fsspec knows, alike."""

import contextlib
import hashlib
import os
import posixpath
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from sparseshot_jax.errors import InputError

Url = str | os.PathLike[str]  # a path, or a URL as text or epath.Path
CACHE_VARIABLE = "SPARSESHOT_CACHE"  # folder of fetched files
_DRIVERS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "az": "adlfs", "abfs": "adlfs"}
_EXTRAS = {"gcsfs": "gcs", "s3fs": "s3"}  # driver -> extra of this package


def is_local(url: Url) -> bool:
    """Whether it is a path of this machine.

    >>> is_local("runs/a"), is_local("file:///data/a"), is_local("gs://bucket/a")
    (True, True, False)
    """
    url = os.fspath(url)
    return "://" not in url or url.startswith("file://")


def local_path(url: Url) -> Path:
    """The path that a local URL means, `~` expanded."""
    return Path(os.fspath(url).removeprefix("file://")).expanduser()


def join(root: Url, *parts: str) -> str:
    """A name inside a folder.

    >>> join("gs://bucket/shards/", "index", "cells.npy")
    'gs://bucket/shards/index/cells.npy'
    """
    root = os.fspath(root)
    return os.path.join(root, *parts) if is_local(root) else posixpath.join(root, *parts)


def exists(url: Url) -> bool:
    """Whether there is a file or a folder of that name.

    Raises:
        InputError: the storage cannot be reached, or its driver is not installed.
    """
    if is_local(url):
        return local_path(url).exists()
    with _told(url, "looked up"):
        files, path = _files(url)
        return bool(files.exists(path))


def list_names(url: Url) -> list[str]:
    """Names of what lies directly in a folder, sorted; none where there is no such folder.

    Raises:
        InputError: as `exists`.
    """
    with _told(url, "listed"):
        if is_local(url):
            folder = local_path(url)
            return sorted(os.listdir(folder)) if folder.is_dir() else []
        files, path = _files(url)
        if not files.exists(path):
            return []
        found = files.ls(path, detail=False)
        names = {posixpath.basename(str(name).rstrip("/")) for name in found}
        # an object store may list the folder's own empty marker among its objects
        return sorted(names - {"", posixpath.basename(path.rstrip("/"))})


def size_of(url: Url) -> int:
    """Bytes of a file.

    Raises:
        InputError: no such file, or as `exists`.
    """
    with _told(url, "read"):
        if is_local(url):
            return local_path(url).stat().st_size
        files, path = _files(url)
        return int(files.size(path) or 0)


def read_bytes(url: Url) -> bytes:
    """A whole file.

    Raises:
        InputError: no such file, or as `exists`.
    """
    with _told(url, "read"):
        if is_local(url):
            return local_path(url).read_bytes()
        files, path = _files(url)
        return files.cat_file(path)


def write_bytes(url: Url, data: bytes) -> None:
    """Write a whole file or nothing: locally a renamed one, elsewhere one put.

    Raises:
        InputError: the place cannot be written, or as `exists`.
    """
    if is_local(url):
        with staged(url) as path, _told(url, "written"):
            path.write_bytes(data)
        return
    with _told(url, "written"):
        files, path = _files(url)
        files.pipe_file(path, data)


def remove(url: Url) -> None:
    """Remove a file; nothing happens where there is none.

    Raises:
        InputError: it cannot be removed, or as `exists`.
    """
    with _told(url, "removed"):
        if is_local(url):
            local_path(url).unlink(missing_ok=True)
            return
        files, path = _files(url)
        if files.exists(path):
            files.rm_file(path)


@contextlib.contextmanager
def staged(url: Url) -> Iterator[Path]:
    """A local path to write; what lies there at the end becomes the file `url`, or nothing does.

    Raises:
        InputError: the place cannot be written, or as `exists`.
    """
    if is_local(url):
        target = local_path(url)
        with _told(url, "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
        # random too: threads share the process number, and so do machines that share a disk
        scratch = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
        try:
            yield scratch
            with _told(url, "written"):
                os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="sparseshot.") as folder:
        scratch = Path(folder) / posixpath.basename(url)
        yield scratch
        publish(scratch, url)


@contextlib.contextmanager
def writable(url: Url) -> Iterator[Path]:
    """A local path for a writer that leaves a whole file or none: the file itself, or one to be uploaded.

    The path ends as `url` does. A local folder must exist.

    Raises:
        InputError: as `staged`.
    """
    url = os.fspath(url)
    if is_local(url):
        yield local_path(url)
        return
    with staged(url) as path:
        yield path


def make_folder(url: Url) -> None:
    """Make a folder and those above it; nothing where there is one. Object stores have none to make.

    Raises:
        InputError: it cannot be made.
    """
    if is_local(url):
        with _told(url, "made"):
            local_path(url).mkdir(parents=True, exist_ok=True)


def publish(source: Url, url: Url) -> None:
    """Copy a local file to `url`; all of it arrives or nothing.

    Raises:
        InputError: the place cannot be written, or as `exists`.
    """
    if is_local(url):
        with staged(url) as path, _told(url, "written"), open(source, "rb") as given, open(path, "wb") as out:
            while block := given.read(1 << 22):
                out.write(block)
        return
    with _told(url, "written"):
        files, path = _files(url)
        files.put_file(os.fspath(source), path)
        files.invalidate_cache(posixpath.dirname(path))
        sent, arrived = os.path.getsize(source), files.size(path)
    if arrived != sent:
        raise InputError(f"{url}: {arrived} of {sent} bytes arrived. Run the same command again.")


def fetch(url: Url) -> Path:
    """A local path with the file's content: the file itself, or a copy of it in the cache.

    The cache is the folder that SPARSESHOT_CACHE names, else ~/.cache/sparseshot_jax. A file that
    was replaced at its URL is fetched anew; old copies stay until somebody removes them.

    Raises:
        InputError: no such file, not enough room, or as `exists`.
    """
    if is_local(url):
        path = local_path(url)
        if not path.is_file():
            raise InputError(f"{url}: no such file. Check the name and the folder.")
        return path
    with _told(url, "read"):
        files, path = _files(url)
        size = files.size(path)
        # `ukey` changes with the stored object (ETag, generation or time, as the store has it)
        key = hashlib.blake2b(f"{url}\0{files.ukey(path)}".encode(), digest_size=12).hexdigest()
    copy = cache_folder() / key / posixpath.basename(path)
    if copy.is_file() and copy.stat().st_size == size:
        return copy
    with staged(str(copy)) as scratch:
        with _told(url, "fetched"):
            files.get_file(path, str(scratch))
            arrived = scratch.stat().st_size
        if arrived != size:
            raise InputError(f"{url}: {arrived} of {size} bytes arrived. Run the same command again.")
    return copy


def cache_folder() -> Path:
    """The folder of everything that can be made anew: fetched files, tissue masks."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "sparseshot_jax").expanduser()


def _files(url: Url) -> tuple[Any, str]:
    """File system and path of a URL; what it remembers of them is forgotten: others write there too."""
    protocol = os.fspath(url).split("://")[0]
    try:
        files, path = url_to_fs(os.fspath(url))
    except ImportError as error:
        driver = _DRIVERS.get(protocol, "")
        remedy = f"pip install {driver}" if driver else str(error).splitlines()[0]
        if driver in _EXTRAS:
            remedy += f', or "sparseshot-jax[{_EXTRAS[driver]}]"'
        raise InputError(f"{url}: {protocol}:// needs a driver that is not installed. {remedy}") from error
    except ValueError as error:
        known = ", ".join(name for name in ("gs", "s3", "abfs", "https", "memory") if name in _protocols())
        raise InputError(
            f"{url}: {protocol}:// is no storage that fsspec knows. Use a path, or one of {known}."
        ) from error
    files.invalidate_cache(path)  # and of the folders above it
    return files, path


def _protocols() -> list[str]:
    return fsspec.available_protocols()


@contextlib.contextmanager
def _told(url: Url, deed: str) -> Iterator[None]:
    """What the storage raises, in words. Remote drivers raise errors of their own libraries."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file. Check the name and the folder.") from error
    except Exception as error:
        if is_local(url) and not isinstance(error, OSError):
            raise
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = text.strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"{url}: cannot be {deed}: {reason}. Check the name, the room left, and your rights there."
        ) from error
