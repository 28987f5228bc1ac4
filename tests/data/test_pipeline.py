import dataclasses
import multiprocessing
import pickle
import time

import jax
import numpy as np
import pytest
from grain._src.python.testing.experimental import assert_equal_output_after_checkpoint

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cache import Cache, WholeMaps
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.pipeline import CutTiles, tile_dataset, train_batches
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.tiles import TileSpec, tile_index
from sparseshot_jax.data.worker_process import start_worker
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground, Needs

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


def cut(cases, spec=SPEC, **options):
    return CutTiles(cases, spec, tile_index(cases, spec), **options)


class Numbered:
    """Tiles that show their place, and a random number; some places are bad."""

    def __init__(self, count, bad=(), files=("a.svs",)):
        self.count, self.bad, self.files = count, frozenset(bad), files

    def __len__(self):
        return self.count

    def read(self, place, rng):
        drawn = int(rng.integers(256))
        if place in self.bad:
            raise InputError(f"{self.name(place)}: level 0, x {place}..{place + 4} cannot be read.")
        image = np.full((4, 4, 3), place, np.uint8)
        image[..., 1] = drawn
        plane = np.zeros((4, 4), np.uint8)
        return {"image": image, "ground": plane, "label": plane, "valid": np.ones((), bool)}

    def name(self, place):
        return self.files[place % len(self.files)]


def take(batches, n):
    got = [jax.tree.map(np.asarray, next(batches)) for _ in range(n)]
    batches.close()
    return got


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_image_and_targets_belong_together(cases):
    for batch in take(train_batches(cut(cases), batch_size=4, seed=0), 20):
        assert batch.image.shape == (4, 32, 32, 3)
        assert batch.image.dtype == batch.ground.dtype == batch.label.dtype == np.uint8
        assert batch.valid.all()
        y, x = batch.image[..., 1].astype(int), batch.image[..., 2].astype(int)
        inside = (y >= 60) & (y < 70) & (x >= 40) & (x < 50) & (batch.image[..., 0] == 1)
        expected = np.where(inside, Ground.ANNOTATED, Ground.UNANNOTATED)
        np.testing.assert_array_equal(batch.ground, expected)
        np.testing.assert_array_equal(batch.label, inside)


def test_the_same_tiles_cropped_from_a_cached_image_or_read_from_a_slide(cases):
    spec = TileSpec(tile_px=16, mpp=1.0, min_tissue=0.0)
    ours = take(train_batches(cut(cases, spec), batch_size=4, seed=0), 4)
    theirs = take(train_batches(cut(cases, spec, whole_px=0), batch_size=4, seed=0), 4)
    for one, other in zip(ours, theirs):
        np.testing.assert_array_equal(one.ground, other.ground)
        # the resampling filter sees no pixels beyond the image's edge in either; rounding may differ
        assert np.abs(one.image.astype(int) - other.image.astype(int)).max() <= 1


def test_the_seed_and_nothing_else_decides(cases):
    options = {"batch_size": 3, "seed": 5}
    plain = take(train_batches(cut(cases), threads=0, **options), 12)
    assert_same(plain, take(train_batches(cut(cases), threads=5, **options), 12))
    other = take(train_batches(cut(cases), batch_size=3, seed=6), 12)
    assert any((a.image != b.image).any() for a, b in zip(plain, other))


def test_worker_processes_change_nothing_and_resume_is_exact(cases):
    tiles = cut(cases)
    plain = take(train_batches(tiles, batch_size=3, seed=5), 9)
    for workers, threads in ((4, 1), (2, 2)):
        batches = train_batches(tiles, batch_size=3, seed=5, workers=workers, threads=threads)
        try:
            assert_same(plain[:5], [next(batches) for _ in range(5)])
            state = batches.get_state()
            if workers == 2:
                assert_same(plain[5:7], [next(batches) for _ in range(2)])
                batches.set_state(state)
            assert_same(plain[5:], [next(batches) for _ in range(4)])
        finally:
            batches.close()
    threads = train_batches(tiles, batch_size=3, seed=5)
    threads.set_state(state)  # saved with two workers, restored with none
    assert_same(plain[5:], take(threads, 4))


class Fresh:
    """What grain's own test of checkpoints takes: every `iter` begins anew, elements are plain arrays."""

    def __init__(self, **options):
        self.options = options

    def __iter__(self):
        return Plain(train_batches(Numbered(7, bad=(3,)), on_fault=lambda text: None, **self.options))


