"""A detector's run from data to report, and what it refuses."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import experiment, programs
from sparseshot_jax.cli.arguments import threshold_of
from sparseshot_jax.config import ExperimentConfig, MeasureSpec, PredictSpec, TrainSpec, changed_mathematics
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.pipeline import train_batches
from sparseshot_jax.data.shards.writer import cut_shards
from sparseshot_jax.data.slides.slide import open_slide
from sparseshot_jax.data.sources import FolderSource, SlideSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate import true_objects
from sparseshot_jax.experiment import Reporter, load, report, train
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.metrics import detection_difference, match_points
from sparseshot_jax.models import YolloSpec
from sparseshot_jax.models.decode import DecodeSpec
from sparseshot_jax.predict import write_predictions
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.log import read_rows
from sparseshot_jax.training.optimizer import OptimizerSpec
from sparseshot_jax.training.sharding import MeshSpec

SIDE, RADIUS, MPP = 64, 4, 0.5  # pixels, pixels, micrometres a pixel
BOX = 2.0 * RADIUS  # side of a point's box, pixels


def discs(rng, side=SIDE, count=12):
    """Dark discs apart from one another on a light ground, and their centres x, y."""
    centres = np.zeros((0, 2))
    while len(centres) < count:
        one = rng.uniform(RADIUS + 1, side - RADIUS - 1, 2)
        if (np.hypot(*(centres - one).T) > 2.5 * RADIUS).all():
            centres = np.vstack([centres, one])
    y, x = np.mgrid[:side, :side] + 0.5
    dark = (np.hypot(y[..., None] - centres[:, 1], x[..., None] - centres[:, 0]) < RADIUS).any(-1)
    image = np.where(dark[..., None], (90, 60, 140), (230, 200, 220)) + rng.normal(0, 6, (side, side, 3))
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)), centres


def features(centres, name="cell"):
    """A GeoJSON of QuPath: a point each, and the last ones as one object of several points."""

    def feature(geometry):
        properties = {"objectType": "annotation", "classification": {"name": name}}
        return {"type": "Feature", "geometry": geometry, "properties": properties}

    single, together = centres[:-5], centres[-5:]
    each = [feature({"type": "Point", "coordinates": xy}) for xy in single.tolist()]
    each.append(feature({"type": "MultiPoint", "coordinates": together.tolist()}))
    return {"type": "FeatureCollection", "features": each}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "points"
    rng = np.random.default_rng(0)
    for folder in ("images", "points"):
        (root / folder).mkdir(parents=True)
    for name in ("train_1", "train_2", "val_1", "test_1", "test_2"):
        image, centres = discs(rng)
        image.save(root / "images" / f"{name}.png")
        # a points file counts from the centre of the first pixel
        (root / "points" / f"{name}.json").write_text(json.dumps({"detection": (centres - 0.5).tolist()}))
    return root


def make_config(root, **changes):
    base = ExperimentConfig(
        name="tiny",
        data=FolderSource(
            root=str(root), train=("train_*",), validation=("val_*",), test=("test_*",), mpp=MPP, keep=0.6
        ),
        labels=LabelSpec(point_radius_um=RADIUS * MPP),
        tiles=TileSpec(tile_px=32, mpp=MPP, min_tissue=0.0),
        model=YolloSpec(width=8, depth=1, stride=4, max_objects=16),
        loss=FocalExclusive(),
        optimizer=OptimizerSpec(learning_rate=1e-2),
        train=TrainSpec(
            steps=12,
            batch_size=8,
            ema_decay=0.9,
            log_every=2,
            validate_every=6,
            checkpoint_every=4,
            threads=1,
            mesh=MeshSpec(data=1),
        ),
        predict=PredictSpec(core_px=32, tissue_only=False),
        measure=MeasureSpec(distance_um=2.0),
    )
    return dataclasses.replace(base, **changes)


def steps_of(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def state_of(folder, config):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(programs.fresh_state(config))


def without_clock(rows):
    return [{k: v for k, v in r.items() if k not in ("images_per_second", "wait_share")} for r in rows]


@pytest.fixture(scope="module")
def config(root):
    return make_config(root)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="module")
def skilled(root, tmp_path_factory):
    """Trained on every mark until it finds the discs; the loss is cross-entropy, by its numbers."""
    config = make_config(
        root,
        data=dataclasses.replace(make_config(root).data, keep=1.0),
        loss=FocalExclusive(alpha=1.0, gamma=0.0, schedule="fixed", rho=1.0),
    )
    return train(
        steps_of(config, steps=80, checkpoint_every=80, validate_every=80),
        tmp_path_factory.mktemp("skilled") / "run",
    )


def test_a_run_leaves_what_it_promises(finished, config):
    rows = finished.rows()
    trained = [row for row in rows if row["event"] == "train"]
    assert [row["step"] for row in trained] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if row["event"] == "validation"] == [6, 12]
    asked = {"loss", "capped_loss", "keep_rate", "p_annotated", "p_unannotated", "rho", "learning_rate"}
    asked |= {"objectness_loss", "box_loss", "collisions", "left_out"}
    for row in trained:
        assert asked <= set(row)
        assert row["loss"] == pytest.approx(row["objectness_loss"] + 3.0 * row["box_loss"], rel=1e-5)
        assert row["left_out"] == 0
    assert {"f1_distance", "f1_iou", "best_threshold", "f1_distance_best"} <= set(rows[-1])
    assert finished.detects
    loaded = load(finished.folder)
    assert loaded.config == config
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, finished.variables)


def anchors(variables):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(variables) if leaf.shape == (1, 2)]


def test_anchors_are_those_of_the_training_set_and_come_back(finished, config):
    for variables in (finished.variables, load(finished.folder).variables):
        (found,) = anchors(variables)
        np.testing.assert_allclose(found, [[BOX, BOX]])
    state, _ = state_of(finished.folder, config)
    np.testing.assert_allclose(anchors(state.stats)[0], [[BOX, BOX]])


class Stopped(Exception):
    pass


def stop_at(step):
    def on_log(now, row):
        if now == step:
            raise Stopped

    return Reporter(on_log=on_log)


def test_a_stopped_run_ends_as_one_that_was_not(finished, config, tmp_path):
    folder = tmp_path / "run"
    for stop in (2, 6, 10):
        with pytest.raises(Stopped):
            train(config, folder, reporter=stop_at(stop))
    started = []
    train(config, folder, reporter=Reporter(on_start=lambda step, total: started.append((step, total))))
    assert started == [(8, 12)]
    ours, theirs = state_of(folder, config), state_of(finished.folder, config)
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert without_clock(read_rows(folder / "log.jsonl")) == without_clock(finished.rows())


def test_one_compilation_serves_what_is_traced(finished, config, tmp_path):
    compiled = experiment.compilations()
    larger = dataclasses.replace(config.labels, point_radius_um=3.0)  # another anchor
    for k, changes in enumerate(
        (
            {"loss": FocalExclusive(alpha=0.05, gamma=1.0, schedule="fixed", rho=0.75)},
            {"seed": 3, "optimizer": OptimizerSpec(learning_rate=1e-3, warmup=0.5)},
            {"model": dataclasses.replace(config.model, prior=0.2, box_weight=0.5, ignore_iou=0.4)},
            {"labels": larger, "predict": PredictSpec(threshold=0.3, core_px=32, tissue_only=False)},
        )
    ):
        train(steps_of(dataclasses.replace(config, **changes), steps=2), tmp_path / str(k))
    assert experiment.compilations() == compiled


def test_detections_of_two_thresholds_share_a_program(finished):
    image = np.full((1, SIDE, SIDE, 3), 255, np.uint8)
    finished.detect(image)
    decode = DecodeSpec(iou=0.7, distance_um=1.0)
    other = dataclasses.replace(
        finished, config=dataclasses.replace(finished.config, predict=PredictSpec(decode=decode))
    )
    made = programs.detector.cache_info().misses
    other.detect(image)
    assert programs.detector.cache_info().misses == made


def test_what_is_done_with_the_output_may_change(config):
    free = dataclasses.replace(
        config,
        predict=PredictSpec(
            threshold=0.3, geometry="point", decode=DecodeSpec(by="distance", class_aware=True)
        ),
        measure=MeasureSpec(distance_um=5.0, iou=0.3, exclusive_class="object"),
    )
    assert changed_mathematics(config, free) == []
    other = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, box_weight=2.0, head="centre"),
        labels=dataclasses.replace(config.labels, point_radius_um=1.0),
    )
    assert [change.split(":")[0] for change in changed_mathematics(config, other)] == [
        "labels.point_radius_um",
        "model.box_weight",
        "model.head",
    ]


def test_a_run_goes_on_with_other_decoding_and_measures(config, tmp_path):
    short = steps_of(config, steps=2)
    train(short, tmp_path / "run")
    freer = dataclasses.replace(
        short,
        predict=dataclasses.replace(short.predict, geometry="point", decode=DecodeSpec(by="distance")),
        measure=MeasureSpec(distance_um=4.0),
    )
    train(freer, tmp_path / "run")
    assert load(tmp_path / "run").config.measure.distance_um == 4.0
    with pytest.raises(InputError, match=r"model\.box_weight: 3\.0 -> 2\.0"):
        train(
            dataclasses.replace(short, model=dataclasses.replace(short.model, box_weight=2.0)),
            tmp_path / "run",
        )


def test_scores_down_to_another_floor_are_measured_anew(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    run = load(tmp_path / "run")
    splits = run.splits()
    result = json.loads(json.dumps(run.evaluate(splits)))
    assert result["options"]["floor"] == 0.001
    old = {**result, "options": {**result["options"], "floor": 0.02}}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(old))
    assert run.recorded() is None
    assert run.evaluation_of(splits) == result


def test_a_detector_learns_to_find_discs(skilled):
    result = skilled.evaluate()
    assert json.loads((skilled.folder / "evaluation.json").read_text()) == json.loads(json.dumps(result))
    assert result["task"] == "detection"
    points = result["operating_points"]
    assert points["carried_over"]["threshold"] == skilled.rows()[-1]["best_threshold"]
    # 24 discs that lie apart: one may be missed, one found twice
    assert points["oracle"]["f1_distance"]["mean"] > 0.9
    assert points["oracle"]["f1_distance"]["mean"] >= points["fixed"]["f1_distance"]["mean"]
    assert points["oracle"]["f1_iou"]["mean"] > 0.7
    assert result["ap_distance"] > 0.9
    (val,) = skilled.splits().validation
    truth, found = true_objects(val), skilled.find(val)
    score = np.zeros(len(truth))
    pairs = match_points(truth.xy_um, found.xy_um, gate=2.0)
    score[pairs.truth] = found.score[pairs.predicted]
    assert points["elkan_noto"]["c"] == pytest.approx(score.mean(), rel=1e-6)
    assert points["elkan_noto"]["threshold"] == pytest.approx(score.mean() / 2, abs=0.5 / 100 + 1e-9)
    # all marks are there: nearly all positives are found, and the threshold is near a half
    assert points["elkan_noto"]["c"] > 0.6
    assert points["elkan_noto"]["f1_distance"]["mean"] > 0.9
    same = detection_difference(result, result, point="elkan_noto", seed=0)
    assert (same["low"], same["mean"], same["high"]) == (0.0, 0.0, 0.0)
    assert threshold_of(skilled, "elkan_noto") == points["elkan_noto"]["threshold"]


def test_a_report_is_one_page(skilled):
    page = report(skilled).read_text()
    for part in ("<html", "tiny", "F1", "The true objects are points"):
        assert part in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_tiles_leave_no_trace(skilled, root):
    """Whatever the tiling: the same discs."""
    slide = open_slide(root / "images" / "test_1.png", mpp=MPP)
    found = []
    for core_px in (16, 32, 64):
        predict = dataclasses.replace(skilled.config.predict, core_px=core_px)
        run = dataclasses.replace(skilled, config=dataclasses.replace(skilled.config, predict=predict))
        part = run.predict(slide)
        order = np.lexsort(part.centres_xy_px.round(1).T)
        found.append((part.centres_xy_px[order], part.score[order]))
    assert len(found[0][0]) > 8
    for centres, score in found[1:]:
        # float32 sums in another order, by the compiler's choice for each shape
        np.testing.assert_allclose(centres, found[0][0], atol=1e-3)
        np.testing.assert_allclose(score, found[0][1], atol=1e-4)


@pytest.mark.parametrize("geometry", ["box", "point"])
def test_predictions_are_read_back(skilled, root, tmp_path, geometry):
    predict = dataclasses.replace(skilled.config.predict, geometry=geometry)
    run = dataclasses.replace(skilled, config=dataclasses.replace(skilled.config, predict=predict))
    slide = open_slide(root / "images" / "test_1.png", mpp=MPP)
    found = run.predict(slide)
    count = write_predictions(tmp_path / "p.geojson", run.predict_stream(slide))
    back = read_geojson(tmp_path / "p.geojson")
    assert len(back) == count == len(found.objects) > 8
    assert back.is_point.all() == (geometry == "point")
    np.testing.assert_allclose(back.centroids_px, found.objects.centroids_px, atol=0.01)
    assert set(back.class_names[k] for k in back.class_ids) == {"object"}
    collection = json.loads((tmp_path / "p.geojson").read_text())
    scores = [feature["properties"]["measurements"]["score"] for feature in collection["features"]]
    np.testing.assert_allclose(scores, found.score, rtol=1e-5)
    assert min(scores) > 0.5


def test_a_region_holds_the_centres(skilled, root, tmp_path):
    slide = open_slide(root / "images" / "test_1.png", mpp=MPP)
    half = [[0, 0], [SIDE / 2, 0], [SIDE / 2, SIDE], [0, SIDE]]
    inside = skilled.predict(slide, region=Annotations.from_polygons([[half]]))
    every = skilled.predict(slide)
    left = every.centres_xy_px[:, 0] < SIDE / 2
    assert 0 < left.sum() < len(left)
    assert len(inside.objects) == left.sum()


def test_sparse_marks_on_slides(tmp_path):
    """QuPath's points beside a slide: recall on those held out, beside how much is predicted."""
    image, centres = discs(np.random.default_rng(1), side=192, count=80)
    image.save(tmp_path / "slide.png")
    (tmp_path / "slide.geojson").write_text(json.dumps(features(centres[:50])))
    config = make_config(
        tmp_path,
        data=SlideSource(slides=(str(tmp_path / "slide.png"),), mpp=MPP, hold_out=0.3, block_um=20.0),
        labels=LabelSpec(classes=("cell",), point_radius_um=RADIUS * MPP),
    )
    config = steps_of(config, steps=10, validate_every=10)
    run = train(config, tmp_path / "run")
    row = run.rows()[-1]
    assert row["held_out"] > 5
    assert 0.0 <= row["recall"] <= 1.0
    result = run.evaluate()
    assert "operating_points" not in result
    assert "elkan_noto" not in row
    assert result["held_out"]["recall"] == row["recall"]
    assert result["held_out"]["predicted_per_mm2"] == row["predicted_per_mm2"]
    page = report(run).read_text()
    assert "precision and F1 cannot be measured" in page
    assert "Held-out marks" in page


