"""Training tiles from shards: any record at any time, by many threads and processes."""

import bisect
import collections
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from sparseshot_jax.data import storage
from sparseshot_jax.data.shards.manifest import INDEX, SHARDS, Manifest, Shard, checksum, read_manifest
from sparseshot_jax.data.shards.records import decode_tile
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Needs

_OPEN = 256  # readers a process keeps: each holds a file open
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access
_ARRAYS = (
    "shard_offsets",
    "cells",
    "annotated_records",
    "annotated_offsets",
    "class_records",
    "class_offsets",
)


class ShardTiles:
    """The tiles of a folder of shards; an epoch is every cell of the tissue once.

    Of the tiles, `annotated_share` are ones that hold an annotated object: a random case, each alike, then
    one of its tiles; for `class_balance` of these a random class, each alike, then a tile that holds it.
    Picklable; `read` may be called from many threads. Each process opens the files for itself.

    Args:
        root: folder or URL of finished shards; remote shards are fetched when first looked at.
        annotated_share: [0, 1].
        class_balance: of the annotated draws, [0, 1].
        needs: what the model is trained on beside ground and class; None = whatever they hold.
        verify: compare the checksum of each shard when it is opened; its size is compared always.

    Raises:
        InputError: no finished shards there, their index is incomplete, or they were cut for other needs.
    """

    def __init__(
        self,
        root: str,
        *,
        annotated_share: float = 0.5,
        class_balance: float = 0.0,
        needs: Needs | None = None,
        verify: bool = False,
    ):
        for name, value in (("annotated_share", annotated_share), ("class_balance", class_balance)):
            if not 0.0 <= value <= 1.0:
                raise InputError(f"tiles.{name} must be in [0, 1]; got {value}.")
        self.root = os.fspath(root)
        self.manifest = read_manifest(self.root)
        if needs is not None and needs != self.needs:
            raise InputError(
                f"{self.root}: the shards were cut for a model that needs {_worded(self.needs)}; this one "
                f"needs {_worded(needs)}. Cut others with its config (sparseshot data tile)."
            )
        self._share, self._balance, self._verify = annotated_share, class_balance, verify
        self._open_index()
        self._processes: dict[int, _Readers] = {}

    def __len__(self) -> int:
        """Places of one epoch."""
        # where no cell holds tissue, the tiles round objects are all there is
        return len(self._cells) or len(self._annotated)

    @property
    def needs(self) -> Needs:
        """What the tiles hold beside image, ground and label."""
        return Needs(**self.manifest.config["needs"])

    def read(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """See `pipeline.Tiles.read`.

        Args:
            place: in the epoch; which tile is read where it is not drawn round an object.
            rng: for the draw.

        Raises:
            InputError: a shard is missing, cut short or damaged.
        """
        tile = self.read_record(self._draw(place, rng))
        tile["valid"] = np.ones((), bool)
        return tile

    def name(self, place: int) -> str:
        """The shard of a place."""
        return self._url(self._locate(self._of_place(place))[0])

    def read_record(self, record: int) -> dict[str, np.ndarray]:
        """What `records.decode_tile` gives of a record, by its number in all shards.

        Raises:
            InputError: as `read`.
        """
        k, position = self._locate(record)
        reader = self._readers().get(k)
        try:
            return decode_tile(reader.read([position])[0])
        except (InputError, RuntimeError, IndexError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(_remedy(self._url(k), f"record {position} cannot be read: {reason}")) from error

    def _draw(self, place: int, rng: np.random.Generator) -> int:
        if not len(self._annotated) or rng.random() >= self._share:
            return self._of_place(place)
        balanced = self._balance > 0 and len(self._by_class) and rng.random() < self._balance
        if balanced:
            records, offsets = self._by_class, self._class_offsets
        else:
            records, offsets = self._annotated, self._annotated_offsets
        group = int(rng.integers(len(offsets) - 1))
        return int(records[rng.integers(int(offsets[group]), int(offsets[group + 1]))])

    def _of_place(self, place: int) -> int:
        return int(self._cells[place]) if len(self._cells) else int(self._annotated[place])

    def _locate(self, record: int) -> tuple[int, int]:
        k = bisect.bisect_right(self._offsets, record) - 1
        return k, record - self._offsets[k]

    def _url(self, shard: int) -> str:
        return storage.join(self.root, SHARDS, self.manifest.shards[shard].name)

    def _readers(self) -> "_Readers":
        readers = self._processes.get(os.getpid())
        if readers is None:
            # A fork copies neither open files nor held locks safely: each process has its own.
            readers = self._processes.setdefault(os.getpid(), _Readers(self._open_shard))
        return readers

    def _open_shard(self, shard: int) -> ArrayRecordReader:
        return open_shard(self._url(shard), self.manifest.shards[shard], verify=self._verify)

    def _open_index(self) -> None:
        arrays = {name: _mapped(self.root, f"{name}.npy", self.manifest) for name in _ARRAYS}
        self._offsets = arrays["shard_offsets"].tolist()  # a list is searched ten times as fast
        self._cells = arrays["cells"]
        self._annotated, self._annotated_offsets = arrays["annotated_records"], arrays["annotated_offsets"]
        self._by_class, self._class_offsets = arrays["class_records"], arrays["class_offsets"]

    def __getstate__(self) -> dict[str, Any]:
        index = ("_offsets", "_cells", "_annotated", "_annotated_offsets", "_by_class", "_class_offsets")
        # a mapped array would be pickled with all it holds
        return {k: v for k, v in self.__dict__.items() if k not in index} | {"_processes": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_index()


class _Readers:
    """Open shards of one process, least recently used first out."""

    def __init__(self, open_: Callable[[int], ArrayRecordReader]):
        self._open = open_
        self._held: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._opening: dict[int, threading.Lock] = collections.defaultdict(threading.Lock)

    def get(self, shard: int) -> ArrayRecordReader:
        """The shard, opened now or before."""
        found = self._find(shard)
        if found is not None:
            return found
        with self._lock:
            opening = self._opening[shard]
        with opening:  # the first thread opens, and fetches if need be; others of this shard wait
            found = self._find(shard)
            if found is None:
                found = self._open(shard)
                with self._lock:
                    self._held[shard] = found
                    if len(self._held) > _OPEN:  # closed when no thread reads from it any more
                        self._held.popitem(last=False)
        return found

    def _find(self, shard: int) -> ArrayRecordReader | None:
        with self._lock:
            if shard in self._held:
                self._held.move_to_end(shard)
            return self._held.get(shard)


def open_shard(url: str, shard: Shard, *, verify: bool = False) -> ArrayRecordReader:
    """Open one shard, fetched first where it is remote.

    Raises:
        InputError: missing, cut short, or (with `verify`) of another content than was written.
    """
    path = storage.fetch(url)
    size = path.stat().st_size
    if size != shard.bytes:
        raise InputError(_remedy(url, f"has {size} bytes and was written with {shard.bytes}"))
    if verify and checksum(path) != shard.checksum:
        raise InputError(_remedy(url, "its checksum is not the one it was written with"))
    reader = ArrayRecordReader(str(path), _READER_OPTIONS)
    if not reader.ok() or reader.num_records() != shard.records:
        raise InputError(_remedy(url, f"does not hold the {shard.records} records it was written with"))
    return reader


def verify_shards(root: str, on_progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Compare the size and the checksum of every shard with the manifest.

    Raises:
        InputError: names the shards that are missing or damaged.
    """
    manifest = read_manifest(root)
    wrong = []
    for k, shard in enumerate(manifest.shards):
        try:
            open_shard(storage.join(root, SHARDS, shard.name), shard, verify=True)
        except InputError as error:
            wrong.append(str(error))
        if on_progress:
            on_progress(k + 1, len(manifest.shards))
    if wrong:
        more = f" And {len(wrong) - 5} more shards." if len(wrong) > 5 else ""
        raise InputError(" ".join(wrong[:5]) + more)
    return manifest


def _mapped(root: str, name: str, manifest: Manifest) -> np.ndarray:
    url = storage.join(root, INDEX, name)
    path = storage.fetch(url)
    if path.stat().st_size != manifest.index.get(name):
        raise InputError(_remedy(url, f"has {path.stat().st_size} bytes, not {manifest.index.get(name)}"))
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(_remedy(url, f"not an array ({error})")) from error


def _worded(needs: Needs) -> str:
    parts = [f"{needs.objects} places for objects"] if needs.objects else []
    parts += ["the distance to borders"] if needs.distance else []
    return " and ".join(parts) or "ground and class alone"


def _remedy(url: str, what: str) -> str:
    return (
        f"{url}: {what}. Copy the file again; or remove it and manifest.json and run `data tile` again, "
        "which cuts this file alone."
    )
