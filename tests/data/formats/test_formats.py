import json

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats import FORMATS, SUFFIXES, format_of, read_annotations
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.errors import InputError


def test_every_suffix_has_a_reader():
    assert set(SUFFIXES.values()) == set(FORMATS)


@pytest.mark.parametrize("name", ["A.GEOJSON", "a.geojson.gz", "a.json", "a.json.gz"])
def test_geojson_by_name_or_content(tmp_path, name):
    write_geojson(tmp_path / name, Annotations.from_points([[1, 2]], "a"))
    np.testing.assert_array_equal(read_annotations(tmp_path / name).xy_px, [[1, 2]])


@pytest.mark.parametrize("name", ["a.json", "a.points.json"])
def test_points_by_name_or_content(tmp_path, name):
    (tmp_path / name).write_text(json.dumps({"a": [[1, 2]]}))
    np.testing.assert_array_equal(read_annotations(tmp_path / name).xy_px, [[1.5, 2.5]])


def test_label_map_by_name(tmp_path):
    Image.fromarray(np.ones((3, 3), np.uint16)).save(tmp_path / "a.png")
    assert len(read_annotations(tmp_path / "a.png")) == 1


def test_unknown_and_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"a\.xml: is of no known annotation format.*\.geojson"):
        format_of(tmp_path / "a.xml")
    with pytest.raises(InputError, match=r"a\.json: cannot be read"):
        format_of(tmp_path / "a.json")
