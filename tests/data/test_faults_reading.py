"""Slides that go bad while a run reads them."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.faults import Fault, FaultLog
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.pipeline import CutTiles, train_batches
from sparseshot_jax.data.slides import slide as slides
from sparseshot_jax.data.slides.pyramid import write_pyramid
from sparseshot_jax.data.slides.slide import FileSlide, open_slide
from sparseshot_jax.data.tiles import TileSpec, tile_index
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground, Window

SIDE, TILE = 512, 128  # of the slide and of its stored tiles


def write_slide(path, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    image = image.repeat(8, 0).repeat(8, 1)
    write_pyramid(path, lambda x, y, w, h: image[y : y + h, x : x + w], SIDE, SIDE, mpp=0.5, tile_px=TILE)
    return image


def streams(data):
    """Where the JPEG streams begin: of the finest level first, two rows, then one row of the next."""
    found = [data.find(b"\xff\xd8\xff")]
    while (at := data.find(b"\xff\xd8\xff", found[-1] + 1)) >= 0:
        found.append(at)
    return [*found, len(data)]


def damage(path, how, stream=5):
    """Overwrite part of one tile: by default row 1, column 1 of the finest level.

    The damaged file takes the place of the sound one. A thread that still reads must not find its tile
    damaged after it was looked at: fastslide would hang.
    """
    data = bytearray(path.read_bytes())
    begin, end = streams(data)[stream : stream + 2]
    half = (begin + end) // 2
    if how == "zeros":
        data[begin:end] = bytes(end - begin)
    elif how == "noise":
        data[begin:end] = np.random.default_rng(1).integers(0, 256, end - begin, np.uint8).tobytes()
    elif how == "marker":
        data[half : half + 2] = b"\xff\xb2"
    elif how == "tables":
        data[begin + 20 : begin + 60] = bytes(40)
    damaged = path.with_suffix(".damaged")
    damaged.write_bytes(data)
    damaged.replace(path)


KINDS = ("zeros", "noise", "marker", "tables")


@pytest.mark.parametrize("how", KINDS)
def test_a_damaged_tile_is_an_error_and_its_neighbours_are_read(tmp_path, how):
    path = tmp_path / "s.tiff"
    write_slide(path)
    slide = open_slide(path)
    window = Window(x_px=TILE + 10, y_px=TILE + 10, width=50, height=50)
    elsewhere = Window(x_px=2 * TILE, y_px=0, width=TILE, height=SIDE)
    want = slide.read(elsewhere)
    slide.close()
    damage(path, how)
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"s\.tiff: level 0, x 138\.\.188.*cannot be read.*copy or export"
        ):
            slide.read(window)
        np.testing.assert_array_equal(slide.read(elsewhere), want)


@pytest.mark.parametrize("how", ["zeros", "noise"])
def test_openslide_reads_on_after_a_damaged_tile(tmp_path, how):
    """Its handle refuses everything after one failure."""
    write_slide(tmp_path / "s.tiff")
    damage(tmp_path / "s.tiff", how)
    slide = FileSlide(str(tmp_path / "s.tiff"), "openslide")
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be read"):
            slide.read(Window(x_px=TILE, y_px=TILE, width=TILE, height=TILE))
        slide.read(Window(x_px=0, y_px=0, width=TILE, height=TILE))


_HANGS = """
import os, sys, fastslide
slide = fastslide.FastSlide.from_file_path(sys.argv[1])
print("open", flush=True)
slide.read_region((128, 128), 0, (64, 64))
print("read", flush=True)
os._exit(0)
"""


def test_why_tiles_are_looked_at_first(tmp_path):
    """fastslide given such a tile ends the process, or hangs: should it stop to, the look can go."""
    write_slide(tmp_path / "s.tiff")
    damage(tmp_path / "s.tiff", "zeros")
    child = subprocess.Popen(
        [sys.executable, "-c", _HANGS, str(tmp_path / "s.tiff")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "open\n"
        time.sleep(0.5)
        assert child.poll() != 0  # None: it hangs; 1: libjpeg has ended it
    finally:
        child.kill()
        said = child.communicate()[0]
    assert said == ""


def case(path, mpp=0.5):
    return Case(
        name=path.stem,
        slide=open_slide(path),
        mpp=mpp,
        given=Annotations.empty(),
        truth=None,
        held_out=None,
        labels=LabelSpec(),
    )


@pytest.fixture
def two(tmp_path):
    """Tiles of two slides read piece by piece, as large ones are."""
    paths = [tmp_path / "good.tiff", tmp_path / "bad.tiff"]
    for k, path in enumerate(paths):
        write_slide(path, k)
    cases = [case(path) for path in paths]
    spec = TileSpec(tile_px=64, mpp=0.5, min_tissue=0.0)
    return CutTiles(cases, spec, tile_index(cases, spec), whole_px=0), cases[1].slide


def collect(tiles, said, n=16, **options):
    batches = train_batches(tiles, batch_size=8, seed=0, on_fault=said.append, max_fault_share=1.0, **options)
    try:
        return [next(batches) for _ in range(n)], batches.faults
    finally:
        batches.close()


def test_a_slide_that_goes_bad_leaves_blank_tiles_and_shifts_nothing(two):
    tiles, slide = two
    before, _ = collect(tiles, [])
    damage(Path(slide.path), "zeros")
    slide.close()
    said = []
    after, faults = collect(tiles, said, threads=4)
    serial, _ = collect(tiles, [], threads=0)
    lost = 0
    for was, now, same in zip(before, after, serial):
        lost += (~now.valid).sum()
        np.testing.assert_array_equal(now.valid, same.valid)  # a fault depends on the tile alone
        np.testing.assert_array_equal(now.image, same.image)
        np.testing.assert_array_equal(now.image[now.valid], was.image[now.valid])
        assert (now.ground[~now.valid] == Ground.IGNORED).all()
        assert not now.image[~now.valid].any()
    assert lost == faults.faults > 0
    assert lost < 30  # of 128: about one stored tile in 32 is bad, and 64 px windows meet its surroundings
    (message,) = said  # once a file and reason, though every place is another
    assert message.startswith(f"a tile was left out of training: {slide.path}: level 0, x ")


def test_the_message_comes_from_worker_processes_too(two):
    tiles, slide = two
    damage(Path(slide.path), "noise")
    slide.close()
    ours, theirs = [], []
    plain, _ = collect(tiles, ours, n=6)
    workers, _ = collect(tiles, theirs, n=6, workers=1)
    for one, other in zip(plain, workers):
        np.testing.assert_array_equal(one.valid, other.valid)
        np.testing.assert_array_equal(one.image, other.image)
    assert ours == theirs
    assert len(ours) == 1


class Bad:
    """Places of which some cannot be read; of three files."""

    def __init__(self, count, bad):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def read(self, place, rng):
        if self.bad(place):
            raise InputError(f"{self.name(place)}: cannot be read. Copy it again.")
        plane = np.zeros((2, 2), np.uint8)
        image = np.zeros((2, 2, 3), np.uint8)
        return {"image": image, "ground": plane, "label": plane, "valid": np.ones((), bool)}

    def name(self, place):
        return f"{'abb'[place % 3]}.svs"


def test_too_many_faults_stop_the_run_after_a_hundred_tiles():
    said = []
    batches = train_batches(Bad(300, lambda k: k % 3), batch_size=10, seed=0, on_fault=said.append)
    for _ in range(9):
        assert 0 < (~next(batches).valid).sum() < 10
    with pytest.raises(InputError) as caught:
        next(batches)
    batches.close()
    text = str(caught.value)
    assert text.startswith("b.svs: at most 1.00% of the tiles may be unreadable (train.max_fault_share=0.01)")
    assert "of 100 were" in text
    assert said == ["a tile was left out of training: b.svs: cannot be read. Copy it again."]


def test_a_few_faults_do_not():
    batches = train_batches(Bad(400, lambda k: k == 7), batch_size=10, seed=0, epochs=2, on_fault=str)
    assert sum((~batch.valid).sum() for batch in batches) == 2
    assert (batches.faults.tiles, batches.faults.faults) == (800, 2)


def test_no_readable_tile_at_all():
    with pytest.raises(InputError, match=r"svs: cannot be read.*No other tile could be read either"):
        next(train_batches(Bad(9, lambda k: True), batch_size=2, seed=0, on_fault=str))


def test_the_worst_file_is_named():
    log = FaultLog(max_share=0.02, on_fault=str)
    log.add(tiles=99, faults=[Fault(file=name, message=f"{name}: gone.") for name in "aaab"])
    with pytest.raises(InputError, match=r"^a: at most 2\.00%.*5 of 200 were, 3 of them in this file, the"):
        log.add(tiles=101, faults=[Fault(file="c", message="c: gone.")])
    with pytest.raises(InputError, match=r"max_fault_share must be a share"):
        FaultLog(max_share=1.5, on_fault=str)


class Sleeper(Bad):
    def read(self, place, rng):
        slides._READING[0] = "share/slow.svs", time.monotonic()
        time.sleep(1.0)
        slides._READING.pop(0, None)
        return super().read(place, rng)


def test_reading_that_hangs_is_an_error_with_the_file(monkeypatch):
    monkeypatch.setattr(slides, "_READING", {})  # of this test alone
    batches = train_batches(Sleeper(4, lambda k: False), batch_size=1, seed=0, stall_s=0.2)
    with pytest.raises(InputError, match=r"share/slow\.svs: has been read for 0 s, and no batch came"):
        next(batches)
    batches.close()
    time.sleep(1.0)
    batches = train_batches(Sleeper(1, lambda k: False), batch_size=1, seed=0, threads=0, stall_s=30.0)
    assert next(batches).valid.all()
    batches.close()


def test_a_plain_image_that_goes_bad(tmp_path):
    Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png")
    slide.close()
    (tmp_path / "a.png").write_bytes(b"no longer")
    with pytest.raises(InputError, match=r"a\.png.*cannot be read"):
        slide.read(Window(x_px=0, y_px=0, width=9, height=9))
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png.*cannot be read"):
        slide.read(Window(x_px=0, y_px=0, width=9, height=9))
