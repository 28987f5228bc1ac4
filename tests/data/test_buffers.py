import threading

import numpy as np

from sparseshot_jax.data.buffers import Buffers

LIKE = {
    "image": ((2, 5, 3), np.dtype(np.uint8)),
    "ids": ((7,), np.dtype(np.int32)),
    "one": ((1,), np.dtype(bool)),
}


def address(arrays):
    return arrays["image"].ctypes.data


def test_shapes_types_and_no_overlap():
    arrays = Buffers().arrays(LIKE)
    for key, (shape, dtype) in LIKE.items():
        assert arrays[key].shape == shape
        assert arrays[key].dtype == dtype
        assert arrays[key].ctypes.data % 64 == 0
        arrays[key][:] = 1
    arrays["ids"][:] = 0
    assert arrays["image"].all()
    assert arrays["one"].all()


def test_memory_is_used_again_only_when_nobody_looks_into_it():
    buffers = Buffers()
    first = buffers.arrays(LIKE)
    place = address(first)
    assert address(buffers.arrays(LIKE)) != place  # `first` is held
    part = first["image"][0, 1:, ::2].T  # a view of a view holds the block too
    part[:] = 9
    del first
    other = buffers.arrays(LIKE)
    assert address(other) != place
    other["image"][:] = 3
    assert (part == 9).all()
    reader = memoryview(part)
    del part
    again = buffers.arrays(LIKE)
    assert address(again) not in (place, address(other))
    del reader
    assert address(buffers.arrays(LIKE)) == place


def test_another_size_gets_memory_of_its_own():
    buffers = Buffers()
    place = address(buffers.arrays(LIKE))
    larger = {**LIKE, "image": ((90, 5, 3), np.dtype(np.uint8))}
    assert buffers.arrays(larger)["image"].shape == (90, 5, 3)
    assert address(buffers.arrays(LIKE)) == place


def test_blocks_are_bounded(monkeypatch):
    monkeypatch.setattr("sparseshot_jax.data.buffers._MOST", 3)
    buffers = Buffers()
    held = [buffers.arrays(LIKE) for _ in range(8)]
    assert len({address(arrays) for arrays in held}) == 8
    assert len(buffers._blocks) == 3


def test_threads_never_share_a_block():
    buffers, wrong = Buffers(), []

    def use(k):
        for _ in range(300):
            arrays = buffers.arrays(LIKE)
            arrays["ids"][:] = k
            if (arrays["ids"] != k).any():
                wrong.append(k)

    threads = [threading.Thread(target=use, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
