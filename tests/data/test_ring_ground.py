"""The ring round annotated centres, against distances of all pixels from all centres."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, truth_maps
from sparseshot_jax.data.cut_tiles import drawn
from sparseshot_jax.data.labels import LabelSpec, TargetMaps, draw_targets
from sparseshot_jax.data.shards.manifest import completed
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.tile_objects import TileObjects
from sparseshot_jax.errors import InputError
from sparseshot_jax.models.assign import assign
from sparseshot_jax.types import Ground, Needs, Objects, Window

U, F, B, X = Ground.UNANNOTATED, Ground.ANNOTATED, Ground.BACKGROUND, Ground.IGNORED
MPP = 0.5
SPEC = LabelSpec(classes=("cell",), known_background=("not",), ring_um=(2.75, 5.5))


def squares(centres, side, name="cell"):
    half = side / 2
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    return Annotations.from_polygons([[centre + corners] for centre in np.asarray(centres)], name)


def distances_px(window, centres):
    """Level-0 pixels of each pixel's centre from the nearest of the centres."""
    x = window.x_px + (np.arange(window.width) + 0.5) * window.scale
    y = window.y_px + (np.arange(window.height) + 0.5) * window.scale
    dx, dy = x[None, :, None] - centres[:, 0], y[:, None, None] - centres[:, 1]
    return np.sqrt(dx**2 + dy**2).min(axis=-1, initial=np.inf)


def expected(ground, window, centres, spec=SPEC):
    d_um = distances_px(window, centres) * MPP
    inside = (spec.ring_um[0] < d_um) & (d_um < spec.ring_um[1])
    return np.where((ground == U) & ~inside, X, ground)


@pytest.mark.parametrize("scale", [1.0, 1.7, 4.0])
@pytest.mark.parametrize("ring_um", [(2.75, 5.5), (0.0, 2.0), (6.0, 30.0)])
def test_ground_is_that_of_all_distances(scale, ring_um):
    """Centres lie inside the window, at its edges, and outside of it with rings that reach in."""
    spec = dataclasses.replace(SPEC, ring_um=ring_um)
    rng = np.random.default_rng(0)
    window = Window(x_px=100.0, y_px=40.0, width=61, height=47, scale=scale)
    extent = np.array([window.width, window.height]) * scale
    centres = (100.0, 40.0) + rng.uniform(-0.4, 1.4, (40, 2)) * extent
    marks = Annotations.concatenate(
        [squares(centres[:25], 6.0), Annotations.from_points(centres[25:], "cell")]
    )
    plain, label = draw_targets(marks, window, spec, mpp=MPP)
    ground, same = draw_targets(marks, window, spec, mpp=MPP, ring=True)
    assert (plain == U).any()
    assert (ground == X).any()
    np.testing.assert_array_equal(ground, expected(plain, window, centres, spec))
    np.testing.assert_array_equal(label, same)


def test_the_ring_is_open_at_both_radii():
    """Radii of 5 and 10 pixels from a pixel's middle: (3, 4) lies at the inner one, (6, 8) at the outer."""
    spec = dataclasses.replace(SPEC, ring_um=(2.5, 5.0))
    marks = Annotations.from_points([[20.5, 20.5]], "cell")
    window = Window(x_px=0, y_px=0, width=41, height=41)
    ground, _ = draw_targets(
        marks, window, dataclasses.replace(spec, point_radius_um=0.1), mpp=MPP, ring=True
    )
    inner, outer = ground[20 + 4, 20 + 3], ground[20 + 8, 20 + 6]
    assert (inner, outer) == (X, X)
    assert (ground[20, 25], ground[20, 26], ground[20, 29], ground[20, 30]) == (X, U, U, X)
    assert (ground[24, 24], ground[27, 26]) == (U, U)


def test_what_is_known_stays_and_what_is_not_wanted_has_no_ring():
    centres = np.array([[30.0, 30.0], [60.0, 30.0]])
    marks = Annotations.concatenate(
        [
            squares(centres[:1], 10.0),
            squares(centres[1:], 10.0, "not"),
            squares([[36.0, 30.0]], 4.0, "Ignore*"),
            Annotations.from_polygons([[[[20, 36], [40, 36], [40, 60], [20, 60]]]], "Exhaustive"),
        ]
    )
    window = Window(x_px=0, y_px=0, width=80, height=64)
    plain, _ = draw_targets(marks, window, SPEC, mpp=MPP)
    ground, _ = draw_targets(marks, window, SPEC, mpp=MPP, ring=True)
    assert set(np.unique(plain)) == {U, F, B, X}
    np.testing.assert_array_equal(ground, expected(plain, window, centres[:1]))


def test_without_marks_nothing_is_background():
    window = Window(x_px=0, y_px=0, width=8, height=5)
    for objects in (True, False):
        ground, _ = TargetMaps(Annotations.empty(), SPEC, mpp=MPP).draw(window, objects=objects, ring=True)
        assert (ground == X).all()


def test_windows_of_a_slide_are_cut_from_one_picture():
    rng = np.random.default_rng(1)
    centres = rng.uniform(0, 400, (700, 2))  # more than are compared one by one
    maps = TargetMaps(squares(centres, 4.0), SPEC, mpp=MPP)
    scale = 4 / 3
    whole, _ = maps.draw(Window(x_px=0, y_px=0, width=300, height=300, scale=scale), ring=True)
    for x, y in rng.integers(0, 236, (20, 2)).tolist():
        window = Window(x_px=x * scale, y_px=y * scale, width=64, height=64, scale=scale)
        np.testing.assert_array_equal(maps.draw(window, ring=True)[0], whole[y : y + 64, x : x + 64])


