import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
from PIL import Image

from sparseshot_jax.data.cases import read_whole, truth_instances, whole_window
from sparseshot_jax.data.labels import LabelSpec, TargetMaps, wanted
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.data.sources import SOURCES, FolderSource, TfdsSource
from sparseshot_jax.data.sources.encoded_image import EncodedSlide
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

LABELS = LabelSpec()
WIDTH, HEIGHT = 60, 50
# (patient, number, first label): TNBC trains on patients 1 to 4, validates on 5 and 6, tests on the rest
IMAGES = ((1, 2, 700), (1, 10, 1), (2, 1, 5), (5, 1, 1), (9, 1, 1))


def picture(patient, number):
    return np.random.default_rng(100 * patient + number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def label_map(patient, number, first):
    """Twenty nuclei of irregular shape, numbered in no order of place, with gaps."""
    rng = np.random.default_rng(100 * patient + number)
    array = np.zeros((HEIGHT, WIDTH), np.uint16)
    for k, place in enumerate(rng.permutation(20)):
        y, x = 12 * (place // 5) + 1, 12 * (place % 5) + 1
        blob = rng.random((9, 9)) < 0.8
        blob[4, :] = blob[:, 4] = True
        array[y : y + 9, x : x + 9][blob] = first + 3 * k
    return array


def save_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def both(tmp_path):
    """One small set of nuclei, published as TNBC is, and as a folder."""
    for patient, number, first in IMAGES:
        name = f"{patient:02d}_{number}.png"
        pixels, labels = picture(patient, number), label_map(patient, number, first)
        save_png(tmp_path / f"raw/Slide_{patient:02d}" / name, pixels)
        save_png(tmp_path / f"raw/GT_{patient:02d}" / name, labels)
        save_png(tmp_path / "folder/images" / name, pixels)
        save_png(tmp_path / "folder/instances" / name, labels)
    return tmp_path


def tfds_source(root, **fields):
    given = {"name": "tnbc", "validation": ("validation",), "test": ("test",), **fields}
    return TfdsSource(data_dir=str(root / "built"), manual_dir=str(root / "raw"), **given)


def folder_source(root, **fields):
    given = {"train": ("01_*", "02_*"), "validation": ("05_*",), "test": ("09_*",), **fields}
    return FolderSource(root=str(root / "folder"), **given)


def test_registered():
    assert SOURCES["tfds"] is TfdsSource


def test_importing_the_sources_imports_no_tfds():
    code = (
        "import sys, sparseshot_jax.data.sources\n"
        "assert not {'tensorflow_datasets', 'tensorflow'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_same_cases_as_from_a_folder(both):
    ours = tfds_source(both, keep=0.3).load(LABELS, 7)
    theirs = folder_source(both, keep=0.3).load(LABELS, 7)
    windows = (
        Window(x_px=0.0, y_px=0.0, width=WIDTH, height=HEIGHT),
        Window(x_px=-5.0, y_px=7.0, width=40, height=60),
        Window(x_px=3.25, y_px=1.5, width=20, height=18, scale=2.2),
    )
    for split in ("train", "validation", "test"):
        a, b = getattr(ours, split), getattr(theirs, split)
        assert [case.name for case in a] == [case.name for case in b]
        for one, other in zip(a, b, strict=True):
            assert one.mpp == other.mpp == one.slide.mpp == 0.25
            assert len(one.given) == len(other.given) == (6 if split == "train" else 20)
            assert np.array_equal(one.given.xy_px, other.given.xy_px)
            assert np.array_equal(one.truth.xy_px, other.truth.xy_px)
            for window in windows:
                assert np.array_equal(one.slide.read(window), other.slide.read(window))
                drawn, expected = (
                    TargetMaps(case.given, case.labels, mpp=case.mpp).draw(window) for case in (one, other)
                )
                assert np.array_equal(drawn[0], expected[0])
                assert np.array_equal(drawn[1], expected[1])
    assert [case.name for case in ours.train] == ["01_10", "01_2", "02_1"]


def test_the_image_itself_and_its_labels(both):
    case = tfds_source(both).load(LABELS, 0).train[1]
    assert case.name == "01_2"
    assert np.array_equal(read_whole(case, 0.25), picture(1, 2))
    truth = label_map(1, 2, 700)
    assert np.array_equal(truth_instances(case, whole_window(case, 0.25)) > 0, truth > 0)
    assert isinstance(case.slide, Slide)
    again = pickle.loads(pickle.dumps(case))
    assert np.array_equal(read_whole(again, 0.25), picture(1, 2))


def test_what_the_builder_has_to_say_is_passed_on(both):
    notes = tfds_source(both).load(LABELS, 0).notes
    assert any(n.startswith("tnbc: Split 'train' was published with") for n in notes)
    # and again when the set is there already, without the published files
    built = TfdsSource(name="tnbc", data_dir=str(both / "built")).load(LABELS, 0)
    assert any(n.startswith("tnbc: Split 'train' was published with") for n in built.notes)


def test_slices_of_a_split_never_overlap_unseen(both):
    cut = tfds_source(both, train=("train[:1]",), validation=("train[1:]",), test=()).load(LABELS, 0)
    assert [len(cut.train), len(cut.validation), len(cut.test)] == [1, 2, 0]
    with pytest.raises(InputError, match=r"01_10 in data\.validation.*one split; 01_10 in data\.train"):
        tfds_source(both, validation=("train[1:2]",)).load(LABELS, 0)
    twice = tfds_source(both, train=("train[:2]", "train")).load(LABELS, 0)
    assert len(twice.train) == 3


def test_copies_under_other_names_are_refused(both):
    save_png(both / "raw/Slide_09/09_1.png", picture(1, 2))
    with pytest.raises(InputError, match=r"09_1 in data\.test.*01_2 in data\.train.*same pixels"):
        tfds_source(both).load(LABELS, 0)


def save_crchisto(root, number, detections, epithelial):
    name = f"img{number}"
    for part in ("Detection", "Classification"):
        (root / part / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(50, number)).save(root / f"Detection/{name}/{name}.bmp")
    lists = {"detection": detections, "epithelial": epithelial, "fibroblast": [], "inflammatory": []}
    for key, points in {**lists, "others": []}.items():
        part = "Detection" if key == "detection" else "Classification"
        array = np.array(points, np.float64).reshape(-1, 2) + 1
        scipy.io.savemat(root / part / name / f"{name}_{key}.mat", {"detection": array})


def test_points_and_classes(tmp_path):
    save_crchisto(tmp_path / "raw", 1, [[3, 4], [10, 4], [-0.74, 9], [20, 9]], [[10, 4]])
    save_crchisto(tmp_path / "raw", 5, [[3, 4]], [])
    source = tfds_source(tmp_path, name="crchisto", validation=(), test=("test",))
    splits = source.load(LABELS, 0)
    (case,) = splits.train
    assert case.mpp == 0.55
    assert case.given.is_point.all()
    # The point left of the image's edge is off it, as it is for a folder.
    np.testing.assert_allclose(case.given.xy_px, np.array([[3, 4], [10, 4], [20, 9]]) + 0.5)
    assert "crchisto/img1: 1 of 4 objects lie outside the image and are unused." in splits.notes
    classed = LabelSpec(classes=("epithelial", "others"), unused=("",))
    (case,) = source.load(classed, 0).train
    assert wanted(case.given, classed).tolist() == [False, True, False]
    with pytest.raises(InputError, match=r"crchisto/img1: every class.*\(unclassified\) \(3 objects\)"):
        source.load(LabelSpec(classes=("epithelial",)), 0)


def test_boxes_of_another_builder(both):
    raw = both / "smears"
    for folder in ("JPEGImages", "Annotations"):
        (raw / folder).mkdir(parents=True)
    Image.fromarray(picture(70, 1)).save(raw / "JPEGImages/BloodImage_00001.jpg")
    box = "<bndbox><xmin>3</xmin><ymin>5</ymin><xmax>10</xmax><ymax>9</ymax></bndbox>"
    (raw / "Annotations/BloodImage_00001.xml").write_text(
        f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        f"<object><name>WBC</name>{box}</object></annotation>"
    )
    added = tfds_source(both, train=("train", "bccd/train"), mpp=0.5)
    with pytest.raises(InputError, match=r"BCCD.*missing"):
        added.load(LABELS, 0)
    alone = TfdsSource(name="bccd", data_dir=str(both / "built"), manual_dir=str(raw))
    with pytest.raises(InputError, match=r"BloodImage_00001.*how large a pixel is.*data\.mpp"):
        alone.load(LABELS, 0)
    splits = added.load(LABELS, 0)
    assert [case.name for case in splits.train] == ["01_10", "01_2", "02_1", "bccd_BloodImage_00001"]
    case = splits.train[-1]
    assert case.given.bounds_px.tolist() == [[2, 4, 10, 9]]
    assert case.mpp == case.slide.mpp == 0.5


def test_bad_names(both):
    for fields, message in (
        ({"name": ""}, r"data\.name must be a data set"),
        ({"name": "mnist"}, r"'mnist' is not known\. There are: bccd"),
        ({"train": ()}, r"data\.train must name at least one split"),
        ({"train": ("fit",)}, r"tnbc has no split 'fit'\. There are: .*train"),
        ({"test": ("test[:x]",)}, r"tnbc has no split 'test\[:x\]'"),
        ({"test": ("test[:0]",)}, r"tnbc has no split 'test\[:0\]'"),
    ):
        with pytest.raises(InputError, match=message):
            tfds_source(both, **fields).load(LABELS, 0)
    for fields, message in (({"keep": 0.0}, "data.keep"), ({"mpp": -1.0}, "data.mpp")):
        with pytest.raises(InputError, match=message):
            tfds_source(both, **fields)
    with pytest.raises(InputError, match=r"TNBC.*missing"):
        TfdsSource(name="tnbc", data_dir=str(both / "none"), manual_dir=str(both / "nowhere")).load(LABELS, 0)


def test_kumar_and_monuseg_never_meet(tmp_path):
    for train, test in (("kumar/train", "monuseg/train"), ("monuseg/train[:9]", "kumar/test_same_organ")):
        source = TfdsSource(name="kumar", data_dir=str(tmp_path), train=(train,), test=(test,))
        with pytest.raises(InputError, match=r"must not train where .* measures.*same images"):
            source.load(LABELS, 0)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_broken_bytes(content):
    with pytest.raises(InputError, match=r"x/1: the stored image"):
        EncodedSlide(content, name="x/1")


def test_bytes_cut_short_fail_when_they_are_read(tmp_path):
    Image.fromarray(picture(1, 1)).save(tmp_path / "a.png")
    slide = EncodedSlide((tmp_path / "a.png").read_bytes()[:3000], name="x/1")
    with pytest.raises(InputError, match=r"x/1: the stored image"):
        slide.read(Window(x_px=0.0, y_px=0.0, width=4, height=4))
