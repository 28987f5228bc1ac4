"""Training batches: grain reads, in an order that depends on the seed and on nothing else."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from sparseshot_jax.data.cache import MapCache, WholeMaps
from sparseshot_jax.data.cases import Case, whole_window
from sparseshot_jax.data.labels import TargetMaps
from sparseshot_jax.data.tiles import TileIndex, TileSpec, draw_tile, tile_index
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Batch

CACHE_BYTES = 1 << 29  # decoded images and drawn targets that a process keeps
_WHOLE_PX = 1 << 24  # an image up to this size is decoded and drawn whole, and cropped

Tile = dict[str, np.ndarray]


class TileReader:
    """(index of a cell, generator) -> one tile. Picklable; safe to call from many threads."""

    def __init__(self, cases: Sequence[Case], spec: TileSpec, index: TileIndex):
        self._cases = tuple(cases)
        self._spec = spec
        self._index = index
        self._targets = tuple(TargetMaps(c.given, c.labels, mpp=c.mpp) for c in cases)
        self._cache = MapCache(CACHE_BYTES)

    def __call__(self, cell: int, rng: np.random.Generator) -> Tile:
        """Keys image, ground, label, valid, as in `Batch`, without the batch axis."""
        where, y, x = draw_tile(self._index, self._spec, self._index.cells[cell], rng)
        grid = self._index.grids[where]
        if grid.height * grid.width <= _WHOLE_PX:
            whole = self._cache.get(where, lambda: self._whole(where))
            crop = slice(y, y + grid.tile_px), slice(x, x + grid.tile_px)
            image, ground, label = whole.image[crop], whole.ground[crop], whole.label[crop]
        else:
            window = grid.window(y, x)
            image = self._cases[where].slide.read(window)
            ground, label = self._targets[where].draw(window)
        return {"image": image, "ground": ground, "label": label, "valid": np.ones((), bool)}

    def _whole(self, where: int) -> WholeMaps:
        case = self._cases[where]
        window = whole_window(case, self._spec.mpp)
        ground, label = self._targets[where].draw(window)
        return WholeMaps(image=case.slide.read(window), ground=ground, label=label)


def tile_dataset(
    cases: Sequence[Case],
    spec: TileSpec,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """The endless sequence of tiles of one process, addressed by number.

    Every epoch visits each cell of the tissue once, in a new order. Process p of P has the tiles p,
    p + P, p + 2 P ... of one sequence, so that a global batch holds the same tiles for any P.
    """
    if not cases:
        raise InputError("training needs at least one case; the training split is empty.")
    index = tile_index(cases, spec)
    reader = TileReader(cases, spec, index)
    tiles = grain.MapDataset.range(len(index.cells)).seed(seed).shuffle().repeat()
    return tiles.random_map(reader)[process_index::process_count]


class TrainBatches(Iterator[Batch]):
    """Batches of tiles with NumPy leaves; see `train_batches`."""

    def __init__(self, tiles: grain.MapDataset, *, batch_size: int, workers: int = 0, threads: int = 4):
        self._batches = tiles.batch(batch_size, drop_remainder=True, batch_fn=_stack)
        self._workers = workers
        self._threads = threads
        self._next = 0
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        arrays = next(self._iterator)
        self._next += 1
        return Batch(**arrays)

    def get_state(self) -> dict[str, Any]:
        """The position: how many batches were given out. JSON-ready."""
        return {"next_batch": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue after `state["next_batch"]` batches, whatever workers and threads there were."""
        self.close()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """Stop threads and worker processes; the next batch starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> grain.DatasetIterator:
        # Slicing before the work is handed out makes the position one number: grain's own state
        # counts per worker, and could not be restored with another number of them.
        rest = self._batches[self._next :]
        ahead = max(2, 2 * self._threads)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        batches = rest.to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads its options there; nobody else parses them
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2),
                worker_init_fn=_start_worker,
            )
        return iter(batches)


def train_batches(
    cases: Sequence[Case],
    tiles: TileSpec,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """An endless iterator of training batches, the same for any number of workers and threads.

    Args:
        cases: the training split.
        tiles: size, resolution and choice of the tiles.
        batch_size: tiles a batch in this process.
        seed: [0, 2**32) of the order and of the random places.
        workers: worker processes; 0 reads in threads of this process, which is enough where decoding
            releases the interpreter (slides).
        threads: reading threads in each process.
        process_index: this process among `process_count`, each with its own share of the tiles.
        process_count: processes that train together.

    Returns:
        Iterator of `Batch` (uint8 image, ground and label, all valid) with get_state and set_state.

    Raises:
        InputError: no cases, no tissue, or a tile larger than its image.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}; got {value}.")
    dataset = tile_dataset(cases, tiles, seed=seed, process_index=process_index, process_count=process_count)
    return TrainBatches(dataset, batch_size=batch_size, workers=workers, threads=threads)


def _stack(tiles: Sequence[Tile]) -> Tile:
    return {key: np.stack([tile[key] for tile in tiles]) for key in tiles[0]}


def _start_worker(worker: int, count: int) -> None:
    """Ctrl-C is the main process's to handle; and a worker must not outlive it, even after SIGKILL."""
    del worker, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=_leave_after, args=(sentinel,), daemon=True).start()


def _leave_after(sentinel: int, leave: Callable[[int], None] = os._exit) -> None:
    multiprocessing.connection.wait([sentinel])
    leave(1)
