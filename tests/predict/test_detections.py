"""Detections of a slide: tiles against one pass, places, filters, files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import orjson
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.slides.tissue import TissueMask
from sparseshot_jax.errors import InputError
from sparseshot_jax.models import scale_image
from sparseshot_jax.models.decode import DecodeSpec, detect
from sparseshot_jax.models.yollo import YolloSpec
from sparseshot_jax.predict import (
    DetectionPart,
    Suppression,
    overlay_png,
    predict_detections,
    write_predictions,
)
from sparseshot_jax.types import CellOutput, Window

STRIDE, RADIUS_PX = 4, 6  # of `fake`
NAMES = ("tumour", "other")
COMMON = {"mpp": 0.25, "model_mpp": 0.25, "stride": STRIDE, "halo_px": RADIUS_PX, "threads": 2}


def fake(batch: np.ndarray) -> CellOutput:
    """A detector of 4 px cells that is a function of the pixels up to 6 px beyond each, with many ties.

    Offsets and sizes are whole 64ths of a pixel: exact wherever the tile begins.
    """
    wide = np.pad(batch, [(0, 0), (6, 6), (6, 6), (0, 0)], constant_values=255).astype(np.int64)
    _, h, w, _ = batch.shape
    rows, columns = np.arange(0, h, STRIDE)[:, None], np.arange(0, w, STRIDE)[None]

    def pixel(dy: int, dx: int, channel: int) -> np.ndarray:
        return wide[:, rows + dy + 6, columns + dx + 6, channel]

    score = pixel(-6, -6, 0) + pixel(9, 9, 0) - 2 * pixel(2, 2, 0)
    centre = [corner + pixel(k, k, 1) / 64 for k, corner in ((1, rows), (2, columns))]
    half = [1 + pixel(k, 3 - k, 2) / 32 for k in (1, 2)]
    box = [centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1]]
    return CellOutput(
        objectness=(score // 32 / 4)[..., None].astype(np.float32),
        boxes_yxyx_px=np.stack(box, axis=-1)[..., None, :].astype(np.float32),
        classes=np.stack([pixel(0, 0, 0), pixel(3, 3, 0)], -1)[..., None, :].astype(np.float32) / 64,
        anchors_px=np.ones((1, 2), np.float32),
    )


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def spots(shape: tuple[int, int], *places: tuple[int, int]) -> np.ndarray:
    """Black cells of 4 px, on which `fake` scores highest, on white."""
    pixels = np.full((*shape, 3), 255, np.uint8)
    for x, y in places:
        pixels[y : y + 4, x : x + 4] = (0, 128, 64)
    return pixels


def collect(slide, **changes) -> DetectionPart:
    cells = changes.pop("cells", fake)
    names = changes.pop("class_names", NAMES)
    parts = list(predict_detections(cells, slide, class_names=names, **(COMMON | changes)))
    return DetectionPart.concatenate(parts, class_names=names)


def table(found: DetectionPart) -> np.ndarray:
    """Box, score and class of each object, sorted."""
    rows = [found.boxes_xyxy_px, found.score, found.class_p, found.objects.class_ids]
    return in_order(np.column_stack(rows))


def in_order(rows: np.ndarray) -> np.ndarray:
    """Sorted by the first four columns, the box."""
    return rows[np.lexsort(rows[:, :4].T)]


def one_pass(slide, *, threshold: float, rule: Suppression, peaks: bool) -> np.ndarray:
    """Boxes and scores from the whole image at once and a sequential loop, sorted."""
    halo, h, w = 8, -(-slide.height // STRIDE), -(-slide.width // STRIDE)
    window = Window(x_px=-halo, y_px=-halo, width=w * STRIDE + 2 * halo, height=h * STRIDE + 2 * halo)
    output, cut = fake(slide.read(window)[None]), np.s_[0, 2 : h + 2, 2 : w + 2, 0]
    score = 1 / (1 + np.exp(-output.objectness[cut].astype(np.float64)))
    box = output.boxes_yxyx_px[cut][..., [1, 0, 3, 2]].astype(np.float64) - halo
    best = output.classes[cut].argmax(-1)
    chosen = score > threshold
    if peaks:
        chosen &= score >= ndimage.maximum_filter(score, 3, mode="constant")
    centre = (box[..., :2] + box[..., 2:]) / 2
    chosen &= ((centre >= 0) & (centre <= (slide.width, slide.height))).all(-1)
    score, box, best, centre = score[chosen], box[chosen], best[chosen], centre[chosen]
    kept: list[int] = []
    for i in np.argsort(-score, kind="stable"):
        near = np.array([j for j in kept if not rule.class_aware or best[i] == best[j]], int)
        if rule.by == "iou":
            sides = np.minimum(box[i, 2:], box[near, 2:]) - np.maximum(box[i, :2], box[near, :2])
            shared = sides.clip(0).prod(1)
            area = (box[:, 2:] - box[:, :2]).prod(1)
            close = shared / (area[i] + area[near] - shared) > rule.iou
        else:
            close = np.hypot(*(centre[near] - centre[i]).T) < rule.distance_px
        if not close.any():
            kept.append(i)
    return in_order(np.column_stack([box[kept], score[kept]]))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    core_px=st.sampled_from([4, 8, 12, 16, 28, 40, 128]),
    by=st.sampled_from(["iou", "distance"]),
    iou=st.sampled_from([0.1, 0.3, 0.5]),
    class_aware=st.booleans(),
    peaks=st.booleans(),
    threshold=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_any_core_gives_what_one_pass_gives(
    seed, height, width, core_px, by, iou, class_aware, peaks, threshold
):
    slide = ArraySlide(image(height, width, seed), mpp=0.25)
    rule = Suppression(by=by, iou=iou, distance_px=7.0, class_aware=class_aware)
    options = {"threshold": threshold, "rule": rule, "peaks": peaks}
    found = table(collect(slide, core_px=core_px, **options))
    # Scores: float32 against float64.
    np.testing.assert_allclose(found[:, :5], one_pass(slide, **options), rtol=1e-6)


@pytest.mark.parametrize("shift", [4, 20, 36])
def test_the_grid_may_fall_anywhere(shift):
    pixels = image(150, 170)
    moved = np.pad(pixels, [(shift, 0), (shift, 0), (0, 0)], constant_values=255)
    options = {"core_px": 40, "rule": Suppression(iou=0.2), "threshold": 0.9}
    region = Annotations.from_polygons([[[[12, 12], [158, 12], [158, 138], [12, 138]]]])
    plain = collect(ArraySlide(pixels, mpp=0.25), region=region, **options)
    other = collect(
        ArraySlide(moved, mpp=0.25), region=region.transformed(dx=float(shift), dy=float(shift)), **options
    )
    back = dataclasses.replace(other, boxes_xyxy_px=other.boxes_xyxy_px - shift)
    assert len(plain.score) > 30
    np.testing.assert_array_equal(table(back), table(plain))


def decoded(pixels: np.ndarray, spec: DecodeSpec, *, threshold: float) -> np.ndarray:
    """Boxes and scores that the decoder finds in an image at once, sorted."""
    output = jax.tree.map(jnp.asarray, fake(pixels[None]))
    limits = spec.limits(mpp=0.25)
    found, left_out = detect(output, spec, stride_px=STRIDE, threshold=threshold, **limits)
    assert int(left_out[0]) == 0
    valid = np.asarray(found.valid)
    boxes = np.asarray(found.boxes_yxyx_px)[valid][:, [1, 0, 3, 2]]
    return in_order(np.column_stack([boxes, np.asarray(found.score)[valid]]))


def test_a_crop_of_1024_px_by_tiles_at_once_and_by_the_decoder():
    pixels = image(1024, 1024)
    slide = ArraySlide(pixels, mpp=0.25)
    options = {"threshold": 0.95, "rule": Suppression(iou=0.2), "batch_size": 1}
    many, one = (table(collect(slide, core_px=core, **options)) for core in (128, 1024))
    np.testing.assert_array_equal(many, one)
    whole = decoded(pixels, DecodeSpec(iou=0.2), threshold=0.95)
    assert len(many) == len(whole) > 500
    np.testing.assert_array_equal(many[:, :4], whole[:, :4])
    np.testing.assert_allclose(many[:, 4], whole[:, 4], atol=1e-6)  # float32 of one sigmoid and another


def test_a_network_in_tiles_finds_what_it_finds_in_one_pass():
    spec = YolloSpec(width=4, depth=1)
    model = spec.build(classes=2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)

    @jax.jit
    def cells(batch):
        output = nnx.merge(graph, state)(scale_image(batch), train=False)
        # Scores of an untrained network are all alike.
        return dataclasses.replace(output, objectness=200 * (output.objectness + 4.6))

    slide = ArraySlide(image(300, 260), mpp=0.25)
    options = {
        "cells": cells,
        "stride": spec.stride,
        "multiple": spec.multiple,
        "halo_px": spec.receptive_radius_px,
        "rule": Suppression(iou=0.3),
        "batch_size": 2,
    }
    many, one = (table(collect(slide, core_px=core, **options)) for core in (64, 512))
    assert len(one) > 50
    assert one[:, 4].std() > 0.05  # else agreement would mean nothing
    # float32 sums in another order, times 200.
    np.testing.assert_allclose(many, one, atol=1e-3)


@pytest.mark.parametrize(
    "spec", [DecodeSpec(iou=0.2), DecodeSpec(by="distance", class_aware=True, peaks=True)]
)
def test_a_slide_has_the_objects_that_the_decoder_finds_in_an_image(spec):
    pixels = image(96, 128)
    distance_px = spec.limits(mpp=0.25)["distance_px"]
    rule = Suppression(by=spec.by, iou=spec.iou, distance_px=distance_px, class_aware=spec.class_aware)
    found = collect(ArraySlide(pixels, mpp=0.25), core_px=16, rule=rule, peaks=spec.peaks)
    rows = decoded(pixels, spec, threshold=0.5)
    assert len(rows) > 20
    np.testing.assert_allclose(table(found)[:, :5], rows, rtol=1e-6)


def test_places_scores_and_classes_in_level_0_pixels():
    # Two level-0 pixels alike in each direction, so that reading at half resolution is exact.
    pixels = np.repeat(np.repeat(spots((60, 80), (8, 12), (40, 32)), 2, axis=0), 2, axis=1)
    found = collect(ArraySlide(pixels, mpp=0.25), model_mpp=0.5, core_px=16)
    # Offset 128 / 64 px from the cell's corner, half sizes 1 + 64 / 32 px; all times two.
    order = np.argsort(found.boxes_xyxy_px[:, 0])
    np.testing.assert_allclose(found.centres_xy_px[order], [[20, 28], [84, 68]])
    np.testing.assert_allclose(found.boxes_xyxy_px[order], [[14, 22, 26, 34], [78, 62, 90, 74]])
    np.testing.assert_allclose(found.score, 1 / (1 + np.exp(-15 / 4)), rtol=1e-6)
    np.testing.assert_allclose(found.class_p.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(found.objects.kind, Kind.BOX)
    np.testing.assert_allclose(found.objects.bounds_px, found.boxes_xyxy_px)


@pytest.mark.parametrize("geometry", ["box", "point"])
def test_boxes_are_cut_at_the_slides_border_and_centres_stay(geometry):
    slide = ArraySlide(spots((20, 30), (0, 0), (24, 16)), mpp=0.25)
    found = collect(slide, geometry=geometry)
    order = np.argsort(found.boxes_xyxy_px[:, 0])
    np.testing.assert_allclose(found.boxes_xyxy_px[order], [[-1, -1, 5, 5], [23, 15, 29, 21]])
    np.testing.assert_allclose(found.centres_xy_px[order], [[2, 2], [26, 18]])
    expected = {"box": [[0, 0, 5, 5], [23, 15, 29, 20]], "point": [[2, 2, 2, 2], [26, 18, 26, 18]]}
    np.testing.assert_allclose(found.objects.bounds_px[order], expected[geometry])


def test_region_keeps_objects_by_centre_and_computes_no_tile_far_off():
    slide = ArraySlide(image(150, 190), mpp=0.25)
    region = Annotations.from_polygons([[[[20, 20], [90, 20], [90, 70], [20, 70]]]])
    tiles = []

    def counted(batch):
        tiles.append(len(batch))
        return fake(batch)

    options = {"core_px": 16, "batch_size": 1, "threshold": 0.9}
    every = table(collect(slide, **options))
    centre = (every[:, :2] + every[:, 2:4]) / 2
    wanted = every[(np.abs(centre - (55, 45)) < (35, 25)).all(axis=1)]
    inside = collect(slide, region=region, cells=counted, **options)
    np.testing.assert_array_equal(table(inside), wanted)
    assert 0 < len(tiles) < 12 * 10 * 0.7


def test_glass_is_not_computed_and_progress_is_told():
    mask = np.zeros((10, 12), bool)
    mask[:, :4] = True
    progress = []
    found = collect(
        ArraySlide(image(160, 192), mpp=0.25),
        core_px=32,
        tissue=TissueMask(mask=mask, scale=16.0),
        on_progress=lambda *row: progress.append(row),
    )
    # Columns 0 to 63 are tissue; the third tile's halo sees it too.
    assert progress[0] == (0, 15, 0)
    assert progress[-1] == (15, 15, len(found.score))
    assert found.centres_xy_px[:, 0].max() <= 96 + 4


def test_slide_without_any_object():
    found = collect(ArraySlide(np.full((90, 50, 3), 255, np.uint8), mpp=0.25), core_px=16)
    assert len(found.objects) == len(found.score) == 0
    assert found.class_p.shape == (0, 2)


def broken(**fields):
    def cells(batch):
        output = fake(batch)
        change = {name: np.full_like(getattr(output, name), value) for name, value in fields.items()}
        return dataclasses.replace(output, **change)

    return cells


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.0}, "threshold must be in"),
        ({"geometry": "outline"}, "one of box, point"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"stride": 8}, "gives? .* cells|must give .* cells"),
        ({"core_px": 18}, "divisible by 4"),
        ({"class_names": ("one",)}, "gives 2 classes"),
        ({"cells": broken(objectness=np.nan)}, "a score that is no number"),
        ({"cells": broken(objectness=1.0, boxes_yxyx_px=np.inf)}, "not finite"),
        ({"cells": broken(objectness=1.0, boxes_yxyx_px=1e4)}, "centred in their own cell"),
    ],
)
def test_bad_arguments_and_models_are_named(change, message):
    with pytest.raises(InputError, match=message):
        collect(ArraySlide(image(40, 40), mpp=0.25), **change)


@pytest.mark.parametrize("geometry", ["box", "point"])
def test_geojson_holds_class_score_and_p_of_each_class(tmp_path, geometry):
    slide = ArraySlide(image(100, 120), mpp=0.25)
    options = COMMON | {"core_px": 32, "threshold": 0.9, "geometry": geometry}
    parts = list(predict_detections(fake, slide, class_names=NAMES, **options))
    path = tmp_path / "cells.geojson"
    count = write_predictions(path, parts)
    features = orjson.loads(path.read_bytes())["features"]
    assert count == len(features) == sum(len(part.objects) for part in parts) > 0
    first = features[0]
    assert first["geometry"]["type"] == {"box": "Polygon", "point": "Point"}[geometry]
    assert first["properties"]["objectType"] == "detection"
    measured = first["properties"]["measurements"]
    assert measured.keys() == {"score", "p tumour", "p other"}
    assert measured["score"] == pytest.approx(float(parts[0].score[0]), abs=1e-6)
    best = "tumour" if measured["p tumour"] >= measured["p other"] else "other"
    assert first["properties"]["classification"]["name"] == best
    back = read_geojson(path)
    written = DetectionPart.concatenate(parts, class_names=NAMES).objects
    np.testing.assert_array_equal(back.kind, {"box": Kind.BOX, "point": Kind.POINT}[geometry])
    np.testing.assert_allclose(back.bounds_px, written.bounds_px, atol=6e-4)  # the file has 0.001 px


def test_one_class_has_no_p_of_its_own():
    part = DetectionPart.concatenate([], class_names=("cell",))
    assert part.measurements.keys() == {"score"}


def test_overlay_shows_boxes_and_points_a_colour_a_class(tmp_path):
    slide = ArraySlide(np.full((300, 300, 3), 240, np.uint8), mpp=0.5)
    objects = Annotations.concatenate(
        [
            Annotations.from_boxes([[50, 60, 120, 140]], "other"),
            Annotations.from_points([[200.5, 220.5]], "tumour"),
        ]
    )
    path = tmp_path / "overlay.png"
    overlay_png(slide, objects, path, class_names=NAMES, max_px=300)
    picture = np.asarray(Image.open(path)).astype(int)

    def extent(colour: tuple[int, int, int]) -> list[int]:
        y, x = np.nonzero((picture == colour).all(-1))
        return [x.min(), y.min(), x.max(), y.max()]

    # By class_names the first colour is the tumour's, though the box comes first.
    np.testing.assert_allclose(extent((86, 180, 233)), [50, 60, 120, 140], atol=2)
    np.testing.assert_allclose(extent((240, 228, 66)), [194, 214, 206, 226], atol=2)
    assert (picture[220, 200] == 240).all()  # a ring: what it marks is seen
