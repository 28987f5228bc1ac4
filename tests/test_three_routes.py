"""Kumar from TFDS, from a folder, from slides: one config, the same tiles."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import experiment
from sparseshot_jax.config import load_config
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.builders.tcga import KUMAR_IMAGES, KUMAR_SPLITS
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.data.formats.imagescope_xml import write_imagescope
from sparseshot_jax.data.formats.label_map import label_map_to_annotations
from sparseshot_jax.data.labels import TargetMaps
from sparseshot_jax.data.pipeline import train_batches
from sparseshot_jax.data.slides.pyramid import write_pyramid
from sparseshot_jax.data.sources import SlideSource, TfdsSource
from sparseshot_jax.losses import CrossEntropy
from sparseshot_jax.types import Window

CONFIG = Path(__file__).parents[1] / "configs" / "unet_kumar.py"
SIDE, COLUMNS, BATCHES = 160, 4, 5
JPEG_LOSS = 4.0  # mean difference in grey levels that quality 95 may make on smooth images with noise


def drawn(seed):
    """A pink image with dark nuclei, and its label map."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    image = np.full((SIDE, SIDE, 3), (230, 190, 215), float)
    labels = np.zeros((SIDE, SIDE), np.uint16)
    for k, (y, x) in enumerate(rng.uniform(8, SIDE - 8, (20, 2)), 1):
        inside = (rows - y) ** 2 + (columns - x) ** 2 < rng.uniform(20, 60)
        image[inside] = (100, 60, 150)
        labels[inside] = k
    image += rng.normal(0, 3, (SIDE, SIDE, 1))
    return np.clip(image, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def routes(tmp_path_factory):
    """The shipped config over each route."""
    root = tmp_path_factory.mktemp("kumar")
    for name in ("raw/Tissue Images", "raw/Annotations", "images", "instances", "slides", "mosaic"):
        (root / name).mkdir(parents=True)
    for seed, image_id in enumerate(KUMAR_IMAGES):
        image, labels = drawn(seed)
        Image.fromarray(image).save(root / "raw" / "Tissue Images" / f"{image_id}.tif")
        write_imagescope(root / "raw" / "Annotations" / f"{image_id}.xml", label_map_to_annotations(labels))
        Image.fromarray(image).save(root / "images" / f"{image_id}.png")
        Image.fromarray(labels).save(root / "instances" / f"{image_id}.png")
    (root / "split.json").write_text(json.dumps(KUMAR_SPLITS))

    base = load_config(CONFIG)
    folder = dataclasses.replace(base.data, root=str(root))
    tfds = TfdsSource(
        name="kumar",
        manual_dir=str(root / "raw"),
        data_dir=str(root / "built"),
        train=folder.train,
        validation=folder.validation,
        test=folder.test,
        keep=folder.keep,
    )
    cases = folder.load(base.labels, base.seed).train
    for case in cases:
        write_slide(root / "slides" / f"{case.name}.tiff", case.slide.read(whole()))
        write_geojson(root / "slides" / f"{case.name}.geojson", case.given)
    write_mosaic(root / "mosaic", cases)
    slides = SlideSource(slides=(str(root / "slides" / "*.tiff"),), hold_out=0.0)
    mosaic = SlideSource(slides=(str(root / "mosaic" / "slide.tiff"),), hold_out=0.0)
    sources = {"folder": folder, "tfds": tfds, "slides": slides, "mosaic": mosaic}
    return {name: dataclasses.replace(base, data=source) for name, source in sources.items()}


def whole(x=0, y=0, side=SIDE):
    return Window(x_px=x, y_px=y, width=side, height=side)


def write_slide(path, pixels):
    height, width = pixels.shape[:2]
    write_pyramid(path, lambda x, y, w, h: pixels[y : y + h, x : x + w], width, height, mpp=0.25, quality=95)


def corner(k):
    """x, y of image k in the mosaic."""
    return k % COLUMNS * SIDE, k // COLUMNS * SIDE


def write_mosaic(folder, cases):
    canvas = np.full((-(-len(cases) // COLUMNS) * SIDE, COLUMNS * SIDE, 3), 255, np.uint8)
    marks = []
    for k, case in enumerate(cases):
        x, y = corner(k)
        canvas[y : y + SIDE, x : x + SIDE] = case.slide.read(whole())
        marks.append(case.given.transformed(1.0, float(x), float(y)))
    write_slide(folder / "slide.tiff", canvas)
    write_geojson(folder / "slide.geojson", Annotations.concatenate(marks))


def loaded(config):
    return config.data.load(config.labels, config.seed)


def batches_of(config):
    tiles = experiment.training_tiles(config, loaded(config))
    batches = train_batches(tiles, batch_size=config.train.batch_size, seed=config.seed)
    found = [next(batches) for _ in range(BATCHES)]
    batches.close()
    return found


def difference(one, other):
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def test_tfds_gives_the_batches_of_the_folder(routes):
    for ours, theirs in zip(batches_of(routes["tfds"]), batches_of(routes["folder"])):
        for name in ("image", "ground", "label", "valid"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_slide_an_image_gives_the_batches_of_the_folder_up_to_jpeg_loss(routes):
    for ours, theirs in zip(batches_of(routes["slides"]), batches_of(routes["folder"])):
        np.testing.assert_array_equal(ours.ground, theirs.ground)
        np.testing.assert_array_equal(ours.label, theirs.label)
        assert 0 < difference(ours.image, theirs.image) < JPEG_LOSS


def test_a_mosaic_slide_gives_the_same_tiles_at_the_same_places(routes):
    """All images on one slide: its cells are others, and so is their order; every tile is the same."""
    (mosaic,) = loaded(routes["mosaic"]).train
    drawn_there = TargetMaps(mosaic.given, mosaic.labels, mpp=mosaic.mpp)
    rng = np.random.default_rng(0)
    for k, case in enumerate(loaded(routes["folder"]).train):
        x, y = (int(v) for v in rng.integers(0, SIDE - 127, 2))
        left, top = corner(k)
        here, there = whole(x, y, 128), whole(left + x, top + y, 128)
        maps = TargetMaps(case.given, case.labels, mpp=case.mpp)
        for ours, theirs in zip(drawn_there.draw(there), maps.draw(here)):
            np.testing.assert_array_equal(ours, theirs)
        assert difference(mosaic.slide.read(there), case.slide.read(here)) < JPEG_LOSS


def test_the_config_trains_from_each(routes, tmp_path):
    losses = {}
    for name, config in routes.items():
        short = dataclasses.replace(
            config,
            loss=CrossEntropy(background_weight=0.2),  # slides have no dense truth to count the share
            model=dataclasses.replace(config.model, base=2, depth=2),
            train=dataclasses.replace(config.train, steps=2, batch_size=8, log_every=1, validate_every=9),
        )
        data = short.data if name in ("slides", "mosaic") else dataclasses.replace(short.data, test=())
        run = experiment.train(dataclasses.replace(short, data=data), tmp_path / name)
        losses[name] = [row["loss"] for row in run.rows() if row["event"] == "train"]
    assert all(len(found) == 2 for found in losses.values())
    assert losses["tfds"] == losses["folder"]
    np.testing.assert_allclose(losses["slides"], losses["folder"], rtol=0.02)
