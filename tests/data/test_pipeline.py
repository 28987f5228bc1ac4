import multiprocessing
import pickle
import time

import jax
import numpy as np
import pytest

from sparseshot_jax.data import pipeline
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cache import MapCache, WholeMaps
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.pipeline import tile_dataset, train_batches
from sparseshot_jax.data.slides import ArraySlide
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground

SPEC = TileSpec(tile_px=32, mpp=0.5, annotated_share=0.5, min_tissue=0.0)


def addressed(case, height, width):
    """An image whose pixels tell case, row and column."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.full_like(y, case), y, x], axis=-1).astype(np.uint8)


@pytest.fixture
def cases():
    square = [[[40, 60], [50, 60], [50, 70], [40, 70]]]
    marks = Annotations.from_polygons([square], "cell")
    return [
        Case(
            name=str(k),
            slide=ArraySlide(addressed(k, 128, 96), 0.5),
            mpp=0.5,
            given=marks if k else Annotations.empty(),
            truth=None,
            held_out=None,
            labels=LabelSpec(classes=("cell",)),
        )
        for k in range(2)
    ]


def take(batches, n):
    got = [jax.tree.map(np.asarray, next(batches)) for _ in range(n)]
    batches.close()
    return got


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_image_and_targets_belong_together(cases):
    for batch in take(train_batches(cases, SPEC, batch_size=4, seed=0), 20):
        assert batch.image.shape == (4, 32, 32, 3)
        assert batch.image.dtype == batch.ground.dtype == batch.label.dtype == np.uint8
        assert batch.valid.all()
        y, x = batch.image[..., 1].astype(int), batch.image[..., 2].astype(int)
        inside = (y >= 60) & (y < 70) & (x >= 40) & (x < 50) & (batch.image[..., 0] == 1)
        expected = np.where(inside, Ground.ANNOTATED, Ground.UNANNOTATED)
        np.testing.assert_array_equal(batch.ground, expected)
        np.testing.assert_array_equal(batch.label, inside)


def test_the_same_tiles_cropped_from_a_cached_image_or_read_from_a_slide(cases, monkeypatch):
    spec = TileSpec(tile_px=16, mpp=1.0, min_tissue=0.0)
    ours = take(train_batches(cases, spec, batch_size=4, seed=0), 4)
    monkeypatch.setattr(pipeline, "_WHOLE_PX", 0)
    theirs = take(train_batches(cases, spec, batch_size=4, seed=0), 4)
    for one, other in zip(ours, theirs):
        np.testing.assert_array_equal(one.ground, other.ground)
        # the resampling filter sees no pixels beyond the image's edge in either; rounding may differ
        assert np.abs(one.image.astype(int) - other.image.astype(int)).max() <= 1


def test_the_seed_and_nothing_else_decides(cases):
    options = {"batch_size": 3, "seed": 5}
    plain = take(train_batches(cases, SPEC, threads=0, **options), 12)
    assert_same(plain, take(train_batches(cases, SPEC, threads=5, **options), 12))
    other = take(train_batches(cases, SPEC, batch_size=3, seed=6), 12)
    assert any((a.image != b.image).any() for a, b in zip(plain, other))


def test_worker_processes_change_nothing_and_resume_is_exact(cases):
    plain = take(train_batches(cases, SPEC, batch_size=3, seed=5), 9)
    one = train_batches(cases, SPEC, batch_size=3, seed=5, workers=1)
    two = train_batches(cases, SPEC, batch_size=3, seed=5, workers=2, threads=2)
    try:
        assert_same(plain, [next(one) for _ in range(9)])
        assert_same(plain[:5], [next(two) for _ in range(5)])
        state = two.get_state()
        assert_same(plain[5:7], [next(two) for _ in range(2)])
        two.set_state(state)
        assert_same(plain[5:9], [next(two) for _ in range(4)])
    finally:
        one.close()
        two.close()
    threads = train_batches(cases, SPEC, batch_size=3, seed=5)
    threads.set_state(state)  # saved with two workers, restored with none
    assert_same(plain[5:9], take(threads, 4))


@pytest.mark.parametrize("n", [0, 1, 2, 7, 30])
def test_resume_after_any_number_of_batches(cases, n):
    straight = train_batches(cases, SPEC, batch_size=2, seed=1, threads=2)
    for _ in range(n):
        next(straight)
    state = straight.get_state()
    resumed = train_batches(cases, SPEC, batch_size=2, seed=1, threads=0)
    resumed.set_state(state)
    assert_same(take(straight, 3), take(resumed, 3))
    assert resumed.get_state() == {"next_batch": n + 3}


def test_an_epoch_visits_each_cell_once_and_the_next_in_another_order(cases):
    spec = TileSpec(tile_px=32, mpp=0.5, annotated_share=0.0, min_tissue=0.0)
    tiles = tile_dataset(cases, spec, seed=0)
    epochs = []
    for epoch in range(2):
        firsts = [tiles[k]["image"][0, 0].astype(int) for k in range(24 * epoch, 24 * epoch + 24)]
        # 97 origins shared by 4 rows of cells, 65 by 3 columns
        cells = [(c, int(4 * (y + 1) - 1) // 97, int(3 * (x + 1) - 1) // 65) for c, y, x in firsts]
        assert len(set(cells)) == 24
        epochs.append(cells)
    assert epochs[0] != epochs[1]


def test_processes_share_out_the_sequence_of_one(cases):
    whole = take(train_batches(cases, SPEC, batch_size=6, seed=2), 8)
    parts = [
        take(train_batches(cases, SPEC, batch_size=3, seed=2, process_index=p, process_count=2), 8)
        for p in range(2)
    ]
    for batch, one, other in zip(whole, *parts):
        np.testing.assert_array_equal(batch.image[0::2], one.image)
        np.testing.assert_array_equal(batch.image[1::2], other.image)


def test_the_share_of_tiles_round_annotated_objects(cases):
    batches = take(train_batches(cases, SPEC, batch_size=50, seed=0), 20)
    annotated = np.concatenate([(b.ground == Ground.ANNOTATED).any((1, 2)) for b in batches])
    from_cells = take(
        train_batches(cases, TileSpec(tile_px=32, mpp=0.5, annotated_share=0.0), batch_size=50, seed=0), 20
    )
    by_chance = np.mean([(b.ground == Ground.ANNOTATED).any((1, 2)).mean() for b in from_cells])
    # binomial(1000, ~0.5): standard deviation 0.016; four of them
    assert annotated.mean() == pytest.approx(0.5 + 0.5 * by_chance, abs=0.07)


def test_a_single_cell_is_an_epoch(cases):
    spec = TileSpec(tile_px=96, mpp=0.5, annotated_share=0.0, min_tissue=0.0)
    assert len(take(train_batches(cases[:1], spec, batch_size=2, seed=0), 5)) == 5


def test_mistakes():
    with pytest.raises(InputError, match="at least one case"):
        train_batches([], SPEC, batch_size=2, seed=0)
    with pytest.raises(InputError, match="batch_size"):
        train_batches([], SPEC, batch_size=0, seed=0)


def test_the_cache_is_bounded_and_a_copy_is_empty():
    made = []

    def make(key):
        def one():
            made.append(key)
            plane = np.zeros((10, 10), np.uint8)
            return WholeMaps(image=np.zeros((10, 10, 3), np.uint8), ground=plane, label=plane)

        return one

    cache = MapCache(1000)  # two of 500 bytes
    for key in (0, 1, 0, 2, 0, 1):
        cache.get(key, make(key))
    assert made == [0, 1, 2, 1]  # 1 was the least recently used when 2 came
    assert len(pickle.loads(pickle.dumps(cache))._held) == 0


def _orphan(queue):
    child = multiprocessing.get_context("spawn").Process(target=_linger, args=(queue,))
    child.start()
    time.sleep(60)


def _linger(queue):
    pipeline._start_worker(0, 1)
    queue.put(multiprocessing.current_process().pid)
    time.sleep(60)


def test_a_worker_does_not_outlive_a_killed_parent():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    parent = context.Process(target=_orphan, args=(queue,))
    parent.start()
    worker = queue.get(timeout=60)
    parent.kill()
    parent.join()
    for _ in range(100):
        try:
            with open(f"/proc/{worker}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there after 10 s")
