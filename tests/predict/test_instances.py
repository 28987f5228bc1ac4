"""Touching cells of a slide: each once and whole, the same whichever the tiling."""

import numpy as np
import pytest
import shapely
from scipy import ndimage, spatial

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.slides.tissue import TissueMask
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict import Prediction, predict, write_predictions
from sparseshot_jax.predict.instances import outline, predict_instances
from sparseshot_jax.predict.watershed import split

COMMON = {
    **{"mpp": 0.25, "model_mpp": 0.25, "halo_px": 4, "min_area_um2": 0.0, "threads": 2},
    **{"largest_um": 5.0, "class_names": ("cell",), "depth": True},
}


def red_and_blue(batch: np.ndarray) -> np.ndarray:
    """p = 1 - red, depth = 1 - blue."""
    return 1 - batch[..., [0, 2]].astype(np.float32) / 255


def cells(seed: int = 0, shape: tuple[int, int] = (200, 260), count: int = 70) -> np.ndarray:
    """Discs of 5 to 9 px that overlap: red says where they are, blue how deep, both soft as a model's."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    top = np.zeros(shape, np.int32)
    for k in range(count):
        x, y, radius = rng.random() * shape[1], rng.random() * shape[0], rng.uniform(5, 9)
        top[np.hypot(columns - x, rows - y) < radius] = k + 1
    depth = np.zeros(shape)
    for k in range(count):
        distance = ndimage.distance_transform_edt(np.pad(top == k + 1, 1))[1:-1, 1:-1]
        depth += distance / max(distance.max(), 1)
    p = ndimage.gaussian_filter((top > 0).astype(float), 1.0)
    depth = np.clip(ndimage.gaussian_filter(depth, 1.0) + rng.normal(scale=0.02, size=shape), 0, 1)
    grey = [255 * (1 - p), np.full(shape, 255.0), 255 * (1 - depth)]
    return np.stack(grey, axis=-1).round().astype(np.uint8)


def collect(slide, **changes) -> Prediction:
    probability = changes.pop("probability", red_and_blue)
    parts = list(predict_instances(probability, slide, **(COMMON | changes)))
    return Prediction(
        objects=Annotations.concatenate([part.objects for part in parts]),
        probability=np.concatenate([np.zeros(0), *(part.probability for part in parts)]),
        area_um2=np.concatenate([np.zeros(0), *(part.area_um2 for part in parts)]),
    )


def table(found: Prediction) -> np.ndarray:
    """Class, centroid, area and probability of each object, sorted."""
    o = found.objects
    rows = np.column_stack([o.class_ids, o.centroids_px, found.area_um2, found.probability])
    return rows[np.lexsort(rows.round(6).T)]


def polygons(o: Annotations) -> list[shapely.Polygon]:
    bounds = [o.ring_offsets[o.object_offsets[k] :][:2] for k in range(len(o))]
    return [shapely.Polygon(o.xy_px[slice(*pair)]) for pair in bounds]


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("core_px", [48, 80])
def test_tiles_give_what_one_tile_gives(core_px, depth):
    slide = ArraySlide(cells(), mpp=0.25)
    probability = red_and_blue if depth else lambda batch: red_and_blue(batch)[..., :1]
    one, many = (collect(slide, core_px=c, depth=depth, probability=probability) for c in (512, core_px))
    assert len(one.objects) > 50
    np.testing.assert_allclose(table(many), table(one), rtol=1e-9, atol=1e-9)


def test_a_shifted_grid_gives_the_same_objects():
    pixels = cells(1, (300, 300), 130)
    shifted = np.pad(pixels, ((24, 0), (24, 0), (0, 0)), constant_values=255)
    a = collect(ArraySlide(pixels, mpp=0.25), core_px=48).objects.centroids_px
    b = collect(ArraySlide(shifted, mpp=0.25), core_px=48).objects.centroids_px - 24
    distance, _ = spatial.cKDTree(a).query(b)
    # All but those that the slide's border cuts, which now lie within it.
    assert len(a) > 100
    assert 2 * (distance < 0.1).sum() / (len(a) + len(b)) >= 0.99


def test_touching_cells_are_parted_and_their_outlines_do_not_overlap():
    slide = ArraySlide(cells(), mpp=0.25)
    found = collect(slide, core_px=512)
    joined = predict(
        lambda batch: red_and_blue(batch)[..., :1],
        slide,
        **{k: v for k, v in COMMON.items() if k not in ("largest_um", "depth")},
    )
    areas = np.concatenate([part.area_um2 for part in joined])
    assert len(found.objects) > 1.4 * len(areas)
    assert found.area_um2.sum() == pytest.approx(areas.sum(), rel=0.03)  # less the gaps between them
    shapes = polygons(found.objects)
    assert shapely.is_valid(shapes).all()
    tree = shapely.STRtree(shapes)
    a, b = tree.query(shapes, predicate="overlaps")
    assert len(a) == len(b) == 0


def test_a_cell_alone_has_the_outline_that_predict_gives():
    image = np.full((90, 90, 3), 255, np.uint8)
    rows, columns = np.mgrid[:90, :90] + 0.5
    radius = np.hypot(columns - 41.3, rows - 44.8)
    image[..., 0] = np.clip(255 * (radius - 8) / 6, 0, 255)
    image[..., 2] = np.clip(255 * radius / 11, 0, 255)
    slide = ArraySlide(image, mpp=0.25)
    found = collect(slide, core_px=32)
    (whole,) = predict(
        lambda batch: red_and_blue(batch)[..., :1],
        slide,
        core_px=128,
        **{k: v for k, v in COMMON.items() if k not in ("largest_um", "depth")},
    )
    np.testing.assert_array_equal(np.sort(found.objects.xy_px, 0), np.sort(whole.objects.xy_px, 0))
    np.testing.assert_allclose(found.probability, whole.probability, rtol=1e-12)
    np.testing.assert_allclose(found.area_um2, whole.area_um2, rtol=1e-12)


def test_objects_of_one_class_each_by_the_mean():
    image = np.full((60, 120, 3), 255, np.uint8)
    image[20:40, 20:40] = 102, 204, 255  # p 0.6 and 0.2
    image[20:40, 80:100] = 204, 102, 255
    image[20:22, 80:100] = 102, 204, 255  # its rim looks like the other class

    def two(batch):
        return 1 - batch[..., :2].astype(np.float32) / 255

    slide = ArraySlide(image, mpp=0.25)
    found = collect(slide, core_px=32, class_names=("a", "b"), depth=False, probability=two)
    order = np.argsort(found.objects.centroids_px[:, 0])
    np.testing.assert_array_equal(found.objects.class_ids[order], [0, 1])
    np.testing.assert_allclose(found.probability[order], [0.6, 0.56], atol=1e-6)


def test_objects_end_at_the_slides_border_and_there_is_one():
    image = np.zeros((26, 27, 3), np.uint8)
    found = collect(ArraySlide(image, mpp=0.25), core_px=64)
    np.testing.assert_allclose(found.objects.bounds_px, [[0, 0, 27, 26]], atol=1e-9)


def test_region_tissue_size_and_progress():
    slide = ArraySlide(cells(), mpp=0.25)
    every = table(collect(slide, core_px=48))
    region = Annotations.from_polygons([[[[60, 60], [140, 60], [140, 120], [60, 120]]]])
    inside = every[(np.abs(every[:, 1:3] - (100, 90)) < (40, 30)).all(axis=1)]
    found = collect(slide, core_px=48, halo_px=20, region=region, min_area_um2=3.0)
    np.testing.assert_allclose(table(found), inside[inside[:, 3] >= 3.0], rtol=1e-9)
    progress = []
    mask = np.zeros((10, 13), bool)
    mask[:, :3] = True
    tissue = TissueMask(mask=mask, scale=20.0)
    found = collect(slide, core_px=48, tissue=tissue, on_progress=lambda *row: progress.append(row))
    assert progress[0] == (0, 10, 0)
    assert progress[-1][:2] == (10, 10)
    assert found.objects.bounds_px[:, 2].max() <= 96.5


def test_written_as_other_predictions_are(tmp_path):
    slide = ArraySlide(cells(), mpp=0.25)
    parts = list(predict_instances(red_and_blue, slide, core_px=48, **COMMON))
    count = write_predictions(tmp_path / "cells.geojson", parts)
    assert count == sum(len(part.objects) for part in parts) > 50


def test_many_objects_round_one_each_have_their_outline():
    p = np.zeros((40, 40), np.float32)
    p[5:35, 5:35] = 0.9
    depth = np.zeros((40, 40), np.float32)
    depth[8:35:6, 8:35:6] = 1.0
    parts = split(p, depth, threshold=0.5)
    assert len(parts.summits_yx) == 25
    chosen = np.arange(25) % 3 > 0
    outlines, which = outline(p, parts, chosen, threshold=0.5)
    np.testing.assert_array_equal(np.sort(which), np.flatnonzero(chosen))
    for polygon, k in zip(polygons(outlines), which):
        row, column = parts.summits_yx[k] + 0.5
        assert polygon.contains(shapely.Point(column, row))
        assert polygon.area == pytest.approx((parts.labels == k + 1).sum(), abs=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.0}, "threshold must be in"),
        ({"largest_um": 0.0}, "largest_um must be positive"),
        ({"core_px": 16}, "at least as large as the margin"),
        ({"depth": False}, "gives 2 channels"),
        ({"class_names": ("a", "b")}, "2 classes, a, b and the depth"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(InputError, match=message):
        collect(ArraySlide(cells(), mpp=0.25), **change)
