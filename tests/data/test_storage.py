import builtins
import os
from pathlib import Path

import fsspec
import pytest

from sparseshot_jax.data import storage
from sparseshot_jax.errors import InputError


@pytest.fixture(params=["local", "file", "memory"])
def root(request, tmp_path, monkeypatch):
    """A folder of each kind of storage."""
    monkeypatch.setenv(storage.CACHE_VARIABLE, str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return {"local": str(tmp_path / "data"), "file": f"file://{tmp_path}/data", "memory": "memory://data"}[
        request.param
    ]


def test_what_was_written_is_read_listed_and_there(root):
    url = storage.join(root, "a", "b.bin")
    assert not storage.exists(url)
    assert storage.list_names(storage.join(root, "a")) == []
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two!")
    storage.write_bytes(storage.join(root, "a", "a.bin"), b"")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"two!"
    assert storage.size_of(url) == 4
    assert storage.list_names(storage.join(root, "a")) == ["a.bin", "b.bin"]
    assert storage.list_names(root) == ["a"]


def test_a_local_file_is_published_and_fetched(root, tmp_path):
    source = tmp_path / "source.bin"
    source.write_bytes(os.urandom(10_000))
    url = storage.join(root, "deep", "copy.bin")
    storage.publish(source, url)
    assert storage.fetch(url).read_bytes() == source.read_bytes()
    assert storage.read_bytes(url) == source.read_bytes()


def test_fetched_once_and_again_when_replaced():
    memory = fsspec.filesystem("memory")
    url = "memory://fetched/x.bin"
    storage.write_bytes(url, b"first")
    copy = storage.fetch(url)
    copy.write_bytes(b"FIRST")  # the size is right: it is not fetched again
    assert storage.fetch(url).read_bytes() == b"FIRST"
    copy.write_bytes(b"FIR")  # it is not
    assert storage.fetch(url).read_bytes() == b"first"
    storage.write_bytes(url, b"other")  # as long, and another object
    assert storage.fetch(url).read_bytes() == b"other"
    assert [p.name for p in copy.parent.iterdir()] == ["x.bin"]
    memory.rm("/fetched", recursive=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(storage.CACHE_VARIABLE, str(tmp_path / "cache"))


def test_the_cache_is_below_home_unless_told(monkeypatch, tmp_path):
    assert storage.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(storage.CACHE_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.cache_folder() == tmp_path / ".cache" / "sparseshot_jax"


def test_staged_leaves_all_or_nothing(root):
    url = storage.join(root, "x.bin")

    def half():
        with storage.staged(url) as path:
            path.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half()
    assert storage.list_names(root) == []
    with storage.staged(url) as path:
        path.write_bytes(b"whole")
    assert storage.read_bytes(url) == b"whole"
    assert storage.list_names(root) == ["x.bin"]


def test_two_writers_of_one_process_do_not_meet(root):
    url = storage.join(root, "x.bin")
    with storage.staged(url) as first:
        first.write_bytes(b"first")
        with storage.staged(url) as second:
            assert second != first
            second.write_bytes(b"second")
        assert storage.read_bytes(url) == b"second"
    assert storage.read_bytes(url) == b"first"
    assert storage.list_names(root) == ["x.bin"]


def test_what_was_removed_is_gone(root):
    url = storage.join(root, "x.bin")
    storage.write_bytes(url, b"x")
    for _ in range(2):
        storage.remove(url)
        assert not storage.exists(url)


def test_an_upload_that_stops_short_is_told(monkeypatch, tmp_path):
    source = tmp_path / "source.bin"
    source.write_bytes(b"0123456789")
    memory = fsspec.filesystem("memory")

    def half(local, path, **kwargs):
        memory.pipe_file(path, Path(local).read_bytes()[:5])

    monkeypatch.setattr(memory, "put_file", half)
    with pytest.raises(InputError, match=r"memory://up/x\.bin: 5 of 10 bytes"):
        storage.publish(source, "memory://up/x.bin")


def test_a_download_that_stops_short_leaves_no_copy(monkeypatch, tmp_path):
    storage.write_bytes("memory://down/x.bin", b"0123456789")
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(memory, "get_file", lambda path, local: Path(local).write_bytes(b"0123"))
    with pytest.raises(InputError, match=r"memory://down/x\.bin: 4 of 10 bytes"):
        storage.fetch("memory://down/x.bin")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_no_such_file(root):
    url = storage.join(root, "none.bin")
    for read in (storage.read_bytes, storage.fetch, storage.size_of):
        with pytest.raises(InputError, match=r"none\.bin: no such file"):
            read(url)


@pytest.mark.parametrize(("url", "driver"), [("gs://b/x", "gcsfs"), ("s3://b/x", "s3fs")])
def test_a_missing_driver_names_the_command(url, driver, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == driver:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", without)
    for deed in (storage.exists, storage.read_bytes, storage.fetch, storage.list_names):
        with pytest.raises(InputError, match=rf"{url}.*pip install {driver}"):
            deed(url)


def test_an_unknown_kind_of_storage():
    with pytest.raises(InputError, match=r"nowhere:// is no storage.*gs, s3"):
        storage.exists("nowhere://x")


def test_a_driver_of_its_own_mind(monkeypatch):
    class Denied(Exception):
        pass

    def deny(path, *args, **kwargs):
        raise Denied("403: no rights\nlong trace")

    monkeypatch.setattr(fsspec.filesystem("memory"), "pipe_file", deny)
    with pytest.raises(InputError, match=r"memory://x/y: cannot be written: 403: no rights\. Check"):
        storage.write_bytes("memory://x/y", b"")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"")


def test_a_writer_of_its_own_gets_a_local_path(root):
    url = storage.join(root, "deep", "x.geojson.gz")
    storage.make_folder(storage.join(root, "deep"))
    with storage.writable(url) as path:
        assert path.name == "x.geojson.gz"
        path.write_bytes(b"whole")
    assert storage.read_bytes(url) == b"whole"
    assert storage.list_names(storage.join(root, "deep")) == ["x.geojson.gz"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be made"):
        storage.make_folder(tmp_path / "file" / "folder")


def test_what_others_write_is_seen(monkeypatch):
    """A driver that remembers listings is told to forget them, those of the folder itself too."""
    forgotten = []
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(memory, "invalidate_cache", lambda path=None: forgotten.append(path))
    storage.list_names("memory://run/checkpoints")
    assert forgotten == ["/run/checkpoints"]
