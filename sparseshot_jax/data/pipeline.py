"""Training batches: grain reads, in an order that depends on the seed and on nothing else.

cases = source.load(labels, seed).train
tiles = CutTiles(cases, spec, tile_index(cases, spec))  # or ShardTiles(folder)
batches = train_batches(tiles, batch_size=8, seed=0, on_fault=print)
batch = next(batches)

There is one sequence of tiles for all processes. Batch n of a global size B is its tiles [n B, (n + 1) B),
and process p of P reads rows [p B / P, (p + 1) B / P) of it. So a batch, row for row, is the same for any P,
and with it what the step draws for each row; the position is one number, the tiles given out so far, and
serves any number of processes, worker processes and threads, and any B.

grain.experimental.ElasticIterator (0.2.18) keeps one number as well. It is not used, because it gives each
process every P-th tile, so that rows change their order with P; drops what does not fill the last batch; lets
processes end after unequal numbers of batches; and takes neither a way to stack tiles nor a start of workers.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from sparseshot_jax.data.cut_tiles import CutTiles as CutTiles
from sparseshot_jax.data.faults import FaultLog, fault_of
from sparseshot_jax.data.slides.slide import slowest_read
from sparseshot_jax.data.stacking import Tile, as_batch, blank_like, read_stacked
from sparseshot_jax.data.watchdog import Watchdog
from sparseshot_jax.data.worker_process import start_worker
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Batch

STALL_S = 600.0  # seconds without a batch after which reading is taken to hang
_PROBES = 16  # places tried for the shape of a tile where none was read so far

Warn = Callable[[str], None]
_warn: Warn = logging.getLogger(__name__).warning


@runtime_checkable
class Tiles(Protocol):
    """Where training tiles come from: cut from slides, or read from shards. Picklable, thread-safe."""

    def __len__(self) -> int:
        """Places of one epoch."""
        ...

    def read(self, place: int, rng: np.random.Generator) -> Tile:
        """A tile, as in `Batch`, without the batch axis: image, ground, label, valid, and where they are
        needed distance, place, and what `TileObjects.objects_in` gives.

        Raises:
            InputError: a file is bad; its text begins with the file.
        """
        ...

    def name(self, place: int) -> str:
        """What to call the file of that place in a message."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """One tile of the sequence, not read yet: `read()` gives it, the same every time."""

    reader: "_Reader | None"
    place: int  # below 0: no place, only something to fill up the end
    seed: int  # of the tile's own random numbers

    def read(self) -> Tile:
        """The tile (blank: no arrays where none tells their shape); `fault` = why it could not be read."""
        if self.reader is None:
            return {"fault": None}
        if self.place < 0:
            return self.reader.blank()
        return self.reader.read(self.place, np.random.Generator(np.random.Philox(self.seed)))


def tile_dataset(tiles: Tiles, *, seed: int, epochs: int | None = None) -> grain.MapDataset:
    """The sequence of `Draw` of all processes, addressed by number; endless without `epochs`.

    Every epoch visits each place once, in a new order.

    Raises:
        InputError: there is no place at all, or `epochs` is below 1.
    """
    if not len(tiles):
        raise InputError("training needs at least one tile; the training split has none.")
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs must be at least 1; got {epochs}. None is without end.")
    reader = _Reader(tiles)
    return grain.MapDataset.range(len(tiles)).seed(seed).shuffle().repeat(epochs).random_map(reader)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Share:
    """Number of a global batch, counted from `start`, -> what this process has of it."""

    sequence: grain.MapDataset
    start: int  # tiles of the sequence before batch 0
    size: int  # tiles of a global batch
    rows: range  # of them, those of this process

    def __len__(self) -> int:
        return max(0, -(-(len(self.sequence) - self.start) // self.size))

    def __call__(self, number: int) -> dict[str, Any]:
        return read_stacked([draw for _, draw in self.draws(number)])

    def draws(self, number: int) -> list[tuple[int, Draw]]:
        """Number in the sequence and draw of each row; -1 and a blank beyond the sequence's end."""
        first = self.start + number * self.size
        return [self._draw(first + row) for row in self.rows]

    def _draw(self, at: int) -> tuple[int, Draw]:
        within = at < len(self.sequence)
        draw: Any = self.sequence[at if within else 0]
        return (at, draw) if within else (-1, Draw(reader=draw.reader, place=-1, seed=0))