def test_shards_bring_the_objects(config, tmp_path):
    splits = config.data.load(config.labels, config.seed)
    cut_shards(
        splits.train, config.tiles, str(tmp_path / "shards"), needs=config.model.needs, jpeg_quality=None
    )
    from_shards = steps_of(config, shards=str(tmp_path / "shards"))
    tiles = experiment.training_tiles(from_shards, splits)
    batches = train_batches(tiles, batch_size=8, seed=0, threads=1)
    batch = next(batches)
    batches.close()
    present = batch.objects.present
    assert present.any(axis=1).sum() >= 4  # tiles of 8 that hold a marked disc
    sides = batch.objects.boxes_yxyx_px[present]
    np.testing.assert_allclose(sides[:, 2:] - sides[:, :2], BOX, rtol=1e-4)
    assert not (np.asarray(batch.ground) == 1).any()  # boxes say what is annotated
    run = train(steps_of(from_shards, steps=4, validate_every=4), tmp_path / "run")
    np.testing.assert_allclose(anchors(run.variables)[0], [[BOX, BOX]])
    assert run.rows()[0]["p_annotated"] > 0


def test_shards_without_objects_are_refused(config, tmp_path):
    splits = config.data.load(config.labels, config.seed)
    cut_shards(splits.train, config.tiles, str(tmp_path / "shards"))
    with pytest.raises(InputError, match="objects"):
        train(steps_of(config, shards=str(tmp_path / "shards")), tmp_path / "run")


def test_mistakes_are_named(config):
    with pytest.raises(InputError, match=r"predict\.decode\.soft_sigma must be 0"):
        PredictSpec(decode=DecodeSpec(soft_sigma=0.5))
    with pytest.raises(InputError, match=r"predict\.geometry must be box or point; got 'boxes'"):
        PredictSpec(geometry="boxes")
    with pytest.raises(InputError, match=r"measure\.exclusive_class must be one of .* object; got 'tumour'"):
        dataclasses.replace(config, measure=MeasureSpec(exclusive_class="tumour"))
    with pytest.raises(InputError, match=r"tiles\.tile_px must be divisible by 4"):
        dataclasses.replace(config, tiles=TileSpec(tile_px=30))
