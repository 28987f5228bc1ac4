"""The README's examples run as they stand."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from sparseshot_jax import cli
from sparseshot_jax.ablate import grid
from sparseshot_jax.cli.ablate import Ablate
from sparseshot_jax.cli.arguments import config_with
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.geojson import read_geojson, write_geojson
from sparseshot_jax.data.synthetic.scene import draw_slide
from sparseshot_jax.sweep import trial_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_loss_example_learns():
    (source,) = [block for block in blocks("python") if "jax.grad" in block]
    assert len(source[source.index("def loss") :].strip().splitlines()) <= 10
    names: dict = {}
    exec(source, names)
    start = names["loss"](0 * names["weights"], names["features"], names["annotated"], 0.6)
    assert names["loss"](names["weights"], names["features"], names["annotated"], 0.6) < start


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.py")), ids=lambda path: path.stem)
def test_the_sweep_can_be_made_of_every_config(path):
    (line,) = re.findall(r"`sparseshot (ablate CONFIG .*?)`", README)
    chosen = tyro.cli(Ablate, args=shlex.split(line)[2:])
    config = config_with(str(path), chosen.set)
    trials = grid(chosen.grid, chosen.seeds)
    schedules = [trial_config(config, trial).loss.schedule for trial in trials]
    assert schedules == ["sigmoid"] * 3 + ["linear"] * 3 + ["fixed"] * 3


@pytest.mark.slow
def test_python_example(workplace, capsys):
    (source,) = [block for block in blocks("python") if "sparseshot_jax.train" in block]
    exec(source, {})
    assert (workplace / "runs/from_python/evaluation.json").is_file()


def test_own_slide_examples(workplace):
    """With small models and few steps: the commands are the README's."""
    (workplace / "slides").mkdir()
    paths = draw_slide(workplace / "drawn", width=512, height=512)
    outlines = read_geojson(paths.given)
    points = Annotations.from_points(outlines.centroids_px, "tumour")
    for name, marks in (("case", outlines), ("points", points)):
        write_geojson(workplace / f"slides/{name}.geojson", marks, object_type="annotation")
        (workplace / f"slides/{name}.tiff").hardlink_to(paths.slide)
    small = {"unet": ("--model.base", "4"), "yollo": ("--model.width", "4", "--model.depth", "1")}
    for line in "".join(blocks("bash")).strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "sparseshot"
        if arguments[0] == "train":
            arguments += ["--train.steps", "2", "--train.batch-size", "2", "--tiles.tile-px", "64"]
            arguments += ["--train.mesh.data", "1"]
            arguments += small["yollo" if "yollo" in line else "unet"]
        cli.main([*arguments, "--debug"])
    for name in ("mine/predictions/case", "count/predictions/points"):
        for made in (f"runs/{name}.geojson", f"runs/{name}_overlay.png"):
            assert (workplace / made).is_file()
    assert (workplace / "runs/mine/report.html").is_file()
