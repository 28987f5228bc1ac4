import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.imagescope_xml import IMAGESCOPE, read_imagescope, write_imagescope
from sparseshot_jax.errors import InputError

# As Kumar and MoNuSeg are released: one layer without a name, first vertices twice, outlines closed or not.
KUMAR = """<?xml version="1.0" encoding="utf-8"?>
<Annotations MicronsPerPixel="0.252000">
	<Annotation Id="1" Name="" ReadOnly="0" NameReadOnly="0" LineColorReadOnly="0"
		Incremental="0" Type="4" LineColor="65535" Visible="1" Selected="1" MarkupImagePath="" MacroName="">
		<Attributes>
			<Attribute Name="Description" Id="0" Value=""/>
		</Attributes>
		<Regions>
			<RegionAttributeHeaders>
				<AttributeHeader Id="9999" Name="Region" ColumnWidth="-1"/>
				<AttributeHeader Id="9997" Name="Length" ColumnWidth="-1"/>
			</RegionAttributeHeaders>
			<Region Id="1" Type="0" Zoom="0.5" Selected="0" ImageLocation="" ImageFocus="-1" Length="67.5"
				Area="301.9" LengthMicrons="17" AreaMicrons="19.1" Text="" NegativeROA="0"
				InputRegionId="0" Analyze="1" DisplayId="1">
				<Attributes/>
				<Vertices>
					<Vertex X="991.208333" Y="1.0" Z="0"/>
					<Vertex X="991.208333" Y="1.0" Z="0"/>
					<Vertex X="999" Y="2.5" Z="0"/>
					<Vertex X="995" Y="12" Z="0"/>
				</Vertices>
			</Region>
			<Region Id="2" Type="0" Zoom="0.5" Selected="0" NegativeROA="0" Analyze="1" DisplayId="2">
				<Attributes/>
				<Vertices>
					<Vertex X="10" Y="20" Z="0"/>
					<Vertex X="30" Y="20" Z="0"/>
					<Vertex X="30" Y="50" Z="0"/>
					<Vertex X="10" Y="20" Z="0"/>
				</Vertices>
			</Region>
		</Regions>
		<Plots/>
	</Annotation>
</Annotations>
"""


def region(vertices, kind="0", negative="0", more="", tag="Vertex"):
    lines = "".join(f'<{tag} X="{x}" Y="{y}" Z="0"/>' for x, y in vertices)
    return (
        f'<Region Id="1" Type="{kind}" NegativeROA="{negative}" {more}><Vertices>{lines}</Vertices></Region>'
    )


def layer(*regions, name="", attributes=""):
    return (
        f'<Annotation Id="1" Name="{name}" LineColor="255"><Attributes>{attributes}</Attributes>'
        f"<Regions>{''.join(regions)}</Regions></Annotation>"
    )


def document(*layers):
    return f"<Annotations>{''.join(layers)}</Annotations>"


