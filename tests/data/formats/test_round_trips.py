"""Whatever a writer in the registry says it keeps is there when the file is read again.

A new format is tested by being registered: `keeps` is read, clause by clause.
"""

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats import FORMATS
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

CELL, COLUMNS, ROWS = 24, 5, 3  # every object lies in a cell of its own: none hides another
PICTURE = Picture(name="slide 1.png", width=CELL * COLUMNS, height=CELL * ROWS)
WORDS = {Kind.POLYGON: "polygons", Kind.POINT: "points", Kind.BOX: "boxes"}
NAMES = ("tumour", "Tumor: Positive", "<é & \"ü\" 'ß'>", "7")
WRITERS = [name for name, one in FORMATS.items() if one.write]
LOST = ("refused", "become", "hides", "no ", "numbers")


def kept(name):
    """The clauses of `keeps` that promise something, as one text."""
    clauses = FORMATS[name].keeps.split(";")
    return " ".join(clause for clause in clauses if not any(word in clause for word in LOST))


def star(rng, x, y, low, high):
    """A ring round (x, y): its corners at rising angles, so that it never crosses itself."""
    count = int(rng.integers(5, 12))
    angle = (np.arange(count) + rng.uniform(0, 0.5, count)) * 2 * np.pi / count
    reach = rng.uniform(low, high, count)
    return np.array([x, y]) + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def drawn_object(rng, shape, x, y, name):
    if shape == "point":
        return Annotations.from_points([[x, y]], name)
    if shape == "box":
        sides = rng.uniform(2, 10, 4)
        return Annotations.from_boxes([[x - sides[0], y - sides[1], x + sides[2], y + sides[3]]], name)
    outer = star(rng, x, y, 7, 10)
    if shape == "holes":
        return Annotations.from_polygons([[outer, star(rng, x, y, 1, 3)]], name)
    if shape == "parts":
        halves = [star(rng, x + side, y, 2, 4) for side in (-5, 5)]
        return Annotations.from_polygons([halves], name)
    return Annotations.from_polygons([[outer]], name)


