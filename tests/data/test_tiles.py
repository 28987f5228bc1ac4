import dataclasses

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, scale_at, truth_instances, truth_maps, whole_window
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.tile_grid import CaseGrid, TissueBits
from sparseshot_jax.data.tiles import (
    TileSpec,
    annotated_places,
    build_index,
    case_grid,
    class_balanced_places,
    draw_tile,
    places_in_cells,
    tile_index,
    uniform_places,
)
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window


def case_of(image, marks=None, mpp=0.5, name="case", **fields):
    marks = Annotations.empty() if marks is None else marks
    slide = ArraySlide(image, mpp, path=f"{name}.tif")
    return Case(
        name=name,
        slide=slide,
        mpp=mpp,
        given=marks,
        truth=marks,
        held_out=None,
        labels=LabelSpec(),
        **fields,
    )


def box(x0, y0, x1, y1):
    return [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]]


def half_glass(side=2560):
    """Left half stained, right half white."""
    image = np.full((side, side, 3), 245, np.uint8)
    noise = np.random.default_rng(0).integers(0, 30, (side, side // 2), dtype=np.uint8)
    image[:, : side // 2, 0] = 180 + noise
    image[:, : side // 2, 1] = 90 + noise
    image[:, : side // 2, 2] = 160 + noise
    return image


def index_of(grid):
    case = case_of(np.zeros((grid.height, grid.width, 3), np.uint8))
    cells = np.pad(grid.cells(), ((0, 0), (1, 0)))
    nothing = (np.zeros((0, 2)), np.zeros(0, np.uint8))
    return build_index([case], TileSpec(tile_px=grid.tile_px), [grid], [cells], [nothing])


@pytest.mark.parametrize(("height", "width"), [(512, 512), (64, 64), (65, 64), (300, 130)])
def test_the_cells_share_out_every_origin_evenly(height, width):
    grid = CaseGrid(height=height, width=width, tile_px=64, scale=1.0, tissue=None)
    assert len(grid.cells()) == grid.shape[0] * grid.shape[1]
    rng = np.random.default_rng(0)
    index = index_of(grid)
    _, y, x = places_in_cells(index, np.repeat(index.cells, 400, axis=0), rng)
    drawn = np.stack([y, x], axis=1)
    for axis, size in enumerate((height, width)):
        values, counts = np.unique(drawn[:, axis], return_counts=True)
        assert values[0] == 0
        assert values[-1] == size - 64
        assert len(values) == size - 63
        # even up to the rounding of cell sizes and five standard deviations
        mean = counts.mean()
        assert np.abs(counts - mean).max() < 0.25 * mean + 5 * np.sqrt(mean)


def test_glass_is_not_sampled():
    case = case_of(half_glass())
    spec = TileSpec(tile_px=128, mpp=0.5, annotated_share=0.0, min_tissue=0.5)
    index = tile_index([case], spec)
    assert 0.4 < len(index.cells) / 20**2 < 0.6
    rng = np.random.default_rng(0)
    for cell in np.repeat(index.cells, 3, axis=0):
        _, _, x = draw_tile(index, spec, cell, rng)
        inside = np.clip(1280 - x, 0, 128) / 128
        # the mask has 16 um pixels: 32 of these, a quarter of the tile, at the edge of the tissue
        assert inside >= 0.25


def test_without_a_least_share_all_is_sampled():
    index = tile_index([case_of(half_glass())], TileSpec(tile_px=128, mpp=0.5, min_tissue=0.0))
    assert len(index.cells) == 20**2


def test_draws_round_objects_hold_the_object_and_honour_the_share():
    marks = Annotations.from_polygons([box(300, 400, 310, 410), box(2, 3, 8, 9)])
    cases = [case_of(np.zeros((600, 700, 3), np.uint8), marks), case_of(np.zeros((600, 700, 3), np.uint8))]
    spec = TileSpec(tile_px=64, mpp=0.5, annotated_share=0.3, jitter=1.0)
    index = tile_index(cases, spec)
    assert index.annotated.tolist() == [0]
    hits = 0
    rng = np.random.default_rng(0)
    for k in range(3000):
        case, y, x = draw_tile(index, spec, index.cells[k % len(index.cells)], rng)
        assert 0 <= y <= 600 - 64
        assert 0 <= x <= 700 - 64
        centres = np.array([[405, 305], [6, 5]])
        held = ((centres >= (y, x)) & (centres < (y + 64, x + 64))).all(axis=1).any()
        hits += case == 0 and held
    # 0.3 by design, and in one of two cases about 1 of 55 random tiles holds one of them by chance
    assert hits / 3000 == pytest.approx(0.31, abs=0.03)


def test_all_tiles_round_objects():
    marks = Annotations.from_polygons([box(300, 400, 310, 410)])
    spec = TileSpec(tile_px=64, mpp=1.0, annotated_share=1.0, jitter=0.0)
    index = tile_index([case_of(np.zeros((600, 700, 3), np.uint8), marks)], spec)
    rng = np.random.default_rng(0)
    # at 1 um a pixel the centre lies at (202.5, 152.5); the tile is centred on it, floored
    assert draw_tile(index, spec, index.cells[0], rng) == (0, 170, 120)


def test_objects_of_other_roles_and_outside_the_image_draw_no_tiles():
    marks = Annotations.from_polygons([box(0, 0, 9, 9), box(900, 0, 910, 9)], ["Ignore*", "cell"])
    index = tile_index([case_of(np.zeros((64, 64, 3), np.uint8), marks)], TileSpec(tile_px=64, mpp=0.5))
    assert not len(index.annotated)


def test_a_tile_larger_than_the_image_says_what_fits():
    with pytest.raises(InputError, match=r"small\.tif.*200 x 120.*tiles\.tile_px=112"):
        case_grid(case_of(np.zeros((240, 400, 3), np.uint8), name="small"), TileSpec(tile_px=256, mpp=1.0))


def test_no_tissue_at_all_names_the_remedy():
    blank = np.full((2200, 2200, 3), 245, np.uint8)
    blank[:200, :200] = (160, 60, 140)  # 1 % of the slide, far less than 90 % of any tile
    with pytest.raises(InputError, match=r"tiles\.min_tissue"):
        tile_index([case_of(blank)], TileSpec(tile_px=512, mpp=0.5, min_tissue=0.9))


def test_a_scale_near_a_stored_level_is_that_level():
    case = case_of(np.zeros((100, 101, 3), np.uint8), mpp=0.499)
    assert scale_at(case.slide, case.mpp, 0.5) == 1.0
    assert scale_at(case.slide, case.mpp, 0.6) == pytest.approx(0.6 / 0.499)
    window = whole_window(case, 0.998)
    assert (window.width, window.height, window.scale) == (50, 50, pytest.approx(2.0))


def test_truth_at_another_resolution():
    marks = Annotations.from_polygons(
        [box(0, 0, 4, 4), box(4, 4, 8, 8), box(6, 0, 8, 4)], ["cell", "cell", "Ignore*"]
    )
    case = case_of(np.zeros((8, 8, 3), np.uint8), marks)
    window = Window(x_px=0, y_px=0, width=4, height=4, scale=2.0)
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]]
    np.testing.assert_array_equal(truth_instances(case, window), expected)
    maps = truth_maps(case, window)
    np.testing.assert_array_equal(maps.label, np.minimum(expected, 1))
    assert not maps.valid[:2, 3].any()
    assert maps.valid.sum() == 14
    with pytest.raises(InputError, match=r"case: .*dense truth"):
        truth_maps(dataclasses.replace(case, truth=None), window)


@pytest.mark.parametrize(
    "bad",
    [
        {"tile_px": 0},
        {"mpp": 0.0},
        {"annotated_share": 1.1},
        {"class_balance": -0.1},
        {"min_tissue": -0.1},
        {"jitter": 2.0},
    ],
)
def test_a_spec_that_cannot_be(bad):
    with pytest.raises(InputError, match=r"tiles\."):
        TileSpec(**bad)


def marked_cases():
    """Two images of two classes: 30 objects of the first in one, 3 of either in the other."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(20, 560, (36, 2))
    boxes = [box(x, y, x + 9, y + 7) for x, y in corners.tolist()]
    labels = LabelSpec(classes=("a", "b"))
    image = np.zeros((600, 700, 3), np.uint8)
    many = case_of(image, Annotations.from_polygons(boxes[:30], "a"), name="many")
    few = case_of(image, Annotations.from_polygons(boxes[30:], ["a", "b"] * 3), name="few")
    return [dataclasses.replace(case, labels=labels) for case in (many, few)]


def test_the_places_of_a_seed_stay_those_of_earlier_versions():
    """Published results were trained on them."""
    index = tile_index(marked_cases(), TileSpec(tile_px=64, mpp=0.5))
    rng = np.random.default_rng(3)
    drawn = [draw_tile(index, TileSpec(tile_px=64, mpp=0.5), index.cells[k], rng) for k in range(8)]
    assert drawn == [
        (0, 95, 389),
        (0, 198, 313),
        (0, 1, 121),
        (1, 498, 103),
        (0, 40, 286),
        (0, 190, 490),
        (0, 13, 111),
        (0, 35, 438),
    ]


@pytest.mark.parametrize("draw", [annotated_places, class_balanced_places])
def test_many_places_round_objects_hold_one(draw):
    cases = marked_cases()
    index = tile_index(cases, TileSpec(tile_px=64, mpp=0.5))
    case, y, x = draw(index, 1.0, 500, np.random.default_rng(0))
    assert case.shape == y.shape == x.shape == (500,)
    for k in range(500):
        centres = cases[case[k]].given.centroids_px[:, ::-1]
        # the origin is rounded down to a whole pixel
        assert ((centres >= (y[k], x[k])) & (centres < (y[k] + 65, x[k] + 65))).all(axis=1).any()


def test_each_case_or_each_class_alike():
    cases = marked_cases()
    index = tile_index(cases, TileSpec(tile_px=64, mpp=0.5))
    rng = np.random.default_rng(0)
    case, _, _ = annotated_places(index, 0.0, 4000, rng)
    # binomial(4000, 1/2): standard deviation 0.008; five of them
    assert case.mean() == pytest.approx(0.5, abs=0.04)
    case, y, x = class_balanced_places(index, 0.0, 4000, rng)
    # half are of class b, which is in the second case alone; of class a it has 3 of 33 objects
    assert case.mean() == pytest.approx(0.5 + 0.5 * 3 / 33, abs=0.04)
    # a tile of side 64 and jitter 0 is centred on its object
    centre = np.stack([y, x], axis=1) + 32
    of_b = cases[1].given.centroids_px[1::2, ::-1]
    near = (np.abs(centre[:, None] - of_b) <= 1).all(axis=2).any(axis=1) & (case == 1)
    assert near.mean() == pytest.approx(0.5, abs=0.04)


def test_the_share_of_balanced_draws():
    cases = marked_cases()
    spec = TileSpec(tile_px=64, mpp=0.5, annotated_share=1.0, class_balance=0.5, jitter=0.0)
    index = tile_index(cases, spec)
    rng = np.random.default_rng(0)
    drawn = [draw_tile(index, spec, index.cells[0], rng)[0] for _ in range(2000)]
    expected = 0.5 * 0.5 + 0.5 * (0.5 + 0.5 * 3 / 33)
    assert np.mean(drawn) == pytest.approx(expected, abs=0.06)  # five standard deviations


def test_uniform_places_cover_the_tissue_alike():
    index = tile_index([case_of(half_glass())], TileSpec(tile_px=128, mpp=0.5, min_tissue=0.5))
    case, y, x = uniform_places(index, 3000, np.random.default_rng(0))
    assert not case.any()
    assert (np.clip(1280 - x, 0, 128) / 128 >= 0.25).all()
    assert y.min() < 60 < 2372 < y.max() <= 2560 - 128
    counts, _ = np.histogram(y, 8, (0, 2560 - 128))
    assert np.abs(counts - 375).max() < 5 * np.sqrt(375)


def test_places_of_no_tissue_fall_back_to_the_centre_of_the_cell():
    grid = CaseGrid(
        height=128,
        width=128,
        tile_px=64,
        scale=1.0,
        tissue=TissueBits.pack(np.zeros((8, 8), bool), 16.0),
        min_tissue=0.1,
    )
    index = dataclasses.replace(index_of(grid), min_tissue=0.1)
    _, y, x = places_in_cells(index, np.array([[0, 0, 1]]), np.random.default_rng(0))
    # 65 origins in two cells of each axis: [0, 32) and [32, 65)
    assert (y.tolist(), x.tolist()) == ([15], [48])


def test_tissue_counted_bit_by_bit_and_from_one_table_agree():
    rng = np.random.default_rng(0)
    mask = rng.random((37, 53)) < 0.3
    bits = TissueBits.pack(mask, 7.3)
    y, x = rng.integers(0, 37 * 7, 200), rng.integers(0, 53 * 7, 200)
    together = bits.fractions(y, x, 40)
    alone = [bits.fractions(y[k : k + 1], x[k : k + 1], 40)[0] for k in range(200)]
    np.testing.assert_array_equal(together, alone)
    top, left = int(y[0] / 7.3), int(x[0] / 7.3)
    bottom, right = int(np.ceil((y[0] + 40) / 7.3)), int(np.ceil((x[0] + 40) / 7.3))
    assert together[0] == mask[top:bottom, left:right].mean()


def test_objects_of_unknown_class_are_drawn_and_never_balanced():
    image = np.full((400, 400, 3), 120, np.uint8)
    marks = Annotations.from_points([[50, 60], [300, 310], [200, 90], [20, 30]], ["?", "b", "?", "b"])
    labels = LabelSpec(classes=("a", "b"), unknown_class=("?",))
    case = dataclasses.replace(case_of(image, marks), labels=labels)
    spec = TileSpec(tile_px=32, mpp=0.5, annotated_share=1.0, jitter=0.0, min_tissue=0.0)
    index = tile_index([case], spec)
    assert index.object_classes.tolist() == [0, 2, 0, 2]
    assert index.classes.tolist() == [2]

    def centres(places):
        return set(zip((places[1] + 16).tolist(), (places[2] + 16).tolist()))

    rng = np.random.default_rng(0)
    known = {(310, 300), (30, 20)}
    assert centres(annotated_places(index, 0.0, 64, rng)) == known | {(60, 50), (90, 200)}
    assert centres(class_balanced_places(index, 0.0, 64, rng)) == known
