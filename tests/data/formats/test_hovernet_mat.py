import numpy as np
import pytest
import scipy.io

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.hovernet_mat import read_hovernet, read_instances, write_hovernet
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

# Three instances, numbered with a gap: 2 (4 px), 5 (6 px), 9 (1 px).
INSTANCES = np.zeros((6, 9), np.int32)
INSTANCES[0:2, 5:7] = 5
INSTANCES[0:2, 4] = 5
INSTANCES[3:5, 1:3] = 2
INSTANCES[5, 8] = 9
TYPES = np.array([3, 1, 7])  # of 2, 5 and 9


def type_map():
    table = np.zeros(10, np.int32)
    table[[2, 5, 9]] = TYPES
    return table[INSTANCES]


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        scipy.io.savemat(tmp_path / "a.mat", arrays, do_compression=True)
        return tmp_path / "a.mat"

    return save


def names(annotations):
    return [annotations.class_names[k] for k in annotations.class_ids]


def drawn(annotations):
    return rasterize(annotations, Window(x_px=0, y_px=0, width=9, height=6))


def test_the_layout_of_consep(save):
    """As released: doubles, column vectors, a row for each instance in the order of the numbers."""
    path = save(
        inst_map=INSTANCES.astype(float),
        type_map=type_map().astype(float),
        inst_type=TYPES[:, None].astype(float),
        inst_centroid=np.array([[1.5, 3.5], [5, 0.5], [8, 5]]),
    )
    found = read_hovernet(path)
    np.testing.assert_array_equal(drawn(found), np.searchsorted([0, 2, 5, 9], INSTANCES))
    assert names(found) == ["3", "1", "7"]
    assert found.source == str(path)
    arrays = read_instances(path)
    np.testing.assert_array_equal(arrays["inst_map"], INSTANCES)
    np.testing.assert_array_equal(arrays["inst_uid"], [2, 5, 9])
    np.testing.assert_array_equal(arrays["inst_type"], TYPES)
    np.testing.assert_array_equal(arrays["inst_centroid"], [[1.5, 3.5], [5, 0.5], [8, 5]])
    assert {array.dtype for name, array in arrays.items() if name != "inst_centroid"} == {np.dtype(np.int32)}


def test_the_layout_of_cpm17_and_kumar(save):
    path = save(inst_map=INSTANCES.astype(np.uint16))
    assert names(read_hovernet(path)) == ["object"] * 3
    assert set(read_instances(path)) == {"inst_map", "inst_uid"}


def test_classes_named_by_the_caller(save):
    path = save(inst_map=INSTANCES, inst_type=TYPES)
    merged = {1: "epithelial", 3: "spindle", 7: "spindle"}
    assert names(read_hovernet(path, merged)) == ["spindle", "epithelial", "spindle"]
    with pytest.raises(InputError, match=r"among those named, \[1, 3\]; it holds \[7\]"):
        read_hovernet(path, {1: "a", 3: "b"})


def test_rows_for_every_number_or_by_their_own_numbers(save):
    by_number = np.arange(1, 10) * 10
    path = save(inst_map=INSTANCES, inst_type=by_number)
    np.testing.assert_array_equal(read_instances(path)["inst_type"], [20, 50, 90])
    path = save(inst_map=INSTANCES, inst_type=[4, 6, 8], inst_uid=[9, 2, 5])
    np.testing.assert_array_equal(read_instances(path)["inst_type"], [6, 8, 4])


def test_types_from_the_map_alone_are_those_of_most_pixels(save):
    types = type_map()
    types[0, 4], types[1, 5:7] = 2, 2  # 3 of 6: equals, the lower wins
    types[3, 1] = 0
    path = save(inst_map=INSTANCES, type_map=types)
    np.testing.assert_array_equal(read_instances(path)["inst_type"], [3, 1, 7])
    types[0, 5] = 2
    path = save(inst_map=INSTANCES, type_map=types)
    np.testing.assert_array_equal(read_instances(path)["inst_type"], [3, 2, 7])


