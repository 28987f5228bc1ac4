"""Training in rounds: what becomes a pseudo label, where it lies, and a run that was stopped anywhere."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import sparseshot_jax
from sparseshot_jax import experiment, find, rounds, sweep
from sparseshot_jax.ablate import grid
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec, from_json, to_json
from sparseshot_jax.data.annotations import Kind
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.experiment import Reporter, load
from sparseshot_jax.label_facts import counted_share
from sparseshot_jax.losses import CrossEntropy
from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.training.log import read_rows
from sparseshot_jax.training.optimizer import OptimizerSpec
from sparseshot_jax.training.relabel import RelabelSpec
from sparseshot_jax.training.sharding import MeshSpec
from sparseshot_jax.types import Window

SIDE = 64
NAMES = ("a", "b", "val", "test")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Dark squares on a light ground; a third of them is marked."""
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "instances"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        ids = np.zeros((SIDE, SIDE), np.uint16)
        for k, (y, x) in enumerate(np.ndindex(4, 4), 1):
            top, left = np.array([y, x]) * 16 + rng.integers(1, 6, 2)
            ids[top : top + 8, left : left + 8] = k
        image = np.where(ids[..., None] > 0, 90, 220) + rng.integers(-9, 9, (SIDE, SIDE, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(ids).save(root / "instances" / f"{name}.png")
    return ExperimentConfig(
        name="rounds",
        data=FolderSource(
            root=str(root), train=("a", "b"), validation=("val",), test=("test",), mpp=0.5, keep=0.3
        ),
        tiles=TileSpec(tile_px=32, mpp=0.5, min_tissue=0.0, annotated_share=1.0),
        model=UNetSpec(base=4, depth=1),
        # Weak on unannotated ground, so that a few steps find the squares that nobody marked.
        loss=CrossEntropy(background_weight=0.1),
        optimizer=OptimizerSpec(learning_rate=3e-2),
        train=TrainSpec(
            steps=14,
            batch_size=8,
            log_every=2,
            validate_every=14,
            checkpoint_every=4,
            threads=1,
            mesh=MeshSpec(data=1),
        ),
        relabel=RelabelSpec(rounds=1, threshold=0.5),
        predict=PredictSpec(core_px=32, min_area_um2=4.0, tissue_only=False),
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    notes = []
    folder = tmp_path_factory.mktemp("finished") / "run"
    return rounds.train(config, folder, reporter=Reporter(note=notes.append)), notes


def pseudo(folder, name, k=1):
    return read_geojson(str(folder / f"round-{k}" / "pseudo_labels" / f"{name}.geojson"))


def summary(folder, k=1):
    return json.loads((folder / f"round-{k}" / "pseudo_labels.json").read_text())


def files(folder):
    """What training leaves in a run's folder, without clocks and checkpoints."""
    folder = Path(folder)
    held = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {
        name: path.read_bytes()
        for name, path in held.items()
        if "checkpoints" not in name and not name.endswith(("log.jsonl", "evaluation.json"))
    }


def test_pseudo_labels_are_true_squares_that_nobody_marked(config, finished):
    run, notes = finished
    told = summary(run.folder)
    assert told["added"] > 4
    assert told["found"] > told["added"]  # the marked squares are found, too
    assert told["precision"] > 0.7
    assert told["pixel_precision"] > 0.5
    assert set(told["cases"]) == {"a", "b"}
    assert told["threshold"] == 0.5
    splits = config.data.load(config.labels, config.seed)
    for case in splits.train:
        found = pseudo(run.folder, case.name)
        assert len(found) == told["cases"][case.name]["added"]
        assert found.class_names == ("object",)
        given, added = (draw(case, marks) for marks in (case.given, found))
        assert given.any()
        assert added.any()
        assert not (given & added).any()
    assert any(f"{told['added']} pseudo labels" in note and "precision" in note for note in notes)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9999])
def test_only_what_is_above_the_threshold_is_labelled(config, finished, tmp_path, threshold):
    """Every pixel but those beside the outline, which is simplified; where none is left, a warning."""
    first = load(finished[0].folder / "round-0")
    cases = config.data.load(config.labels, config.seed).train
    own = dataclasses.replace(config, relabel=RelabelSpec(rounds=1, threshold=threshold))
    warnings = []
    labels = epath.Path(tmp_path / "pseudo_labels")
    rounds._relabel(first, cases, own, labels, Reporter(warn=warnings.append))
    told = json.loads((tmp_path / "pseudo_labels.json").read_text())
    assert bool(warnings) == (told["added"] == 0) == (threshold > 0.99)
    for case in cases:
        path = tmp_path / "pseudo_labels" / f"{case.name}.geojson"
        features = json.loads(path.read_text())["features"]
        assert all(one["properties"]["measurements"]["probability"] > threshold for one in features)
        p, inside = first.probability_map(case), draw(case, read_geojson(path))
        core = inside.copy()
        core[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        assert (p[core] > threshold).all()


def draw(case, marks):
    return rasterize(marks, Window(x_px=0, y_px=0, width=case.slide.width, height=case.slide.height)) > 0


def test_the_last_round_is_a_run_as_any_other(config, finished):
    run, _ = finished
    assert {p.name for p in run.folder.iterdir()} >= {"config.json", "log.jsonl", "round-0", "round-1"}
    loaded = load(run.folder)
    assert loaded.config == config
    assert loaded.step == config.train.steps
    assert "operating_points" in loaded.evaluate()
    first = load(run.folder / "round-0")
    assert first.config.relabel == RelabelSpec()
    marks, more = (json.loads((place / "data.json").read_text()) for place in (first.folder, run.folder))
    for name, case in summary(run.folder)["cases"].items():
        assert more[name]["objects"] == marks[name]["objects"] + case["added"]
    leaves = zip(jax.tree.leaves(first.variables), jax.tree.leaves(run.variables))
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in leaves)


def test_round_0_is_the_run_on_marks_alone(config, finished, tmp_path):
    plain = rounds.train(dataclasses.replace(config, relabel=RelabelSpec()), tmp_path / "run")
    first = load(finished[0].folder / "round-0")
    jax.tree.map(np.testing.assert_array_equal, plain.variables, first.variables)
    assert not (tmp_path / "run" / "round-0").exists()


class Stopped(Exception):
    pass


def test_a_run_that_was_killed_anywhere_ends_as_one_that_was_not(config, finished, tmp_path, monkeypatch):
    """In the first training, in the middle of relabelling, after it, and in the last training."""
    folder, started, labelled = tmp_path / "run", [], []
    stops = iter([("log", 6), ("case", 1), ("summary", 0), ("log", 10), None])
    stop = None

    def on_log(step, row):
        if stop == ("log", step):
            raise Stopped

    def on_case(name):
        labelled.append(name)
        if stop == ("case", len(labelled)):
            raise Stopped

    def with_pseudo_labels(*arguments):
        if stop == ("summary", 0):
            raise Stopped
        return told(*arguments)

    told = rounds.with_pseudo_labels
    monkeypatch.setattr(rounds, "with_pseudo_labels", with_pseudo_labels)
    reporter = Reporter(on_start=lambda step, total: started.append(step), on_log=on_log, on_case=on_case)
    for stop in stops:
        if stop is None:
            rounds.train(config, folder, reporter=reporter)
        else:
            with pytest.raises(Stopped):
                rounds.train(config, folder, reporter=reporter)
    # First training from 0, from 4; done, twice for its labels; last training from 0, from 8.
    assert started == [0, 4, 14, 0, 8]
    assert labelled == ["a", "a", "b"]
    assert files(folder) == files(finished[0].folder)
    ours, theirs = load(folder), load(finished[0].folder)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)


