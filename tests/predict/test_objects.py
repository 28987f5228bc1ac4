"""Objects of a slide: classes, measures, filters, files."""

import numpy as np
import orjson
import pytest
import shapely
from PIL import Image
from scipy import ndimage

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.slides.tissue import TissueMask
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict import Prediction, overlay_png, predict, write_predictions

COMMON = {"mpp": 0.25, "model_mpp": 0.25, "halo_px": 4, "min_area_um2": 0.0, "threads": 2}


def darkness(batch: np.ndarray) -> np.ndarray:
    """p of two classes: 1 - red, 1 - green."""
    return 1 - batch[..., :2].astype(np.float32) / 255


def cells(seed: int = 0, shape: tuple[int, int] = (150, 190)) -> np.ndarray:
    """White glass with blobs of two colours, some across any seam and some cut by the image."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 4.0) for _ in range(2)]
    p = [np.clip(0.5 + 0.5 * f / f.std() - 0.4, 0, 1) for f in fields]
    return np.stack([255 * (1 - p[0]), 255 * (1 - p[1]), np.full(shape, 255.0)], -1).astype(np.uint8)


def disc(image: np.ndarray, x: float, y: float, radius: float, grey: int) -> None:
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    image[np.hypot(columns - x, rows - y) < radius] = grey


def collect(slide, **changes) -> Prediction:
    names = changes.pop("class_names", ("tumour", "other"))
    probability = changes.pop("probability", darkness)
    parts = list(predict(probability, slide, class_names=names, **(COMMON | changes)))
    return Prediction(
        objects=Annotations.concatenate([part.objects for part in parts]),
        probability=np.concatenate([np.zeros(0), *(part.probability for part in parts)]),
        area_um2=np.concatenate([np.zeros(0), *(part.area_um2 for part in parts)]),
    )


def table(found: Prediction) -> np.ndarray:
    """Class, centroid, area and probability of each object, sorted."""
    o = found.objects
    rows = np.column_stack([o.class_ids, o.centroids_px, found.area_um2, found.probability])
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("model_mpp", [0.25, 0.5])
@pytest.mark.parametrize("core_px", [16, 40])
def test_tiles_give_what_one_tile_gives(model_mpp, core_px):
    # Two level-0 pixels alike in each direction, so that reading at half resolution is exact.
    pixels = np.repeat(np.repeat(cells(), 2, axis=0), 2, axis=1)
    slide = ArraySlide(pixels, mpp=0.25)
    one = collect(slide, core_px=512, model_mpp=model_mpp)
    many = collect(slide, core_px=core_px, model_mpp=model_mpp)
    assert len(one.objects) > 20
    # Reads at another resolution round to a grey level; at the slide's own they are exact.
    np.testing.assert_allclose(table(many), table(one), rtol=1e-9, atol=1e-6)


def test_class_place_area_and_probability():
    image = np.full((100, 120, 3), 255, np.uint8)
    disc(image[..., 0], 40, 30, 10.2, 51)  # p = 0.8 of the first class
    disc(image[..., 1], 80, 70, 15.2, 102)  # p = 0.6 of the second
    found = collect(ArraySlide(image, mpp=0.25), core_px=32)
    assert found.objects.class_names == ("tumour", "other")
    order = np.argsort(found.objects.class_ids)
    np.testing.assert_array_equal(found.objects.class_ids[order], [0, 1])
    np.testing.assert_allclose(found.objects.centroids_px[order], [[40, 30], [80, 70]], atol=1e-6)
    np.testing.assert_allclose(found.probability[order], [0.8, 0.6], atol=1e-6)
    # A disc of pixels, its rim moved in by up to half a pixel where p falls from 0.8 or 0.6 to 0.
    radius = np.array([10.2, 15.2])
    least, most = np.pi * (radius - 0.6) ** 2 / 16, np.pi * (radius + 0.1) ** 2 / 16
    assert ((least < found.area_um2[order]) & (found.area_um2[order] < most)).all()
    np.testing.assert_allclose(found.area_um2, found.objects.areas_px / 16, rtol=1e-12)


def test_objects_end_at_the_slides_border():
    image = np.zeros((40, 50, 3), np.uint8)
    found = collect(ArraySlide(image, mpp=0.25), core_px=16, threshold=0.1, class_names=("a", "b"))
    assert len(found.objects) == 2
    np.testing.assert_allclose(found.objects.bounds_px, [[0, 0, 50, 40]] * 2, atol=1e-9)


def test_smaller_objects_are_left_out():
    slide = ArraySlide(cells(), mpp=0.25)
    every, large = collect(slide, core_px=32), collect(slide, core_px=32, min_area_um2=5.0)
    assert 0 < len(large.objects) < len(every.objects)
    np.testing.assert_array_equal(table(large), table(every)[table(every)[:, 3] >= 5.0])


def test_region_keeps_whole_objects_by_centroid_and_computes_no_tile_far_off():
    slide = ArraySlide(cells(), mpp=0.25)
    region = Annotations.from_polygons([[[[20, 20], [90, 20], [90, 70], [20, 70]]]])
    calls = []

    def counted(batch):
        calls.append(len(batch))
        return darkness(batch)

    every = table(collect(slide, core_px=16))
    wanted = every[(np.abs(every[:, 1:3] - (55, 45)) < (35, 25)).all(axis=1)]
    # Objects reach some 10 px out of the region: within the halo.
    inside = collect(slide, core_px=16, halo_px=16, region=region, probability=counted, batch_size=1)
    np.testing.assert_allclose(table(inside), wanted, rtol=1e-12)
    assert 0 < len(calls) < 12 * 10 * 0.7


def test_region_without_polygon_is_an_error():
    slide = ArraySlide(cells(), mpp=0.25)
    with pytest.raises(InputError, match="must hold a polygon"):
        collect(slide, region=Annotations.from_points([[3.0, 4.0]]))


def test_glass_is_not_computed_and_objects_end_there():
    mask = np.zeros((10, 12), bool)
    mask[:, :4] = True
    slide = ArraySlide(np.zeros((160, 192, 3), np.uint8), mpp=0.25)
    progress = []
    found = collect(
        slide,
        core_px=32,
        class_names=("a", "b"),
        tissue=TissueMask(mask=mask, scale=16.0),
        on_progress=lambda *row: progress.append(row),
    )
    # Columns 0 to 63 are tissue; the third tile's halo of 4 px sees it too.
    assert progress[0] == (0, 15, 0)
    assert progress[-1][:2] == (15, 15)
    np.testing.assert_allclose(found.objects.bounds_px, [[0, 0, 96, 160]] * 2, atol=1e-9)


def test_simplified_outlines_stay_within_the_tolerance_and_keep_holes():
    slide = ArraySlide(cells(3), mpp=0.25)
    full, thin = (collect(slide, core_px=64, simplify_px=t) for t in (0.0, 0.25))
    assert len(thin.objects) == len(full.objects)
    assert len(thin.objects.ring_offsets) == len(full.objects.ring_offsets)
    assert len(thin.objects.xy_px) < 0.8 * len(full.objects.xy_px)
    for k in range(len(full.objects)):
        a, b = (
            shapely.Polygon(o.xy_px[slice(*o.ring_offsets[o.object_offsets[k] :][:2])])
            for o in (full.objects, thin.objects)
        )
        assert b.is_valid
        assert shapely.hausdorff_distance(a.exterior, b.exterior) <= 0.25 + 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.0}, "threshold must be in"),
        ({"min_area_um2": -1.0}, "at least 0"),
        ({"class_names": ("one",)}, "gives 2 classes"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(InputError, match=message):
        collect(ArraySlide(cells(), mpp=0.25), **change)


def test_geojson_holds_class_probability_and_area(tmp_path):
    slide = ArraySlide(cells(), mpp=0.25)
    names = ("tumour", "other")
    parts = list(predict(darkness, slide, class_names=names, core_px=32, **COMMON))
    path = tmp_path / "cells.geojson"
    count = write_predictions(path, parts)
    features = orjson.loads(path.read_bytes())["features"]
    assert count == len(features) == sum(len(part.objects) for part in parts)
    first = features[0]["properties"]
    assert first["objectType"] == "detection"
    assert first["classification"]["name"] in names
    assert first["measurements"]["probability"] == pytest.approx(parts[0].probability[0], abs=1e-6)
    assert first["measurements"]["area um^2"] == pytest.approx(parts[0].area_um2[0], abs=1e-6)
    back = read_geojson(path)
    assert len(back) == count
    assert back.areas_px.sum() * 0.25**2 == pytest.approx(
        sum(part.area_um2.sum() for part in parts), rel=1e-3
    )  # the file has 0.001 px


def test_failure_on_the_way_leaves_no_file(tmp_path):
    def parts():
        yield next(predict(darkness, slide, class_names=("a", "b"), core_px=32, **COMMON))
        raise InputError("damaged")

    slide = ArraySlide(cells(), mpp=0.25)
    with pytest.raises(InputError, match="damaged"):
        write_predictions(tmp_path / "cells.geojson", parts())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "max_px", "expected"), [(60, 512, 120), (300, 512, 300), (900, 512, 512)])
def test_overlay_draws_outlines_where_the_objects_are(tmp_path, size, max_px, expected):
    image = np.full((size, size, 3), 240, np.uint8)
    square = np.array([[0.2, 0.3], [0.7, 0.3], [0.7, 0.8], [0.2, 0.8]]) * size
    path = tmp_path / "overlay.png"
    objects = Annotations.from_polygons([[square]], "tumour")
    overlay_png(ArraySlide(image, mpp=0.5), objects, path, max_px=max_px)
    picture = np.asarray(Image.open(path)).astype(int)
    assert picture.shape == (expected, expected, 3)
    drawn = np.argwhere(np.abs(picture - 240).sum(-1) > 60) / expected
    np.testing.assert_allclose(drawn.min(axis=0), [0.3, 0.2], atol=4 / expected)
    np.testing.assert_allclose(drawn.max(axis=0), [0.8, 0.7], atol=4 / expected)
    assert (picture[expected // 2, expected // 2] == 240).all()
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.png"]


def test_overlay_where_no_folder_can_be_is_an_error(tmp_path):
    (tmp_path / "none").write_text("a file")
    slide = ArraySlide(np.full((20, 20, 3), 255, np.uint8), mpp=0.5)
    with pytest.raises(InputError, match="cannot be written"):
        overlay_png(slide, Annotations.empty(), tmp_path / "none" / "overlay.png")