def test_no_instance(save):
    path = save(inst_map=np.zeros((4, 5)), inst_type=np.zeros((0, 1)), inst_centroid=np.zeros((0, 2)))
    found = read_hovernet(path)
    assert len(found) == 0
    assert found.notes == ("The file holds no object.",)
    assert read_instances(path)["inst_centroid"].shape == (0, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": [1]}, "holds no inst_map"),
        ({"inst_map": [[0.5, 1]]}, "inst_map must hold whole numbers"),
        ({"inst_map": [[np.nan, 1]]}, "inst_map must hold whole numbers"),
        ({"inst_map": [[-1, 1]]}, "from 0 to"),
        ({"inst_map": np.ones((2, 2, 2))}, "two-dimensional"),
        ({"inst_map": {"a": 1}}, "must be an array of numbers.*struct"),
        ({"inst_map": "text"}, "must be an array of numbers.*char"),
        ({"inst_map": INSTANCES, "type_map": [[1]]}, r"shape of inst_map, \(6, 9\); it has \(1, 1\)"),
        ({"inst_map": INSTANCES, "inst_type": [1, 2]}, "inst_type must have a row an instance; it has 2"),
        ({"inst_map": INSTANCES, "inst_centroid": [1.0, 2, 3]}, "a row x, y an instance"),
        ({"inst_map": INSTANCES, "inst_type": [1.5, 2, 3]}, "inst_type must hold whole numbers"),
    ],
)
def test_arrays_that_do_not_fit(save, arrays, message):
    path = save(**arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_hovernet(path)
    assert str(path) in str(caught.value)


def test_files_that_are_none(tmp_path, save):
    whole = save(inst_map=INSTANCES).read_bytes()
    path = tmp_path / "b.mat"
    for content in (b"", b"text", whole[:100], whole[:150], whole[: len(whole) - 5]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"b\.mat: (cannot be read as a MATLAB file|holds no inst_map)"):
            read_hovernet(path)
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    for content in (head.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(600)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"MATLAB 7\.3 file.*-v7"):
            read_hovernet(path)


def test_bombs_are_refused(save, tmp_path):
    path = save(inst_map=np.zeros((2000, 2000), np.uint8))
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match="must unpack to at most 1,000,000 bytes"):
        read_hovernet(path, max_bytes=1_000_000)
    scipy.io.savemat(tmp_path / "b.mat", {"inst_map": np.zeros((400, 400), np.uint8)})
    with pytest.raises(InputError, match="must be an array of numbers of at most 1,000,000 bytes"):
        read_hovernet(tmp_path / "b.mat", max_bytes=1_000_000)


def test_old_and_foreign_files(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"inst_map": INSTANCES.astype(float)}, format="4")
    np.testing.assert_array_equal(read_instances(tmp_path / "a.mat")["inst_map"], INSTANCES)


def test_written_files_are_read_as_other_readers_do(tmp_path):
    square = [[1, 1], [4, 1], [4, 3], [1, 3]]
    given = Annotations.from_polygons(
        [[[[2, 2], [3, 2], [3, 3], [2, 3]]], [square], [[[5, 0], [9, 0], [9, 1], [5, 1]]]], ["x", "b", "a"]
    )
    write_hovernet(tmp_path / "a.mat", given, Picture(width=9, height=6))
    arrays = scipy.io.loadmat(tmp_path / "a.mat")
    # The first object lies under the second: no number is left for it, and none is left out.
    assert np.unique(arrays["inst_map"]).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(arrays["inst_type"], [[2], [3]])
    np.testing.assert_array_equal(arrays["type_map"][1], [0, 2, 2, 2, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(arrays["inst_centroid"], [[2, 1.5], [6.5, 0]])
    assert names(read_hovernet(tmp_path / "a.mat")) == ["2", "3"]
    write_hovernet(tmp_path / "e.mat", Annotations.empty(), Picture(width=9, height=6))
    assert len(read_hovernet(tmp_path / "e.mat")) == 0
    with pytest.raises(InputError, match="width and height must be known"):
        write_hovernet(tmp_path / "b.mat", given, Picture())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mat", "e.mat"]
