"""The README's examples run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from sparseshot_jax import cli
from sparseshot_jax.data.synthetic.scene import draw_slide

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


@pytest.mark.slow
def test_python_example(workplace, capsys):
    (source,) = [block for block in blocks("python") if "sparseshot_jax.train" in block]
    exec(source, {})
    assert (workplace / "runs/from_python/evaluation.json").is_file()


def test_own_slide_example(workplace):
    """With a small model and few steps: the commands are the README's."""
    paths = draw_slide(workplace / "drawn", width=512, height=512)
    (workplace / "slides").mkdir()
    paths.slide.rename(workplace / "slides/case.tiff")
    paths.given.rename(workplace / "slides/case.geojson")
    (block,) = blocks("bash")
    for line in block.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "sparseshot"
        if arguments[0] == "train":
            arguments += ["--train.steps", "2", "--train.batch-size", "8", "--model.base", "4"]
            arguments += ["--tiles.tile-px", "64"]
        cli.main([*arguments, "--debug"])
    made = workplace / "runs/mine"
    for name in ("predictions/case.geojson", "predictions/case_overlay.png", "report.html"):
        assert (made / name).is_file()
