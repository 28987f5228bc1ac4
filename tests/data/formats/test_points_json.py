import json

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.points_json import read_points_json, write_points_json
from sparseshot_jax.errors import InputError


@pytest.fixture
def read(tmp_path):
    def read(document, *arguments):
        text = document if isinstance(document, str) else json.dumps(document)
        (tmp_path / "a.json").write_text(text)
        return read_points_json(tmp_path / "a.json", *arguments)

    return read


def test_pixel_centres_become_level_0_coordinates(read):
    found = read({"detection": [[0, 0], [2.25, 7]], "others": [[3, 4]], "none": []})
    np.testing.assert_array_equal(found.xy_px, [[0.5, 0.5], [2.75, 7.5], [3.5, 4.5]])
    assert found.class_names == ("detection", "others", "none")
    np.testing.assert_array_equal(found.class_ids, [0, 0, 1])
    assert found.is_point.all()
    assert found.source.endswith("a.json")


def test_one_class_alone(read):
    found = read({"detection": [[0, 0]], "others": [[3, 4]]}, "others")
    np.testing.assert_array_equal(found.xy_px, [[3.5, 4.5]])
    assert found.class_names == ("others",)
    with pytest.raises(InputError, match=r"no key 'other'; its keys are \['detection', 'others'\]"):
        read({"detection": [[0, 0]], "others": [[3, 4]]}, "other")


def test_real_points(shared_data):
    paths = sorted((shared_data / "crchisto" / "points").glob("*.json"))
    total = sum(len(read_points_json(path, "detection")) for path in paths)
    assert total == 23_254


@pytest.mark.parametrize("document", [{}, {"a": []}])
def test_no_points(read, document):
    found = read(document)
    assert len(found) == 0
    assert found.notes == ("The file holds no points.",)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must map class names to points.* list"),
        ({"a": 3}, "'a' must be a list"),
        ({"a": [[1, 2], [1]]}, r"point 1 of 'a' .*it is \[1\]"),
        ({"a": [["1", "2"]]}, "point 0 of 'a'"),
        ({"a": [[1, 2, 3]]}, "point 0 of 'a'"),
        ({"a": [[True, 2]]}, "point 0 of 'a'"),
        ({"a": [[float("nan"), 2]]}, "point 0 of 'a'.*finite"),
        ({"a": [[float("inf"), 2]]}, "point 0 of 'a'.*finite"),
        ({"a": [[10**400, float("nan")]]}, "point 0 of 'a'.*finite"),
        ('{"a": [[1, 2]', "is not valid JSON.*line 1, byte 13"),
    ],
)
def test_broken_documents(read, document, message):
    with pytest.raises(InputError, match=message) as caught:
        read(document)
    assert "a.json" in str(caught.value)


def test_written_files_count_pixel_centres(tmp_path):
    square = [[0, 0], [4, 0], [4, 2], [0, 2]]
    given = Annotations.concatenate(
        [
            Annotations.from_points([[0.5, 0.5], [2.75, 8], [1, 7.12345]], ["b", "a", "b"]),
            Annotations.from_polygons([[square]], "a"),
        ]
    )
    write_points_json(tmp_path / "a.json", given, Picture())
    held = json.loads((tmp_path / "a.json").read_text())
    assert held == {"b": [[0, 0], [0.5, 6.623]], "a": [[2.25, 7.5], [1.5, 0.5]]}
    found = read_points_json(tmp_path / "a.json")
    np.testing.assert_allclose(found.xy_px, [[0.5, 0.5], [1, 7.123], [2.75, 8], [2, 1]])
    write_points_json(tmp_path / "a.json.gz", given, Picture())
    np.testing.assert_array_equal(read_points_json(tmp_path / "a.json.gz").xy_px, found.xy_px)
