"""A run goes on with other processes, other workers or another batch size: no tile is lost or doubled."""

import itertools

import grain
import jax
import numpy as np
import pytest

from sparseshot_jax.data.pipeline import tile_dataset, train_batches
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground

PLACES, BATCH, SEED = 37, 8, 3  # an epoch is no whole number of batches


class Numbered:
    """Tiles that show their place and a random number; some cannot be read."""

    def __init__(self, count=PLACES, bad=()):
        self.count, self.bad = count, frozenset(bad)

    def __len__(self):
        return self.count

    def read(self, place, rng):
        drawn = int(rng.integers(256))
        if place in self.bad:
            raise InputError(f"a.svs: place {place} cannot be read.")
        image = np.full((2, 2, 3), place, np.uint8)
        image[..., 1] = drawn
        plane = np.zeros((2, 2), np.uint8)
        return {"image": image, "ground": plane, "label": plane, "valid": np.ones((), bool)}

    def name(self, place):
        return "a.svs"


class Job:
    """P processes that read a global batch together, as one iterator of global batches."""

    def __init__(self, processes, *, batch=BATCH, state=None, tiles=None, **options):
        self.parts = [
            train_batches(
                tiles or Numbered(),
                batch_size=batch // processes,
                seed=SEED,
                process_index=p,
                process_count=processes,
                on_fault=lambda text: None,
                **{"threads": 1} | options,
            )
            for p in range(processes)
        ]
        if state is not None:
            for part in self.parts:
                part.set_state(state)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for part in self.parts:
            part.close()

    def __iter__(self):
        return self

    def __next__(self):
        found = [next(part, None) for part in self.parts]
        if all(part is None for part in found):
            raise StopIteration
        assert None not in found, "the processes end together"
        return jax.tree.map(lambda *rows: np.concatenate(rows), *found)

    def state(self):
        states = [part.get_state() for part in self.parts]
        assert all(state == states[0] for state in states), "one position, whoever saves it"
        return states[0]


def read(processes, count=None, **options):
    """The next `count` global batches (None: all), and the position behind them."""
    with Job(processes, **options) as job:
        return list(itertools.islice(job, count)), job.state()


def places(batches):
    return [int(place) for batch in batches for place in batch.image[batch.valid, 0, 0, 0]]


def tiles_of(batches):
    """Place and random number of every valid tile, in order."""
    return [tuple(tile) for batch in batches for tile in batch.image[batch.valid, 0, 0, :2].tolist()]


@pytest.fixture(scope="module")
def straight():
    """15 batches of one process: 3 epochs and 9 tiles of the fourth."""
    return read(1, 15)[0]


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_global_batch_is_the_same_row_for_row(straight, processes):
    ours, state = read(processes, 15)
    for one, other in zip(ours, straight, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert state == {"next_tile": 15 * BATCH}


@pytest.mark.parametrize("after", [1, 3, 8])  # 3 batches: inside the first epoch; 8: inside the second
@pytest.mark.parametrize("processes", [1, 2, 8])
def test_read_by_four_and_resumed_by_others(straight, processes, after):
    first, state = read(4, after)
    rest, _ = read(processes, 15 - after, state=state)
    assert tiles_of(first + rest) == tiles_of(straight)
    seen = places(first + rest)
    for epoch in range(3):  # batches run over its border
        assert sorted(seen[epoch * PLACES : (epoch + 1) * PLACES]) == list(range(PLACES))
    assert len(set(seen[3 * PLACES :])) == len(seen) - 3 * PLACES


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_the_end_is_filled_up_and_nothing_is_lost(processes):
    """2 epochs are 74 tiles: 9 batches of 8, and one of 2. A process may have no tile of that."""
    whole, end = read(1, epochs=2)
    first, state = read(4, 6, epochs=2)
    rest, same = read(processes, epochs=2, state=state)
    assert same == end
    assert len(first + rest) == 10
    for one, other in zip(first + rest, whole, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    last = rest[-1]
    assert last.valid.tolist() == [True] * 2 + [False] * 6
    assert (last.ground[2:] == Ground.IGNORED).all()
    assert sorted(places(first + rest)) == sorted([*range(PLACES)] * 2)
    assert read(processes, epochs=2, state=end)[0] == []


@pytest.mark.parametrize(("processes", "batch"), [(1, 12), (2, 6), (3, 15), (1, 1)])
@pytest.mark.parametrize("epochs", [None, 2])
def test_resumed_with_another_batch_size(straight, processes, batch, epochs):
    """24 tiles were given out, which is no multiple of 15; the last batch is filled up anew."""
    first, state = read(4, 3, epochs=epochs)
    count = None if epochs else (15 * BATCH - 24) // batch
    rest, _ = read(processes, count, batch=batch, state=state, epochs=epochs)
    ours = tiles_of(first + rest)
    assert ours == tiles_of(straight)[: len(ours)]
    assert len(ours) == (2 * PLACES if epochs else 24 + count * batch)


@pytest.mark.parametrize(("workers", "threads"), [pytest.param(2, 1, marks=pytest.mark.slow), (0, 3)])
def test_workers_and_threads_change_nothing(straight, workers, threads):
    first, state = read(2, 4, workers=workers, threads=threads)
    rest, _ = read(1, 11, state=state, threads=0)
    assert tiles_of(first + rest) == tiles_of(straight)


def test_a_position_of_an_older_run(straight):
    """It counted batches: n of the batch size that the run still has."""
    rest, state = read(2, 11, state={"next_batch": 4})
    assert tiles_of(rest) == tiles_of(straight[4:])
    assert state == {"next_tile": 15 * BATCH}


def test_a_tile_that_cannot_be_read_keeps_its_row(straight):
    """It shifts nothing, in no process."""
    (*batches,), _ = read(4, 5, tiles=Numbered(bad=(2,)), max_fault_share=1.0)
    for one, other in zip(batches, straight):
        there = other.image[:, 0, 0, 0] != 2
        np.testing.assert_array_equal(one.valid, there)
        np.testing.assert_array_equal(one.image[there], other.image[there])
    assert sum((~batch.valid).sum() for batch in batches) == 1


def test_what_a_batch_held_follows_from_its_position(straight):
    with Job(4, epochs=2) as job:
        numbers, held = [], []
        for batch in job:
            rows = [part.held(job.state()) for part in job.parts]
            at = np.concatenate([sequence for sequence, _ in rows])
            here = np.concatenate([places for _, places in rows])
            np.testing.assert_array_equal(here[batch.valid], batch.image[batch.valid, 0, 0, 0])
            assert ((at < 0) == ~batch.valid).all()
            assert ((here < 0) == ~batch.valid).all()
            numbers += at[batch.valid].tolist()
            held += here[batch.valid].tolist()
    assert numbers == list(range(2 * PLACES))
    assert held == places(straight)[: 2 * PLACES]


def test_what_is_said_of_grains_iterator():
    """Why the plan is ours: its rows depend on the number of processes, and it drops what is left over."""
    sequence = tile_dataset(Numbered(), seed=SEED, epochs=1).map(lambda draw: draw.place)

    def global_batches(processes):
        shards = [grain.sharding.ShardOptions(shard_index=p, shard_count=processes) for p in range(processes)]
        parts = [list(grain.experimental.ElasticIterator(sequence, 8, shard)) for shard in shards]
        return [np.concatenate(rows) for rows in zip(*parts)]

    one, two = global_batches(1), global_batches(2)
    assert [sorted(a) for a in one] == [sorted(b) for b in two]
    assert any((a != b).any() for a, b in zip(one, two))
    assert sum(map(len, one)) == 32 < PLACES
