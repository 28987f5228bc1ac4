"""`sparseshot curve` on tiny data: trials, resuming, the answer; what is refused before anything trains."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import curve, sweep
from sparseshot_jax.ablate import ROW_KEYS
from sparseshot_jax.config import load_config, override
from sparseshot_jax.data.sources import SlideSource
from sparseshot_jax.errors import InputError
from sparseshot_jax.training.log import read_rows

CONFIG = """
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.training.sharding import MeshSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import CrossEntropy
from sparseshot_jax.models import UNetSpec

def get_config():
    return ExperimentConfig(
        name="tiny",
        data=FolderSource(root={root!r}, train=("a",), validation=("[bc]",), test=("d",), mpp=0.5),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=2, depth=1),
        loss=CrossEntropy(),
        train=TrainSpec(steps=2, batch_size=4, log_every=1, threads=1, mesh=MeshSpec(data=1)),
        predict=PredictSpec(core_px=32, min_area_um2=0.5, tissue_only=False),
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four images of 8 objects each, and a config for them."""
    folder = tmp_path_factory.mktemp("curve")
    for name in ("images", "instances"):
        (folder / "data" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in "abcd":
        ids = np.zeros((32, 64), np.uint16)
        for k in range(8):
            y, x = 3 + 16 * (k // 4), 3 + 16 * (k % 4)
            ids[y : y + 9, x : x + 9] = k + 1
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (32, 64, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / "data" / "images" / f"{name}.png")
        Image.fromarray(ids).save(folder / "data" / "instances" / f"{name}.png")
    (folder / "tiny.py").write_text(CONFIG.format(root=str(folder / "data")))
    return folder


@pytest.fixture(scope="module")
def config(place):
    return load_config(place / "tiny.py")


def options(place, out, *fractions, **others):
    words = ["curve", place / "tiny.py", "--fractions", *fractions, "--out", out, "--together", 1]
    return [*words, *(word for name, value in others.items() for word in (f"--{name}", value))]


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory):
    """The folder of a curve of three fractions."""
    from sparseshot_jax import cli

    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    cli.main([str(word) for word in options(place, folder, 0.25, 0.5, 1)])
    return folder


def test_three_fractions_end_to_end(undisturbed):
    rows = read_rows(undisturbed / "results_validation.jsonl", ROW_KEYS)
    assert [(row["fraction"], row["objects"], row["data.keep"]) for row in rows] == [
        (0.25, 2, "0.25"),
        (0.5, 4, "0.5"),
        (1.0, 8, "1"),
    ]
    for row in rows:
        assert [len(row["images"][name]) for name in ("dice_pooled", "dice_pooled_best")] == [2, 2]
        for name, counts in row["images"].items():
            tp, fp, fn = np.sum(counts, axis=0)
            assert row[name] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert row["dice_pooled_best"] > 0.1  # two steps give nothing at 0.5
        logged = [one for one in read_rows(undisturbed / row["trial"] / "log.jsonl") if "dice_pooled" in one]
        assert row["dice_pooled"] == pytest.approx(logged[-1]["dice_pooled"])
    answer = json.loads((undisturbed / "curve.json").read_text())
    assert answer["scored"] == "validation"
    assert answer["trainings"] == rows
    found = answer["measures"]["dice_pooled"]
    assert found["today"] == found["most_measured"] == 8
    assert found["resampled_images"] == 2
    assert found["fit"] == "monotone interpolation"
    assert found["why_no_law"].endswith("there are 3")
    assert (undisturbed / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_words_are_told_and_more_fractions_go_on(call, place, undisturbed, tmp_path):
    """A fourth fraction trains alone, and then there is a law or a reason."""
    before = [row["trial"] for row in read_rows(undisturbed / "results_validation.jsonl", ROW_KEYS)]
    status, output = call(*options(place, undisturbed, 0.125, 0.25, 0.5, 1))
    assert status == 0, output
    assert "8 annotated objects; data.keep thins them; scored on the validation part." in output
    assert "With 8 objects you have Dice at p > 0.5 0." in output
    assert "for 4 trials" in output
    rows = read_rows(undisturbed / "results_validation.jsonl", ROW_KEYS)
    assert [row["trial"] for row in rows] == [*before, "data.keep=0.125_seed=0"]
    found = json.loads((undisturbed / "curve.json").read_text())["measures"]["dice_pooled"]
    assert "there are" not in (found["why_no_law"] or "")
    status, output = call(*options(place, undisturbed, 0.5, 1, set="train.steps=99"))
    assert status == 2
    assert "-> 99. Give these their old values to go on with it, or name another folder with --out." in output
    assert "--extend" not in output  # an option of train alone


def test_a_curve_that_was_stopped_goes_on(call, place, undisturbed, tmp_path, monkeypatch):
    trained, train = [], sweep.rounds.train

    def counted(own, *arguments, **others):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(own.name)
        return train(own, *arguments, **others)

    monkeypatch.setattr(sweep.rounds, "train", counted)
    status, _ = call(*options(place, tmp_path / "out", 0.25, 0.5, 1))
    assert status == 130
    assert trained == ["data.keep=0.25_seed=0"]
    monkeypatch.setattr(sweep.rounds, "train", train)
    assert call(*options(place, tmp_path / "out", 0.25, 0.5, 1))[0] == 0
    rows, whole = (
        read_rows(folder / "results_validation.jsonl", ROW_KEYS) for folder in (tmp_path / "out", undisturbed)
    )
    assert rows == whole[:3]


def test_marks_held_out_are_scored_by_recall(call, place, tmp_path):
    """A slide with sparse marks: the recall beside what is predicted, on the same marks at every fraction."""
    slides = tmp_path / "slides"
    (slides / "instances").mkdir(parents=True)
    for name in ("images", "instances"):
        source = place / "data" / name / "a.png"
        target = slides / ("a.png" if name == "images" else "instances/a.png")
        target.write_bytes(source.read_bytes())
    text = CONFIG.format(root="").replace("FolderSource", "SlideSource")
    given = f"slides=({str(slides / 'a.png')!r},), annotations={str(slides / 'instances')!r}"
    given += ", hold_out=0.4, block_um=8.0"
    text = text.replace('root=\'\', train=("a",), validation=("[bc]",), test=("d",)', given)
    (tmp_path / "tiny.py").write_text(text)
    status, output = call(*options(tmp_path, tmp_path / "out", 0.5, 1))
    assert status == 0, output
    assert "data.train_keep thins them; scored by the recall on marks held out of training" in output
    rows = read_rows(tmp_path / "out" / "results_held_out.jsonl", ROW_KEYS)
    assert rows[0]["held_out"] == rows[1]["held_out"] == 3
    assert [row["objects"] for row in rows] == [3, 5]
    assert all(0.0 <= row["recall"] <= 1.0 and 0.0 <= row["predicted_area"] <= 1.0 for row in rows)
    answer = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert list(answer["measures"]) == ["recall"]
    assert answer["measures"]["recall"]["resampled_images"] == 0


def test_subsets_of_a_slide_are_nested_and_the_held_out_stay(place):
    source = SlideSource(
        slides=(str(place / "data" / "images" / "a.png"),),
        annotations=str(place / "data" / "instances"),
        mpp=0.5,
        hold_out=0.4,
        block_um=8.0,
    )
    labels = load_config(place / "tiny.py").labels
    splits = [dataclasses.replace(source, train_keep=keep).load(labels, 0) for keep in (0.25, 0.6, 1.0)]
    held = [case.held_out.centroids_px.tolist() for split in splits for case in split.train]
    assert held[0] == held[1] == held[2]
    given = [set(map(tuple, split.train[0].given.centroids_px.tolist())) for split in splits]
    assert given[0] < given[1] < given[2]
    assert [len(one) for one in given] == [2, 3, 5]
    assert not given[2] & set(map(tuple, held[0]))


def test_fractions_are_of_what_the_config_trains_on(config):
    plan = curve.plan(override(config, "data.keep", "0.5"), (0.5, 1.0), (0, 1))
    assert plan.today == 4
    assert [trial.name for trial in plan.trials] == [
        "data.keep=0.25_seed=0",
        "data.keep=0.25_seed=1",
        "data.keep=0.5_seed=0",
        "data.keep=0.5_seed=1",
    ]
    assert [plan.fraction_of(trial) for trial in plan.trials] == [0.5, 0.5, 1.0, 1.0]


def test_which_part_is_scored(config):
    assert curve.plan(config, (0.5, 1.0), (0,)).kind == "validation"
    assert curve.plan(config, (0.5, 1.0), (0,), "test").kind == "test"
    bare = override(override(config, "data.validation", "[]"), "data.test", "[]")
    for score, hint in (("validation", "data.validation"), ("test", "data.test")):
        with pytest.raises(InputError, match=hint):
            curve.plan(bare, (0.5, 1.0), (0,), score)


@pytest.mark.parametrize(
    ("fractions", "seeds", "message"),
    [
        ((0.0, 0.5), (0,), r"in \(0, 1\].*got 0 0\.5"),
        ((0.5, 1.5), (0,), r"got 0\.5 1\.5"),
        ((0.5, 0.5), (0,), r"0\.5: named twice in --fractions"),
        ((), (0,), "got none"),
        ((0.5,), (), "--seeds .* got none"),
        ((0.5,), (1, 1), "1: named twice in --seeds"),
    ],
)
def test_fractions_and_seeds_that_are_none(config, fractions, seeds, message):
    with pytest.raises(InputError, match=message):
        curve.plan(config, fractions, seeds)


def test_shards_cannot_be_thinned(config):
    with pytest.raises(InputError, match=r"train\.shards must be empty"):
        curve.plan(override(config, "train.shards", "somewhere"), (0.5, 1.0), (0,))


def test_a_threshold_that_is_wrong_with_few_labels_is_said(config):
    plan = curve.plan(config, (0.5, 1.0), (0,))
    few = {"objects": 4, "dice_pooled": 0.1, "dice_pooled_best": 0.7, "best_threshold": 0.04}
    all_ = {"objects": 8, "dice_pooled": 0.75, "dice_pooled_best": 0.76, "best_threshold": 0.45}
    assert curve.doubts(plan, [all_]) == []
    (said,) = curve.doubts(plan, [few, all_])
    assert "with 4 objects the score is 0.100 at p > 0.5, and 0.700 at p > 0.04" in said
    (said,) = curve.doubts(plan, [{"error": "not finite"}, all_])
    assert "1 of 2 trainings diverged" in said


def test_trials_that_diverged_are_left_out_and_all_of_them_are_none(config):
    plan = curve.plan(config, (0.25, 0.5, 1.0), (0,))
    row = {"fraction": 0.5, "objects": 4, "dice_pooled": 0.5, "dice_pooled_best": 0.6}
    found = curve.curves(plan, [{"error": "not finite"}, row], draws=10)
    assert found["dice_pooled"].objects.tolist() == [4.0]
    with pytest.raises(InputError, match="no trial gave a score"):
        curve.curves(plan, [{"error": "not finite"}])
