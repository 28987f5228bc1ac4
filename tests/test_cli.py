import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import cli, experiment, sweep
from sparseshot_jax.cli.arguments import config_with, source_config
from sparseshot_jax.config import load_config
from sparseshot_jax.losses import Huber

ROOT = Path(__file__).parents[1]
CONFIG = """
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.training.sharding import MeshSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec

def get_config():
    return ExperimentConfig(
        name="example",
        data=FolderSource(root={root!r}, train=("[ab]",), test=("c",), mpp=0.5),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=4, depth=1),
        loss=FocalExclusive(),
        train=TrainSpec(steps=2, batch_size=4, log_every=1, threads=1, mesh=MeshSpec(data=1)),
        predict=PredictSpec(core_px=32, min_area_um2=0.5, tissue_only=False),
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    for name in ("images", "instances"):
        (folder / "data" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in "abc":
        ids = np.zeros((32, 32), np.uint16)
        ids[6:16, 8:18] = 1
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (32, 32, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / "data" / "images" / f"{name}.png")
        Image.fromarray(ids).save(folder / "data" / "instances" / f"{name}.png")
    (folder / "example.py").write_text(CONFIG.format(root=str(folder / "data")))
    return folder


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_names_every_verb(call, arguments):
    status, output = call(*arguments)
    assert status == 0
    assert all(f"  {verb} " in output for verb in cli.VERBS)


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(call, place, verb):
    status, output = call(verb, "--help")
    assert status == 0
    assert f"sparseshot {verb}" in output
    assert "Traceback" not in output


def test_help_of_a_config_lists_its_fields_with_their_meaning(call, place):
    for verb in ("train", "ablate"):
        status, output = call(verb, place / "example.py", "--help")
        assert status == 0
        assert f"sparseshot {verb}" in output
    status, output = call("train", place / "example.py", "--help")
    for option in ("--loss.alpha", "--data.root", "--train.steps", "--run", "--extend"):
        assert option in output
    assert "optimiser steps of the whole run" in output
    assert "the folder that holds images/" in output


@pytest.mark.parametrize("verb", ["ablate", "curve"])
def test_help_of_a_verb_with_set_lists_the_fields_of_the_config(call, place, verb):
    status, output = call(verb, place / "example.py", "--help")
    assert status == 0
    words = " ".join(output.split())
    assert "loss (focal_exclusive): schedule, rho, two_sided, mask_by, alpha, decision, gamma" in words
    assert "mesh.data, mesh.fsdp" in words
    status, output = call(verb, "--help")
    assert "lists its fields, for --" in " ".join(output.split())


@pytest.mark.parametrize("model", ["unet", "yollo"])
def test_data_without_a_config_are_trained_on_as_the_shipped_configs_are(place, model):
    (place / "slides").mkdir(exist_ok=True)
    for source, name in ((place / "data", "tnbc"), (place / "slides", "slide")):
        config, rest = source_config(str(source), ["--model", model, "--train.steps", "3"])
        shipped = load_config(ROOT / "configs" / f"{model}_{name}.py")
        assert rest == ["--train.steps", "3"]
        assert (type(config.model), type(config.data)) == (type(shipped.model), type(shipped.data))
        assert config.loss == shipped.loss
        assert config.tiles.annotated_share == shipped.tiles.annotated_share
        assert config.train.ema_decay == shipped.train.ema_decay
    config, _ = source_config(str(place / "data"), [f"--model={model}", "--loss", "huber"])
    assert config.loss == Huber()


@pytest.mark.parametrize("verb", ["train", "profile"])
def test_help_says_how_data_without_a_config_are_trained_on(call, verb):
    _, output = call(verb, "--help")
    assert "cross-entropy with the weight of unmarked ground by the share" in " ".join(output.split())
    assert "--labels.share 0.3" in output


@pytest.mark.parametrize("kinds", ["first", "last"])
def test_a_kind_is_set_before_its_fields_wherever_it_stands(place, kinds):
    assignments = ["loss=huber", "loss.delta=0.25"]
    config = config_with(str(place / "example.py"), assignments[:: 1 if kinds == "first" else -1])
    assert config.loss == Huber(delta=0.25)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("trian",), "Did you mean train?"),
        (("zzz",), "There are: demo, train"),
        (("train",), "needs a config first"),
        (("ablate",), "needs a config first"),
        (("train", "exmaple.py"), "no config file exmaple.py"),
        (("evaluate", "nowhere"), "nowhere is not a run folder"),
        (("report", "nowhere"), "nowhere is not a run folder"),
        (("predict", "nowhere", "x.png"), "nowhere is not a run folder"),
        (("predict", "nowhere"), "needs images after the run folder"),
        (("predict", "nowhere", "a/x.png", "b/x.png"), "x comes twice"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(call, arguments, part):
    status, output = call(*arguments)
    assert status == 2
    assert output.count("error:") == 1
    assert part in output


@pytest.mark.parametrize(
    ("option", "part"),
    [
        (("--loss.alhpa", "0.3"), "--loss.alpha"),
        (("--train.stpes", "3"), "--train.steps"),
        (("--loss", "focl"), "Did you mean focal?"),
        (("--loss",), "no loss of kind"),
        (("--train.steps", "many"), "train.steps"),
        (("--tiles.tile-px", "15"), "divisible by 2"),
        (("--data.root", "missing"), "missing/images: no such folder"),
        (("--loss.alpha", "-1"), "alpha must be"),
        (("--seed", "-1"), "seed must be at least 0"),
        (("--tiles.mpp", "nan"), "must be"),
        (("--optimizer.weight-decay", "inf"), "optimizer.weight_decay must be"),
    ],
)
def test_a_mistake_in_an_option(call, place, tmp_path, option, part):
    status, output = call("train", place / "example.py", "--run", tmp_path / "run", *option)
    assert status == 2
    assert part in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_brackets_in_a_message_are_printed(call, tmp_path):
    status, output = call("evaluate", tmp_path / "[bold]runs[/oops]")
    assert status == 2
    assert "[bold]runs[/oops] is not a run folder" in output


def test_debug_shows_the_traceback(call):
    from sparseshot_jax.errors import InputError

    with pytest.raises(InputError):
        call("evaluate", "nowhere", "--debug")


def test_from_training_to_predictions(call, place, tmp_path):
    run = tmp_path / "a run with a name long enough to be broken at the edge of a terminal" / "run"
    status, output = call(
        *("train", place / "example.py", "--run", run),
        *("--loss", "focal", "--loss.alpha", "0.3", "--seed", "4"),
    )
    assert status == 0, output
    assert f"next: sparseshot evaluate {run}\n" in output
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["loss"] == {"kind": "focal", "alpha": 0.3, "gamma": 2.0}
    assert recorded["seed"] == 4

    status, output = call("train", place / "example.py", "--run", run)
    assert status == 2
    assert "loss.kind: focal -> focal_exclusive" in output

    image = place / "data" / "images" / "c.png"
    status, output = call("predict", run, image, "--mpp", "0.5", "--threshold", "oracle")
    assert status == 2
    assert f"Run sparseshot evaluate {run} first" in output

    status, output = call("evaluate", run)
    assert status == 0, output
    assert "Dice" in output
    assert output.rstrip().endswith(str(run / "evaluation.json"))

    status, output = call("predict", run, image)
    assert status == 2
    assert "how large a pixel is" in output
    status, output = call("predict", run, image, "--mpp", "0.5", "--threshold", "0.01")
    assert status == 0, output
    found = json.loads((run / "predictions" / "c.geojson").read_text())
    assert found["type"] == "FeatureCollection"
    assert f"{len(found['features'])} objects: {run / 'predictions' / 'c.geojson'}" in output
    with Image.open(run / "predictions" / "c_overlay.png") as overlay:
        assert overlay.width == overlay.height >= 32
    points = json.loads((run / "evaluation.json").read_text())["operating_points"]
    (run / "named").mkdir()
    for threshold in ("oracle", str(points["oracle"]["threshold"])):
        folder = run / "named" / threshold
        status, output = call(
            "predict", run, image, "--mpp", "0.5", "--threshold", threshold, "--out", folder
        )
        assert status == 0, output
    by_name, by_number = (run / "named").rglob("c.geojson")
    assert by_name.read_bytes() == by_number.read_bytes()
    status, output = call("predict", run, image, "--mpp", "0.5", "--threshold", "elkan_noto")
    assert status == 2
    assert "got 'elkan_noto', and it has fixed, oracle. One is absent where validation gives none" in output

    status, output = call("report", run)
    assert status == 0, output
    assert (run / "report.html").is_file()
    assert str(run / "report.html") in output


def test_an_ablation_compiles_once_a_loss_and_is_not_run_twice(call, place, tmp_path, monkeypatch):
    compiled = experiment.compilations()
    arguments = (
        *("ablate", place / "example.py", "--out", tmp_path / "sweep"),
        *("--grid", "loss.alpha=0.1,0.4", "--grid", "loss.schedule=sigmoid,fixed", "--seeds", "0", "1"),
        *("--set", "train.steps=2"),
    )
    status, output = call(*arguments)
    assert status == 0, output
    assert experiment.compilations() - compiled <= 1
    rows = [json.loads(line) for line in (tmp_path / "sweep" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert {(row["loss.alpha"], row["loss.schedule"], row["seed"]) for row in rows} == {
        (a, s, k) for a in ("0.1", "0.4") for s in ("sigmoid", "fixed") for k in (0, 1)
    }
    trained = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/config.json")]
    assert sorted((c["loss"]["alpha"], c["loss"]["schedule"], c["seed"]) for c in trained) == sorted(
        (float(row["loss.alpha"]), row["loss.schedule"], row["seed"]) for row in rows
    )
    monkeypatch.setattr(sweep, "run_group", lambda *_: pytest.fail("done already"))
    assert call(*arguments)[0] == 0
    status, output = call(*arguments[:-1], "train.steps=3")
    assert status == 2
    assert "train.steps: 2 -> 3" in output
    assert "name another folder with --out." in output
    assert "--extend" not in output  # an option of train alone


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--grid", "loss.alpha"), "FIELD=VALUE,VALUE"),
        (("--grid", "loss.alhpa=1,2"), "Did you mean loss.alpha?"),
        (("--set", "train.steps"), "--set reads FIELD=VALUE"),
        (("--set", "train.stepz=3"), "Did you mean train.steps?"),
        (("--set", "loss.delta=1"), "loss is focal_exclusive, which has schedule"),
        (("--set", "loss.delta=1"), "huber has it: add --set loss=huber."),
    ],
)
def test_a_mistake_in_an_ablation(call, place, tmp_path, options, part):
    status, output = call("ablate", place / "example.py", "--out", tmp_path / "sweep", *options)
    assert status == 2
    assert part in output


def test_the_doctor_answers_every_question(call):
    status, output = call("doctor")
    assert status == 0, output
    for question in ("devices", "training", "slides", "disk", "extras"):
        assert f"{question}: " in output
    assert "tensorboardX is there" in output or 'pip install "sparseshot-jax[tensorboard]"' in output


def test_the_doctor_fails_with_the_reason(call, monkeypatch):
    from sparseshot_jax import doctor

    def broken():
        raise RuntimeError("no [devices] here")

    monkeypatch.setattr(doctor, "_QUESTIONS", {"devices": broken})
    status, output = call("doctor")
    assert status == 1
    assert "fails devices: no [devices] here" in output


def test_the_overview_in_a_fresh_process():
    code = "from sparseshot_jax import cli; cli.main(['--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: sparseshot VERB" in result.stdout
