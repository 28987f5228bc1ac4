import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from sparseshot_jax import experiment, programs, run, run_folder
from sparseshot_jax.cli.arguments import threshold_of
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.experiment import Reporter, load, report, train
from sparseshot_jax.losses import CrossEntropy, FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.predict import write_predictions
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.log import read_rows
from sparseshot_jax.training.loop import Diverged
from sparseshot_jax.training.optimizer import OptimizerSpec
from sparseshot_jax.training.sharding import MeshSpec

SIDE = 48


def draw_folder(root):
    """Dark discs on a light ground, each an object: images/*.png and instances/*.png."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for folder in ("images", "instances"):
        (root / folder).mkdir(parents=True)
    for name in ("train_1", "train_2", "val_1", "test_1", "test_2"):
        ids = np.zeros((SIDE, SIDE), np.uint16)
        for k, (cy, cx) in enumerate(rng.uniform(6, SIDE - 6, (5, 2)), 1):
            ids[(y - cy) ** 2 + (x - cx) ** 2 < 25] = k
        image = np.where(ids[..., None] > 0, (90, 60, 140), (230, 200, 220)) + rng.normal(
            0, 6, (SIDE, SIDE, 3)
        )
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(ids).save(root / "instances" / f"{name}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "discs"
    draw_folder(root)
    return root


def make_config(root, **changes):
    base = ExperimentConfig(
        name="tiny",
        data=FolderSource(
            root=str(root), train=("train_*",), validation=("val_*",), test=("test_*",), mpp=0.5, keep=0.6
        ),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=4, depth=1),
        loss=FocalExclusive(),
        optimizer=OptimizerSpec(learning_rate=2e-2),
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
        predict=PredictSpec(core_px=32, min_area_um2=0.5, tissue_only=False),
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
    folder = tmp_path_factory.mktemp("finished") / "run"
    run = train(config, folder)
    assert run.step == 12
    return run


def test_a_run_leaves_what_it_promises(finished, config):
    rows = finished.rows()
    assert [r["step"] for r in rows if r["event"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in rows if r["event"] == "validation"] == [6, 12]
    asked = {"loss", "capped_loss", "keep_rate", "p_annotated", "p_unannotated", "rho", "learning_rate"}
    assert asked | {"images_per_second", "wait_share"} <= set(rows[0])
    assert {"dice_pooled", "dice_image", "best_threshold"} <= set(rows[-1])
    state, position = state_of(finished.folder, config)
    assert int(state.step) == 12
    assert position == {"next_tile": 96}
    loaded = load(finished.folder)
    assert loaded.config == config
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, state.ema)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, finished.variables)


class Stopped(Exception):
    pass


def stop_at(step):
    def on_log(now, row):
        if now == step:
            raise Stopped

    return Reporter(on_log=on_log)


def test_a_stopped_run_ends_as_one_that_was_not(finished, config, tmp_path):
    """Stopped twice, once far behind its last checkpoint: same parameters, averages, moments and log."""
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(config, folder, reporter=stop_at(2))
    for stop in (6, 10):
        with pytest.raises(Stopped):
            train(config, folder, reporter=stop_at(stop))
    started = []
    train(config, folder, reporter=Reporter(on_start=lambda step, total: started.append((step, total))))
    assert started == [(8, 12)]
    ours, theirs = state_of(folder, config), state_of(finished.folder, config)
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert without_clock(read_rows(folder / "log.jsonl")) == without_clock(finished.rows())


def test_a_finished_run_is_done_at_once(finished, config):
    before = (finished.folder / "log.jsonl").read_bytes()
    again = train(config, finished.folder)
    assert again.step == 12
    assert (finished.folder / "log.jsonl").read_bytes() == before


def test_one_compilation_serves_what_is_traced(finished, config, tmp_path):
    compiled = experiment.compilations()
    for k, changes in enumerate(
        (
            {"loss": FocalExclusive(alpha=0.05, gamma=1.0, schedule="fixed", rho=0.75)},
            {"seed": 3, "optimizer": OptimizerSpec(learning_rate=1e-3, warmup=0.5)},
            {"model": UNetSpec(base=4, depth=1, prior=0.2)},
        )
    ):
        train(steps_of(dataclasses.replace(config, **changes), steps=2), tmp_path / str(k))
    assert experiment.compilations() == compiled


def test_a_folder_of_another_config_is_refused_by_field(finished, config):
    other = dataclasses.replace(config, loss=FocalExclusive(alpha=0.3), seed=4)
    with pytest.raises(InputError, match=r"loss\.alpha: 0\.2 -> 0\.3; seed: 0 -> 4") as caught:
        train(other, finished.folder)
    assert "extend" not in str(caught.value)
    with pytest.raises(InputError, match=r"train\.steps: 12 -> 14\..*add --extend"):
        train(steps_of(config, steps=14), finished.folder)
    with pytest.raises(InputError, match=r"train\.steps: 12 -> 10"):
        train(steps_of(config, steps=10), finished.folder, extend=True)
    assert load(finished.folder).config == config


def test_what_does_not_change_the_mathematics_may_change(config, tmp_path):
    folder = tmp_path / "run"
    train(steps_of(config, steps=2), folder)
    freer = steps_of(config, steps=2, log_every=1, checkpoint_every=1, threads=2)
    assert train(dataclasses.replace(freer, name="renamed"), folder).step == 2
    assert load(folder).config.name == "renamed"


def test_extending_a_run(config, tmp_path):
    folder = tmp_path / "run"
    short = steps_of(config, steps=4, validate_every=100)
    train(short, folder)
    longer = steps_of(short, steps=8)
    told = []
    run = train(longer, folder, extend=True, reporter=Reporter(note=told.append))
    assert run.step == 8
    assert any("from 4 to 8 steps" in note and "stretched" in note for note in told)
    rows = [row for row in run.rows() if row["event"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    # stretched: step 6 has the threshold and the rate of a run of 8 steps
    at = programs.hyper_schedule(longer)(5)
    assert rows[2]["rho"] == pytest.approx(float(at.loss["rho"]))
    assert rows[2]["learning_rate"] == pytest.approx(float(at.learning_rate))
    assert load(folder).config.train.steps == 8


def test_a_folder_with_something_else_in_it_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty, and holds no run"):
        train(config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_bad_data_leave_no_folder_behind(config, tmp_path):
    lost = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(tmp_path / "missing")))
    with pytest.raises(InputError, match=r"missing/images: no such folder"):
        train(lost, tmp_path / "run")
    large = dataclasses.replace(config, tiles=TileSpec(tile_px=128, mpp=0.5))
    with pytest.raises(InputError, match="a tile must fit into the image"):
        train(large, tmp_path / "run")
    odd = steps_of(config, batch_size=9, mesh=MeshSpec(data=2))
    with pytest.raises(InputError, match=r"train\.batch_size must be divisible by 2 parts"):
        train(odd, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the run folder"):
        train(config, tmp_path / "file" / "run")


def test_a_diverged_run_keeps_its_last_good_checkpoint(config, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    schedule = programs.hyper_schedule

    def broken(config):
        at = schedule(config)
        return lambda step: dataclasses.replace(
            at(step), learning_rate=np.float32(np.nan if step >= 6 else at(step).learning_rate)
        )

    monkeypatch.setattr(experiment, "hyper_schedule", broken)
    with pytest.raises(Diverged, match="The checkpoint of step 4 is kept"):
        train(steps_of(config, log_every=100), folder)
    state, _ = state_of(folder, config)
    assert int(state.step) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_evaluation_is_written_with_the_threshold_carried_from_validation(finished):
    told = []
    splits = finished.splits()
    result = finished.evaluate(on_case=told.append)
    assert told == ["test_1", "test_2"]
    written = json.loads((finished.folder / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert result["step"] == 12
    points = result["operating_points"]
    assert points["carried_over"]["threshold"] == finished.choose_threshold(splits.validation)
    assert points["carried_over"]["threshold"] == finished.rows()[-1]["best_threshold"]
    # no threshold is better on the test part than the oracle's, and the pooled Dice says so
    pooled = {name: point["dice_pooled"]["mean"] for name, point in points.items()}
    assert pooled["oracle"] >= max(pooled.values()) - 1e-9
    assert finished.evaluation_of(splits) == written


def test_dice_is_that_of_the_maps_themselves(finished):
    splits = finished.splits()
    result = finished.evaluate(splits)
    hits = total = 0
    for case in splits.test:
        mask = finished.probability_map(case) > 0.5
        ids = np.asarray(Image.open(f"{finished.config.data.root}/instances/{case.name}.png")) > 0
        hits += 2 * (mask & ids).sum()
        total += mask.sum() + ids.sum()
    expected = hits / total if total else 1.0
    found = next(p for p in result["operating_points"].values() if p["threshold"] == 0.5)
    assert found["dice_pooled"]["mean"] == pytest.approx(expected, abs=1e-6)


def truth_of(run, name):
    return np.asarray(Image.open(f"{run.config.data.root}/instances/{name}.png")) > 0


def test_the_elkan_noto_threshold_is_half_the_mean_p_of_validation_objects(finished):
    splits = finished.splits()
    points = finished.evaluate(splits)["operating_points"]
    (val,) = splits.validation
    c = finished.probability_map(val)[truth_of(finished, "val_1")].mean()
    assert points["elkan_noto"]["c"] == pytest.approx(c, abs=0.5 / 1000)
    threshold = points["elkan_noto"]["threshold"]
    assert threshold == pytest.approx(points["elkan_noto"]["c"] / 2, abs=0.5 / 1000)
    hits = total = 0
    for case in splits.test:
        mask, true = finished.probability_map(case) > np.float32(threshold), truth_of(finished, case.name)
        hits, total = hits + 2 * (mask & true).sum(), total + mask.sum() + true.sum()
    assert points["elkan_noto"]["dice_pooled"]["mean"] == pytest.approx(hits / total, abs=1e-6)
    assert finished.carried_from(splits.validation) == {
        "threshold_carried": points["carried_over"]["threshold"],
        "elkan_noto_c": points["elkan_noto"]["c"],
    }


def test_what_another_run_carries_over_is_taken_without_a_look_at_validation(finished, tmp_path, monkeypatch):
    elsewhere = dataclasses.replace(finished, folder=epath.Path(tmp_path))
    monkeypatch.setattr(run, "carried_from_pixels", None)
    carried = {"threshold_carried": 0.2, "elkan_noto_c": 0.5}
    points = elsewhere.evaluate(finished.splits(), **carried)["operating_points"]
    assert points["carried_over"]["threshold"] == 0.2
    assert (points["elkan_noto"]["threshold"], points["elkan_noto"]["c"]) == (0.25, 0.5)


def test_held_out_marks_alone_give_the_elkan_noto_threshold(finished, tmp_path):
    """Validation with nothing but marked objects, a test part with dense truth."""
    elsewhere = dataclasses.replace(finished, folder=epath.Path(tmp_path))
    splits = finished.splits()
    (val,) = splits.validation
    marked = dataclasses.replace(val, truth=None, held_out=val.truth.take(np.arange(3)))
    result = elsewhere.evaluate(dataclasses.replace(splits, validation=(marked,)))
    points = result["operating_points"]
    assert "carried_over" not in points
    found = result["held_out"]["elkan_noto"]
    assert points["elkan_noto"]["c"] == found["c"]
    assert points["elkan_noto"]["threshold"] == found["threshold"]
    assert 0 <= found["predicted_area"] <= 1
    row = experiment.validate(elsewhere, dataclasses.replace(splits, validation=(marked,)))
    assert row["recall"] == result["held_out"]["recall"]
    assert "elkan_noto" not in row  # a row of the log holds numbers alone
    assert threshold_of(elsewhere, "elkan_noto") == found["threshold"]
    # Without a test part the point is still there to predict with.
    result = elsewhere.evaluate(dataclasses.replace(splits, validation=(marked,), test=()))
    assert "operating_points" not in result
    assert threshold_of(elsewhere, "elkan_noto") == found["threshold"]


def test_a_file_without_the_elkan_noto_point_is_still_read(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    old = load(tmp_path / "run")
    path = tmp_path / "run" / "evaluation.json"
    result = json.loads(json.dumps(old.evaluate(finished.splits())))
    del result["operating_points"]["elkan_noto"]
    for image in result["per_image"]:
        del image["points"]["elkan_noto"]
    path.write_text(json.dumps(result))
    assert old.evaluation_of(finished.splits()) == result
    assert "Elkan" not in report(old).read_text()
    assert threshold_of(old, "carried_over") == result["operating_points"]["carried_over"]["threshold"]
    with pytest.raises(InputError, match=r"got 'elkan_noto', and it has fixed, carried_over, oracle"):
        threshold_of(old, "elkan_noto")
    path.write_text(json.dumps(result | {"step": 4}))
    with pytest.raises(InputError, match=r"not of step 12 .*Run sparseshot evaluate"):
        threshold_of(old, "carried_over")
    path.unlink()
    with pytest.raises(InputError, match=r"evaluation\.json is not there"):
        threshold_of(old, "elkan_noto")
    assert threshold_of(old, "0.37") == 0.37
    with pytest.raises(InputError, match=r"must be in \[0, 1\); got 3"):
        threshold_of(old, "3")


def test_a_report_is_one_page(finished):
    path = report(finished)
    assert path == finished.folder / "report.html"
    page = path.read_text()
    assert "<html" in page
    assert "tiny" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_predictions_are_read_back(finished, config, root, tmp_path):
    run = load(finished.folder)
    image = root / "images" / "test_1.png"
    found = run.predict(image, mpp=0.5, threshold=0.05)
    from sparseshot_jax.data.slides.slide import open_slide

    stream = run.predict_stream(open_slide(image, mpp=0.5), threshold=0.05)
    count = write_predictions(tmp_path / "p.geojson", stream)
    back = read_geojson(tmp_path / "p.geojson")
    assert len(back) == count == len(found.objects)
    np.testing.assert_allclose(np.sort(back.areas_px), np.sort(found.objects.areas_px), atol=0.1)
    with pytest.raises(InputError, match="how large a pixel is"):
        run.predict(image)


def test_data_that_moved(finished, root, tmp_path):
    moved = finished.with_data_root(str(tmp_path))
    assert moved.config.data.root == str(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        moved.splits()


def test_a_folder_in_which_nothing_was_trained_takes_another_config(config, tmp_path):
    folder = tmp_path / "run"
    run_folder.record_config(folder, config)
    with pytest.raises(InputError, match="has not reached a checkpoint"):
        load(folder)
    other = steps_of(dataclasses.replace(config, loss=CrossEntropy()), steps=2)
    train(other, folder)
    assert load(folder).config.loss == CrossEntropy()


def test_other_marks_under_a_run_are_refused_by_image(config, root, tmp_path):
    data = tmp_path / "discs"
    shutil.copytree(root, data)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(data)))
    train(steps_of(moved, steps=2), tmp_path / "run")
    marks = np.array(Image.open(data / "instances/train_1.png"))
    Image.fromarray(np.where(marks == 1, 0, marks).astype(np.uint16)).save(data / "instances/train_1.png")
    with pytest.raises(InputError, match=r"other images or marks: train_1 \(3 objects -> 3 objects\)"):
        train(steps_of(moved, steps=2), tmp_path / "run")


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(InputError, match=r"not a run folder: it has no config\.json"):
        load(tmp_path)


def test_cross_entropy_and_many_devices_train_too(config, tmp_path):
    eight = steps_of(
        dataclasses.replace(config, loss=CrossEntropy()), steps=2, mesh=MeshSpec(data=8), ema_decay=0.0
    )
    compiled = experiment.compilations()
    run = train(eight, tmp_path / "run")
    assert run.step == 2
    assert experiment.compilations() == compiled + 1  # the second step's arguments lie as the first's do
    assert np.isfinite(run.rows()[0]["loss"])
