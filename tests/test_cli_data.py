"""The data verbs as a user types them."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import cli
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats import FORMATS, read_annotations
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.data.formats.label_map import read_label_map

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command line; the exit status and all that was printed."""
    monkeypatch.setattr("sparseshot_jax.console.CONSOLE.width", 300, raising=False)

    def run(*arguments):
        status = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def picture(rng, side=96):
    """A pink image with dark discs, and its label map."""
    image = np.full((side, side, 3), (235, 200, 220), np.uint8)
    labels = np.zeros((side, side), np.uint16)
    rows, columns = np.mgrid[:side, :side]
    for k, (y, x) in enumerate([(20, 20), (20, 70), (70, 20), (70, 70), (45, 45)], 1):
        inside = (rows - y) ** 2 + (columns - x) ** 2 < 64
        image[inside] = (90, 50, 140)
        labels[inside] = k
    noise = rng.integers(-6, 7, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture
def folder(tmp_path):
    """Three images with label maps."""
    rng = np.random.default_rng(0)
    for name in ("images", "instances"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for stem in ("a", "b", "c"):
        image, labels = picture(rng)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{stem}.png")
        Image.fromarray(labels).save(tmp_path / "data" / "instances" / f"{stem}.png")
    return tmp_path / "data"


def test_the_overview_names_every_verb(call):
    status, output = call("data")
    assert status == 0
    assert all(f"  {verb} " in output for verb in cli.data.VERBS)


@pytest.mark.parametrize("verb", list(cli.data.VERBS))
def test_every_verb_has_help(call, verb):
    status, output = call("data", verb, "--help")
    assert status == 0
    assert f"sparseshot data {verb}" in output


def test_a_mistyped_verb(call):
    status, output = call("data", "validte")
    assert status == 2
    assert "Did you mean validate?" in output


def test_formats_are_listed(call):
    status, output = call("data", "formats")
    assert status == 0
    assert all(one.title.split()[0] in output for one in FORMATS.values())


def test_the_table_of_the_docs_is_the_registry():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|", (DOCS / "formats.md").read_text(), re.M)
    assert {name: (title, tuple(re.findall(r"`(.+?)`", suffixes))) for name, title, suffixes in rows} == {
        name: (one.title, one.suffixes) for name, one in FORMATS.items()
    }


def test_convert_says_what_is_lost(call, tmp_path):
    marks = Annotations.concatenate(
        [
            Annotations.from_polygons([[[[1, 2], [9, 2], [9, 8]]]], "tumour"),
            Annotations.from_points([[4.25, 5.5]], "stroma"),
        ]
    )
    write_geojson(tmp_path / "a.geojson", marks)
    status, output = call("data", "convert", tmp_path / "a.geojson", tmp_path / "a.csv")
    assert status == 0
    assert "1 polygons became points" in output
    again = read_annotations(tmp_path / "a.csv")
    assert again.is_point.all()
    np.testing.assert_allclose(again.xy_px[1], [4.25, 5.5])
    status, output = call("data", "convert", tmp_path / "a.geojson", tmp_path / "a.csv")
    assert status == 2
    assert "overwrite" in output


def test_validate_draws_a_folder(call, folder, tmp_path):
    status, output = call("data", "validate", folder, "--data.mpp", "0.5", "--out", tmp_path / "checked")
    assert status == 0, output
    assert "object" in output
    page = (tmp_path / "checked" / "index.html").read_text()
    assert "data:image/" in page
    assert len(list((tmp_path / "checked").glob("*.png"))) == 3


def test_validate_finds_an_unknown_class_and_fails(call, tmp_path):
    image, labels = picture(np.random.default_rng(0))
    Image.fromarray(image).save(tmp_path / "slide.png")
    Image.fromarray(labels).save(tmp_path / "map.png")
    marks = read_label_map(tmp_path / "map.png", class_name="Tumr")
    (tmp_path / "map.png").unlink()
    write_geojson(tmp_path / "slide.geojson", marks)
    options = ("--labels.classes", "Tumor", "--data.mpp", "0.5", "--out", tmp_path / "checked")
    status, output = call("data", "validate", tmp_path / "slide.png", *options)
    assert status == 1, output
    assert "did you mean Tumor" in output


def test_sparsify_writes_a_nested_share(call, folder, tmp_path):
    for keep in ("0.4", "0.8"):
        status, output = call("data", "sparsify", folder, tmp_path / keep, "--keep", keep)
        assert status == 0, output
    kept = {
        keep: {stem: read_label_map(tmp_path / keep / "instances" / f"{stem}.png") for stem in "abc"}
        for keep in ("0.4", "0.8")
    }
    for stem in "abc":
        few, many = (
            {tuple(xy) for xy in kept[keep][stem].centroids_px.round(3).tolist()} for keep in ("0.4", "0.8")
        )
        assert (len(few), len(many)) == (2, 4)
        assert few < many
    record = json.loads((tmp_path / "0.4" / "sparsify.json").read_text())
    assert record["keep"] == 0.4
    status, output = call("data", "sparsify", folder, tmp_path / "0.4")
    assert status == 2
    assert "exists already" in output


def test_shards_are_cut_once(call, folder, tmp_path):
    options = ("--tiles.tile_px", "32", "--tiles.mpp", "0.25")
    status, output = call("data", "tile", folder, tmp_path / "shards", *options)
    assert status == 0, output
    assert "tiles, " in output
    (following,) = [line for line in output.splitlines() if line.startswith("next: sparseshot ")]
    command = shlex.split(following.removeprefix("next: sparseshot "))
    short = ("--train.steps", "1", "--train.batch_size", "8", "--model.base", "2", "--model.depth", "2")
    status, output = call(*command, *short, "--run", folder.parent / "run")
    assert status == 0, output
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.arrayrecord")}
    assert before
    status, output = call("data", "tile", folder, tmp_path / "shards", *options)
    assert status == 0, output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    status, output = call("data", "tile", folder, tmp_path / "shards", "--tiles.tile_px", "48")
    assert status == 2
    assert "tile_px" in output


@pytest.mark.parametrize("verb", ["tile", "sparsify"])
def test_out_is_not_taken_from_an_option(call, folder, verb):
    status, output = call("data", verb, folder, "--labels.classes", "Tumor")
    assert status == 2
    assert "needs OUT after SOURCE" in output


def test_annotations_are_no_source(call, tmp_path):
    (tmp_path / "x.geojson").write_text("{}")
    status, output = call("data", "validate", tmp_path / "x.geojson")
    assert status == 2
    assert "Give their slide" in output
