import io
import logging
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sparseshot_jax.data.builders.dataset import (
    Counts,
    Dataset,
    Example,
    Facts,
    descend,
    natural_key,
    visible,
)
from sparseshot_jax.data.builders.pictures import Encoded
from sparseshot_jax.data.builders.registry import BUILDERS, prepare
from sparseshot_jax.errors import InputError

FACTS = Facts(
    title="Probe",
    description="Made up.",
    citation="@misc{probe}",
    licence="CC0",
    homepage="https://example.org/probe",
    class_names=("red", "blue"),
    gives=("instances", "points", "boxes"),
    published={"train": Counts(images=3, objects=3), "all": Counts(images=15, objects=15)},
)


def objects_of(number):
    """0, 1 or 2 objects; their label map, centres, boxes and classes."""
    count = number % 3
    labels = np.zeros((20, 30), np.int32)
    for k in range(count):
        labels[3 * k : 3 * k + 2, 4 + k : 9] = k + 1
    boxes = np.array([[4 + k, 3 * k, 9, 3 * k + 2] for k in range(count)], float).reshape(-1, 4)
    return labels, (boxes[:, :2] + boxes[:, 2:]) / 2, boxes, np.arange(count, dtype=np.int32) - 1


def pixels_of(number):
    return np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)


class Probe(Dataset, skip_registration=True):
    """Made up.

    Layout of manual_dir:

        Probe/
            a.png    one
            b.png    another

    Not part of it.
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = FACTS

    def find(self, root):
        self.require(root / "Probe")
        return {"train": [0, 1, 2], "test_other": list(range(3, 15))}

    def example(self, item):
        labels, points, boxes, classes = objects_of(item)
        buffer = io.BytesIO()
        Image.fromarray(pixels_of(item)).save(buffer, format="PNG")
        return Example(
            image=Encoded(content=buffer.getvalue(), width=30, height=20),
            image_id=f"image {item}",
            patient=f"p{item // 2}",
            mpp=math.nan if item == 1 else 0.25,
            class_ids=classes,
            annotation=Path(f"{item}.xml"),
            instances=labels,
            points_xy_px=points,
            boxes_xyxy_px=boxes,
        )


@pytest.fixture
def original(tmp_path):
    (tmp_path / "original" / "Probe").mkdir(parents=True)
    return tmp_path / "original"


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(BUILDERS, "probe", Probe)


def build(original, tmp_path, builder=Probe):
    BUILDERS["probe"] = builder
    return prepare("probe", manual_dir=original, data_dir=tmp_path / "built")


@pytest.mark.usefixtures("known")
def test_round_trip(original, tmp_path):
    builder = build(original, tmp_path)
    for split, numbers in (("train", range(3)), ("test_other", range(3, 15))):
        source = builder.as_data_source(split)
        assert len(source) == len(numbers)
        for number, row in zip(numbers, source, strict=True):
            labels, points, boxes, classes = objects_of(number)
            assert row["image_id"] == f"image {number}".encode()
            assert row["patient"] == f"p{number // 2}".encode()
            np.testing.assert_array_equal(row["image"], pixels_of(number))
            assert row["instances"].dtype == np.uint16
            np.testing.assert_array_equal(row["instances"][..., 0], labels)
            np.testing.assert_array_equal(row["points_xy_px"], points.astype(np.float32))
            np.testing.assert_array_equal(row["boxes_xyxy_px"], boxes.astype(np.float32))
            np.testing.assert_array_equal(row["class_ids"], classes)
            assert np.isnan(row["mpp"]) if number == 1 else row["mpp"] == np.float32(0.25)


@pytest.mark.usefixtures("known")
def test_only_the_data_set_is_written(original, tmp_path, monkeypatch, capfd):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    builder = build(original, tmp_path)
    assert sorted(path.name for path in Path(builder.data_dir).iterdir()) == [
        "LICENSE",
        "dataset_info.json",
        "features.json",
        "metadata.json",
        "probe-test_other.array_record-00000-of-00001",
        "probe-train.array_record-00000-of-00001",
    ]
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["probe"]
    assert list((tmp_path / "temporary").iterdir()) == []
    out, err = capfd.readouterr()
    assert out == ""
    assert "WARNING" not in err


@pytest.mark.usefixtures("known")
def test_a_pickled_source_reads_on(original, tmp_path):
    source = build(original, tmp_path).as_data_source("train")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[2]["image"], pixels_of(2))


@pytest.mark.usefixtures("known")
def test_counts_that_differ_are_noted_and_kept(original, tmp_path, caplog):
    class Short(Probe, skip_registration=True):
        """Layout of manual_dir:

        Probe/
        """

        def find(self, root):
            return {"train": [2], "test_other": list(range(3, 15))}

    with caplog.at_level(logging.WARNING):
        builder = build(original, tmp_path, Short)
    assert builder.notes == [
        "Split 'train' was published with 3 images; found 1.",
        "Split 'train' was published with 3 objects; found 2.",
        "The whole data set was published with 15 images; found 13.",
        "The whole data set was published with 15 objects; found 14.",
    ]
    logged = [record.getMessage() for record in caplog.records]
    assert [f"Probe: {note}" for note in builder.notes] == [text for text in logged if text[:6] == "Probe:"]
    assert prepare("probe", manual_dir=None, data_dir=tmp_path / "built").notes == builder.notes


@pytest.mark.usefixtures("known")
def test_counts_that_agree_are_not_noted(original, tmp_path):
    assert build(original, tmp_path).notes == []


@pytest.mark.usefixtures("known")
def test_built_once(original, tmp_path):
    first = build(original, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in Path(first.data_dir).iterdir()}
    again = prepare("probe", manual_dir=None, data_dir=tmp_path / "built")
    assert {path: path.stat().st_mtime_ns for path in Path(again.data_dir).iterdir()} == before
    assert len(again.as_data_source("train")) == 3


@pytest.mark.usefixtures("known")
def test_what_is_missing_is_told_with_the_layout(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        prepare("probe", manual_dir=tmp_path / "empty", data_dir=tmp_path / "built")
    text = str(caught.value)
    assert text.startswith("Probe: Probe is missing; looked for ")
    assert str(tmp_path / "empty" / "Probe") in text
    assert text.endswith(
        "Layout of manual_dir:\n\n    Probe/\n        a.png    one\n        b.png    another"
    )
    assert not (tmp_path / "built").exists()


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("manual_dir", [None, "nowhere"])
def test_no_folder(tmp_path, manual_dir):
    with pytest.raises(InputError, match=r"folder of the published files is missing[\s\S]*a\.png    one"):
        prepare("probe", manual_dir=manual_dir, data_dir=tmp_path)


def test_unknown_name(tmp_path):
    with pytest.raises(InputError, match=r"'tnbx' is not known.*tnbc"):
        prepare("tnbx", manual_dir=tmp_path, data_dir=tmp_path)


def broken(**changes):
    class Broken(Probe, skip_registration=True):
        """Layout of manual_dir:

        Probe/
        """

        def example(self, item):
            import dataclasses

            example = super().example(item)
            return dataclasses.replace(example, **changes) if item == 5 else example

    return Broken


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"class_ids": np.array([0, 2], np.int32)},
            r"5\.xml: classes must be among the 2 of Probe, red, blue",
        ),
        ({"class_ids": np.array([-2, 0], np.int32)}, r"class ids run from -2 to 0"),
        (
            {"instances": np.zeros((30, 20), np.int32)},
            r"5\.xml: a label map must have its image's size; it is 20 x 30, and the image is 30 x 20",
        ),
        (
            {"instances": np.full((20, 30), 70000, np.int32)},
            r"5\.xml: labels must be between 0 and 65535; got 70000 to 70000",
        ),
    ],
)
def test_a_bad_example_stops_the_build_and_leaves_nothing(original, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        build(original, tmp_path, broken(**changes))
    assert [path for path in (tmp_path / "built").rglob("*") if path.is_file()] == []


def test_tensorflow_is_not_imported(tmp_path):
    code = """
