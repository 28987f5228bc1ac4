import tracemalloc

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.asap_xml import ASAP, read_asap, write_asap
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.errors import InputError

VALID = """<?xml version="1.0"?>
<ASAP_Annotations>
	<Annotations>
		<Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="Tumour" Color="#F4FA58">
			<Coordinates>
				<Coordinate Order="0" X="12711.2998" Y="88778.1016" />
				<Coordinate Order="1" X="12721.2998" Y="88778.1016" />
				<Coordinate Order="2" X="12716.5" Y="88790" />
			</Coordinates>
		</Annotation>
		<Annotation Name="Annotation 1" Type="Dot" PartOfGroup="None" Color="#F4FA58">
			<Coordinates>
				<Coordinate Order="0" X="5.25" Y="7" />
			</Coordinates>
		</Annotation>
		<Annotation Name="Annotation 2" Type="Rectangle" PartOfGroup="A &amp; B" Color="#F4FA58">
			<Coordinates>
				<Coordinate Order="0" X="30" Y="40" />
				<Coordinate Order="1" X="10" Y="40" />
				<Coordinate Order="2" X="10" Y="20.5" />
				<Coordinate Order="3" X="30" Y="20.5" />
			</Coordinates>
		</Annotation>
		<Annotation Name="Annotation 3" Type="PointSet" PartOfGroup="Tumour" Color="#F4FA58">
			<Coordinates>
				<Coordinate Order="0" X="1" Y="2" />
				<Coordinate Order="1" X="3" Y="4" />
			</Coordinates>
		</Annotation>
		<Annotation Name="Annotation 4" Type="Spline" PartOfGroup="Tumour" Color="#F4FA58">
			<Coordinates>
				<Coordinate Order="2" X="4" Y="8" />
				<Coordinate Order="0" X="0" Y="0" />
				<Coordinate Order="1" X="8,5" Y="0" />
			</Coordinates>
		</Annotation>
		<Annotation Name="Annotation 5" Type="Measurement" PartOfGroup="None" Color="#F4FA58">
			<Coordinates>
				<Coordinate Order="0" X="1" Y="2" />
				<Coordinate Order="1" X="3" Y="4" />
			</Coordinates>
		</Annotation>
	</Annotations>
	<AnnotationGroups>
		<Group Name="Tumour" PartOfGroup="None" Color="#64FE2E">
			<Attributes />
		</Group>
		<Group Name="A &amp; B" PartOfGroup="Tumour" Color="#64FE2E">
			<Attributes />
		</Group>
	</AnnotationGroups>
</ASAP_Annotations>
"""


def annotation(coordinates, kind="Polygon", group="None"):
    lines = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(coordinates))
    head = f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}">'
    return f"{head}<Coordinates>{lines}</Coordinates></Annotation>"


def document(*annotations):
    return f"<ASAP_Annotations><Annotations>{''.join(annotations)}</Annotations></ASAP_Annotations>"


