import contextlib
import dataclasses
import errno
import io
import json
import os
import pickle
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data import storage
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec, TargetMaps
from sparseshot_jax.data.pipeline import train_batches
from sparseshot_jax.data.shards import manifest as shard_manifest
from sparseshot_jax.data.shards import records as shard_records
from sparseshot_jax.data.shards import writer as shard_writer
from sparseshot_jax.data.shards.plan import CutSpec, cut_tiles, plan_case, tile_key
from sparseshot_jax.data.shards.reader import ShardTiles, verify_shards
from sparseshot_jax.data.shards.records import TilePlace, decode_tile, describe, encode_record
from sparseshot_jax.data.shards.writer import cut_shards
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.tile_objects import TileObjects
from sparseshot_jax.data.tiles import TileSpec, case_grid
from sparseshot_jax.data.worker_pool import Workers
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Needs, Window

SPEC = TileSpec(tile_px=32, mpp=0.5, annotated_share=0.5, min_tissue=0.0)
LABELS = LabelSpec(classes=("a", "b"))


def addressed(case, height, width):
    """An image whose pixels tell case, row and column."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.full_like(y, case), y, x], axis=-1).astype(np.uint8)


def boxes(*corners):
    return [[[[x, y], [x + 8, y], [x + 8, y + 6], [x, y + 6]]] for x, y in corners]


def case_of(k, given=None, size=(128, 96), slide=None):
    return Case(
        name=f"case{k}",
        slide=slide or ArraySlide(addressed(k, *size), 0.5, path=f"case{k}.tif"),
        mpp=0.5,
        given=Annotations.empty() if given is None else given,
        truth=None,
        held_out=None,
        labels=LABELS,
    )


@pytest.fixture
def cases():
    first = Annotations.from_polygons(boxes((40, 60), (70, 20)), ["a", "b"])
    second = Annotations.from_polygons(boxes((3, 3), (50, 100), (60, 100)), "a")
    return [case_of(0), case_of(1, first), case_of(2, second)]


@dataclasses.dataclass
class BadSlide:
    """Damaged below a row."""

    path: str = "bad.tif"
    width: int = 96
    height: int = 128
    mpp: float | None = 0.5
    downsamples: tuple[float, ...] = (1.0,)
    good_rows: int = 64

    def read(self, window: Window):
        if window.y_px + window.height > self.good_rows:
            raise InputError(f"{self.path}: level 0 cannot be read at y {window.y_px:.0f}.")
        return np.zeros((window.height, window.width, 3), np.uint8)


def contents(root):
    """Key to bytes of every record."""
    tiles = ShardTiles(root)
    found = {}
    for k, shard in enumerate(tiles.manifest.shards):
        reader = tiles._readers().get(k)
        for position in range(shard.records):
            (data,) = reader.read([position])
            found[describe(data).key] = data
    return found


# Records


@pytest.mark.parametrize("quality", [None, 95])
def test_a_record_gives_back_what_was_written(quality):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 256, (300, 250), dtype=np.uint8)  # one run a pixel, the worst case
    label[100:] = 7  # and one that is longer than a run can be
    ground = (label > 0).astype(np.uint8)
    image = np.full((300, 250, 3), (200, 100, 50), np.uint8)
    image[:, 100:] = (10, 20, 30)
    place = TilePlace(key="a/ö/1", case="ö", y=-3, x=2**31 - 1, scale=1.37, cell=False, classes=(1, 2, 255))
    data = encode_record(place, image, ground, label, jpeg_quality=quality)
    assert data == encode_record(place, image, ground, label, jpeg_quality=quality)
    assert describe(data) == place
    tile = decode_tile(data)
    np.testing.assert_array_equal(tile["ground"], ground)
    np.testing.assert_array_equal(tile["label"], label)
    assert all(array.dtype == np.uint8 for array in tile.values())
    assert np.abs(tile["image"].astype(int) - image).max() <= (0 if quality is None else 8)


def test_a_jpeg_has_the_pixels_that_pillow_gives():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (250, 300, 3), dtype=np.uint8)
    data = memoryview(shard_records._encoded(image, 90))
    fast = shard_records._decoded(data, 250, 300)
    with Image.open(io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(fast, np.asarray(picture))


def test_bytes_that_are_no_record():
    place = TilePlace(key="k", case="c", y=0, x=0, scale=1.0, cell=True, classes=())
    plane = np.zeros((16, 16), np.uint8)
    data = encode_record(place, np.zeros((16, 16, 3), np.uint8), plane, plane, jpeg_quality=95)
    rng = np.random.default_rng(0)
    for size in range(0, len(data), 7):
        for read in (decode_tile, describe):
            with pytest.raises(InputError, match="damaged"):
                read(data[:size])
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        for read in (decode_tile, describe):
            with contextlib.suppress(InputError):
                read(bytes(broken))


# The plan


def test_every_cell_and_the_share_round_objects(cases):
    for case in cases:
        places = plan_case(case, CutSpec(tiles=SPEC))
        grid = case_grid(case, SPEC)
        cells = places[places[:, 2] < 0]
        windows = [grid.central_window(*cell) for cell in grid.cells().tolist()]
        assert [(w.y_px, w.x_px) for w in windows] == [(y, x) for y, x, _ in cells.tolist()]
        # fewer objects than cells: each has its tile, which holds it
        assert places[places[:, 2] >= 0, 2].tolist() == list(range(len(case.given)))
        for y, x, number in places[len(cells) :].tolist():
            cx, cy = case.given.centroids_px[number]
            assert y <= cy < y + 32
            assert x <= cx < x + 32


def test_more_objects_than_the_share_asks_for():
    rng = np.random.default_rng(0)
    given = Annotations.from_polygons(boxes(*rng.uniform(0, 80, (100, 2))), ["a"] * 95 + ["b"] * 5)
    case = case_of(0, given)
    some = TileSpec(tile_px=32, mpp=0.5, annotated_share=0.75, min_tissue=0.0)
    objects = plan_case(case, CutSpec(tiles=some))[:, 2]
    assert ((objects < 0).sum(), (objects >= 0).sum()) == (12, 36)
    assert len(set(objects[objects >= 0].tolist())) == 36
    balanced = dataclasses.replace(some, class_balance=1.0)
    objects = plan_case(case, CutSpec(tiles=balanced))[:, 2]
    assert (objects >= 95).sum() == 5  # all of the rare class
    half = dataclasses.replace(some, class_balance=0.25)
    assert (plan_case(case, CutSpec(tiles=half))[:, 2] >= 95).sum() >= 4  # every second of 9
    everything = dataclasses.replace(some, annotated_share=1.0)
    assert len(plan_case(case, CutSpec(tiles=everything))) == 112
    none = dataclasses.replace(some, annotated_share=0.0)
    assert len(plan_case(case, CutSpec(tiles=none))) == 12


def test_the_seed_decides_and_the_name(cases):
    plans = [plan_case(cases[2], CutSpec(tiles=SPEC, seed=s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(plans[0], plans[1])
    assert (plans[0] != plans[2]).any()
    other = plan_case(dataclasses.replace(cases[2], name="x"), CutSpec(tiles=SPEC))
    assert (plans[0] != other).any()


# Cutting and reading


@pytest.fixture(params=["local", "memory"])
def out(request, tmp_path, monkeypatch):
    monkeypatch.setenv(storage.CACHE_VARIABLE, str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return str(tmp_path / "out") if request.param == "local" else "memory://bucket/out"


def test_what_is_read_is_what_was_cut(cases, out):
    seen = []
    summary = cut_shards(
        cases, SPEC, out, shard_tiles=10, jpeg_quality=None, on_progress=lambda *n: seen.append(n)
    )
    assert (summary.tiles, summary.cells, summary.shards, summary.cut) == (41, 36, 5, 5)
    assert seen == [(k, 5) for k in range(6)]
    tiles = ShardTiles(out, annotated_share=0.0)
    assert len(tiles) == 36
    cells = set()
    for place in range(36):
        tile = tiles.read(place, np.random.default_rng(0))
        k, y, x = tile["image"][0, 0].tolist()
        np.testing.assert_array_equal(tile["image"], addressed(k, 256, 256)[y : y + 32, x : x + 32])
        window = Window(x_px=x, y_px=y, width=32, height=32)
        ground, label = TargetMaps(cases[k].given, LABELS, mpp=0.5).draw(window)
        np.testing.assert_array_equal(tile["ground"], ground)
        np.testing.assert_array_equal(tile["label"], label)
        assert tile["valid"]
        cells.add((k, y, x))
    assert len(cells) == 36
    assert set(contents(out)) == {
        tile_key(case.name, *place)
        for case in cases
        for place in plan_case(case, CutSpec(tiles=SPEC)).tolist()
    }
    assert verify_shards(out).records == 41


def test_draws_honour_the_share_the_cases_and_the_classes(cases, out):
    summary = cut_shards(cases, SPEC, out, shard_tiles=16, jpeg_quality=None)
    tiles = ShardTiles(out, annotated_share=1.0)
    rng = np.random.default_rng(0)
    drawn = [tiles.read(0, rng) for _ in range(1500)]
    assert all((tile["ground"] == 1).any() for tile in drawn)
    # binomial(1500, 1/2): standard deviation 0.013; five of them
    assert np.mean([tile["image"][0, 0, 0] == 1 for tile in drawn]) == pytest.approx(0.5, abs=0.065)
    balanced = ShardTiles(out, annotated_share=1.0, class_balance=1.0)
    drawn = [balanced.read(0, rng)["label"] for _ in range(1500)]
    # class b is one object of five; half of the draws ask for it, some of the others hold it too
    assert np.mean([(label == 2).any() for label in drawn]) > 0.5 - 0.065
    half = ShardTiles(out, annotated_share=0.5)
    first = half.read(0, np.random.default_rng(1))["image"][0, 0]  # random() is 0.51
    same = [(half.read(0, rng)["image"][0, 0] == first).all() for _ in range(1500)]
    assert np.mean(same) == pytest.approx(0.5, abs=0.065)
    held = [bool(describe(data).classes) for data in contents(out).values()]
    assert summary.annotated == sum(held)


def test_the_same_bytes_whatever_shards_and_processes(cases, tmp_path):
    one = cut_shards(cases, SPEC, str(tmp_path / "a"), shard_tiles=1000)
    two = cut_shards(cases, SPEC, str(tmp_path / "b"), shard_tiles=7, workers=2)
    assert (one.shards, two.shards) == (1, 6)
    assert contents(str(tmp_path / "a")) == contents(str(tmp_path / "b"))


def files_of(out):
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())


def test_stopped_anywhere_it_goes_on_and_ends_the_same(cases, tmp_path, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    cut_shards(cases, SPEC, str(straight), shard_tiles=10)
    real, calls = shard_writer.write_shard, []

    def interrupted(folder, name, *given):
        calls.append(name)
        if len(calls) in (3, 5):
            with storage.staged(storage.join(folder, name)) as path:
                path.write_bytes(b"half a sh")
                raise KeyboardInterrupt
        return real(folder, name, *given)

    monkeypatch.setattr(shard_writer, "write_shard", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            cut_shards(cases, SPEC, str(stopped), shard_tiles=10)
        with pytest.raises(InputError, match="cutting has not ended"):
            ShardTiles(str(stopped))
    summary = cut_shards(cases, SPEC, str(stopped), shard_tiles=10)
    assert summary.cut == 2
    assert calls == [f"0000{k}.arrayrecord" for k in (0, 1, 2, 2, 3, 3, 4)]
    assert cut_shards(cases, SPEC, str(stopped), shard_tiles=10) == dataclasses.replace(summary, cut=0)
    assert files_of(straight) == files_of(stopped)
    for name in files_of(straight):
        assert (straight / name).read_bytes() == (stopped / name).read_bytes(), name


def test_another_configuration_is_refused(cases, out):
    cut_shards(cases, SPEC, out, shard_tiles=10)
    other = dataclasses.replace(SPEC, jitter=0.1)
    with pytest.raises(InputError, match=r"something else: tiles\.jitter is 0\.5 there and 0\.1 here\."):
        cut_shards(cases, other, out, shard_tiles=10)
    with pytest.raises(
        InputError, match=r"seed is 0 there and 1 here; shard_tiles is 10 there and 1024 here"
    ):
        cut_shards(cases, SPEC, out, seed=1)
    moved = dataclasses.replace(cases[2], given=cases[2].given.transformed(dx=1.0))
    with pytest.raises(InputError, match=r"cases\.case2: .*other annotations"):
        cut_shards([*cases[:2], moved], SPEC, out, shard_tiles=10)
    with pytest.raises(InputError, match=r"cases\.case2 is there and not here"):
        cut_shards(cases[:2], SPEC, out, shard_tiles=10)


def test_tiles_of_a_bad_slide_are_left_out_counted_and_named(cases, tmp_path):
    given = Annotations.from_polygons(boxes((40, 10), (40, 100)), "a")
    bad = case_of(3, given, slide=BadSlide())
    unplanned = case_of(4, slide=BadSlide(path="worse.tif", width=4000, height=4000, good_rows=0))
    spec = dataclasses.replace(SPEC, min_tissue=0.1)
    summary = cut_shards([*cases, bad, unplanned], spec, str(tmp_path / "out"), shard_tiles=10)
    # rows of cells at y 12, 36, 60 and 84 or so: three of the four reach below row 64
    assert [(fault.case, fault.tiles) for fault in summary.faults] == [("case3", 10), ("case4", 0)]
    assert "bad.tif: level 0 cannot be read" in summary.faults[0].message
    assert "worse.tif" in summary.faults[1].message
    assert summary.tiles == 41 + 14 - 10
    assert ShardTiles(str(tmp_path / "out")).manifest.faults == summary.faults


@pytest.mark.parametrize("begun", [False, True])
def test_a_repaired_slide_is_cut_by_the_same_call(cases, out, tmp_path, monkeypatch, begun):
    def with_good_rows(rows):
        given = Annotations.from_polygons(boxes((40, 10), (40, 100)), "a")
        half = case_of(4, given, slide=BadSlide(good_rows=rows))
        # in the midst of the plan, so that the tiles of later cases move to other shards
        return [cases[0], case_of(3), cases[1], half, cases[2]]

    def without_tissue(case, cut):
        if case.name == "case3":
            raise InputError("worse.tif: cannot be read.")
        return plan_case(case, cut)

    straight = str(tmp_path / "straight")
    monkeypatch.setattr(shard_writer, "plan_case", without_tissue)
    first = cut_shards(with_good_rows(64), SPEC, out, shard_tiles=8)
    assert [fault.case for fault in first.faults] == ["case3", "case4"]
    again = cut_shards(with_good_rows(64), SPEC, out, shard_tiles=8)
    assert again.faults == first.faults
    assert again.cut < again.shards  # those without faults are kept
    if begun:
        storage.remove(storage.join(out, "manifest.json"))
    monkeypatch.setattr(shard_writer, "plan_case", plan_case)
    repaired = cut_shards(with_good_rows(128), SPEC, out, shard_tiles=8)
    whole = cut_shards(with_good_rows(128), SPEC, straight, shard_tiles=8)
    assert repaired.faults == ()
    assert dataclasses.replace(repaired, cut=0) == dataclasses.replace(whole, cut=0)
    assert contents(out) == contents(straight)
    assert verify_shards(out).records == whole.tiles
    assert cut_shards(with_good_rows(128), SPEC, out, shard_tiles=8).cut == 0


def test_nothing_to_cut(tmp_path, cases):
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match="at least one case"):
        cut_shards([], SPEC, out)
    with pytest.raises(InputError, match="distinct names; case0"):
        cut_shards([cases[0], cases[0]], SPEC, out)
    with pytest.raises(InputError, match=r"tiles\.tile_px=96"):
        cut_shards(cases, dataclasses.replace(SPEC, tile_px=128), out)
    with pytest.raises(InputError, match="shard_tiles must be at least 1"):
        cut_shards(cases, SPEC, out, shard_tiles=0)
    with pytest.raises(InputError, match="workers must be at least 0"):
        cut_shards(cases, SPEC, out, workers=-1)
    with pytest.raises(InputError, match="jpeg_quality"):
        cut_shards(cases, SPEC, out, jpeg_quality=0)
    with pytest.raises(InputError, match="same labels"):
        cut_shards([cases[0], dataclasses.replace(cases[1], labels=LabelSpec())], SPEC, out)
    assert not os.path.exists(out)
    with pytest.raises(InputError, match=r"no tile could be cut.*bad\.tif"):
        cut_shards([case_of(0, slide=BadSlide(good_rows=0))], SPEC, out)


# Bad shards


def test_missing_short_and_changed_shards_are_told_with_the_remedy(cases, tmp_path):
    out = tmp_path / "out"
    cut_shards(cases, SPEC, str(out), shard_tiles=100)
    shard = out / "shards" / "00000.arrayrecord"
    good = shard.read_bytes()
    rng = np.random.default_rng(0)

    def fails(match, **options):
        tiles = ShardTiles(str(out), annotated_share=0.0, **options)
        with pytest.raises(InputError, match=match) as caught:
            [tiles.read(place, rng) for place in range(len(tiles))]
        assert "00000.arrayrecord" in str(caught.value)

    shard.write_bytes(good[: len(good) // 2])
    fails(rf"has {len(good) // 2} bytes and was written with {len(good)}.*`data tile` again")
    shard.write_bytes(bytes(len(good)))
    fails("does not hold the 41 records")
    changed = bytearray(good)
    image = good.index(b"\xff\xd8\xff")  # of the first record
    changed[image + 200] ^= 0xFF
    shard.write_bytes(changed)
    fails(r"record \d+ cannot be read: .*hash mismatch")
    fails("checksum is not the one", verify=True)
    with pytest.raises(InputError, match=r"00000\.arrayrecord: its checksum"):
        verify_shards(str(out))
    shard.unlink()
    fails("no such file")
    (out / "manifest.json").unlink()  # as the remedy says
    assert cut_shards(cases, SPEC, str(out), shard_tiles=100).cut == 1
    assert shard.read_bytes() == good


def test_a_shard_changed_at_equal_size_is_cut_again(cases, tmp_path):
    out = tmp_path / "out"
    cut_shards(cases, SPEC, str(out), shard_tiles=10)
    before = {name: (out / name).read_bytes() for name in files_of(out)}
    shard = out / "shards" / "00002.arrayrecord"
    changed = bytearray(shard.read_bytes())
    changed[len(changed) // 2] ^= 1
    shard.write_bytes(changed)
    kept = (out / "shards" / "00001.arrayrecord").stat().st_mtime_ns
    assert cut_shards(cases, SPEC, str(out), shard_tiles=10).cut == 1
    assert {name: (out / name).read_bytes() for name in files_of(out)} == before
    assert (out / "shards" / "00001.arrayrecord").stat().st_mtime_ns == kept


def test_a_bad_manifest_or_index(cases, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no shards there"):
        ShardTiles(str(out))
    cut_shards(cases, SPEC, str(out))
    manifest = out / "manifest.json"
    good = manifest.read_text()
    for bad, match in (
        (good[:-30], "not a manifest"),
        ("[]", "not a manifest"),
        (json.dumps(json.loads(good) | {"version": 9}), "version 9; this program reads version 1"),
        (json.dumps(json.loads(good) | {"shards": [{}]}), "not a manifest"),
    ):
        manifest.write_text(bad)
        with pytest.raises(InputError, match=match):
            ShardTiles(str(out))
    manifest.write_text(good)
    (out / "index" / "cells.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"cells\.npy: has 0 bytes"):
        ShardTiles(str(out))
    with pytest.raises(InputError, match=r"tiles\.class_balance must be in \[0, 1\]"):
        ShardTiles(str(out), class_balance=2.0)


@pytest.mark.parametrize("name", ["plan.npz", "shards/00000.npz"])
def test_damaged_notes_of_an_unfinished_folder(cases, tmp_path, name):
    out = tmp_path / "out"
    cut_shards(cases, SPEC, str(out))
    (out / "manifest.json").unlink()
    (out / name).write_bytes(b"not a zip file")
    if name == "plan.npz":
        with pytest.raises(InputError, match=r"plan\.npz: .*Remove it and cut again"):
            cut_shards(cases, SPEC, str(out))
    else:
        assert cut_shards(cases, SPEC, str(out)).cut == 1


def test_what_cannot_be_read_now_is_not_cut_again(cases, tmp_path, monkeypatch):
    out = tmp_path / "out"
    cut_shards(cases, SPEC, str(out), shard_tiles=10)
    real = Path.read_bytes

    def without_handles(path):
        if path.name == "00002.npz":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", without_handles)
        with pytest.raises(InputError, match=r"00002\.npz: cannot be read: Too many open files"):
            cut_shards(cases, SPEC, str(out), shard_tiles=10)
    assert cut_shards(cases, SPEC, str(out), shard_tiles=10).cut == 0


# Threads and processes


def test_many_threads_read_the_same(cases, out, monkeypatch):
    monkeypatch.setattr("sparseshot_jax.data.shards.reader._OPEN", 2)
    cut_shards(cases, SPEC, out, shard_tiles=5)
    tiles = ShardTiles(out, annotated_share=0.0)
    expected = [tiles.read(k, np.random.default_rng(0))["image"] for k in range(36)]
    wrong = []

    def read(seed):
        for k in np.random.default_rng(seed).integers(36, size=200):
            if (tiles.read(int(k), np.random.default_rng(0))["image"] != expected[k]).any():
                wrong.append(k)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(tiles._readers()._held) == 2


def test_a_pickled_one_is_small_and_reads_the_same(cases, tmp_path):
    cut_shards(cases, SPEC, str(tmp_path / "out"), shard_tiles=10)
    tiles = ShardTiles(str(tmp_path / "out"))
    ours = tiles.read(3, np.random.default_rng(0))
    other = pickle.loads(pickle.dumps(tiles))
    assert not other._processes
    theirs = other.read(3, np.random.default_rng(0))
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
    assert tiles.name(35).endswith("shards/00003.arrayrecord")


def run_one_that_dies():
    with Workers(1) as workers:
        list(workers.run(os._exit, [(9,)]))


def test_a_dead_worker_is_told():
    with pytest.raises(InputError, match="worker process ended"):
        run_one_that_dies()


def test_the_index_is_of_the_records(cases, tmp_path):
    out = str(tmp_path / "out")
    cut_shards(cases, SPEC, out, shard_tiles=10)
    names = [shard.name for shard in shard_manifest.read_manifest(out).shards]
    parts = shard_manifest.read_finished(out, names)
    arrays, _ = shard_manifest._index(parts)
    described = [describe(data) for data in contents(out).values()]
    assert arrays["cells"].tolist() == [k for k, one in enumerate(described) if one.cell]
    groups = np.split(arrays["annotated_records"], arrays["annotated_offsets"][1:-1])
    assert [group.tolist() for group in groups] == [
        [k for k, one in enumerate(described) if one.case == name and one.classes]
        for name in ("case1", "case2")
    ]
    groups = np.split(arrays["class_records"], arrays["class_offsets"][1:-1])
    assert [group.tolist() for group in groups] == [
        [k for k, one in enumerate(described) if c in one.classes] for c in (1, 2)
    ]


NEEDS = Needs(objects=2, distance=True)


def test_shards_hold_what_the_model_needs(tmp_path, cases):
    out = str(tmp_path / "shards")
    cut_shards(cases, SPEC, out, jpeg_quality=None, needs=NEEDS)
    tiles = ShardTiles(out, annotated_share=1.0, needs=NEEDS)
    assert tiles.needs == NEEDS
    by_name = {case.name: case for case in cases}
    found = 0
    for record in range(tiles.manifest.records):
        tile = tiles.read_record(record)
        y, x = tile["image"][0, 0, 1:].tolist()
        case = by_name[f"case{tile['image'][0, 0, 0]}"]
        window = Window(x_px=x, y_px=y, width=32, height=32)
        maps = TargetMaps(case.given, case.labels, mpp=case.mpp)
        ground, label = maps.draw(window, objects=False)
        expected = {
            "ground": ground,
            "label": label,
            "distance": maps.distance(window),
            **TileObjects(case.given, case.labels, mpp=case.mpp).objects_in(window, 2),
        }
        for key, array in expected.items():
            np.testing.assert_array_equal(tile[key], array)
            assert tile[key].dtype == array.dtype
        found += int(tile["object_present"].sum())
    assert found > 0
    batch = next(train_batches(tiles, batch_size=4, seed=0))
    assert batch.objects.present.any(axis=1).all()


def test_shards_for_another_model_are_refused(tmp_path, cases):
    out = str(tmp_path / "shards")
    cut_shards(cases, SPEC, out)
    assert ShardTiles(out, needs=Needs()).needs == Needs()
    with pytest.raises(
        InputError, match="ground and class alone; this one needs 2 places for objects and the"
    ):
        ShardTiles(out, needs=NEEDS)
    with pytest.raises(InputError, match=r"needs\.objects is 0 there and 2 here"):
        cut_shards(cases, SPEC, out, needs=NEEDS)


def test_shards_of_earlier_versions_hold_no_objects(tmp_path, cases):
    out = tmp_path / "shards"
    cut_shards(cases, SPEC, str(out))
    for path, config in ((out / "manifest.json", "config"), (out / "config.json", None)):
        content = json.loads(path.read_text())
        inner = content[config] if config else content
        del inner["needs"], inner["labels"]["unknown_class"], inner["labels"]["class_radius_um"]
        path.write_text(json.dumps(content))
    assert ShardTiles(str(out), needs=Needs()).needs == Needs()
    assert cut_shards(cases, SPEC, str(out)).cut == 0


@pytest.mark.parametrize("needs", [Needs(objects=3), Needs(distance=True), NEEDS])
def test_a_record_cut_short_or_garbled_is_an_error_and_no_crash(cases, needs):
    cut = CutSpec(tiles=SPEC, needs=needs)
    _, data = next(cut_tiles(cases[1], cut, np.array([[50, 30, -1]], np.int32)))
    assert set(decode_tile(data)) >= {"image", "ground", "label"}
    random = np.random.default_rng(0)
    for end in random.integers(0, len(data), 40).tolist():
        with pytest.raises(InputError, match="damaged"):
            decode_tile(data[:end])
        with pytest.raises(InputError, match="damaged"):
            describe(data[:end])
    for at in random.integers(0, len(data), 200).tolist():
        wrong = bytearray(data)
        wrong[at] ^= 0xFF
        with contextlib.suppress(InputError):
            decode_tile(bytes(wrong))


def test_objects_of_unknown_class_make_a_tile_annotated_and_no_class(tmp_path):
    marks = Annotations.from_polygons(boxes((40, 60), (70, 20)), ["?", "b"])
    labels = LabelSpec(classes=("a", "b"), unknown_class=("?",))
    case = dataclasses.replace(case_of(1, marks), labels=labels)
    cut_shards([case], SPEC, str(tmp_path / "out"), jpeg_quality=None)
    tiles = ShardTiles(str(tmp_path / "out"), annotated_share=1.0)
    balanced = ShardTiles(str(tmp_path / "out"), annotated_share=1.0, class_balance=1.0)
    random = np.random.default_rng(0)
    drawn = [{int(v) for v in np.unique(tiles.read(0, random)["label"])} for _ in range(40)]
    assert {0} in drawn  # the object of unknown class alone
    assert all(2 in np.unique(balanced.read(0, random)["label"]) for _ in range(40))
