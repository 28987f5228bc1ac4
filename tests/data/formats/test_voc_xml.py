import collections
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.voc_xml import VOC, read_voc, write_voc
from sparseshot_jax.errors import InputError

HEAD = """<annotation>
	<folder>JPEGImages</folder>
	<filename>a.jpg</filename>
	<source><database>Unknown</database></source>
	<size><width>640</width><height>480</height><depth>3</depth></size>
	<segmented>0</segmented>
"""


def voc_object(x0, y0, x1, y1, name="RBC", difficult=0, more=""):
    return f"""	<object>
		<name>{name}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>{difficult}</difficult>
		<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>
		{more}
	</object>
"""


def document(*objects):
    return HEAD + "".join(objects) + "</annotation>\n"


VALID = document(voc_object(260, 177, 491, 376, "WBC"), voc_object(1, 333, "87.0", 437.25))


def read(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_voc(path)


def test_corners_count_from_one_and_include_the_last_pixel(tmp_path):
    found = read(tmp_path, VALID)
    np.testing.assert_array_equal(found.bounds_px, [[259, 176, 491, 376], [0, 332, 87, 437.25]])
    np.testing.assert_array_equal(found.xy_px[:4], [[259, 176], [491, 176], [491, 376], [259, 376]])
    assert [found.class_names[k] for k in found.class_ids] == ["WBC", "RBC"]
    assert (found.kind == Kind.BOX).all()
    assert found.notes == ()
    assert found.source == str(tmp_path / "a.xml")


def test_what_is_odd_is_counted(tmp_path):
    found = read(
        tmp_path,
        document(
            voc_object(504, 337, 504, 337),
            voc_object(30, 10, 20, 40),
            voc_object(30, 40, 40, 10),
            voc_object("NaN", 10, 20, 40),
            voc_object(10, 10, "inf", 40),
            voc_object(0, 10, 20, 40),
            voc_object(600, 440, 641, 480),
            voc_object(1, 1, 640, 480, difficult=1, name=" \n a b "),
        ),
    )
    np.testing.assert_array_equal(found.bounds_px, [[-1, 9, 20, 40], [599, 439, 641, 480], [0, 0, 640, 480]])
    assert found.class_names == ("RBC", "a b")
    assert sorted(found.notes) == [
        "1 objects are marked difficult; they were kept.",
        "2 boxes reach beyond the image; they were kept as they are.",
        "2 objects with coordinates that are no number or beyond 1e12 were rejected.",
        "3 boxes without width or height (xmax <= xmin or ymax <= ymin) were rejected.",
    ]


def test_parts_of_an_object_are_not_objects(tmp_path):
    sides = "<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>"
    part = f"<part><name>head</name><bndbox>{sides}</bndbox></part>"
    found = read(tmp_path, document(voc_object(11, 21, 30, 40, more=part)))
    np.testing.assert_array_equal(found.bounds_px, [[10, 20, 30, 40]])
    assert found.class_names == ("RBC",)


def test_no_size_and_no_objects(tmp_path):
    found = read(tmp_path, f"<annotation>{voc_object(0, 1, 9999, 5)}</annotation>")
    assert len(found) == 1
    assert found.notes == ()
    assert read(tmp_path, document()).notes == ("The file holds no object that can be used.",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc_object(1, 2, 3, 4).replace("<xmax>3</xmax>", ""), "<object>: its <bndbox> has no <xmax>"),
        ("<object><name>a</name></object>", "<object>: its <bndbox> has no <xmin>"),
        (voc_object(1, 2, 3, 4).replace("<name>RBC</name>", ""), "<object>: it has no <name>"),
        (voc_object(1, "", 3, 4), "<ymin>: it must be a number; it is ''"),
        (voc_object(1, 2, 3, "4px"), "<ymax>: it must be a number; it is '4px'"),
    ],
)
def test_broken_objects_are_named_with_line_and_column(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"a\.xml: line \d+, column \d+: {message}"):
        read(tmp_path, HEAD + text + "</annotation>")