import sys
from pathlib import Path
from PIL import Image
from sparseshot_jax.data.builders.registry import prepare
root, out = Path(sys.argv[1]), Path(sys.argv[2])
for folder in ("Slide_01", "GT_01"):
    (root / folder).mkdir(parents=True)
    Image.new("RGB" if folder == "Slide_01" else "L", (8, 8), 9).save(root / folder / "01_1.png")
builder = prepare("tnbc", manual_dir=root, data_dir=out)
print(builder.as_data_source("train")[0]["instances"].sum())
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "raw"), str(tmp_path / "built")],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["64"]


def test_importing_data_does_not_import_tfds():
    code = (
        "import sparseshot_jax.data, sparseshot_jax.data.builders, sys\n"
        "assert 'tensorflow_datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_builder_says_what_it_is(name, tmp_path):
    builder = BUILDERS[name](data_dir=str(tmp_path))
    facts = builder.FACTS
    assert builder.name == name
    assert facts.citation
    assert facts.licence
    assert facts.homepage.startswith("https://")
    assert facts.homepage in builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert len(builder.layout().splitlines()) > 3
    assert {"image", "image_id", "patient", "mpp", "class_ids"} <= set(builder.info.features)
    assert set(facts.gives) <= {"instances", "points", "boxes"}


def test_descend(tmp_path):
    inner = tmp_path / "A" / "A" / "B"
    inner.mkdir(parents=True)
    assert descend(tmp_path, "A", "B") == inner
    assert descend(inner, "A", "B") == inner


def test_visible_files_by_number(tmp_path):
    for name in ("t_10.png", "t_2.PNG", "._t_1.png", "t_1.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path, ".png")] == ["t_2.PNG", "t_10.png"]
    assert sorted(["b1", "a10", "a9b", "a"], key=natural_key) == ["a", "a9b", "a10", "b1"]