class Plain:
    def __init__(self, batches):
        self.batches = batches
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __iter__(self):
        return self

    def __next__(self):
        return vars(next(self.batches))


@pytest.mark.parametrize("threads", [0, 3])
def test_grains_own_test_of_checkpoints(threads):
    assert_equal_output_after_checkpoint(Fresh(batch_size=2, seed=3, epochs=2, threads=threads))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_end_is_filled_up_and_the_processes_share_out_every_place(processes):
    """11 places twice, in batches of 4 a process: the last is filled up, or even empty."""
    parts = []
    for p in range(processes):
        options = {"process_index": p, "process_count": processes}
        batches = train_batches(Numbered(11), batch_size=4, seed=1, epochs=2, **options)
        parts.append(list(batches))
        assert next(batches, None) is None
        batches.close()
    assert {len(part) for part in parts} == {-(-22 // (4 * processes))}
    seen = []
    for batch in (batch for part in parts for batch in part):
        assert batch.image.shape == (4, 4, 4, 3)
        assert (batch.ground[~batch.valid] == Ground.IGNORED).all()
        assert not batch.label[~batch.valid].any()
        seen += batch.image[batch.valid, 0, 0, 0].tolist()
    assert sorted(seen) == sorted([*range(11), *range(11)])  # complete, and nothing twice in an epoch
    for part in parts:
        valid = np.concatenate([batch.valid for batch in part])
        assert (np.diff(valid.astype(int)) <= 0).all()  # what fills up comes last


def test_the_end_does_not_change_what_comes_before_it():
    options = {"batch_size": 3, "seed": 4}
    ended = list(train_batches(Numbered(6), epochs=3, **options))
    assert_same(ended, take(train_batches(Numbered(6), **options), 6))


def test_a_batch_that_is_held_stays_as_it_is(cases):
    """Its memory is used again, but only after it; JAX's arrays may look into it as well."""
    batches = train_batches(cut(cases), batch_size=3, seed=5, threads=2)
    held = [next(batches) for _ in range(12)]
    copies = [jax.tree.map(np.copy, batch) for batch in held]
    on_device = [jax.device_put(next(batches).image) for _ in range(6)]
    later = [np.array(image) for image in on_device]
    for _ in range(12):
        next(batches)
    batches.close()
    assert_same(held, copies)
    for one, other in zip(on_device, later):
        np.testing.assert_array_equal(one, other)
    assert not np.shares_memory(held[0].image, held[1].image)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 30])
def test_resume_after_any_number_of_batches(cases, n):
    straight = train_batches(cut(cases), batch_size=2, seed=1, threads=2)
    for _ in range(n):
        next(straight)
    state = straight.get_state()
    resumed = train_batches(cut(cases), batch_size=2, seed=1, threads=0)
    resumed.set_state(state)
    assert_same(take(straight, 3), take(resumed, 3))
    assert resumed.get_state() == {"next_tile": 2 * (n + 3)}