def test_a_finished_run_is_only_read(finished, config, monkeypatch):
    folder = finished[0].folder
    before, started = files(folder), []
    monkeypatch.setattr(find, "objects", None)
    rounds.train(config, folder, reporter=Reporter(on_start=lambda step, total: started.append(step)))
    assert started == [config.train.steps]
    assert files(folder) == before


def test_what_would_make_another_run_is_refused(config, finished, tmp_path):
    folder = finished[0].folder
    other = dataclasses.replace(config, relabel=RelabelSpec(rounds=1, threshold=0.9))
    with pytest.raises(InputError, match=r"relabel\.threshold: 0\.5 -> 0\.9"):
        rounds.train(other, folder)
    with pytest.raises(InputError, match=r"relabel\.rounds: 1 -> 0"):
        rounds.train(dataclasses.replace(config, relabel=RelabelSpec()), folder)
    with pytest.raises(InputError, match=r"relabel\.rounds cannot be extended"):
        rounds.train(config, folder, extend=True)
    splits = config.data.load(config.labels, 1)
    with pytest.raises(InputError, match=r"other images or marks: a"):
        rounds.train(config, folder, splits=splits)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.doc").write_text("")
    with pytest.raises(InputError, match="holds no run"):
        rounds.train(config, stranger)


def test_a_first_round_that_came_to_nothing_may_be_begun_anew(config, tmp_path):
    folder = tmp_path / "run"

    def on_log(step, row):
        raise Stopped

    with pytest.raises(Stopped):
        rounds.train(config, folder, reporter=Reporter(on_log=on_log))
    other = dataclasses.replace(config, optimizer=OptimizerSpec(learning_rate=1e-3))
    with pytest.raises(Stopped):
        rounds.train(other, folder, reporter=Reporter(on_log=on_log))


