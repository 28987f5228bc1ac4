"""Touching cells from a U-Net that learns depth: train, evaluate, predict them apart, report."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.cli.show import show_evaluation
from sparseshot_jax.config import ExperimentConfig, MeasureSpec, PredictSpec, TrainSpec, changed_mathematics
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.slides.slide import open_slide
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.experiment import load, report, train
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.predict import write_predictions
from sparseshot_jax.predict.watershed import SplitSpec
from sparseshot_jax.training.optimizer import OptimizerSpec
from sparseshot_jax.training.sharding import MeshSpec

SIDE, RADIUS, MPP, PAIRS = 64, 6, 0.5, 6


def draw(root, name, rng):
    """Pairs of discs that overlap by a quarter of their diameter, pair apart from pair."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    ids = np.zeros((SIDE, SIDE), np.uint16)
    middles = [(r, c) for r in (12, 32, 52) for c in (16, 48)]
    for k, (cy, cx) in enumerate(rng.uniform(-2, 2, (PAIRS, 2)) + middles):
        angle = rng.uniform(-0.5, 0.5)
        for side, sign in enumerate((-1, 1)):
            shift = sign * 0.75 * RADIUS
            far = np.hypot(x - cx - shift * np.cos(angle), y - cy - shift * np.sin(angle))
            ids[(far < RADIUS) & (ids == 0)] = 2 * k + side + 1
    image = np.where(ids[..., None] > 0, (90, 60, 140), (230, 200, 220)) + rng.normal(0, 6, (SIDE, SIDE, 3))
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{name}.png")
    Image.fromarray(ids).save(root / "instances" / f"{name}.png")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "pairs"
    for folder in ("images", "instances"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("train_1", "train_2", "val_1", "test_1"):
        draw(root, name, rng)
    return ExperimentConfig(
        name="pairs",
        data=FolderSource(
            root=str(root), train=("train_*",), validation=("val_*",), test=("test_*",), mpp=MPP
        ),
        tiles=TileSpec(tile_px=32, mpp=MPP, min_tissue=0.0),
        model=UNetSpec(base=8, depth=2, distance=True),
        loss=FocalExclusive(alpha=1.0, gamma=0.0, schedule="fixed", rho=1.0),
        optimizer=OptimizerSpec(learning_rate=2e-2),
        train=TrainSpec(
            steps=60,
            batch_size=8,
            ema_decay=0.9,
            log_every=10,
            validate_every=60,
            checkpoint_every=60,
            threads=1,
            mesh=MeshSpec(data=1),
        ),
        predict=PredictSpec(
            core_px=32,
            min_area_um2=2.0,
            tissue_only=False,
            instances=True,
            largest_um=8.0,
            split=SplitSpec(drop=0.1),
        ),
        measure=MeasureSpec(distance_um=2.0),
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def evaluation(run):
    return run.evaluate()


def other(run, **changes):
    predict = dataclasses.replace(run.config.predict, **changes)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, predict=predict))


def test_depth_is_learnt(run):
    rows = [row for row in run.rows() if row["event"] == "train"]
    assert rows[-1]["distance_loss"] < rows[0]["distance_loss"]
    assert all({"loss", "p_annotated", "p_unannotated"} <= set(row) for row in rows)


def test_cells_are_measured_beside_the_pixels(run, evaluation):
    written = json.loads((run.folder / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(evaluation))
    assert evaluation["operating_points"]["fixed"]["dice_pooled"]["mean"] > 0.9
    objects = evaluation["objects"]
    assert objects["task"] == "detection"
    point = objects["operating_points"]["fixed"]
    # 12 touching cells: one may be lost
    assert point["f1_distance"]["mean"] > 0.9
    assert point["f1_iou"]["mean"] > 0.9
    assert point["counts_mae"]["mean"] <= 1


def test_separate_cells_are_as_many_as_there_are(run, config, tmp_path):
    image = open_slide(f"{config.data.root}/images/test_1.png", mpp=MPP)
    joined = other(run, instances=False).predict(image)
    assert len(joined.objects) <= PAIRS
    apart = run.predict(image)
    assert abs(len(apart.objects) - 2 * PAIRS) <= 1
    tiled = other(run, core_px=64).predict(image)
    by_row = [np.sort(each.objects.centroids_px[:, 1]) for each in (apart, tiled)]
    np.testing.assert_allclose(*by_row, atol=0.5)
    count = write_predictions(tmp_path / "p.geojson", run.predict_stream(image))
    back = read_geojson(tmp_path / "p.geojson")
    assert len(back) == count == len(apart.objects)
    assert set(back.class_names) == {"object"}
    features = json.loads((tmp_path / "p.geojson").read_text())["features"]
    assert {"probability", "area um^2"} <= set(features[0]["properties"]["measurements"])


def test_the_report_and_the_terminal_show_cells_and_pixels(run, evaluation, capsys):
    page = report(run).read_text()
    for part in ("Dice", "Separate objects", "F1"):
        assert part in page
    show_evaluation(evaluation)
    shown = capsys.readouterr().out
    assert "Dice" in shown
    assert "Separate objects" in shown
    assert "F1 within 2 µm" in shown


def test_a_run_comes_back_and_parting_is_free(run, config):
    loaded = load(run.folder)
    assert loaded.config == config
    free = dataclasses.replace(config, predict=PredictSpec(split=SplitSpec(drop=0.4), largest_um=30.0))
    assert changed_mathematics(config, free) == []
    without = dataclasses.replace(config, model=dataclasses.replace(config.model, distance=False))
    assert changed_mathematics(config, without) == ["model.distance: True -> False"]


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"predict\.largest_um must be above 0"):
        PredictSpec(largest_um=0.0)
    with pytest.raises(InputError, match="drop must lie between 0 and 1"):
        SplitSpec(drop=1.0)