def read(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_asap(path)


def rings_of(annotations):
    return [ring.tolist() for ring in np.split(annotations.xy_px, annotations.ring_offsets[1:-1])]


def test_every_type_with_its_class(tmp_path):
    found = read(tmp_path, VALID)
    assert rings_of(found) == [
        [[12711.2998, 88778.1016], [12721.2998, 88778.1016], [12716.5, 88790]],
        [[5.25, 7]],
        [[10, 20.5], [30, 20.5], [30, 40], [10, 40]],
        [[1, 2]],
        [[3, 4]],
        [[0, 0], [8.5, 0], [4, 8]],
    ]
    assert [Kind(k).name for k in found.kind] == ["POLYGON", "POINT", "BOX", "POINT", "POINT", "POLYGON"]
    classes = [found.class_names[k] for k in found.class_ids]
    assert classes == ["Tumour", "", "A & B", "Tumour", "Tumour", "Tumour"]
    assert found.source == str(tmp_path / "a.xml")
    assert sorted(found.notes) == [
        "1 annotations of type Measurement were skipped.",
        "1 outlines had their vertices out of order; they were sorted by Order.",
    ]


def test_rectangles_that_are_not_upright_are_polygons(tmp_path):
    tilted = [(10, 0), (20, 10), (10, 20), (0, 10)]
    crossed = [(0, 0), (9, 9), (9, 0), (0, 9)]
    closed = [(0, 0), (9, 0), (9, 5), (0, 5), (0, 0)]
    corners = [(9, 5), (0, 0)]
    texts = [annotation(c, "Rectangle") for c in (tilted, crossed, closed, corners, [(3, 3)] * 4)]
    found = read(tmp_path, document(*texts))
    assert found.kind.tolist() == [Kind.POLYGON, Kind.POLYGON, Kind.BOX, Kind.BOX]
    np.testing.assert_array_equal(found.bounds_px[2:], [[0, 0, 9, 5]] * 2)
    assert "1 objects without area were rejected." in found.notes


def test_what_is_odd_is_counted(tmp_path):
    square = [(0, 0), (4, 0), (4, 4), (0, 4)]
    found = read(
        tmp_path,
        document(
            annotation([(0, 0), ("NaN", 1), (2, 2)]),
            annotation([(0, 0), ("inf", 1), (2, 2)]),
            annotation([(0, 0), ("1e999", 1), (2, 2)]),
            annotation([("NaN", 1)], "Dot"),
            annotation([(0, 0), (1, 1), (2, 2)]),
            annotation([(0, 0), (1, 1)]),
            annotation([]),
            annotation([], "Dot"),
            annotation([], "Rectangle"),
            annotation([(0, 0), (4, 4), (4, 0), (0, 4)]),
            annotation([*square, (0, 0)], group="kept"),
        ),
    )
    assert found.areas_px.tolist() == [8, 16]
    for note in (
        "4 objects with coordinates that are no number or beyond 1e12 were rejected.",
        "2 objects without area were rejected.",
        "3 objects without vertices were skipped.",
        "1 self-crossing polygons were repaired.",
    ):
        assert note in found.notes
    assert read(tmp_path, document()).notes == ("The file holds no object that can be used.",)
    odd = read(tmp_path, document(annotation(square, "{x}")))
    assert odd.notes[0] == "1 annotations of type {x} were skipped."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            document(annotation([(0, 0)])).replace(' Type="Polygon"', ""),
            "<Annotation>: attribute Type is miss",
        ),
        (document(annotation([(0, 0)])).replace(' X="0"', ""), "<Coordinate>: attribute X is missing"),
        (document(annotation([(0, "y")])), "<Coordinate>: attribute Y must be a number; it is 'y'"),
        (document(annotation([(0, 0)])).replace('"0" X', '"a" X'), "Order must be a whole number; it is 'a'"),
        (document(annotation([(0, 0)])).replace('"0" X', '"9e9" X'), "Order must be a whole number"),
        (document(annotation([(0, 0)])).replace('"0" X', f'"{"9" * 30}" X'), "Order must be a whole number"),
    ],
)
def test_broken_annotations_are_named_with_line_and_column(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"a\.xml: line 1, column \d+: .*{message}"):
        read(tmp_path, text)


def test_memory_stays_in_proportion(tmp_path):
    """No element tree, which alone takes 530 bytes a vertex; the piece at hand is 100 of these."""
    path, count = tmp_path / "a.xml", 10_000
    turn = 2 * np.pi * np.arange(count) / count
    circle = zip((1e4 * np.cos(turn)).tolist(), (1e4 * np.sin(turn)).tolist())
    path.write_text(document(annotation(circle)))
    tracemalloc.start()
    found = read_asap(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.xy_px) == count
    assert peak < 400 * count


def test_broken_files(tmp_path):
    with pytest.raises(InputError, match=r"must be <ASAP_Annotations> \(ASAP XML\); it is <Annotations>"):
        read(tmp_path, "<Annotations/>")
    with pytest.raises(InputError, match="document type"):
        read(tmp_path, "<!DOCTYPE ASAP_Annotations>" + document())
    with pytest.raises(InputError, match="more than 64 elements"):
        read(tmp_path, "<ASAP_Annotations>" + "<Annotations>" * 100_000)
    with pytest.raises(InputError, match=r"ends too early.*inside <Coordinates>"):
        read(tmp_path, VALID[: VALID.index("12716.5")])
    with pytest.raises(InputError, match="must be at most 100 bytes"):
        read_asap(tmp_path / "a.xml", max_bytes=100)


def test_written_files_are_as_asap_writes_them(tmp_path):
    shapes = Annotations.concatenate(
        [
            Annotations.from_polygons([[[[0, 0], [4.5, 0], [4.12345, 100000]]]], 'a"<>&\n'),
            Annotations.from_points([[-0.0001, 7]]),
            Annotations.from_boxes([[1, 2, 3, 4]], "b"),
        ]
    )
    assert (ASAP.read, ASAP.write) == (read_asap, write_asap)
    write_asap(tmp_path / "x.xml", shapes, Picture())
    text = (tmp_path / "x.xml").read_text()
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<ASAP_Annotations>\n\t<Annotations>\n')
    assert '\t\t\t\t<Coordinate Order="2" X="4.123" Y="100000" />\n' in text
    assert '<Annotation Name="Annotation 1" Type="Dot" PartOfGroup="None" Color="#0072b2">' in text
    assert '<Annotation Name="Annotation 2" Type="Rectangle" PartOfGroup="b" Color="#009e73">' in text
    assert '<Coordinate Order="0" X="0" Y="7" />' in text
    assert text.count("<Group ") == 2
    assert '<Group Name="b" PartOfGroup="None" Color="#009e73">' in text
    found = read_asap(tmp_path / "x.xml")
    assert found.class_names == ('a"<>&\n', "", "b")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    for name, message in (("None", "would read as unclassified"), ("\x00", "cannot hold the character")):
        with pytest.raises(InputError, match=message):
            write_asap(tmp_path / "x.xml", Annotations.from_points([[1, 1]], name))
    with pytest.raises(InputError, match=r"nowhere/x\.xml: cannot be written"):
        write_asap(tmp_path / "nowhere/x.xml", Annotations.from_points([[1, 1]]))
    assert list(tmp_path.iterdir()) == []
    # a class that no object has is no hindrance
    write_asap(tmp_path / "x.xml", Annotations.empty(("None",)))
    assert len(read_asap(tmp_path / "x.xml")) == 0