@pytest.mark.slow
def test_a_detector_gets_boxes_that_hold_no_marked_middle(config, tmp_path):
    config = dataclasses.replace(
        config,
        model=YolloSpec(width=8, depth=1, stride=8),
        train=dataclasses.replace(config.train, steps=24, validate_every=24),
    )
    run = rounds.train(config, tmp_path / "run")
    told = summary(run.folder)
    assert told["added"] > 4
    assert told["precision"] > 0.7
    assert "pixel_precision" not in told
    for case in config.data.load(config.labels, config.seed).train:
        found = pseudo(run.folder, case.name)
        assert set(found.kind.tolist()) == {Kind.BOX}
        for x0, y0, x1, y1 in case.given.bounds_px:
            middles = found.centroids_px
            assert not ((middles > (x0, y0)) & (middles < (x1, y1))).all(axis=1).any()


def test_open_numbers_are_those_of_the_marks_in_every_round(config, tmp_path):
    """Pseudo labels among the marks would raise the share that is counted, and the weight with it."""
    loss = CrossEntropy(background_weight=None, decision=0.25)
    run = rounds.train(dataclasses.replace(config, loss=loss), tmp_path / "run")
    assert summary(run.folder)["added"] > 0
    splits = config.data.load(config.labels, config.seed)
    told = {}
    for place in (run.folder / "round-0", run.folder):
        told[place.name] = json.loads((place / "label_facts.json").read_text())
        assert load(place).config.loss == loss
        first = next(row for row in read_rows(place / "log.jsonl") if row["event"] == "train")
        assert first["background_weight"] == pytest.approx(told[place.name]["loss"]["background_weight"])
    assert told["run"] == told["round-0"]
    assert told["run"]["share"] == counted_share(splits.train)
    more = rounds.with_pseudo_labels(splits, run.folder / "round-1" / "pseudo_labels")
    assert (counted_share(more.train) or 0.0) > 0.4


@pytest.mark.slow
def test_two_rounds_begin_from_the_marks_each(config, tmp_path):
    """The second round's labels are those of the second model, and not added to the first's."""
    config = dataclasses.replace(config, relabel=RelabelSpec(rounds=2, threshold=0.5))
    run = rounds.train(config, tmp_path / "run")
    second = load(run.folder / "round-1")
    assert second.step == config.train.steps
    assert summary(run.folder, 2)["of_run"] == "round-1"
    marks = json.loads((run.folder / "round-0" / "data.json").read_text())
    more = json.loads((run.folder / "data.json").read_text())
    for name, case in summary(run.folder, 2)["cases"].items():
        assert more[name]["objects"] == marks[name]["objects"] + case["added"]


def test_a_sweep_trains_in_rounds(config, finished, tmp_path):
    trials = grid(["relabel.rounds=0,1"], [0])
    groups = sweep.grouped(config, trials, jax.devices())
    assert sorted(len(group.trials) for group in groups) == [1, 1]
    (group,) = (group for group in groups if group.trials[0].values["relabel.rounds"] == "1")
    (row,) = sweep.run_group(config, group, tmp_path)
    assert "dice_pooled" in row
    ours, theirs = load(tmp_path / group.trials[0].name), finished[0]
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)


def test_the_config_of_rounds(config):
    assert from_json(to_json(config)) == config
    old = to_json(config)
    del old["relabel"]
    del old["labels"]["ring_um"]
    assert from_json(old).relabel == RelabelSpec()
    assert from_json(old).labels.ring_um is None
    with pytest.raises(InputError, match=r"relabel\.rounds must be"):
        RelabelSpec(rounds=-1)
    for threshold in (0.0, 1.0):
        with pytest.raises(InputError, match=r"relabel\.threshold must be"):
            RelabelSpec(threshold=threshold)
    with pytest.raises(InputError, match=r"relabel\.rounds.*train\.shards"):
        dataclasses.replace(config, train=dataclasses.replace(config.train, shards="/shards"))


def test_experiment_and_package_agree_on_train():
    assert sparseshot_jax.train is rounds.train
    assert experiment.train is not rounds.train
