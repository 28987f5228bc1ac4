"""Detection as a user types it: train, evaluate, predict, report, from each kind of marks."""

import json

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import experiment
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.geojson import read_geojson, write_geojson
from sparseshot_jax.data.formats.voc_xml import write_voc

CONFIG = """
from sparseshot_jax.config import ExperimentConfig, MeasureSpec, PredictSpec, TrainSpec
from sparseshot_jax.training.sharding import MeshSpec
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import YolloSpec
from sparseshot_jax.training.optimizer import OptimizerSpec

def get_config():
    return ExperimentConfig(
        name="example",
        data=FolderSource(root={root!r}, mpp=0.5, {data}),
        labels=LabelSpec(point_radius_um=2.0),
        tiles=TileSpec(tile_px=32, mpp=0.5, min_tissue=0.0),
        model=YolloSpec(width=8, depth=1, stride=4, max_objects=16),
        loss=FocalExclusive(alpha=0.5, gamma=0.0, schedule="fixed", rho=1.0),
        optimizer=OptimizerSpec(learning_rate=1e-2),
        train=TrainSpec(steps={steps}, batch_size=8, ema_decay=0.9, log_every=1, validate_every=100,
            checkpoint_every=100, threads=1, mesh=MeshSpec(data=1)),
        predict=PredictSpec(core_px=32, tissue_only=False),
        measure=MeasureSpec(distance_um=2.0),
    )
"""
SPLIT = 'train=("a", "b"), validation=("c",), test=("d",)'
SIDE, RADIUS = 64, 4
COLOURS = np.array([(230, 200, 220), (90, 60, 140), (190, 60, 60)])  # ground, and discs of two classes


