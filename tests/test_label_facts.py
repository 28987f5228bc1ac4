"""What training data say of their labels, and the loss that takes its open numbers from it."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import experiment, label_facts
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec, wanted
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.sources import FolderSource, SlideSource
from sparseshot_jax.data.tiles import TileSpec, draw_tile, tile_index
from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import NNPU, CrossEntropy, EarlyLearning, FocalExclusive
from sparseshot_jax.losses.share import share_weight
from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.training.log import read_rows
from sparseshot_jax.training.sharding import MeshSpec

SIDE, CELLS, CELL = 64, 16, 8  # 16 squares of 8 x 8 pixels on a grid of 16


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "instances"):
        (root / name).mkdir()
    ids = np.zeros((SIDE, SIDE), np.uint16)
    for k in range(CELLS):
        y, x = 16 * (k // 4) + 4, 16 * (k % 4) + 4
        ids[y : y + CELL, x : x + CELL] = k + 1
    rng = np.random.default_rng(0)
    for name in "ab":
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (SIDE, SIDE, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(ids).save(root / "instances" / f"{name}.png")
    return ExperimentConfig(
        name="facts",
        data=FolderSource(root=str(root), train=("a",), validation=("b",), mpp=0.5, keep=0.25),
        tiles=TileSpec(tile_px=SIDE, mpp=0.5, min_tissue=0.0, annotated_share=0.0),
        model=UNetSpec(base=2, depth=1),
        loss=FocalExclusive(alpha=None, decision=0.4),
        train=TrainSpec(steps=2, batch_size=2, log_every=1, threads=1, mesh=MeshSpec(data=1)),
        predict=PredictSpec(core_px=64, tissue_only=False),
    )


def facts_of(config, splits=None, tiles=None, warn=lambda text: None):
    splits = splits or config.data.load(config.labels, config.seed)
    facts = label_facts.label_facts(config, splits, tiles or experiment.training_tiles(config, splits))
    return label_facts.with_facts(config, facts, note=lambda text: None, warn=warn)


class Faulty:
    """Training tiles of which some cannot be read."""

    def __init__(self, tiles, readable):
        self.tiles, self.readable, self.asked = tiles, readable, 0

    def __len__(self):
        return len(self.tiles) * 8  # more than there are, so that several are looked at

    def read(self, place, rng):
        self.asked += 1
        if place % 8 not in self.readable:
            raise InputError("a.png: damaged.")
        return self.tiles.read(place // 8, rng)


def with_prior(config, **fields):
    return dataclasses.replace(config, loss=NNPU(), **fields)


def test_the_share_is_counted(config):
    told, facts = facts_of(config)
    assert facts["share"] == 0.25
    loss: Any = told.loss
    assert loss.alpha == facts["loss"]["alpha"] == pytest.approx(share_weight(0.25, 0.4))


def test_the_prior_of_pixels_is_counted(config):
    told, facts = facts_of(with_prior(config))
    fraction = 0.25 * CELLS * CELL**2 / SIDE**2
    assert facts["annotated_fraction"] == pytest.approx(fraction)
    loss: Any = told.loss
    assert loss.prior == facts["loss"]["prior"] == pytest.approx(3 * fraction / (1 - fraction))


@pytest.mark.parametrize("anchors", [1, 3])
def test_the_elements_of_a_detector_are_its_cells_times_their_anchors(config, anchors):
    model = YolloSpec(width=4, depth=2, stride=4, anchors=anchors)
    _, facts = facts_of(with_prior(config, model=model))
    assert facts["annotated_fraction"] == pytest.approx(0.25 * CELLS / ((SIDE / 4) ** 2 * anchors))


def test_tiles_are_read_only_for_a_loss_that_asks_for_the_prior(config):
    splits = config.data.load(config.labels, config.seed)
    for loss in (FocalExclusive(alpha=None), CrossEntropy(background_weight=None)):
        _, facts = facts_of(dataclasses.replace(config, loss=loss), splits, tiles=NoTiles())
        assert facts["annotated_fraction"] is None
    with pytest.raises(AssertionError, match="read"):
        facts_of(with_prior(config), splits, tiles=NoTiles())


class NoTiles:
    def __len__(self):
        return 1

    def read(self, place, rng):
        raise AssertionError("read")


def test_a_tile_that_cannot_be_read_is_passed_over(config):
    splits = config.data.load(config.labels, config.seed)
    tiles = Faulty(experiment.training_tiles(config, splits), readable=(3, 5))
    _, facts = facts_of(with_prior(config), splits, tiles)
    assert tiles.asked == 8 * len(tiles.tiles) > 1
    assert facts["annotated_fraction"] == pytest.approx(0.25 * CELLS * CELL**2 / SIDE**2)
    with pytest.raises(InputError, match=r"none of 8 training tiles can be read.*a\.png: damaged"):
        facts_of(with_prior(config), splits, Faulty(tiles.tiles, readable=()))


def test_tiles_without_a_mark_tell_no_prior(config):
    splits = config.data.load(config.labels, config.seed)
    bare = dataclasses.replace(
        splits,
        train=tuple(
            dataclasses.replace(case, given=case.given.take(np.zeros(0, int))) for case in splits.train
        ),
    )
    with pytest.raises(InputError, match=r"none of 1 training tiles holds an annotated object.*loss\.prior"):
        facts_of(with_prior(config, labels=LabelSpec(share=0.3)), bare)


def scattered(share, objects, *, cases=20, side=512, clusters=0):
    """Centres of all objects of some images, and cases that hold a part of them as marks."""
    rng, blank = np.random.default_rng(3), np.zeros((side, side, 3), np.uint8)
    scenes = []
    for k in range(cases):
        points = rng.uniform(1, side - 2, (objects, 2))
        if clusters:
            middles = rng.uniform(0, side, (clusters, 2))[rng.integers(clusters, size=objects)]
            points = (middles + rng.normal(0, side / 12, (objects, 2))).clip(1, side - 2)
        marked = points[rng.permutation(objects)[: round(share * objects)]]
        slide = ArraySlide(blank, 0.5, path=f"{k}.png")
        given = Annotations.from_points(marked)
        case = Case(
            name=str(k), slide=slide, mpp=0.5, given=given, truth=None, held_out=None, labels=LabelSpec()
        )
        scenes.append((points, marked, case))
    return scenes


def shown(scenes, spec, draws=8000):
    """Of the objects in tiles that are drawn as training draws them, those marked."""
    index, rng = tile_index([case for *_, case in scenes], spec), np.random.default_rng(4)
    counts = np.zeros(2)
    for at in range(draws):
        k, y, x = draw_tile(index, spec, index.cells[at % len(index.cells)], rng)
        corner = np.array([x, y])
        counts += [
            ((points >= corner) & (points < corner + spec.tile_px)).all(1).sum() for points in scenes[k][:2]
        ]
    return counts[1] / counts[0]


@pytest.mark.parametrize("clusters", [0, 6])
@pytest.mark.parametrize(("share", "part"), [(0.1, 0.5), (0.3, 0.5), (0.3, 1.0), (0.6, 0.5)])
def test_the_share_in_tiles_is_that_of_what_they_show(share, part, clusters):
    # The fewer the marks, the more images it takes to tell how close objects lie.
    scenes = scattered(share, 60, clusters=clusters, cases=round(10 / share))
    spec = TileSpec(tile_px=128, mpp=0.5, annotated_share=part, min_tissue=0.0)
    cases = [case for *_, case in scenes]
    told = label_facts.share_in_tiles(share, cases, spec, len(tile_index(cases, spec).cells))
    assert told == pytest.approx(shown(scenes, spec), rel=0.07)
    assert told > 1.03 * share


def test_the_share_in_tiles_of_a_whole_image_or_of_all_objects_is_the_share():
    whole = TileSpec(tile_px=512, mpp=0.5, annotated_share=0.5, min_tissue=0.0)
    cases = [case for *_, case in scattered(0.2, 50)]
    assert label_facts.share_in_tiles(0.2, cases, whole, len(cases)) == pytest.approx(0.2)
    small = dataclasses.replace(whole, tile_px=128)
    cases = [case for *_, case in scattered(1.0, 50)]
    assert label_facts.share_in_tiles(1.0, cases, small, 16 * len(cases)) == 1.0


def test_a_mark_alone_in_its_image_has_neighbours_as_any_place_has():
    spec = TileSpec(tile_px=128, mpp=0.5, annotated_share=0.5, min_tissue=0.0)
    cases = [case for *_, case in scattered(0.1, 10)]
    told = label_facts.share_in_tiles(0.1, cases, spec, 16 * len(cases))
    assert told == pytest.approx((1 / 16 + 1) / (10 / 16 + 1 + 10 / 16))


def test_the_share_in_tiles_is_asked_only_of_tiles_round_marks():
    cases = [case for *_, case in scattered(0.3, 20)]
    spec = TileSpec(tile_px=128, mpp=0.5, annotated_share=0.0, min_tissue=0.0)
    assert label_facts.share_in_tiles(0.3, cases, spec, 320) is None
    bare = [dataclasses.replace(case, given=Annotations.empty()) for case in cases]
    assert label_facts.share_in_tiles(0.3, bare, dataclasses.replace(spec, annotated_share=0.5), 320) is None


def test_the_weight_follows_the_share_in_tiles(config):
    """Tiles of a quarter image: round a mark there is one object in it for certain."""
    tiles = TileSpec(tile_px=SIDE // 2, mpp=0.5, min_tissue=0.0, annotated_share=1.0)
    told, facts = facts_of(dataclasses.replace(config, tiles=tiles))
    loss: Any = told.loss
    assert facts["share"] == 0.25 < facts["share_in_tiles"] < 1.0
    assert loss.alpha == pytest.approx(share_weight(facts["share_in_tiles"], 0.4))


def test_what_is_said_of_the_marks_wins_and_shrinks_with_them(config):
    warnings = []
    _, facts = facts_of(dataclasses.replace(config, labels=LabelSpec(share=0.9)), warn=warnings.append)
    assert facts["share"] == pytest.approx(0.9 * 0.25)
    assert (facts["counted"], warnings) == (None, [])


def test_a_share_that_the_truth_contradicts_is_said(config):
    """The share after data.keep given for the one before it: both are taken off."""
    warnings = []
    _, facts = facts_of(dataclasses.replace(config, labels=LabelSpec(share=0.25)), warn=warnings.append)
    assert (facts["share"], facts["counted"]) == (0.0625, 0.25)
    assert len(warnings) == 1
    assert "by the truth beside the marks it is 25.0%. labels.share" in warnings[0]


def test_a_folder_that_is_sparse_itself_has_no_truth_to_contradict_it(config):
    sparse = dataclasses.replace(config, data=dataclasses.replace(config.data, keep=1.0))
    warnings = []
    _, facts = facts_of(dataclasses.replace(sparse, labels=LabelSpec(share=0.25)), warn=warnings.append)
    assert (facts["share"], facts["counted"], warnings) == (0.25, None, [])


def test_marks_that_are_held_out_are_unmarked_objects_to_the_training(config):
    """Of 100 objects 50 have marks; 25 are used, 5 of them held out, and of the other 20 training has 15."""
    data = SlideSource(keep=0.5, hold_out=0.2, train_keep=0.75)
    slides = dataclasses.replace(config, data=data, labels=LabelSpec(share=0.5))
    assert label_facts.told_share(slides) == pytest.approx(0.15)
    assert label_facts.told_share(dataclasses.replace(slides, labels=LabelSpec())) is None


def test_the_share_told_of_a_slide_is_that_of_the_marks_training_has(config, tmp_path):
    """With dense marks in the file, labels.share 1, it is what can be counted."""
    image, ids = (
        np.asarray(Image.open(f"{config.data.root}/{name}/a.png")) for name in ("images", "instances")
    )
    Image.fromarray(np.tile(image, (4, 4, 1))).save(tmp_path / "slide.png")
    y, x = np.nonzero(np.tile(ids, (4, 4)))
    middles = np.unique(np.stack([x // 16 * 16 + 7.5, y // 16 * 16 + 7.5], axis=1), axis=0)
    rows = "".join(f"{one},{other},cell\n" for one, other in middles)
    (tmp_path / "slide.csv").write_text("x,y,class\n" + rows)
    data = SlideSource(slides=(str(tmp_path / "slide.png"),), mpp=0.5, hold_out=0.2, block_um=16.0)
    slides = dataclasses.replace(config, data=data, labels=LabelSpec(share=1.0))
    (case,) = data.load(slides.labels, 0).train
    assert len(middles) == 16 * CELLS
    counted = wanted(case.given, case.labels).sum() / len(middles)
    assert label_facts.told_share(slides) == pytest.approx(counted, abs=0.05)


def test_a_loss_with_all_its_numbers_asks_for_nothing(config):
    closed = dataclasses.replace(config, loss=CrossEntropy(background_weight=0.3))
    assert facts_of(closed) == (closed, {})


def test_without_dense_truth_the_share_has_to_be_said(config):
    splits = config.data.load(config.labels, config.seed)
    blind = dataclasses.replace(
        splits, train=tuple(dataclasses.replace(case, truth=None) for case in splits.train)
    )
    assert label_facts.counted_share(blind.train) is None
    with pytest.raises(InputError, match=r"labels\.share 0\.3"):
        facts_of(config, blind)


def test_a_run_trains_with_the_weight_and_records_where_it_came_from(config, tmp_path):
    notes = []
    folder = tmp_path / "run"
    experiment.train(config, folder, reporter=experiment.Reporter(note=notes.append))
    assert json.loads((folder / "config.json").read_text())["loss"]["alpha"] is None
    assert json.loads((folder / "label_facts.json").read_text())["share"] == 0.25
    assert any("25.0% of the objects" in note and "loss.alpha = 0.1111" in note for note in notes)
    trained = [row for row in read_rows(folder / "log.jsonl") if row["event"] == "train"]
    assert trained[0]["alpha"] == pytest.approx(share_weight(0.25, 0.4))


def test_a_run_warns_where_early_learning_starts_too_low(config, tmp_path):
    warnings = []
    low = dataclasses.replace(config, loss=EarlyLearning(), model=UNetSpec(base=2, depth=1, prior=0.05))
    experiment.train(low, tmp_path / "run", reporter=experiment.Reporter(warn=warnings.append))
    assert any("--model.prior 0.25" in warning for warning in warnings)
