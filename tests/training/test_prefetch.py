"""Batches placed ahead: the same sequence, errors in their place, nothing left behind."""

import threading
import time

import jax
import numpy as np
import pytest

from sparseshot_jax.data.buffers import Buffers
from sparseshot_jax.errors import InputError
from sparseshot_jax.training import prefetch
from sparseshot_jax.training.prefetch import Prefetch
from sparseshot_jax.types import Batch


class Numbered:
    """Batches whose pixels are their number, in memory that is used again."""

    def __init__(self, *, at=0, fails_at=None, ends_at=None, before=lambda number: None):
        self.at, self.fails_at, self.ends_at, self.before = at, fails_at, ends_at, before
        self.buffers = Buffers()

    def __next__(self):
        self.before(self.at)
        if self.at == self.fails_at:
            raise InputError(f"batch {self.at} is bad")
        if self.at == self.ends_at:
            raise StopIteration
        like = {"image": ((2, 64, 64, 3), np.dtype("uint8")), "map": ((2, 64, 64), np.dtype("uint8"))}
        arrays = self.buffers.arrays(like)
        for array in arrays.values():
            array[:] = self.at
        self.at += 1
        return Batch(image=arrays["image"], ground=arrays["map"], label=arrays["map"], valid=np.ones(2, bool))

    def get_state(self):
        return {"next_batch": self.at}


def place(batch):
    return jax.tree.map(jax.device_put, batch)


def number_of(batch):
    values = np.unique(np.asarray(batch.image))
    assert len(values) == 1
    return int(values[0])


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def until(condition, seconds=5.0):
    """Whether it comes true in that time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_the_sequence_and_its_positions_are_those_of_the_batches(depth):
    ahead = Prefetch(Numbered(at=3), place, depth)
    assert ahead.get_state() == {"next_batch": 3}
    kept = []
    for number in range(3, 12):
        batch, images = ahead.next()
        kept.append(batch)
        assert (number_of(batch), images) == (number, 2)
        assert isinstance(batch.image, jax.Array)
        assert ahead.get_state() == {"next_batch": number + 1}
    # What is still held was not written over by what was read ahead.
    assert [number_of(batch) for batch in kept] == list(range(3, 12))
    ahead.close()
    assert not threads()


def test_a_restart_reads_again_what_was_only_read_ahead():
    source = Numbered()
    first = Prefetch(source, place, 3)
    seen = [number_of(first.next()[0]) for _ in range(4)]
    assert until(lambda: source.at == 7)  # three beyond what was handed out
    position = first.get_state()
    first.close()
    second = Prefetch(Numbered(at=position["next_batch"]), place, 3)
    seen += [number_of(second.next()[0]) for _ in range(4)]
    second.close()
    assert seen == list(range(8))


def test_no_more_than_depth_batches_are_ahead():
    source = Numbered()
    ahead = Prefetch(source, place, 2)
    assert not threads()  # nothing is read before somebody asks
    ahead.next()
    assert until(lambda: source.at == 3)
    time.sleep(0.05)
    assert source.at == 3
    ahead.close()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_in_its_place_and_stays(depth):
    ahead = Prefetch(Numbered(fails_at=3), place, depth)
    assert [number_of(ahead.next()[0]) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(InputError, match="batch 3 is bad"):
            ahead.next()
    assert ahead.get_state() == {"next_batch": 3}
    assert until(lambda: not threads())
    ahead.close()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_of_placing_and_the_end_come_likewise(depth):
    def full(batch):
        if number_of(batch) == 1:
            raise MemoryError("no room on the device")
        return place(batch)

    ahead = Prefetch(Numbered(), full, depth)
    ahead.next()
    with pytest.raises(MemoryError, match="no room"):
        ahead.next()
    ahead.close()
    ended = Prefetch(Numbered(ends_at=1), place, depth)
    ended.next()
    with pytest.raises(StopIteration):
        ended.next()
    ended.close()


def test_closing_does_not_wait_for_a_read_that_hangs(monkeypatch):
    monkeypatch.setattr(prefetch, "_PATIENCE_S", 0.05)
    answer = threading.Event()
    ahead = Prefetch(Numbered(before=lambda number: number == 1 and answer.wait()), place, 2)
    ahead.next()
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < 1.0
    with pytest.raises(RuntimeError, match="closed"):
        ahead.next()
    answer.set()
    assert until(lambda: not threads())
