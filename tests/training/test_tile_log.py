import collections

import numpy as np
import pytest

from sparseshot_jax.data import storage
from sparseshot_jax.data.pipeline import train_batches
from sparseshot_jax.training.log import read_rows
from sparseshot_jax.training.prefetch import Prefetch
from sparseshot_jax.training.tile_log import LoggedTiles

PLACES, BATCH = 13, 4


class Numbered:
    def __len__(self):
        return PLACES

    def read(self, place, rng):
        image = np.full((2, 2, 3), place, np.uint8)
        plane = np.zeros((2, 2), np.uint8)
        return {"image": image, "ground": plane, "label": plane, "valid": np.ones((), bool)}

    def name(self, place):
        return "a.svs"


class Process:
    """What one process of a job does with its batches."""

    def __init__(self, folder, index, count, *, step=0, position=None, depth=2):
        self.batches = train_batches(
            Numbered(), batch_size=BATCH // count, seed=1, process_index=index, process_count=count, epochs=2
        )
        if position is not None:
            self.batches.set_state(position)
        self.feed = Prefetch(self.batches, lambda batch: batch, depth)
        self.log = LoggedTiles(
            self.feed,
            self.batches.held,
            folder=storage.join(folder, "tiles"),
            resume_step=step,
            process_index=index,
            process_count=count,
        )

    def take(self, steps):
        got = [self.log.next()[0] for _ in range(steps)]
        return [np.where(batch.valid, batch.image[:, 0, 0, 0].astype(int), -1).tolist() for batch in got]

    def close(self):
        self.log.close()
        self.feed.close()
        self.batches.close()


def rows_of(folder, index):
    return read_rows(storage.join(folder, "tiles", f"process-{index}.jsonl"))


@pytest.mark.parametrize("depth", [0, 3])
def test_a_row_tells_the_batch_of_its_step_whatever_was_read_ahead(tmp_path, depth):
    process = Process(tmp_path, 0, 1, depth=depth)
    taken = process.take(7)
    assert process.log.get_state() == {"next_tile": 28}
    with pytest.raises(StopIteration):
        process.log.next()
    process.close()
    rows = rows_of(tmp_path, 0)
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [row["places"] for row in rows] == taken
    assert [number for row in rows for number in row["sequence"]] == [*range(26), -1, -1]
    assert rows[-1]["places"][2:] == [-1, -1]


@pytest.mark.parametrize("where", ["local", "object store"])
def test_saved_by_four_resumed_by_two_then_by_one_every_tile_is_logged_once(tmp_path, where):
    """Each job dies two steps after its checkpoint, with those steps in the files of all its processes."""
    folder = tmp_path if where == "local" else "memory://test_tile_log"
    step, position = 0, None
    for count, until in ((4, 2), (2, 4), (1, 7)):
        processes = [Process(folder, k, count, step=step, position=position) for k in range(count)]
        for process in processes:
            process.take(until - step)
        step, position = until, processes[0].log.get_state()
        for process in processes:
            process.take(0 if until == 7 else 2)
            process.close()
    logged = collections.Counter()
    for index in range(4):
        for row in rows_of(folder, index):
            logged.update(zip(row["sequence"], row["places"]))
    del logged[-1, -1]
    assert set(logged.values()) == {1}
    assert sorted(number for number, _ in logged) == list(range(2 * PLACES))
    for epoch in range(2):
        assert sorted(place for number, place in logged if number // PLACES == epoch) == list(range(PLACES))
