import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.tile_grid import FileBytes
from sparseshot_jax.data.tile_index import TileIndex, open_index, save_index
from sparseshot_jax.data.tiles import TileSpec, draw_tile, tile_index
from sparseshot_jax.errors import InputError

SPEC = TileSpec(tile_px=64, mpp=1.0, class_balance=0.3)


def half_stained(side):
    image = np.full((side, side, 3), 245, np.uint8)
    image[:, : side // 2] = (190, 90, 160)
    image[::2, : side // 2] = (200, 110, 170)
    return image


@pytest.fixture(scope="module")
def index():
    rng = np.random.default_rng(0)
    cases = []
    for k, side in enumerate((1400, 900, 300)):  # the last is a crop: all of it counts as tissue
        corners = rng.uniform(20, side - 20, (4 * k, 2)).tolist()
        boxes = [[[[x, y], [x + 9, y], [x + 9, y + 7], [x, y + 7]]] for x, y in corners]
        cases.append(
            Case(
                name=f"fäll {k}",
                slide=ArraySlide(half_stained(side), 0.5, path=f"/slides/{k}.tif"),
                mpp=0.5,
                given=Annotations.from_polygons(boxes, ["a", "b"] * (2 * k)),
                truth=None,
                held_out=None,
                labels=LabelSpec(classes=("a", "b", "c")),
            )
        )
    return tile_index(cases, SPEC)


def draws(index, n=300):
    rng = np.random.default_rng(1)
    return [draw_tile(index, SPEC, index.cells[k % len(index.cells)], rng) for k in range(n)]


def test_what_is_opened_is_what_was_saved(index, tmp_path):
    save_index(index, tmp_path / "index")
    opened = open_index(tmp_path / "index")
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    assert isinstance(opened.mask_bytes, FileBytes)
    for field in dataclasses.fields(TileIndex):
        if field.name != "folder":
            ours, theirs = (getattr(one, field.name) for one in (index, opened))
            np.testing.assert_array_equal(theirs if np.isscalar(theirs) else theirs[:], ours)
    assert draws(opened) == draws(index)
    for ours, theirs in zip(index.grids, opened.grids):
        assert (ours.shape, ours.scale, ours.height) == (theirs.shape, theirs.scale, theirs.height)
        assert (ours.tissue is None) == (theirs.tissue is None)
        np.testing.assert_array_equal(ours.cells(), theirs.cells())
    assert [grid.tissue is None for grid in opened.grids] == [False, True, True]


def test_the_table_of_slides(index):
    assert [index.name(k) for k in range(3)] == ["fäll 0", "fäll 1", "fäll 2"]
    assert [index.path(k) for k in range(3)] == ["/slides/0.tif", "/slides/1.tif", "/slides/2.tif"]
    row = index.cases[0]
    assert (row["slide_width"], row["width"], row["scale"], row["mpp"]) == (1400, 700, 2.0, 0.5)
    assert (row["rows"], row["columns"]) == index.grids[0].shape == (11, 11)
    assert index.annotated.tolist() == [1, 2]
    assert index.classes.tolist() == [1, 2]
    assert index.object_classes[index.by_class].tolist() == [1] * 6 + [2] * 6


def test_a_pickled_one_is_mapped_again_and_small(index, tmp_path):
    save_index(index, tmp_path / "index")
    data = pickle.dumps(open_index(tmp_path / "index"))
    assert len(data) < 1000
    assert draws(pickle.loads(data)) == draws(index)
    assert draws(pickle.loads(pickle.dumps(index))) == draws(index)


def test_an_index_of_nothing_marked_and_no_glass(tmp_path):
    case = Case(
        name="",
        slide=ArraySlide(np.zeros((64, 64, 3), np.uint8), 1.0),
        mpp=1.0,
        given=Annotations.empty(),
        truth=None,
        held_out=None,
        labels=LabelSpec(),
    )
    index = tile_index([case], SPEC)
    save_index(index, tmp_path / "index")
    opened = open_index(tmp_path / "index")
    assert draws(opened, 3) == draws(index, 3) == [(0, 0, 0)] * 3
    assert opened.path(0) == opened.name(0) == ""


def test_mistakes(index, tmp_path):
    with pytest.raises(InputError, match=r"index\.json: no index there"):
        open_index(tmp_path / "none")
    folder = tmp_path / "index"
    save_index(index, folder)
    with pytest.raises(InputError, match="exists already"):
        save_index(index, folder)
    cells = (folder / "cells.npy").read_bytes()
    (folder / "cells.npy").write_bytes(cells[:-4])
    with pytest.raises(InputError, match=rf"cells\.npy: has {len(cells) - 4} bytes.*with {len(cells)}"):
        open_index(folder)
    (folder / "cells.npy").unlink()
    with pytest.raises(InputError, match=r"cells\.npy: is missing"):
        open_index(folder)
    (folder / "cells.npy").write_bytes(b"x" * len(cells))
    with pytest.raises(InputError, match=r"cells\.npy: not an array"):
        open_index(folder)
    np.save(folder / "cells.npy", np.load(folder / "objects_yx.npy"))
    with pytest.raises(InputError, match=r"index"):
        open_index(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h | {"version": 99}, "version 99; this program reads version 1"),
        (lambda h: h | {"tile_px": 32}, "changed or is damaged"),
        (lambda h: h | {"bytes": {}}, "changed or is damaged"),
        (lambda h: [1], "not the header"),
    ],
)
def test_a_header_that_is_not_the_one_written(index, tmp_path, change, message):
    save_index(index, tmp_path / "index")
    header = tmp_path / "index" / "index.json"
    header.write_text(json.dumps(change(json.loads(header.read_text()))))
    with pytest.raises(InputError, match=message):
        open_index(tmp_path / "index")


def test_nothing_is_left_where_writing_fails(index, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        save_index(index, tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_the_benchmark_measures():
    script = Path(__file__).parents[2] / "scripts" / "benchmark_index.py"
    options = ["--slides", "200", "--tiles", "100000", "--draws", "500", "--json"]
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["tiles"] == 100_000
    # the sizes of this small one are a hundredth; the bounds are those of ten million tiles
    assert result["open_s"] < 2
    assert result["added_mb"] < 200