class TrainBatches(Iterator[Batch]):
    """Batches of tiles with NumPy leaves; see `train_batches`."""

    def __init__(
        self,
        sequence: grain.MapDataset,
        *,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        workers: int = 0,
        threads: int = 4,
        max_fault_share: float = 0.01,
        on_fault: Warn = _warn,
        stall_s: float = STALL_S,
    ):
        self._sequence = sequence
        self._size = batch_size * process_count
        self._rows = range(process_index * batch_size, (process_index + 1) * batch_size)
        self._workers = workers
        self._threads = threads
        self._next = 0
        self._iterator: grain.DatasetIterator | None = None
        self._watchdog = Watchdog()
        self._stall_s = stall_s
        self.faults = FaultLog(max_share=max_fault_share, on_fault=on_fault)

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        try:
            arrays = self._watchdog.call(self._iterator.__next__, self._stall_s)
        except TimeoutError:
            self._iterator = None  # closing it would wait for what hangs
            raise InputError(self._stalled()) from None
        self._next += self._size
        faults = arrays.pop("faults")
        self.faults.add(tiles=arrays.pop("tiles"), faults=faults)
        if not arrays:
            why = f"{faults[-1].message} " if faults else ""
            raise InputError(f"{why}No other tile could be read either: training cannot begin.")
        return as_batch(arrays)

    def get_state(self) -> dict[str, Any]:
        """The position: how many tiles all processes gave out, those that fill an end too. JSON-ready."""
        return {"next_tile": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue at a position, whatever processes, workers, threads and batch size there were.

        Runs of before processes were counted hold {"next_batch": n}: n batches of this size.
        """
        self.close()
        self._next = int(state["next_tile"] if "next_tile" in state else state["next_batch"] * self._size)

    def held(self, state: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Of each row of this process's batch that ended at position `state`: number in the sequence, place.

        -1 and -1 for a tile that only fills up the end.
        """
        draws = self._share(state["next_tile"] - self._size).draws(0)
        return [at for at, _ in draws], [draw.place for _, draw in draws]

    def _share(self, start: int) -> _Share:
        return _Share(sequence=self._sequence, start=start, size=self._size, rows=self._rows)

    def close(self) -> None:
        """Stop threads and worker processes; the next batch starts new ones."""
        self._watchdog.close()
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> grain.DatasetIterator:
        # Counting anew from the position makes it one number: grain's own state counts per worker, and
        # could not be restored with another number of them.
        share = self._share(self._next)
        rest = grain.MapDataset.range(len(share)).map(share)
        ahead = max(2, 2 * self._threads)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        batches = rest.to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads its options there; nobody else parses them
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2),
                worker_init_fn=start_worker,
            )
        return iter(batches)

    def _stalled(self) -> str:
        path, seconds = slowest_read()
        where = f"{path}: has been read for {seconds:.0f} s" if path else "the files: none was read"
        return (
            f"{where}, and no batch came within {self._stall_s:.0f} s. The disk or the network share hangs, "
            "or the file is damaged in a way that its reader cannot leave: check both, or leave the file out."
        )


def train_batches(
    tiles: Tiles,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
    max_fault_share: float = 0.01,
    on_fault: Warn = _warn,
    stall_s: float = STALL_S,
) -> TrainBatches:
    """An iterator of training batches, the same for any number of workers and threads.

    Args:
        tiles: where they come from.
        batch_size: tiles a batch in this process.
        seed: [0, 2**32) of the order and of the random places.
        workers: worker processes; 0 reads in threads of this process, which is enough where decoding
            releases the interpreter (slides).
        threads: reading threads in each process.
        process_index: which share of each global batch this process reads, among `process_count`.
        process_count: shares of `batch_size` tiles. Processes that hold parts of the same tiles (a mesh
            whose "space" spans processes) read one share.
        epochs: passes over the tiles. Every process gets the same number of batches; the last is filled
            up with tiles that are not valid. None = without end.
        max_fault_share: of tiles that may be unreadable, [0, 1]; held from 100 tiles on.
        on_fault: called with a sentence, once for each unreadable file and reason.
        stall_s: seconds without a batch after which reading is taken to hang.

    Returns:
        Iterator of `Batch` (uint8 image, ground and label) with get_state and set_state. A tile that
        cannot be read is replaced by one that is not valid and all IGNORED: the sequence never shifts.

    Raises:
        InputError: no tiles; and from the iterator: too many faults, none readable, or reading hangs.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}; got {value}.")
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index must be in [0, {process_count}); got {process_index}.")
    return TrainBatches(
        tile_dataset(tiles, seed=seed, epochs=epochs),
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        workers=workers,
        threads=threads,
        max_fault_share=max_fault_share,
        on_fault=on_fault,
        stall_s=stall_s,
    )


class _Reader:
    """Reads tiles, and makes blank ones of the same shape."""

    def __init__(self, tiles: Tiles):
        self._tiles = tiles
        self._blank: Tile | None = None

    def __call__(self, place: int, rng: np.random.Generator) -> Draw:
        return Draw(reader=self, place=place, seed=int(rng.integers(1 << 63)))

    def read(self, place: int, rng: np.random.Generator) -> Tile:
        try:
            return {**self._tiles.read(place, rng), "fault": None}
        except InputError as error:
            return {**self.blank(), "fault": fault_of(error, self._tiles.name(place))}

    def blank(self) -> Tile:
        """A tile that is not valid; without arrays where no tile can be read that tells their shape."""
        if self._blank is None:
            like = self._any()
            if like is None:
                return {"fault": None}
            self._blank = {**blank_like(like), "fault": None}
        return dict(self._blank)

    def _any(self) -> Tile | None:
        count = len(self._tiles)
        for place in np.linspace(0, count - 1, min(count, _PROBES)).astype(int).tolist():
            try:
                return self._tiles.read(place, np.random.default_rng(0))
            except InputError:
                continue
        return None
