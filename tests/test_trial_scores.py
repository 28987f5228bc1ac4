"""What a trial is judged by; the marks of a sparse validation are those of a sparse training."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.data.cases import Splits
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.evaluate import measure_sparse
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.run import Run
from sparseshot_jax.trial_scores import Scoring, lee_liu, score, thinned


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three images with nine squares of 6 px each."""
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "instances"):
        (root / name).mkdir()
    ids = np.zeros((48, 48), np.uint16)
    for k in range(9):
        y, x = 4 + 16 * (k // 3), 4 + 16 * (k % 3)
        ids[y : y + 6, x : x + 6] = k + 1
    for at, name in enumerate("abc"):  # no two of the same pixels
        Image.fromarray(np.where(ids[..., None] > 0, 60, 220 + at).repeat(3, 2).astype(np.uint8)).save(
            root / "images" / f"{name}.png"
        )
        Image.fromarray(ids).save(root / "instances" / f"{name}.png")
    return FolderSource(root=str(root), train=("a",), validation=("b",), test=("c",), mpp=0.5, keep=0.4)


def test_validation_is_thinned_as_training_is(source):
    """The same image in the training part has the same objects marked, and nested ones of a larger share."""
    splits = source.load(LabelSpec(), 3)
    (whole,) = (dataclasses.replace(case, given=case.truth) for case in splits.train)
    (marked,) = thinned([whole], 0.4, seed=3)
    assert len(marked.held_out) == len(splits.train[0].given) == math.ceil(0.4 * 9)
    np.testing.assert_array_equal(marked.held_out.bounds_px, splits.train[0].given.bounds_px)
    assert marked.truth is None
    assert len(marked.given) == 0
    few, many = (thinned(splits.validation, keep, seed=3)[0].held_out for keep in (0.2, 0.6))
    assert (len(few), len(many)) == (2, 6)
    assert {tuple(box) for box in few.bounds_px} <= {tuple(box) for box in many.bounds_px}
    other = thinned(splits.validation, 0.6, seed=4)[0].held_out
    assert {tuple(box) for box in other.bounds_px} != {tuple(box) for box in many.bounds_px}


def test_lee_liu_by_hand():
    assert lee_liu({"recall": 0.9, "recall_area": 0.5, "predicted_area": 0.1}) == pytest.approx(2.5)
    # 1000 discs of 3 um in a mm^2: 0.0283 of it
    found = {"recall": 0.5, "predicted_per_mm2": 1000.0, "distance_um": 3.0}
    assert lee_liu(found) == pytest.approx(0.25 / (1000 * math.pi * 9e-6))
    assert lee_liu({"recall": 0.0, "predicted_per_mm2": 0.0, "distance_um": 3.0}) == 0.0
    assert lee_liu({"recall": None, "recall_area": None, "predicted_area": 0.1}) is None
    assert lee_liu({"recall": 0.5, "predicted_per_mm2": None, "distance_um": 3.0}) is None


def darkness(images, *, threshold, halo=0):
    """p = 1 on dark pixels and `halo` pixels round them."""
    dark = images[..., 0] < threshold
    grown = dark.copy()
    for axis in (1, 2):
        for shift in range(-halo, halo + 1):
            grown |= np.roll(dark, shift, axis=axis)
    return grown[..., None].astype(np.float32)


def looked_at(source, **options):
    splits = source.load(LabelSpec(), 0)
    return measure_sparse(
        lambda images: darkness(images, **options),
        thinned(splits.validation, source.keep, seed=0),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        multiple=2,
    )


def test_the_criterion_puts_the_true_model_first(source):
    """Sparse marks cannot tell a false alarm, and still prefer the model without one."""
    exact, blown, none, everything = (
        looked_at(source, **options)
        for options in (
            {"threshold": 100},
            {"threshold": 100, "halo": 2},
            {"threshold": 0},
            {"threshold": 256},
        )
    )
    assert {name: exact[name] for name in exact if name != "elkan_noto"} == {
        **{"held_out": 4, "recall": 1.0, "recall_area": 1.0},
        **{"predicted_area": pytest.approx(9 * 36 / 48**2), "threshold": 0.5},
    }
    assert blown["recall"] == everything["recall"] == 1.0
    values = [lee_liu(found) for found in (exact, blown, everything, none)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(48**2 / (9 * 36))  # 1 / prevalence, the most there can be
    assert values[2:] == [pytest.approx(1.0), 0.0]


class FakeRun(Run):
    """A run as far as `score` looks at it; evaluating its test part is remembered."""

    detects = False

    def __init__(self, source, rows):
        config = ExperimentConfig(name="fake", data=source, model=UNetSpec(), loss=FocalExclusive())
        for name, value in {"_rows": rows, "looked": [], "config": config}.items():
            object.__setattr__(self, name, value)

    def rows(self):
        return self._rows

    def measure_held_out(self, cases):
        assert all(case.truth is None for case in cases)
        found = {"held_out": 4, "recall": 0.5, "recall_area": 0.4, "predicted_area": 0.2}
        return found | {"threshold": 0.5, "elkan_noto": {"c": 0.9}}

    def evaluate(self, splits):
        self.looked.append("test")
        points = {"fixed": 0.6, "carried_over": 0.65, "oracle": 0.7}
        return {"operating_points": {k: {"dice_pooled": {"mean": v}} for k, v in points.items()}}


LOG = [
    {"event": "train", "step": 5, "loss": 0.3},
    {"event": "validation", "step": 5, "dice_pooled": 0.1, "dice_pooled_best": 0.2},
    {"event": "train", "step": 9, "loss": 0.2},
    {"event": "validation", "step": 9, "dice_pooled": 0.5, "dice_pooled_best": 0.6},
]
TEST = {"test_dice_pooled_fixed": 0.6, "test_dice_pooled_carried_over": 0.65, "test_dice_pooled_oracle": 0.7}


def test_nothing_of_the_test_part_unless_it_is_asked_for(source):
    splits, run = source.load(LabelSpec(), 0), FakeRun(source, LOG)
    plain = {"train_loss": 0.2, "dice_pooled": 0.5, "dice_pooled_best": 0.6}
    assert score(run, splits) == plain
    assert score(run, splits, Scoring(test=False)) == plain
    marks = score(run, splits, Scoring(sparse=True))
    assert marks == plain | {
        **{"sparse_held_out": 4, "sparse_recall": 0.5, "sparse_recall_area": 0.4},
        **{"sparse_predicted_area": 0.2, "lee_liu": pytest.approx(0.8)},
    }
    without = dataclasses.replace(splits, validation=())
    assert score(FakeRun(source, LOG[::2]), without, Scoring(test=False)) == {"train_loss": 0.2, "loss": 0.2}
    assert not run.looked
    assert score(run, splits, Scoring(test=True)) == plain | TEST
    assert run.looked == ["test"]


def test_without_validation_the_test_part_is_the_row_where_nothing_else_is_said(source):
    """As `run_group` always gave it."""
    splits = dataclasses.replace(source.load(LabelSpec(), 0), validation=())
    row = score(FakeRun(source, LOG[::2]), splits)
    assert row == {"train_loss": 0.2} | {name.removeprefix("test_"): value for name, value in TEST.items()}


def test_sparse_validation_has_its_criterion(source):
    log = [
        *LOG[::2],
        {"event": "validation", "step": 9, "recall": 0.5, "recall_area": 0.4, "predicted_area": 0.2},
    ]
    dense = source.load(LabelSpec(), 0)
    splits = Splits(train=dense.train, validation=tuple(thinned(dense.validation, 0.5, seed=0)), test=())
    assert score(FakeRun(source, log), splits)["lee_liu"] == pytest.approx(0.8)


def test_a_row_is_complete_that_has_what_is_asked_for():
    assert Scoring().complete({})
    assert not Scoring(sparse=True).complete({"dice_pooled": 0.5})
    assert Scoring(sparse=True).complete({"lee_liu": 0.5})
    assert not Scoring(test=True).complete({"lee_liu": 0.5})
    assert Scoring(test=True).complete(TEST)