def geometry(annotations, k):
    parts = [shapely.Polygon(ring) for ring in rings_of(annotations.take(np.array([k])))]
    total = shapely.Polygon()
    for part in parts:  # even-odd
        total = total.symmetric_difference(part)
    return total


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


def test_holes_and_parts_survive_as_cuts_without_width(tmp_path):
    objects = [
        [square(0, 0, 30), square(2, 2, 5), square(20.125, 20, 5)],
        [square(100, 0, 10), square(120, 0, 10), square(160.5, 33, 10)],
        [square(0, 100, 60), square(10, 110, 40), square(20, 120, 20), square(25, 125, 3), square(200, 0, 7)],
        [square(0, 200, 10)[::-1], square(3, 203, 2)[::-1]],
    ]
    before = Annotations.from_polygons(objects, ["a", "b", "a", "c"])
    write_asap(tmp_path / "x.xml", before)
    after = read_asap(tmp_path / "x.xml")
    assert [after.class_names[k] for k in after.class_ids] == ["a", "b", "a", "c"]
    np.testing.assert_allclose(after.areas_px, [850, 300, 3600 - 1600 + 400 - 9 + 49, 96], atol=1e-9)
    assert np.diff(after.object_offsets).tolist() == [3, 3, 5, 2]
    for k in range(4):
        assert geometry(after, k).symmetric_difference(geometry(before, k)).area < 1e-6


corner = st.floats(-1e5, 1e5).map(lambda v: round(v, 3))
side = st.floats(0.01, 1e4)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn"]), max_size=8).filter(
    lambda name: name != "None" and all(c.isprintable() or c in "\n\t\r" for c in name)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(corner, corner, side, side, names, st.sampled_from(list(Kind))), max_size=8))
def test_round_trip(tmp_path_factory, objects):
    path = tmp_path_factory.mktemp("asap") / "a.xml"
    parts = []
    for x, y, w, h, name, kind in objects:
        if kind == Kind.POINT:
            parts.append(Annotations.from_points([[x, y]], name))
        elif kind == Kind.BOX:
            parts.append(Annotations.from_boxes([[x, y, x + w, y + h]], name))
        else:
            parts.append(Annotations.from_polygons([[[[x, y], [x + w, y], [x + w / 3, y + h]]]], name))
    before = Annotations.concatenate(parts)
    write_asap(path, before)
    after = read_asap(path)
    np.testing.assert_allclose(after.xy_px, before.xy_px, atol=6e-4)
    np.testing.assert_array_equal(after.ring_offsets, before.ring_offsets)
    np.testing.assert_array_equal(after.kind, before.kind)
    assert [after.class_names[k] for k in after.class_ids] == [name for *_, name, _ in objects]
    assert list(path.parent.iterdir()) == [path]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_fuzz(tmp_path_factory, data):
    """Changed, cut and doubled bytes of a valid file: an InputError or annotations."""
    text = bytearray(VALID.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=5))
    path = tmp_path_factory.mktemp("fuzz") / "a.xml"
    path.write_bytes(text)
    try:
        found = read_asap(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
    else:
        assert isinstance(found, Annotations)


numbers = st.sampled_from(["0", "1", "2", "3.5", "7", "-4", "1e13", "NaN", "-inf", "5,5", "1e-320", ""])
kinds = st.sampled_from(["Polygon", "Spline", "Dot", "PointSet", "Rectangle", "None", ""])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(kinds, st.lists(st.tuples(numbers, numbers), max_size=7)), max_size=5))
def test_fuzzed_values(tmp_path_factory, objects):
    """Well-formed files with odd numbers: an InputError or annotations that hold together."""
    path = tmp_path_factory.mktemp("fuzz") / "a.xml"
    path.write_text(document(*(annotation(coordinates, kind) for kind, coordinates in objects)))
    try:
        found = read_asap(path)
    except InputError as error:
        assert "must be a number" in str(error)  # noqa: PT017
    else:
        assert np.isfinite(found.areas_px).all()
        assert (found.areas_px[found.kind != Kind.POINT] > 0).all()