def test_measures_know_no_ring():
    truth = squares([[20.0, 20.0]], 8.0)
    case = Case(
        name="a",
        slide=ArraySlide(np.full((40, 40, 3), 255, np.uint8), MPP),
        mpp=MPP,
        given=truth,
        truth=truth,
        held_out=None,
        labels=SPEC,
    )
    assert truth_maps(case, Window(x_px=0, y_px=0, width=40, height=40)).valid.all()


SIDE, STRIDE = 64, 8
ASSIGN = jax.jit(assign, static_argnames=("stride", "heat"))
FLIPS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("flip", FLIPS)
def test_every_object_of_a_detector_stays_matchable(flip):
    """Whatever the flip, and wherever in a pixel its middle lies; inside r1 all else is ignored."""
    rng = np.random.default_rng(2)
    cells = rng.permutation((SIDE // STRIDE) ** 2)[:12]
    middle = np.stack(np.divmod(cells, SIDE // STRIDE), axis=1) * STRIDE + rng.uniform(1, 7, (12, 2))
    middle[:4] = np.round(middle[:4])  # on the corner of four pixels
    middle[4:8, 0] = np.round(middle[4:8, 0])
    wide = rng.uniform(3, 8, (12, 1, 1)) / 2
    # Triangles: their centroid is not the middle of their box.
    corners = middle[:, None] + wide * np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    marks = Annotations.from_polygons([[one] for one in corners], "cell")
    maps, boxes = TargetMaps(marks, SPEC, mpp=MPP), TileObjects(marks, SPEC, mpp=MPP)
    window = Window(x_px=0, y_px=0, width=SIDE, height=SIDE)
    ground = drawn(maps, window, Needs(objects=16))["ground"]
    found = boxes.objects_in(window, 16)
    moved, yxyx = ground.copy(), found["boxes_yxyx_px"].copy()
    for axis, flipped in enumerate(flip):
        if flipped:
            moved = np.flip(moved, axis)
            yxyx[:, [axis, axis + 2]] = SIDE - yxyx[:, [axis + 2, axis]]
    objects = Objects(
        boxes_yxyx_px=jnp.asarray(yxyx)[None],
        label=jnp.asarray(found["object_label"])[None],
        present=jnp.asarray(found["object_present"])[None],
        left_out=jnp.zeros(1, int),
    )
    grid = SIDE // STRIDE
    assigned = ASSIGN(
        objects,
        jnp.asarray(moved)[None],
        jnp.zeros((1, grid, grid, 1, 4)),
        jnp.array([[6.0, 6.0]]),
        stride=STRIDE,
        heat=False,
        ignore_iou=0.6,
    )
    assert int(assigned.matched[0]) == 12
    cells = np.asarray(assigned.targets.ground)[0, ..., 0]
    assert (cells == F).sum() == 12
    # The rest: unannotated exactly where half of a cell lies in the ring.
    d_um = distances_px(window, marks.centroids_px) * MPP
    ring = ((d_um > 2.75) & (d_um < 5.5)).reshape(grid, STRIDE, grid, STRIDE).mean(axis=(1, 3))
    for axis, flipped in enumerate(flip):
        ring = np.flip(ring, axis) if flipped else ring
    clear = (cells != F) & (np.abs(ring - 0.5) > 4 / STRIDE**2)
    np.testing.assert_array_equal(cells[clear], np.where(ring > 0.5, U, X)[clear])
    assert {U, X} <= set(cells[clear].tolist())


def test_an_object_in_an_ignored_region_is_still_matched_to_nothing():
    marks = Annotations.concatenate([squares([[20.0, 20.0]], 6.0), squares([[20.0, 20.0]], 12.0, "Ignore*")])
    window = Window(x_px=0, y_px=0, width=40, height=40)
    ground, _ = TargetMaps(marks, SPEC, mpp=MPP).draw(window, objects=False, ring=True)
    assert ground[20, 20] == X
    assert ground[14:26, 14:26].min() == X


@pytest.mark.parametrize("ring_um", [(3.0, 3.0), (-1.0, 2.0), (4.0, 2.0)])
def test_radii_must_make_a_ring(ring_um):
    with pytest.raises(InputError, match=r"labels\.ring_um.*0 <= r1 < r2"):
        LabelSpec(ring_um=ring_um)


def test_shards_that_were_cut_before_have_no_ring():
    old = {"labels": {"classes": ["cell"]}, "tiles": {}}
    assert completed(old)["labels"]["ring_um"] is None
    assert completed({"labels": {"ring_um": [1.0, 2.0]}})["labels"]["ring_um"] == [1.0, 2.0]


def test_a_large_ring_over_many_objects_costs_what_a_small_one_does():
    """Overlap is not paid for: discs of 400 pixels round 300 centres fill a tile a hundred times over."""
    rng = np.random.default_rng(3)
    marks = Annotations.from_points(rng.uniform(0, 512, (300, 2)), "cell")
    window = Window(x_px=0, y_px=0, width=512, height=512)
    seconds = []
    for ring_um in ((2.75, 5.5), (50.0, 200.0)):
        maps = TargetMaps(marks, dataclasses.replace(SPEC, ring_um=ring_um), mpp=MPP)
        start = time.process_time()
        maps.draw(window, ring=True)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 30 * max(seconds[0], 0.02)
