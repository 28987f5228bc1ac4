"""The page: whole, self-contained, honest about what is missing, never half-written."""

import base64
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.report import DetectionPanel, Panel, Predicted, page, write_comparison, write_report

VOID = {"meta", "img", "br", "link"}


class Checked(HTMLParser):
    """Collects pictures and text, and fails on open tags, scripts and addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag not in {"script", "link", "iframe"}
        for name, value in attrs:
            assert not name.startswith("on")
            if name in {"src", "href"}:
                head, content = value.split(",", 1)
                assert head in {"data:image/jpeg;base64", "data:image/svg+xml;base64"}
                self.images.append(base64.b64decode(content, validate=True))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def panels() -> list[Panel]:
    generator = np.random.default_rng(0)
    return [
        Panel(
            title=f"image <{k}>",
            image=generator.integers(0, 256, (32, 40, 3)).astype(np.uint8),
            given=generator.integers(0, 4, (32, 40)).astype(np.uint8),
            predictions={
                name: generator.random((32, 40)).astype(np.float32) for name in ("sharp", "dull <&>")
            },
            truth=generator.random((32, 40)) < 0.3,
        )
        for k in range(2)
    ]


def test_a_full_report_is_whole_and_self_contained(tmp_path, evaluations, log, panels):
    path = tmp_path / "run" / "report.html"
    write_report(
        path,
        title="A run <1>",
        config={"loss": {"rho": 0.5}, "data": {"root": "x & y"}},
        rows=log,
        evaluation=evaluations["sharp"],
        panels=panels,
        notes=["The threshold is 0.5."],
        versions={"jax": "0.10"},
    )
    found = Checked(path.read_text("utf-8"))
    assert len(found.images) == 2 + 6 + 2 * 5  # scores, curves, two rows of pictures
    for text in ("A run <1>", "The threshold is 0.5.", "loss.rho", "x & y", "jax 0.10", "image <1>"):
        assert text in found.text
    assert "sharp, p > 0.5" in found.text
    assert page.NO_EVALUATION not in found.text
    assert page.NO_VALIDATION not in found.text
    assert "http://" not in path.read_text().split("</style>")[0]
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_what_is_missing_is_said(tmp_path, log):
    bare = tmp_path / "bare.html"
    write_report(bare, title="Bare", config={}, rows=[], versions={})
    text = Checked(bare.read_text("utf-8")).text
    assert page.NO_EVALUATION in text
    assert page.NO_LOG in text
    train = [row for row in log if row["event"] == "train"]
    write_report(bare, title="Bare", config={}, rows=train, versions={})
    assert page.NO_VALIDATION in Checked(bare.read_text("utf-8")).text


def test_a_comparison_holds_every_method(tmp_path, evaluations, log, panels):
    path = tmp_path / "comparison.html"
    write_comparison(
        path,
        title="Two",
        evaluations=evaluations,
        logs=dict.fromkeys(evaluations, log),
        panels=panels,
        configs={"sharp": {"a": 1}},
        versions={"jax": "0.10"},
        baseline="dull <&>",
    )
    found = Checked(path.read_text("utf-8"))
    assert "dull <&>" in found.text
    assert "baseline" in found.text
    assert len(found.images) == 2 + 5 + 2 * 5


def test_a_report_of_detections(tmp_path, detections, log):
    boxes = np.array([[4.0, 4.0, 12.0, 12.0], [20.0, 20.0, 28.0, 28.0]])
    panel = DetectionPanel(
        title="image",
        image=np.full((32, 40, 3), 200, np.uint8),
        mpp=0.5,
        predictions={"prediction": Predicted(boxes_yxyx_px=boxes, score=np.array([0.9, 0.6]))},
        truth=boxes[:1],
    )
    path = tmp_path / "report.html"
    write_report(
        path,
        title="T",
        config={},
        rows=log,
        evaluation=detections["sharp"],
        panels=[panel],
        versions={},
    )
    found = Checked(path.read_text("utf-8"))
    assert len(found.images) == 2 + 1 + 6 + 3  # scores, confusion, curves, one row of pictures
    for text in ("F1 at p > 0.5", "Average precision", "Exclusive recall", "false alarm", "dashed"):
        assert text in found.text


def test_a_single_class_has_no_section_of_classes(tmp_path, one_class):
    write_report(tmp_path / "r", title="T", config={}, rows=[], evaluation=one_class, versions={})
    assert "Classes" not in Checked((tmp_path / "r").read_text("utf-8")).text


def test_a_segmentation_parted_into_objects_shows_their_scores(tmp_path, evaluations, one_class):
    both = evaluations["sharp"] | {"objects": one_class}
    write_report(tmp_path / "r", title="T", config={}, rows=[], evaluation=both, versions={})
    text = Checked((tmp_path / "r").read_text("utf-8")).text
    assert "Separate objects" in text
    assert "the threshold here is on their mean p" in text
    assert "F1 within 3 µm" in text


def test_a_comparison_of_detections(tmp_path, detections, evaluations):
    path = tmp_path / "comparison.html"
    options = {"title": "Two", "logs": {}, "versions": {}}
    write_comparison(path, evaluations=detections, baseline="dull <&>", **options)
    found = Checked(path.read_text("utf-8"))
    assert len(found.images) == 2
    for text in ("F1 within 3 µm", "AP within 3 µm", "baseline"):
        assert text in found.text
    with pytest.raises(InputError, match="must have one task"):
        write_comparison(path, evaluations=detections | {"p": evaluations["sharp"]}, **options)


def test_the_same_input_gives_the_same_bytes(tmp_path, evaluations, log):
    for name in ("a", "b"):
        write_report(
            tmp_path / name, title="T", config={}, rows=log[:1], evaluation=evaluations["sharp"], versions={}
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_keeps_the_old_report_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self, data):
        open(self, "w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"report\.html: .*No space left"):
        write_report(path, title="T", config={}, rows=[], versions={})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", title="T", config={}, rows=[], versions={})


def test_importing_the_report_does_not_import_matplotlib():
    code = "import sys, sparseshot_jax.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