def drawn_objects(seed, shapes, names):
    rng = np.random.default_rng(seed)
    cells = rng.permutation(COLUMNS * ROWS)[: len(shapes)]
    parts = [
        drawn_object(rng, shape, (c % COLUMNS + 0.5) * CELL, (c // COLUMNS + 0.5) * CELL, name)
        for c, shape, name in zip(cells, shapes, names)
    ]
    return Annotations.concatenate(parts)


def by_cell(annotations):
    """The objects in the order of their cells."""
    middle = (annotations.bounds_px[:, :2] + annotations.bounds_px[:, 2:]) / 2 // CELL
    return annotations.take(np.argsort(middle[:, 1] * COLUMNS + middle[:, 0], kind="stable"))


def names_of(annotations):
    return [annotations.class_names[k] for k in annotations.class_ids]


def geometry(annotations, k):
    """The object as shapely has it."""
    one = annotations.take(np.array([k]))
    rings = np.split(one.xy_px, one.ring_offsets[1:-1])
    if one.is_point[0]:
        return shapely.Point(rings[0][0])
    depth, parent = one.nesting
    return shapely.MultiPolygon(
        [
            shapely.Polygon(ring, [hole for h, hole in enumerate(rings) if depth[h] % 2 and parent[h] == r])
            for r, ring in enumerate(rings)
            if depth[r] % 2 == 0
        ]
    )


def assert_same_geometry(given, found, pixels):
    if pixels:
        window = Window(x_px=0, y_px=0, width=PICTURE.width, height=PICTURE.height)
        np.testing.assert_array_equal(rasterize(found, window), rasterize(given, window))
        return
    for k in range(len(given)):
        one, other = geometry(given, k), geometry(found, k)
        outline, again = (g if g.geom_type == "Point" else g.boundary for g in (one, other))
        assert shapely.hausdorff_distance(outline, again) <= 1e-3
        assert abs(one.area - other.area) <= 1e-3 * max(1, one.length)


def possible_shapes(name):
    text = kept(name)
    polygons = ["polygon", *(shape for shape in ("holes", "parts") if shape in text)]
    return [
        *(polygons if "polygons" in text else []),
        *(["point"] if "points" in text else []),
        *(["box"] if "boxes" in text else []),
    ]


def possible_names(name):
    if "classes as numbers" in FORMATS[name].keeps:
        return ("1", "4", "2")
    return NAMES if "class" in kept(name) else ("object",)


@pytest.mark.parametrize("name", WRITERS)
@given(data=st.data())
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_is_kept_comes_back(tmp_path, name, data):
    one = FORMATS[name]
    count = data.draw(st.integers(1, COLUMNS * ROWS))
    shapes = data.draw(st.lists(st.sampled_from(possible_shapes(name)), min_size=count, max_size=count))
    names = data.draw(st.lists(st.sampled_from(possible_names(name)), min_size=count, max_size=count))
    objects = drawn_objects(data.draw(st.integers(0, 2**32 - 1)), shapes, names)
    path = tmp_path / f"some cells{data.draw(st.sampled_from(one.suffixes))}"
    assert one.write is not None
    one.write(path, objects, PICTURE)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    before, after = by_cell(objects), by_cell(one.read(path))
    path.unlink()
    np.testing.assert_array_equal(after.kind, before.kind)
    assert names_of(after) == names_of(before)
    assert_same_geometry(before, after, pixels="whole pixels" in kept(name))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("shape", ["polygon", "holes", "parts", "point", "box"])
def test_what_is_not_kept_is_refused_or_said(tmp_path, name, shape):
    """Nothing vanishes: an object that a format cannot hold as it is becomes another, or none is written."""
    one = FORMATS[name]
    assert one.write is not None
    objects = drawn_objects(5, [shape] * 4, ["1"] * 4)
    path = tmp_path / f"a{one.suffixes[0]}"
    word = {"polygon": "polygons", "holes": "holes", "parts": "parts", "point": "points", "box": "boxes"}[
        shape
    ]
    refused = any(word in clause and "refused" in clause for clause in one.keeps.split(";"))
    try:
        one.write(path, objects, PICTURE)
        fault = None
    except InputError as error:
        fault = str(error)
    if fault is not None:
        assert shape not in possible_shapes(name)
        assert str(path) in fault
        assert list(tmp_path.iterdir()) == []
        return
    assert not refused
    found = one.read(path)
    assert len(found) == len(objects)
    centres = by_cell(found).centroids_px, by_cell(objects).centroids_px
    # Pixels move a centre by less than one, bounding boxes by more.
    assert np.abs(centres[0] - centres[1]).max() < CELL / 4


@pytest.mark.parametrize("name", WRITERS)
def test_unclassified_objects_and_regions_to_ignore(tmp_path, name):
    one = FORMATS[name]
    assert one.write is not None
    if "class names" not in kept(name) and "classes" not in kept(name):
        pytest.skip("the format has no class names")
    shape = possible_shapes(name)[0]
    objects = drawn_objects(3, [shape] * 3, ["", "Ignore*", "a"])
    path = tmp_path / f"a{one.suffixes[0]}"
    one.write(path, objects, PICTURE)
    assert names_of(by_cell(one.read(path))) == names_of(by_cell(objects))


@pytest.mark.parametrize("name", WRITERS)
def test_no_object_is_a_file_too(tmp_path, name):
    one = FORMATS[name]
    assert one.write is not None
    path = tmp_path / f"a{one.suffixes[0]}"
    one.write(path, Annotations.empty(("a",)), PICTURE)
    found = one.read(path)
    assert len(found) == 0
    assert found.notes


@pytest.mark.parametrize(("name", "suffix"), [(n, suffix) for n in WRITERS for suffix in FORMATS[n].suffixes])
def test_equal_objects_give_equal_files(tmp_path, name, suffix):
    one = FORMATS[name]
    assert one.write is not None
    contents = []
    for _ in range(2):
        path = tmp_path / f"a{suffix}"
        one.write(path, drawn_objects(9, possible_shapes(name), possible_names(name)), PICTURE)
        contents.append(path.read_bytes())
        path.unlink()
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.write_many])
def test_many_images_in_one_file(tmp_path, name):
    one = FORMATS[name]
    assert one.write_many is not None
    assert one.read_many is not None
    shapes = possible_shapes(name) * 2
    given_images = {
        f"image {k}.png": (
            Picture(name=f"image {k}.png", width=PICTURE.width, height=PICTURE.height),
            drawn_objects(k, shapes, [NAMES[k], NAMES[0]] * (len(shapes) // 2)),
        )
        for k in range(3)
    }
    path = tmp_path / f"a{one.suffixes[0]}"
    one.write_many(path, given_images)
    found = one.read_many(path)
    assert list(found) == list(given_images)
    for image, (picture, objects) in given_images.items():
        before, after = by_cell(objects), by_cell(found[image][1])
        assert found[image][0].name == picture.name
        assert names_of(after) == names_of(before)
        assert_same_geometry(before, after, pixels=False)
    with pytest.raises(InputError, match=r"image 0\.png, image 1\.png"):
        one.read(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_is_missing(tmp_path, name):
    one = FORMATS[name]
    assert one.write is not None
    path = tmp_path / "missing" / f"a{one.suffixes[0]}"
    with pytest.raises(InputError, match=r"missing.*cannot be written"):
        one.write(path, drawn_objects(1, possible_shapes(name)[:1], ["1"]), PICTURE)