def test_another_format(tmp_path):
    with pytest.raises(InputError, match=r"must be <annotation> \(Pascal VOC XML\); it is <Annotations>"):
        read(tmp_path, "<Annotations/>")


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), max_size=8).map(
    str.strip
)
corner = st.floats(-1e5, 1e5).map(lambda v: round(v, 3))
side = st.floats(1.002, 1e4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(corner, corner, side, side, names), max_size=8))
def test_round_trip(tmp_path_factory, objects):
    path = tmp_path_factory.mktemp("voc") / "a.xml"
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h, _ in objects]).reshape(-1, 4)
    given_ = Annotations.from_boxes(boxes, [name for *_, name in objects])
    write_voc(path, given_, Picture(name="a&b.png", width=640, height=480))
    found = read_voc(path)
    np.testing.assert_allclose(found.bounds_px, boxes, atol=1e-3)
    assert [found.class_names[k] for k in found.class_ids] == [name for *_, name in objects]
    assert list(path.parent.iterdir()) == [path]


def test_what_is_written(tmp_path):
    polygon = [[[10, 20], [30.5, 20], [20, 41.25]]]
    both = Annotations.concatenate(
        [Annotations.from_polygons([polygon], 'a<"&'), Annotations.from_boxes([[0, 0, 640, 480]], "b")]
    )
    assert (VOC.read, VOC.write) == (read_voc, write_voc)
    write_voc(tmp_path / "x.xml", both, Picture(name="b.jpg", width=640, height=480))
    text = (tmp_path / "x.xml").read_text()
    sides = re.findall(r"<(xmin|ymin|xmax|ymax)>(.*?)</", text)
    assert [value for _, value in sides] == ["11", "21", "30.5", "41.25", "1", "1", "640", "480"]
    assert re.findall(r"<truncated>(\d)", text) == ["0", "1"]
    assert "<filename>b.jpg</filename>" in text
    assert "<width>640</width>" in text
    assert "<height>480</height>" in text
    assert read_voc(tmp_path / "x.xml").class_names == ('a<"&', "b")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    box = Annotations.from_boxes([[0, 0, 2, 2]], "a")
    size = Picture(width=9, height=9)
    path = tmp_path / "x.xml"
    with pytest.raises(InputError, match=r"x\.xml: Pascal VOC states the image's width and height"):
        write_voc(path, box, Picture(width=9))
    with pytest.raises(InputError, match="1 of 2 objects are points"):
        write_voc(path, Annotations.concatenate([box, Annotations.from_points([[1, 1]])]), size)
    with pytest.raises(InputError, match=r"cannot hold the character '\\x07' of class 'a\\x07'"):
        write_voc(path, Annotations.from_boxes([[0, 0, 2, 2]], "a\x07"), size)
    with pytest.raises(InputError, match=r"nowhere/x\.xml: cannot be written"):
        write_voc(tmp_path / "nowhere/x.xml", box, size)
    assert list(tmp_path.iterdir()) == []


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
        found = read_voc(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
    else:
        assert isinstance(found, Annotations)


def test_bccd(shared_data):
    files = sorted((shared_data / "bccd/Annotations").glob("*.xml"))
    if not files:
        pytest.skip(f"BCCD is not at {shared_data}")
    assert len(files) == 364
    wanted, found, notes = collections.Counter(), collections.Counter(), []
    for path in files:
        text = path.read_text()
        pattern = (
            r"<name>(\w+)</name>.*?<xmin>(\d+)</xmin>\s*<ymin>(\d+)</ymin>\s*<xmax>(\d+)</xmax>\s*<ymax>(\d+)"
        )
        rows = [(row[0], *map(int, row[1:])) for row in re.findall(pattern, text, re.DOTALL)]
        rows = [row for row in rows if row[3] > row[1] and row[4] > row[2]]
        wanted.update(row[0] for row in rows)
        boxes = read_voc(path)
        assert boxes.bounds_px.tolist() == [[x0 - 1, y0 - 1, x1, y1] for _, x0, y0, x1, y1 in rows]
        found.update(boxes.class_names[k] for k in boxes.class_ids)
        notes += [(path.stem, note) for note in boxes.notes]
    assert found == wanted == {"RBC": 4153, "WBC": 372, "Platelets": 361}
    assert [stem for stem, _ in notes] == ["BloodImage_00338", "BloodImage_00343"]
    assert {note[:42] for _, note in notes} == {"1 boxes without width or height (xmax <= x"}