def drawn(rng, count=12):
    """Discs of two colours apart from one another, their map of numbers, centres and classes 0, 1."""
    centres = np.zeros((0, 2))
    while len(centres) < count:
        one = rng.uniform(RADIUS + 1, SIDE - RADIUS - 1, 2)
        if (np.hypot(*(centres - one).T) > 2.5 * RADIUS).all():
            centres = np.vstack([centres, one])
    kinds = np.arange(count) % 2
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    ids = np.zeros((SIDE, SIDE), np.uint16)
    for k, (cx, cy) in enumerate(centres, 1):
        ids[np.hypot(x - cx, y - cy) < RADIUS] = k
    image = COLOURS[np.append(0, kinds + 1)[ids]] + rng.normal(0, 6, (SIDE, SIDE, 3))
    return image.clip(0, 255).astype(np.uint8), ids, centres, kinds


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same four images three times: with points, with label maps, as Pascal VOC."""
    folder = tmp_path_factory.mktemp("cli")
    for name in ("points/images", "points/points", "maps/images", "maps/instances"):
        (folder / name).mkdir(parents=True)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / "voc" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in "abcd":
        image, ids, centres, kinds = drawn(rng)
        for kind in ("points/images", "maps/images", "voc/JPEGImages"):
            Image.fromarray(image).save(folder / kind / f"{name}.png")
        lists = json.dumps({"detection": (centres - 0.5).tolist()})
        (folder / "points" / "points" / f"{name}.json").write_text(lists)
        Image.fromarray(ids).save(folder / "maps" / "instances" / f"{name}.png")
        boxes = Annotations.from_boxes(
            np.hstack([centres - RADIUS, centres + RADIUS]).round(), [("blue", "red")[k] for k in kinds]
        )
        picture = Picture(name=f"{name}.png", width=SIDE, height=SIDE)
        write_voc(folder / "voc" / "Annotations" / f"{name}.xml", boxes, picture)
    for part, names in {"train": "ab", "val": "c", "test": "d"}.items():
        (folder / "voc" / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names))
    for name, data, steps in (
        ("points", SPLIT, 3),
        ("maps", SPLIT, 3),
        ("voc", 'train=("train",), validation=("val",), test=("test",), split_file="ImageSets/Main"', 60),
    ):
        config = CONFIG.format(root=str(folder / name), data=data, steps=steps)
        (folder / f"{name}.py").write_text(config)
    return folder


@pytest.fixture
def columns():
    return 160  # paths in messages are not broken in two


def whole_path(call, run, config, image, *options):
    """Train, evaluate, predict, report; the output of the evaluation and the GeoJSON."""
    status, output = call("train", config, "--run", run, *options)
    assert status == 0, output
    assert f"next: sparseshot evaluate {run}\n" in output
    status, evaluated = call("evaluate", run)
    assert status == 0, evaluated
    status, output = call("predict", run, image, "--mpp", "0.5", "--threshold", "0.3")
    assert status == 0, output
    found = run / "predictions" / f"{image.stem}.geojson"
    count = len(json.loads(found.read_text())["features"])
    assert f"{count} objects: {found}" in output
    with Image.open(run / "predictions" / f"{image.stem}_overlay.png") as overlay:
        assert overlay.width == overlay.height >= SIDE
    status, output = call("report", run)
    assert status == 0, output
    assert str(run / "report.html") in output
    return evaluated, found


@pytest.mark.parametrize("marks", ["points", "maps"])
def test_from_points_and_from_outlines(call, place, tmp_path, marks):
    image = place / marks / "images" / "d.png"
    output, _ = whole_path(call, tmp_path / "run", place / f"{marks}.py", image)
    assert ("Precision at IoU" in output) == (marks == "maps")  # beside points it means nothing
    for word in ("F1 within 2 µm", "average precision", "no limit on detections"):
        assert word in output
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("The true objects are points" in page) == (marks == "points")


def test_from_boxes_of_two_classes_by_a_heat_map_of_centres(call, place, tmp_path):
    run = tmp_path / "run"
    image = place / "voc" / "JPEGImages" / "d.png"
    options = ("--labels.classes", "blue", "red", "--measure.exclusive_class", "red")
    options += ("--predict.decode.class-aware", "--model.head", "centre", "--predict.decode.peaks")
    output, path = whole_path(call, run, place / "voc.py", image, *options)
    for word in ("F1 within 2 µm", "blue", "red", "any class", "Exclusive recall, red"):
        assert word in output
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["measure"]["exclusive_class"] == "red"
    assert recorded["predict"]["decode"]["class_aware"]
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first, last = rows[0], rows[-2]
    assert last["class_loss"] < first["class_loss"]
    features = json.loads(path.read_text())["features"]
    assert len(features) > 6
    for feature in features:
        properties = feature["properties"]
        measured = properties["measurements"]
        assert properties["objectType"] == "detection"
        assert measured["score"] > 0.3
        assert measured["p blue"] + measured["p red"] == pytest.approx(1, abs=1e-5)
        best = max(("blue", "red"), key=lambda name: measured[f"p {name}"])
        assert properties["classification"]["name"] == best
    assert {"blue", "red"} == {feature["properties"]["classification"]["name"] for feature in features}
    assert len(read_geojson(path)) == len(features)


def test_an_interrupted_training_goes_on(call, place, tmp_path):
    run = tmp_path / "run"
    arguments = ("train", place / "points.py", "--run", run, "--train.checkpoint_every", "1")
    assert call(*arguments)[0] == 0
    status, output = call(*arguments, "--train.steps", "5", "--extend")
    assert status == 0, output
    assert "trained to step 5" in output
    # what is done with the output may change, the model may not
    again = ("--train.steps", "5", "--predict.geometry", "point", "--measure.distance_um", "4")
    status, output = call(*arguments, *again)
    assert status == 0, output
    status, output = call(*arguments, *again, "--model.class_weight", "2")
    assert status == 2
    assert "model.class_weight: 1.0 -> 2.0" in output


def test_an_ablation_over_losses(call, place, tmp_path):
    compiled = experiment.compilations()
    status, output = call(
        *("ablate", place / "points.py", "--out", tmp_path / "sweep"),
        *("--grid", "loss=focal_exclusive,cross_entropy", "--grid", "model.box_weight=1,3"),
        *("--set", "train.steps=2"),
    )
    assert status == 0, output
    assert experiment.compilations() - compiled <= 2  # one a loss
    rows = [json.loads(line) for line in (tmp_path / "sweep" / "results.jsonl").read_text().splitlines()]
    assert {(row["loss"], row["model.box_weight"]) for row in rows} == {
        (loss, weight) for loss in ("focal_exclusive", "cross_entropy") for weight in ("1", "3")
    }
    assert all(0.0 <= row["f1_distance"] <= 1.0 for row in rows)


def test_a_bare_folder_and_shards_of_it(call, place, tmp_path):
    """SOURCE is no config: the model is named on the command line, and `data tile` repeats it."""
    options = (
        *("--model", "yollo", "--model.width", "8", "--model.depth", "1", "--model.stride", "4"),
        *("--model.max_objects", "16", "--data.mpp", "0.5", "--tiles.tile_px", "32"),
        *("--tiles.min_tissue", "0", "--labels.point_radius_um", "2"),
    )
    source = place / "points"
    status, output = call("data", "tile", source, tmp_path / "shards", *options)
    assert status == 0, output
    (line,) = [line for line in output.splitlines() if line.startswith("next: sparseshot train")]
    offered = line.removeprefix("next: sparseshot ").split()
    assert offered == ["train", *map(str, (source, *options)), "--train.shards", str(tmp_path / "shards")]
    status, output = call(
        *(*offered, "--run", tmp_path / "run", "--train.steps", "2", "--train.batch_size", "8"),
        *("--train.log_every", "1", "--train.threads", "1", "--train.mesh.data", "1"),
        *("--train.ema_decay", "0.9"),
    )
    assert status == 0, output
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert row["box_loss"] > 0  # tiles of shards hold objects
    # All objects are marked, and the weight follows: 0.125 / (1 - 0.125).
    facts = json.loads((tmp_path / "run" / "label_facts.json").read_text())
    assert facts["share"] == 1.0
    assert facts["loss"]["background_weight"] == pytest.approx(1 / 7)
    status, output = call("train", source, *options[2:], "--run", tmp_path / "other")
    assert status == 2  # a U-Net has no width
    assert "--model.width" in output


def test_a_bare_slide_wants_to_be_told_the_share(call, tmp_path):
    image, _, centres, _ = drawn(np.random.default_rng(3))
    Image.fromarray(image).save(tmp_path / "slide.png")
    write_geojson(tmp_path / "slide.geojson", Annotations.from_points(centres, "blue"))
    options = ("--model", "yollo", "--data.mpp", "0.5", "--tiles.tile_px", "64", "--tiles.min_tissue", "0")
    status, output = call("train", tmp_path / "slide.png", *options, "--run", tmp_path / "run")
    assert status == 2
    assert "these data do not tell it" in output
    assert "labels.share 0.3, or give loss.background_weight a number" in output
    assert not (tmp_path / "run").exists()


def test_polygons_and_points_of_qupath_are_boxes_to_a_detector(call, tmp_path):
    """Outlines with a class beside a slide; one mistyped name is refused with the nearest."""
    image, _, centres, kinds = drawn(np.random.default_rng(3))
    Image.fromarray(image).save(tmp_path / "slide.png")
    names = [("blue", "red")[k] for k in kinds]
    write_geojson(tmp_path / "slide.geojson", Annotations.from_points(centres, names))
    common = ("train", tmp_path / "slide.png", "--model", "yollo", "--data.mpp", "0.5")
    status, output = call(*common, "--labels.classes", "blue", "rot", "--run", tmp_path / "run")
    assert status == 2
    assert "not named: red" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "part"),
    [
        (("--predict.geometry", "boxes"), "box or point"),
        (("--predict.decode.soft_sigma", "0.5"), "soft_sigma must be 0"),
        (("--predict.decode.by", "overlap"), "by must be one of iou, distance"),
        (("--measure.exclusive_class", "tumour"), "measure.exclusive_class must be one of"),
        (("--measure.iou", "2"), "measure.iou in (0, 1]"),
        (("--model.stride", "5"), "stride must be 4, 8 or 16"),
        (("--model.head", "center"), "head must be one of anchor, centre"),
        (("--model.strid", "8"), "--model.stride"),
        (("--tiles.tile_px", "30"), "divisible by 4"),
        (("--model.anchors", "99"), "model.anchors is 99, and the marked objects have"),
    ],
)
def test_a_mistake_in_an_option(call, place, tmp_path, option, part):
    status, output = call("train", place / "points.py", "--run", tmp_path / "run", *option)
    assert status == 2
    assert part in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
