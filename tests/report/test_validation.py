"""The page and its pictures: whole, self-contained, and the areas tinted as training treats them."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.checks.findings import Severity
from sparseshot_jax.data.checks.validate import Subject, validate_case
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.errors import InputError
from sparseshot_jax.report.overlay import COLOURS
from sparseshot_jax.report.validation import class_table, findings_table, ground_table, write_validation
from sparseshot_jax.report.validation_pictures import CROP_PX, CROPS, crops, overview, sheet

LABELS = LabelSpec(classes=("cell",), known_background=("other",), point_radius_um=2.0)


def square(x, y, side=20.0):
    return [[[x, y], [x + side, y], [x + side, y + side], [x, y + side]]]


@pytest.fixture(scope="module")
def checked():
    """Two images: one with every kind of ground and some faults, one without fault."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(190, 210, (400, 600, 3)).astype(np.uint8)
    cells = [square(x, y) for x in (40, 140, 240) for y in (40, 140)]
    marks = Annotations.concatenate(
        [
            Annotations.from_polygons(
                [*cells, cells[0], square(400, 50, 100), square(400, 250, 100), square(60, 300)],
                [*["cell"] * 7, "Exhaustive", "Ignore*", "<unknown>"],
            ),
            Annotations.from_points([[300.0, 350.0], [2000.0, 10.0]], ["other", "cell"]),
        ]
    )
    pairs = []
    for name, annotations in (("bad <1>", marks), ("good/1", Annotations.from_polygons(cells, "cell"))):
        case = Subject(
            name=name, slide=ArraySlide(pixels, 0.5), mpp=0.5, annotations=annotations, labels=LABELS
        )
        pairs.append((case, validate_case(case)))
    return pairs


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
            if name in {"src", "href"}:
                assert value.startswith("data:image/jpeg;base64,")
                self.images.append(base64.b64decode(value.split(",", 1)[1], validate=True))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_findings_tables_and_pictures(tmp_path, checked):
    target = write_validation(tmp_path / "out", checked, title="A <check>", versions={"jax": "0.10"})
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "bad_1_.png",
        "good_1.png",
        "index.html",
    ]
    text = target.read_text("utf-8")
    page = Checked(text)
    assert len(page.images) == 2
    for word in ("A <check>", "bad <1>", "<unknown>", "outside", "duplicate", "exhaustive region"):
        assert word in page.text
    order = [page.text.index(word) for word in ("Findings", "unknown-class", "Classes", "Ground", "Images")]
    assert order[0] < order[1] < order[2]
    assert re.search(r"error.*unknown-class.*warning.*duplicate", page.text, re.DOTALL)
    # The worse image is drawn first.
    assert text.index("alt='bad") < text.index("alt='good")


def test_few_pictures_are_drawn_of_many_images(tmp_path, checked):
    target = write_validation(tmp_path, checked, title="t", pictures=1, versions={"jax": "0.10"})
    page = Checked(target.read_text("utf-8"))
    assert len(page.images) == 1
    assert "1 more image" in page.text
    assert [path.name for path in tmp_path.glob("*.png")] == ["bad_1_.png"]


def test_nothing_found_is_said(tmp_path, checked):
    target = write_validation(tmp_path, checked[1:], title="t", versions={"jax": "0.10"})
    assert "Nothing is wrong" in target.read_text("utf-8")


def test_the_overview_is_tinted_as_training_treats_the_area(checked):
    case, _ = checked[0]
    picture, scale = overview(case)
    assert scale == 1.0
    plain = case.slide.image.astype(float)
    for (x, y), colour in {
        (150, 150): "truth",
        (450, 100): "background",
        (450, 300): "ignored",
        (301, 351): "background",
    }.items():
        toward = np.array(COLOURS[colour]) - plain[y, x]
        moved = picture[y, x] - plain[y, x]
        assert moved @ toward > 0.3 * (toward @ toward), colour
    np.testing.assert_array_equal(picture[200:240, 10:30], case.slide.image[200:240, 10:30])


def test_crops_show_findings_first_and_then_objects(checked):
    case, found = checked[0]
    shown = crops(case, found, 0.5)
    assert len(shown) == CROPS
    assert [crop.suspect for crop in shown] == [True] * 3 + [False] * 3
    assert shown[0].title == "unknown-class: object 9"
    # Object 9 is centred on (70, 310); its crop is moved into the image.
    window = shown[0].window
    assert (window.width, window.scale) == (CROP_PX, 1.0)
    assert (window.x_px, window.y_px) == (0.0, 310 - CROP_PX / 2)
    coarse = crops(case, found, 1.0)[0].window
    assert coarse.scale == 2.0
    titles = [crop.title for crop in shown]
    assert len(set(titles)) == CROPS
    again = [crop.title for crop in crops(case, found, 0.5)]
    assert again == titles


def test_the_suspect_is_outlined(checked):
    case, found = checked[0]
    crop = crops(case, found, 0.5)[0]
    edge = (np.abs(crop.picture.astype(int) - COLOURS["false"]).max(axis=2) < 3).nonzero()
    y, x = np.mean(edge, axis=1) / 2 + [crop.window.y_px, crop.window.x_px]
    assert (x, y) == pytest.approx((70, 310), abs=1)


def test_a_sheet_is_a_png_of_fixed_size(checked):
    for case, found in checked:
        with Image.open(io.BytesIO(sheet(case, found))) as image:
            assert image.format == "PNG"
            assert image.size == (1540, 759)


def test_an_image_without_objects_has_a_sheet(checked):
    case, _ = checked[0]
    empty = Subject(name="none", slide=case.slide, mpp=0.5, annotations=Annotations.empty(), labels=LABELS)
    assert crops(empty, validate_case(empty), 0.5) == []
    assert sheet(empty, validate_case(empty)).startswith(b"\x89PNG")


def test_tables(checked):
    found = [one for _, one in checked]
    classes = {row[0].text: [cell.text for cell in row[1:]] for row in class_table(found).rows}
    assert classes["cell"] == ["object", "14", "2", "polygons, points"]
    assert next(iter(classes)) == "<unknown>"
    rows = [[cell.text for cell in row] for row in ground_table(found).rows]
    assert [row[0] for row in rows] == ["All images", "bad <1>", "good/1"]
    shares = [float(text.split()[0]) for text in rows[1][2:]]
    assert sum(shares) == pytest.approx(100, abs=0.02)
    assert shares[3] == pytest.approx(100 * 10_000 / 240_000, abs=0.01)
    assert [row[0].text for row in ground_table(found[:1]).rows] == ["bad <1>"]
    listed = findings_table(found).rows
    assert listed[0][1].text == "error: unknown-class"
    assert "9 at (70, 310)" in listed[0][2].detail
    assert found[0].worst == Severity.ERROR
    assert class_table([]).rows == []


def test_a_folder_that_cannot_be_written(tmp_path, checked):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: the folder cannot be made"):
        write_validation(tmp_path / "file", checked[1:], title="t", versions={})
