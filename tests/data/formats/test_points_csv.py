import gzip

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.points_csv import (
    read_points_csv,
    read_points_csv_images,
    write_points_csv,
    write_points_csv_images,
)
from sparseshot_jax.errors import InputError


@pytest.fixture
def read(tmp_path):
    def read(text, *arguments):
        (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_points_csv(tmp_path / "a.csv", *arguments)

    return read


def names(annotations):
    return [annotations.class_names[k] for k in annotations.class_ids]


@pytest.mark.parametrize(
    "header",
    [
        "x,y,class",
        "X,Y,Label",
        "x_px,y_px,type",
        "cx,cy,category",
        "Centroid X px,Centroid Y px,Classification",
        "center_x,center_y,cell_type",
        "x-coord,y-coord,class_name",
        "xCoordinate,yCoordinate,Name",
        "pos x,pos y,CLASS",
        "x;y;class",
        "x\ty\tclass",
        '"x","y","class"',
        "\ufeffx,y,class",
    ],
)
def test_headers(read, header):
    separator = next(s for s in "\t;," if s in header)
    found = read(f"{header}\n" + separator.join(["3.5", "-2", "a b"]) + "\n\n" + separator.join("789"))
    np.testing.assert_array_equal(found.xy_px, [[3.5, -2], [7, 8]])
    assert names(found) == ["a b", "9"]
    assert found.is_point.all()
    assert found.source.endswith("a.csv")
    assert found.notes == ()


def test_columns_in_any_order_and_others_left_out(read):
    found = read("score,Y,label,x,centroid_x,centroid_y\n0.5,2,b,1,8,9\n")
    np.testing.assert_array_equal(found.xy_px, [[1, 2]])
    assert names(found) == ["b"]


@pytest.mark.parametrize("text", ["1,2,a\n3,4,b", "1\t2\ta\r\n3\t4\tb\r\n", "1, 2, a\n3, 4, b"])
def test_no_header(read, text):
    found = read(text)
    np.testing.assert_array_equal(found.xy_px, [[1, 2], [3, 4]])
    assert names(found) == ["a", "b"]
    assert names(read("1,2\n3,4")) == ["", ""]


def test_numbers_in_any_usual_spelling(read):
    found = read("x;y\n1,5;2\n-3;+4e1\n.5;1.\n")
    np.testing.assert_array_equal(found.xy_px, [[1.5, 2], [-3, 40], [0.5, 1]])


def test_missing_numbers_are_rejected_and_counted(read):
    found = read("x,y\n1,2\n,3\nnan,4\n1e13,5\n6,inf\n")
    np.testing.assert_array_equal(found.xy_px, [[1, 2]])
    assert found.notes == (
        "4 rows with coordinates that are missing, no number or beyond 1e12 were rejected.",
    )


@pytest.mark.parametrize("text", ["", "\n\n", "x,y\n", "x,y,image\n"])
def test_no_points(read, text):
    found = read(text)
    assert len(found) == 0
    assert found.notes == ("The file holds no points.",)


def test_images(read, tmp_path):
    text = "image,x,y\nb.png,1,2\na.png,3,4\nb.png,5,6\n"
    with pytest.raises(InputError, match=r"one image; it holds those of 2: b\.png, a\.png"):
        read(text)
    np.testing.assert_array_equal(read(text, "b.png").xy_px, [[1, 2], [5, 6]])
    with pytest.raises(InputError, match=r"no points of 'c'; it holds those of \['b\.png'"):
        read(text, "c")
    found = read_points_csv_images(tmp_path / "a.csv")
    assert [(name, picture, len(one)) for name, (picture, one) in found.items()] == [
        ("b.png", Picture(name="b.png"), 2),
        ("a.png", Picture(name="a.png"), 1),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n\n3,left\n", "line 4 must hold numbers for x and y; it holds 'left'"),
        ("x,y\n1,1_000\n", "line 2 must hold numbers"),
        ("x,y\n1,2\n3\n", "line 3 has 1 columns"),
        ("a,b\n1,2\n", r"line 1 must name the columns x and y; it holds \['a', 'b'\]"),
        ("Centroid X µm,Centroid Y µm\n1,2", r"line 1 names coordinates in micrometres, \['Centroid X µm'"),
        ("x_um,y_um\n1,2", "in micrometres"),
        ("1,2,a,b\n", "line 1 has 4 columns and no line of names"),
        ('x,y\n1,2,"unclosed' + "z" * 200_000, "line 2 cannot be read as a table: field larger"),
        (b"x,y,class\n1,2,\xe4\n", "must be UTF-8 text; line 2, byte 14"),
        ("x,y\n1,2\n".encode("utf-16"), "must be UTF-8 text; line 1, byte 0"),
        ("{}", "line 1 must name the columns"),
    ],
)
def test_broken_files(read, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read(text)
    assert "a.csv" in str(caught.value)


def test_too_large(tmp_path):
    path = tmp_path / "a.csv.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(b"1,2\n" * 5_000)
    with pytest.raises(InputError, match="at most 1,000 bytes once unpacked"):
        read_points_csv(path, max_bytes=1000)
    assert len(read_points_csv(path)) == 5_000


def test_written_files(tmp_path):
    square = [[0, 0], [4, 0], [4, 2], [0, 2]]
    given = Annotations.concatenate(
        [
            Annotations.from_points([[1.23456, 2], [0, -7]], ['a,"b"', "c\nd"]),
            Annotations.from_polygons([[square]], "e"),
            Annotations.from_boxes([[0, 0, 6, 8]], ""),
        ]
    )
    write_points_csv(tmp_path / "a.csv", given, Picture())
    assert (tmp_path / "a.csv").read_text() == (
        'x,y,class\n1.235,2.000,"a,""b"""\n0.000,-7.000,"c\nd"\n2.000,1.000,e\n3.000,4.000,\n'
    )
    found = read_points_csv(tmp_path / "a.csv")
    assert names(found) == names(given)
    assert found.kind.tolist() == [Kind.POINT] * 4
    write_points_csv_images(tmp_path / "b.csv.gz", {k: (Picture(name=k), given) for k in ("p", "q,r")})
    images = read_points_csv_images(tmp_path / "b.csv.gz")
    assert list(images) == ["p", "q,r"]
    assert names(images["q,r"][1]) == names(given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv.gz"]