def square(x, y, side):
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def read(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_imagescope(path)


def classes(annotations):
    return [annotations.class_names[k] for k in annotations.class_ids]


def test_kumar_layout(tmp_path):
    found = read(tmp_path, KUMAR)
    np.testing.assert_array_equal(
        found.xy_px,
        [(991.208333, 1), (991.208333, 1), (999, 2.5), (995, 12), (10, 20), (30, 20), (30, 50)],
    )
    assert found.ring_offsets.tolist() == [0, 4, 7]
    assert (found.kind == Kind.POLYGON).all()
    assert classes(found) == ["", ""]
    assert found.areas_px[1] == 300
    assert found.source == str(tmp_path / "a.xml")


def test_many_nuclei_in_one_layer(tmp_path):
    corners = [(7 * (k % 100), 9 * (k // 100)) for k in range(600)]
    found = read(
        tmp_path, document(layer(*(region([square(x, y, 5)[0], *square(x, y, 5)]) for x, y in corners)))
    )
    assert len(found) == 600
    np.testing.assert_array_equal(found.bounds_px[:, :2], corners)
    np.testing.assert_array_equal(found.areas_px, 25)


def test_where_the_class_comes_from(tmp_path):
    r = region(square(0, 0, 5), more='Text="lesion"')
    found = read(
        tmp_path,
        document(
            layer(r, name="Tumour &amp; more", attributes='<Attribute Name="Description" Value="x"/>'),
            layer(r, attributes='<Attribute Name="Description" Id="0" Value="Follicle"/>'),
            layer(r, attributes='<Attribute Name="Epithelial" Id="0" Value=""/>'),
            layer(r, attributes='<Attribute Name="Description" Id="0" Value=""/>'),
            layer(region(square(0, 0, 5))),
        ),
    )
    assert classes(found) == ["Tumour & more", "Follicle", "Epithelial", "lesion", ""]


def test_kinds(tmp_path):
    ellipse = [(10, 20), (50, 40)]
    found = read(
        tmp_path,
        document(
            layer(
                region(square(1, 2, 5), "1"),
                region([(8, 9), (3, 4)], "Rectangle"),
                region([(10, 0), (20, 10), (10, 20), (0, 10)], "1"),
                region(ellipse, "2"),
                region([(3.5, 4.5)]),
                region(ellipse, "3"),
                region(ellipse, "4"),
                region(square(0, 0, 5), "Polygon", tag="V"),
                region([], "0"),
            )
        ),
    )
    expected = [Kind.BOX, Kind.BOX, Kind.POLYGON, Kind.POLYGON, Kind.POINT, Kind.POLYGON]
    assert found.kind.tolist() == expected
    np.testing.assert_array_equal(found.bounds_px[:2], [[1, 2, 6, 7], [3, 4, 8, 9]])
    np.testing.assert_allclose(found.areas_px[3], np.pi * 20 * 10)
    np.testing.assert_allclose(found.centroids_px[3:5], [[30, 30], [3.5, 4.5]])
    np.testing.assert_allclose(found.bounds_px[3], [10, 20, 50, 40], atol=0.05)
    for note in (
        "1 ellipses became polygons of 64 vertices.",
        "1 regions of type arrow were skipped.",
        "1 regions of type ruler were skipped.",
        "1 objects without vertices were skipped.",
    ):
        assert note in found.notes


def test_negative_regions_are_holes(tmp_path):
    found = read(
        tmp_path,
        document(
            layer(
                region(square(0, 0, 100)),
                region(square(10, 10, 20), negative="1"),
                region(square(10, 10, 20)),  # a cell in the hole, just as large
                region(square(200, 0, 10), "1"),
                region(square(204, 4, 2), "1", negative="1"),
                region(square(300, 300, 5), negative="1"),  # of the next region
                region(square(290, 290, 50)),
                region(square(900, 900, 5), negative="1"),  # of none
                region([("NaN", 3), (4, 5), (6, 7)], negative="1"),
                name="a",
            ),
            layer(region(square(0, 0, 50)), name="b"),  # another layer is not cut
        ),
    )
    assert found.areas_px.tolist() == [9600, 400, 96, 2475, 2500]
    assert np.diff(found.object_offsets).tolist() == [2, 1, 2, 2, 1]
    assert classes(found) == ["a", "a", "a", "a", "b"]
    assert (found.kind == Kind.POLYGON).all()
    assert "3 negative regions were cut out of the regions round them." in found.notes
    assert "2 negative regions that meet no region of their layer were skipped." in found.notes


def test_a_negative_region_across_borders_cuts_all_it_meets(tmp_path):
    found = read(
        tmp_path,
        document(
            layer(
                region(square(0, 0, 10)),
                region(square(10, 0, 10)),
                region([(8, 2), (13, 2), (13, 4), (8, 4)], negative="1"),
                region(square(20, 0, 10)),  # touched, not met
            )
        ),
    )
    np.testing.assert_allclose(found.areas_px, [96, 94, 100])
    assert "1 negative regions were cut out of the regions round them." in found.notes


def test_every_layer_has_its_own_negative_regions(tmp_path):
    pair = region(square(0, 0, 9)) + region(square(1, 1, 3), negative="1")
    found = read(tmp_path, document(*(layer(pair, name=f"class {k % 7}") for k in range(60))))
    assert len(found) == 60
    assert (found.areas_px == 72).all()
    assert len(found.class_names) == 7


def test_a_negative_region_alone(tmp_path):
    found = read(tmp_path, document(layer(region(square(0, 0, 9), negative="1"))))
    assert len(found) == 0
    assert found.notes[-1] == "The file holds no object that can be used."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (document(layer(region([(1, 2)]))).replace('Y="2"', ""), "<Vertex>: attribute Y is missing"),
        (document(layer(region([("one", 2)]))), "<Vertex>: attribute X must be a number; it is 'one'"),
        ("<ASAP_Annotations/>", r"must be <Annotations> \(Aperio ImageScope XML\); it is <ASAP_Ann"),
        ("<Annotations>" + "<Annotation>" * 1000, "more than 64 elements"),
        ("<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///dev/zero'>]><Annotations>&e;", "has a document type"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"a\.xml: line 1.*{message}"):
        read(tmp_path, text)


def test_truncated(tmp_path):
    for stop in range(60, len(KUMAR) - 2, 97):
        with pytest.raises(InputError, match=r"a\.xml: the file ends too early, at line \d+"):
            read(tmp_path, KUMAR[:stop])


def test_what_is_written(tmp_path):
    shapes = Annotations.concatenate(
        [
            Annotations.from_polygons([[[(0, 0), (4.5, 0), (4.12345, 100000)]]], "a"),
            Annotations.from_points([[-0.0001, 7]], 'b"<&'),
            Annotations.from_boxes([[1, 2, 3, 4]], "a"),
        ]
    )
    assert (IMAGESCOPE.read, IMAGESCOPE.write) == (read_imagescope, write_imagescope)
    write_imagescope(tmp_path / "x.xml", shapes, Picture())
    text = (tmp_path / "x.xml").read_text()
    # Okabe and Ito's (213, 94, 0) and (0, 114, 178), blue in the high byte
    assert re.findall(r'LineColor="(\d+)"', text) == [str(94 * 256 + 213), str(178 * 65536 + 114 * 256)]
    assert re.findall(r'Region Id="(\d)" Type="(\d)"', text) == [("1", "0"), ("2", "1"), ("1", "0")]
    assert '<Vertex X="4.123" Y="100000" Z="0" />' in text
    found = read_imagescope(tmp_path / "x.xml")
    assert classes(found) == ["a", "a", 'b"<&']
    assert found.kind.tolist() == [Kind.POLYGON, Kind.BOX, Kind.POINT]


def test_holes_parts_and_islands_round_trip(tmp_path):
    objects = [
        [square(0, 0, 30), square(2, 2, 5), square(20.125, 20, 5)],
        [square(2, 2, 5)],  # fills the first hole
        [square(20, 120, 20), square(0, 100, 60), square(10, 110, 40)],
        [square(103, 3, 2), square(100, 0, 10), square(120, 0, 10)],
    ]
    before = Annotations.from_polygons(objects)
    write_imagescope(tmp_path / "x.xml", before)
    assert (tmp_path / "x.xml").read_text().count('NegativeROA="1"') == 2
    after = read_imagescope(tmp_path / "x.xml")
    np.testing.assert_allclose(after.areas_px, [850, 25, 2400, 196], atol=1e-9)
    np.testing.assert_allclose(after.areas_px, before.areas_px, atol=1e-9)
    np.testing.assert_allclose(after.centroids_px, before.centroids_px, atol=1e-9)
    np.testing.assert_array_equal(after.bounds_px, before.bounds_px)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="cannot hold the character"):
        write_imagescope(tmp_path / "x.xml", Annotations.from_points([[1, 1]], "\x1b"))
    with pytest.raises(InputError, match=r"nowhere/x\.xml: cannot be written"):
        write_imagescope(tmp_path / "nowhere/x.xml", Annotations.from_points([[1, 1]]))
    assert list(tmp_path.iterdir()) == []


corner = st.floats(-1e5, 1e5).map(lambda v: round(v, 3))
side = st.floats(0.01, 1e4)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn", "Cc"]), max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(corner, corner, side, side, st.sampled_from(list(Kind))), max_size=8), names)
def test_round_trip(tmp_path_factory, objects, name):
    path = tmp_path_factory.mktemp("aperio") / "a.xml"
    parts = []
    for x, y, w, h, kind in objects:
        if kind == Kind.POINT:
            parts.append(Annotations.from_points([[x, y]], name))
        elif kind == Kind.BOX:
            parts.append(Annotations.from_boxes([[x, y, x + w, y + h]], name))
        else:
            parts.append(Annotations.from_polygons([[[[x, y], [x + w, y], [x + w / 3, y + h]]]], name))
    before = Annotations.concatenate(parts)
    write_imagescope(path, before)
    after = read_imagescope(path)
    np.testing.assert_allclose(after.xy_px, before.xy_px, atol=6e-4)
    np.testing.assert_array_equal(after.ring_offsets, before.ring_offsets)
    np.testing.assert_array_equal(after.kind, before.kind)
    assert classes(after) == [name] * len(objects)
    assert list(path.parent.iterdir()) == [path]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_fuzz(tmp_path_factory, data):
    """Changed, cut and doubled bytes of a valid file: an InputError or annotations."""
    text = bytearray(KUMAR.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=5))
    path = tmp_path_factory.mktemp("fuzz") / "a.xml"
    path.write_bytes(text)
    try:
        found = read_imagescope(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
    else:
        assert isinstance(found, Annotations)


numbers = st.sampled_from(["0", "1", "2", "3.5", "7", "-4", "1e13", "1e12", "NaN", "-inf", "5,5", "1e-320"])
kinds = st.sampled_from(["0", "1", "2", "3", "", "Polygon"])
vertices = st.lists(st.tuples(numbers, numbers), max_size=7)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.tuples(kinds, vertices, st.sampled_from("01")), max_size=5), max_size=3))
def test_fuzzed_values(tmp_path_factory, layers):
    """Well-formed files with odd numbers and negative regions give annotations that hold together."""
    path = tmp_path_factory.mktemp("fuzz") / "a.xml"
    path.write_text(document(*(layer(*(region(v, k, n) for k, v, n in regions)) for regions in layers)))
    found = read_imagescope(path)
    assert np.isfinite(found.areas_px).all()
    assert (found.areas_px[found.kind != Kind.POINT] > 0).all()
