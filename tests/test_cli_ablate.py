"""The verb that compares settings, from the command line to its files."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import config as configs
from sparseshot_jax import experiment, search, sweep
from sparseshot_jax.console import CONSOLE, SweepProgress, sweep_progress
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.report import sweep_figures
from sparseshot_jax.trial_scores import thinned

ROOT = Path(__file__).parents[1]
CONFIG = """
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training.optimizer import OptimizerSpec
from sparseshot_jax.training.sharding import MeshSpec

def get_config():
    return ExperimentConfig(
        name="compared",
        data=FolderSource(root={root!r}, train=("a",), validation=("b",), test=("c",), mpp=0.5, keep=0.5),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=2, depth=1),
        loss=FocalExclusive(),
        optimizer=OptimizerSpec(learning_rate=0.03),
        train=TrainSpec(steps=3, batch_size=4, log_every=1, threads=1, mesh=MeshSpec(data=1)),
        predict=PredictSpec(core_px=32, min_area_um2=0.5, tissue_only=False),
    )
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    for name in ("images", "instances"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        ids = np.zeros((32, 32), np.uint16)
        ids[6:16, 8:18], ids[20:28, 4:12] = 1, 2
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (32, 32, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(ids).save(root / "instances" / f"{name}.png")
    (root / "config.py").write_text(CONFIG.format(root=str(root)))
    return root / "config.py"


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


SEARCH = (
    *("--together", "2", "--choose-by", "sparse", "--random", "loss.alpha=0.05:0.5:log"),
    *("--random", "loss.schedule=fixed,sigmoid", "--trials", "2"),
)


def check_a_search_and_its_test_scores(call, config, folder):
    """The output of both calls."""
    arguments = ("ablate", config, "--out", folder, *SEARCH)
    status, first = call(*arguments)
    assert status == 0, first
    rows = rows_of(folder)
    assert len({row["loss.alpha"] for row in rows}) == len(rows) == 2
    assert all({"dice_pooled", "dice_pooled_best", "sparse_recall", "lee_liu"} <= set(row) for row in rows)
    assert not [name for row in rows for name in row if "test" in name]
    assert not list(folder.glob("*/evaluation.json"))
    choice = json.loads((folder / "choice.json").read_text())
    assert choice["by"] == "sparse"
    assert choice["conditions"][0]["settings"] == 2
    assert "best by sparse marks (chosen): " in first
    for kind in ("png", "svg"):
        assert (folder / f"sweep.{kind}").is_file()

    status, second = call(*arguments, "--score", "test")
    assert status == 0, second
    tested = rows_of(folder)
    assert all(row["test_dice_pooled_fixed"] is not None for row in tested)
    assert [{k: v for k, v in row.items() if not k.startswith("test_")} for row in tested] == rows
    return first, second


@pytest.mark.slow
def test_a_trained_search_chooses_by_sparse_marks_and_then_looks_at_the_test_part(call, config, tmp_path):
    before = experiment.compilations()
    first, second = check_a_search_and_its_test_scores(call, config, tmp_path / "sweep")
    compiled = experiment.compilations() - before
    assert f"{compiled} training step" in first
    assert compiled <= 1
    assert "at most 1 expected" in first
    assert "0 training steps compiled" in second  # trained already: only scored
    assert all((tmp_path / "sweep" / f"sweep.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))


@pytest.fixture
def told(monkeypatch):
    """Training and pictures, which have tests of their own, put aside; the trials that were to be run."""
    asked = []

    def run_group(config, group, folder, *, scoring, **_):
        for trial in group.trials:
            asked.append(trial)
            value = float(trial.values.get("loss.alpha", 0.1 * len(asked)))
            row = {"train_loss": 1.0 - value}
            if getattr(config.data, "validation", True):  # of the demo no files are named
                row |= {"dice_pooled": value, "dice_pooled_best": value}
            yield row | (
                ({"sparse_recall": 0.5, "lee_liu": 2.0 - value} if scoring.sparse else {})
                | ({"test_dice_pooled_fixed": value} if scoring.test else {})
            )

    monkeypatch.setattr(sweep, "run_group", run_group)
    drawn = {"png": b"drawn", "svg": b"drawn"}
    monkeypatch.setattr(sweep_figures, "sweep_picture", lambda *_, measure, **__: drawn if measure else {})
    return asked


def test_a_random_search_chooses_by_sparse_marks_and_then_looks_at_the_test_part(
    call, config, tmp_path, told
):
    check_a_search_and_its_test_scores(call, config, tmp_path / "sweep")
    assert len(told) == 4
    # Scored once more, for less: what is known stays.
    status, output = call("ablate", config, "--out", tmp_path / "sweep", *SEARCH)
    assert status == 0, output
    assert len(told) == 4
    assert all("test_dice_pooled_fixed" in row for row in rows_of(tmp_path / "sweep"))


def test_a_row_keeps_its_test_scores_when_it_is_scored_once_more(call, config, tmp_path, told):
    arguments = ("ablate", config, "--out", tmp_path / "sweep", "--grid", "loss.alpha=0.1,0.4")
    for more in (("--score", "test"), ("--choose-by", "sparse")):
        status, output = call(*arguments, *more)
        assert status == 0, output
    assert all({"test_dice_pooled_fixed", "lee_liu"} <= set(row) for row in rows_of(tmp_path / "sweep"))


def test_without_validation_nothing_is_chosen_and_the_picture_drawn(call, config, tmp_path, told):
    arguments = ("ablate", config, "--out", tmp_path / "sweep", "--set", "data.validation=[]")
    status, output = call(*arguments, "--grid", "loss.alpha=0.1,0.4")
    assert status == 0, output
    assert "nothing to choose by, so no setting is called the best" in output
    assert not (tmp_path / "sweep" / "choice.json").exists()
    assert (tmp_path / "sweep" / "sweep.png").is_file()


def test_a_search_by_optuna_is_resumed_as_it_was(call, config, tmp_path, told, monkeypatch):
    optuna = pytest.importorskip("optuna")
    arguments = ("ablate", config, "--out", tmp_path / "sweep", "--together", "2")
    axes = ("--optuna", "loss.alpha=0.05:0.5", "--optuna", "loss=focal,focal_exclusive")
    status, output = call(*arguments, *axes, "--trials", "5")
    assert status == 0, output
    assert len(rows_of(tmp_path / "sweep")) == len(told) == 5
    held = json.loads((tmp_path / "sweep" / "search.json").read_text())
    assert (held["batch"], held["optuna_version"]) == (2, optuna.__version__)
    # More trials, on more devices: the first are the same.
    status, output = call(*arguments[:-1], "4", *axes, "--trials", "8")
    assert status == 0, output
    assert len(told) == len({trial.name for trial in told}) == 8
    status, output = call(*arguments, "--optuna", "loss.alpha=0.05:0.6")
    assert status == 2
    assert "holds another search: optuna: " in output
    # Another optuna would propose otherwise.
    monkeypatch.setattr(search, "optuna_version", lambda: "0.1")
    status, output = call(*arguments, *axes, "--trials", "9")
    assert status == 2
    assert f"optuna_version: {optuna.__version__} -> 0.1" in output
    assert len(told) == 8


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--random", "loss.alpha"), "FIELD=LOW:HIGH"),
        (("--random", "loss.alhpa=0:1"), "Did you mean loss.alpha?"),
        (("--optuna", "loss.alpha=0.1:1", "--grid", "seed=1"), "takes no --grid"),
        (
            ("--random", "loss.alpha=0.1:1", "--grid", "loss.alpha=1"),
            "loss.alpha: named twice in --grid and --random",
        ),
        (("--random", "loss.alpha=0.1:1", "--trials", "0"), "--trials must be at least 1"),
        (("--seeds", "1", "1"), "1: named twice in --seeds"),
        (("--choose-by", "sparse", "--set", "data.validation=[]"), "need validation images"),
        (
            ("--grid", "seed=1,2"),
            "seed is set by --seeds; leave it out of --grid, --random, --optuna and --set",
        ),
        (("--set", "seed=3"), "seed is set by --seeds"),
        (("--random", "seed=1:9:int"), "seed is set by --seeds"),
        (("--optuna", "seed=1:9:int"), "seed is set by --seeds"),
        (("--set", "name=other"), "name is set by the values of each trial"),
        (("--grid", "loss.alpha=0.1,0.1"), "0.1: named twice"),
        (("--grid", "name=a,b"), "name is set by the values of each trial"),
        (("--trials", "3"), "neither --random nor --optuna is given"),
        (("--grid", "loss.alpha=0.1,0.2", "--search-seed", "0"), "neither --random nor --optuna is given"),
        (("--measure", "test_dice_pooled_fixed"), "a choice is made on validation"),
        (("--measure", "f1_distance"), "dice_pooled, dice_image, dice_pooled_best; got 'f1_distance'"),
        (("--optuna", "loss.alpha=0.1:1", "--measure", "train_loss"), "a choice is made on validation"),
        (("--measure", "dice_pooled", "--set", "data.validation=[]"), "needs validation images with dense"),
        (("--score", "test", "--set", "data.test=[]"), "--score test needs test images"),
    ],
)
def test_a_mistake(call, config, tmp_path, options, part):
    status, output = call("ablate", config, "--out", tmp_path / "sweep", *options)
    assert status == 2, output
    assert part in output
    assert not (tmp_path / "sweep").exists()


def test_a_share_that_no_data_can_have_is_found_before_a_trial_trains(call, tmp_path, told):
    arguments = ("ablate", ROOT / "configs" / "unet_demo.py", "--out", tmp_path / "sweep")
    status, output = call(*arguments, "--grid", "data.keep=0.3,1.5")
    assert status == 2, output
    assert "data.keep must be a share in (0, 1]; got 1.5" in output
    assert not told
    assert not (tmp_path / "sweep").exists()


def test_a_measure_beside_sparse_marks_alone_would_be_ignored(call, config, tmp_path, monkeypatch):
    dense = configs.load_config(config).data.load(LabelSpec(), 0)
    splits = dataclasses.replace(dense, validation=tuple(thinned(dense.validation, 0.5, seed=0)))
    monkeypatch.setattr(sweep, "splits_of", lambda config: splits)
    options = ("--choose-by", "sparse", "--measure", "dice_pooled")
    status, output = call("ablate", config, "--out", tmp_path / "sweep", *options)
    assert status == 2, output
    assert "--measure needs validation images with dense truth" in output
    assert not (tmp_path / "sweep").exists()


def test_the_table_of_a_sweep(monkeypatch):
    """Trials at work first, then the best of the finished; the time left follows from the speed so far."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = SweepProgress("sweep", {"a": 100, "b": 100, "c": 100, "d": 100})
    progress.done("d", {"dice_pooled": 0.4})  # of an earlier call
    reporter = progress.reporter_of("a")
    reporter.on_start(50, 100)
    now[0] += 30
    reporter.on_log(80, {"loss": 0.25})
    reporter.on_validation(80, {"dice_pooled": 0.6})
    reporter.on_validation(90, {"dice_pooled": 0.5})
    # 30 steps in 30 seconds, and 220 to go
    assert progress.summary() == "1/4 trials, 180/400 steps, 0:00:30 so far, 0:03:40 left"
    cells = list(zip(*(column.cells for column in progress.__rich__().columns)))
    assert cells[0] == ("a", "training", "80/100", "0.2500", "0.6000")
    assert [row[:2] for row in cells[1:]] == [("d", "done"), ("b", "waiting"), ("c", "waiting")]
    reporter.on_log(100, {"loss": 0.2})
    assert progress.__rich__().columns[1]._cells[0] == "scoring"
    progress.done("a", {"dice_pooled": 0.55})
    progress.done("b", {"error": "not finite"})
    cells = list(zip(*(column.cells for column in progress.__rich__().columns)))
    assert [row[:2] for row in cells] == [("a", "done"), ("d", "done"), ("b", "failed"), ("c", "waiting")]
    assert cells[0][4] == "0.5500"  # as it ended, not as it was best
    progress.add({"e": 10})
    assert "2/5" not in progress.summary()
    assert progress.summary().startswith("3/5 trials")


def test_without_a_terminal_a_finished_trial_is_a_line(capsys):
    assert not CONSOLE.is_terminal
    with sweep_progress("sweep", {"[a]": 10}) as progress:
        progress.reporter_of("[a]").warn("slow")
        progress.done("[a]", {"f1_distance": 0.5})
    output = capsys.readouterr().out
    assert "warning: [a]: slow\n" in output
    assert re.search(r"^\[a\]: 0\.5000  \(1/1 trials, 10/10 steps, 0:00:0\d so far\)$", output, re.M)


def test_the_commands_of_the_page(call, config, tmp_path, told, monkeypatch):
    """docs/ablate.md: every command is read, makes its trials and files; training is put aside."""
    pytest.importorskip("optuna")
    text = (ROOT / "docs" / "ablate.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("sparseshot ")]
    assert len(commands) >= 5
    monkeypatch.chdir(tmp_path)
    # Three slides are drawn in ten seconds; dense truth for validation is all that is asked of them.
    splits = configs.load_config(config).data.load(LabelSpec(), 0)
    monkeypatch.setattr(sweep, "splits_of", lambda config: splits)
    for verb, source, *options in commands:
        status, output = call(verb, ROOT / source, *options)
        assert status == 0, output
    made = {path.parent.name for path in tmp_path.glob("runs/*/choice.json")}
    assert made == {"unet_demo_ablation", "losses", "rates", "searched", "schedules"}
    assert len(rows_of(tmp_path / "runs" / "searched")) == 8
    assert len(rows_of(tmp_path / "runs" / "schedules")) == 18