def test_an_epoch_visits_each_cell_once_and_the_next_in_another_order(cases):
    spec = TileSpec(tile_px=32, mpp=0.5, annotated_share=0.0, min_tissue=0.0)
    tiles = tile_dataset(cut(cases, spec), seed=0)
    epochs = []
    for epoch in range(2):
        firsts = [tiles[k].read()["image"][0, 0].astype(int) for k in range(24 * epoch, 24 * epoch + 24)]
        # 97 origins shared by 4 rows of cells, 65 by 3 columns
        cells = [(c, int(4 * (y + 1) - 1) // 97, int(3 * (x + 1) - 1) // 65) for c, y, x in firsts]
        assert len(set(cells)) == 24
        epochs.append(cells)
    assert epochs[0] != epochs[1]


def test_processes_share_out_the_sequence_of_one(cases):
    whole = take(train_batches(cut(cases), batch_size=6, seed=2), 8)
    parts = [
        take(train_batches(cut(cases), batch_size=3, seed=2, process_index=p, process_count=2), 8)
        for p in range(2)
    ]
    for batch, one, other in zip(whole, *parts):
        jax.tree.map(lambda *x: np.testing.assert_array_equal(x[0], np.concatenate(x[1:])), batch, one, other)


def test_the_share_of_tiles_round_annotated_objects(cases):
    batches = take(train_batches(cut(cases), batch_size=50, seed=0), 8)
    annotated = np.concatenate([(b.ground == Ground.ANNOTATED).any((1, 2)) for b in batches])
    from_cells = take(
        train_batches(cut(cases, TileSpec(tile_px=32, mpp=0.5, annotated_share=0.0)), batch_size=50, seed=0),
        8,
    )
    by_chance = np.mean([(b.ground == Ground.ANNOTATED).any((1, 2)).mean() for b in from_cells])
    # binomial(400, ~0.5): standard deviation 0.025; near four of them with the chance's own
    assert annotated.mean() == pytest.approx(0.5 + 0.5 * by_chance, abs=0.1)


def test_a_single_cell_is_an_epoch(cases):
    spec = TileSpec(tile_px=96, mpp=0.5, annotated_share=0.0, min_tissue=0.0)
    assert len(take(train_batches(cut(cases[:1], spec), batch_size=2, seed=0), 5)) == 5


def test_mistakes(cases):
    with pytest.raises(InputError, match="at least one case"):
        CutTiles([], SPEC, tile_index(cases, SPEC))
    with pytest.raises(InputError, match="at least one tile"):
        train_batches(Numbered(0), batch_size=2, seed=0)
    with pytest.raises(InputError, match="batch_size"):
        train_batches(Numbered(5), batch_size=0, seed=0)
    with pytest.raises(InputError, match=r"process_index must be in \[0, 2\)"):
        train_batches(Numbered(5), batch_size=1, seed=0, process_index=2, process_count=2)
    with pytest.raises(InputError, match="epochs must be at least 1"):
        train_batches(Numbered(5), batch_size=1, seed=0, epochs=0)


def test_the_cache_is_bounded_and_a_copy_is_empty():
    made = []

    def make(key):
        def one():
            made.append(key)
            plane = np.zeros((10, 10), np.uint8)
            return WholeMaps(image=np.zeros((10, 10, 3), np.uint8), ground=plane, label=plane)

        return one

    cache = Cache(1000)  # two of 500 bytes
    for key in (0, 1, 0, 2, 0, 1):
        cache.get(key, make(key))
    assert made == [0, 1, 2, 1]  # 1 was the least recently used when 2 came
    assert len(pickle.loads(pickle.dumps(cache))._held) == 0


def _orphan(queue):
    child = multiprocessing.get_context("spawn").Process(target=_linger, args=(queue,))
    child.start()
    time.sleep(60)


def _linger(queue):
    start_worker(0, 1)
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


def test_batches_hold_what_the_model_needs(cases):
    needs = Needs(objects=3, distance=True)
    spec = dataclasses.replace(SPEC, annotated_share=1.0)
    # Drawn whole and cropped, or window by window: the same tiles.
    whole, windows = (
        next(train_batches(cut(cases, spec, needs=needs, whole_px=px), batch_size=4, seed=0))
        for px in (1 << 24, 0)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, windows)
    assert not np.isin(whole.ground, Ground.ANNOTATED).any()
    assert whole.objects.present.tolist() == [[True, False, False]] * 4
    assert whole.objects.left_out.tolist() == [0] * 4
    for image, box, label, distance in zip(
        whole.image, whole.objects.boxes_yxyx_px[:, 0], whole.objects.label[:, 0], whole.distance
    ):
        corner = image[0, 0, [1, 2, 1, 2]].astype(int)  # the picture tells where it is
        assert (box + corner).tolist() == [60, 40, 70, 50]
        assert label == 1
        top, left, bottom, right = box.clip(0, 32).astype(int)
        assert (distance > 0).sum() == (bottom - top) * (right - left)
        assert (distance[top:bottom, left:right] > 0).all()


def test_a_batch_for_pixels_has_no_objects(cases):
    batch = next(train_batches(cut(cases), batch_size=2, seed=0))
    assert batch.objects is None
    assert batch.distance is None


def test_blank_tiles_have_no_objects(cases):
    tiles = cut(cases, needs=Needs(objects=2, distance=True))
    batches = list(train_batches(tiles, batch_size=len(tiles) + 1, seed=0, epochs=1))
    (batch,) = batches
    assert batch.valid.tolist() == [True] * len(tiles) + [False]
    assert (batch.ground[-1] == Ground.IGNORED).all()
    assert not batch.objects.present[-1].any()
    assert not batch.distance[-1].any()
    assert batch.objects.boxes_yxyx_px.dtype == np.float32
    assert batch.objects.present.dtype == bool


def test_tiles_with_objects_travel_to_workers(cases):
    tiles = cut(cases, needs=Needs(objects=4))
    copy = pickle.loads(pickle.dumps(tiles))
    one, other = (t.read(3, np.random.default_rng(0)) for t in (tiles, copy))
    jax.tree.map(np.testing.assert_array_equal, one, other)
