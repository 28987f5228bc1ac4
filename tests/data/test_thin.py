import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import whole_window
from sparseshot_jax.data.formats import FORMATS, read_annotations
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.data.labels import LabelSpec, draw_targets, label_ids, wanted
from sparseshot_jax.data.sources import FolderSource, SlideSource, SyntheticSource
from sparseshot_jax.data.sparsify import REGIMES
from sparseshot_jax.data.thin import MANIFEST, Thinning, write_subset
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground

WIDTH, HEIGHT = 120, 90
LABELS = LabelSpec(classes=("a", "b"), known_background=("other",), unused=("remark",), point_radius_um=0.75)


def squares(count=30, seed=0):
    """Objects of 6 x 6 px on a lattice, classes a and b, and everything else a file may hold."""
    rng = np.random.default_rng(seed)
    corners = [(x, y) for y in range(5, 75, 11) for x in range(3, 110, 13)]
    chosen = rng.permutation(len(corners))[:count]
    xy = np.array([corners[k] for k in chosen], float)
    shapes = [[[[x, y], [x + 6, y], [x + 6, y + 6], [x, y + 6]]] for x, y in xy]
    region = [[[0.25, 0.25], [80.25, 0.25], [80.25, 60.25], [0.25, 60.25]]]
    ignored = [[[90, 50], [118, 50], [118, 88], [90, 88]]]
    return Annotations.concatenate(
        [
            Annotations.from_polygons([region], "Exhaustive"),
            Annotations.from_polygons(shapes, ["a" if k % 3 else "b" for k in range(count)]),
            Annotations.from_polygons([ignored], "Ignore*"),
            Annotations.from_points([[60.5, 80.5], [30.2, 83.4]], ["other", "remark"]),
        ]
    )


def save_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder_of_geojson(root):
    (root / "annotations").mkdir(parents=True)
    for k, stem in enumerate(("t_1", "t_2", "v_1", "x_1")):
        save_image(root / "images" / f"{stem}.png", k)
        write_geojson(root / "annotations" / f"{stem}.geojson", squares(seed=k))
    return LABELS


def folder_of_label_maps(root):
    (root / "instances").mkdir(parents=True)
    for k, stem in enumerate(("t_1", "t_2", "v_1", "x_1")):
        save_image(root / "images" / f"{stem}.png", k)
        marks = squares(seed=k)
        objects = marks.take(marks.of_classes(["a", "b"]))
        picture = Picture(width=WIDTH, height=HEIGHT)
        write = FORMATS["label_map"].write
        assert write is not None
        write(root / "instances" / f"{stem}.png", objects, picture)
    return LabelSpec()


def folder_of_points(root):
    (root / "points").mkdir(parents=True)
    for k, stem in enumerate(("t_1", "t_2", "v_1", "x_1")):
        save_image(root / "images" / f"{stem}.png", k)
        rng = np.random.default_rng(k)
        xy = (rng.uniform(3, [WIDTH - 3, HEIGHT - 3], (25, 2)) * 8).round() / 8
        lists = {"detection": xy.tolist(), "epithelial": xy[:7].tolist()}
        (root / "points" / f"{stem}.json").write_text(json.dumps(lists))
    return LabelSpec(point_radius_um=0.75)


LAYOUTS = [folder_of_geojson, folder_of_label_maps, folder_of_points]


def targets(case):
    ground, label = draw_targets(case.given, whole_window(case, case.mpp), case.labels, mpp=case.mpp)
    return np.stack([ground, label])


def folder(root, **fields):
    return FolderSource(root=str(root), train=("t_*",), validation=("v_*",), **fields)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_training_on_the_copy_is_training_on_a_part(tmp_path, layout, keep):
    labels = layout(tmp_path / "whole")
    manifest = write_subset(
        folder(tmp_path / "whole"), tmp_path / "thin", Thinning(keep=keep, seed=4), labels
    )
    part = folder(tmp_path / "whole", keep=keep).load(labels, 4)
    copy = folder(tmp_path / "thin").load(labels, 9)
    assert [case.name for case in copy.train] == ["t_1", "t_2"]
    for one, other in zip((*part.train, *part.validation), (*copy.train, *copy.validation)):
        np.testing.assert_array_equal(targets(other), targets(one))
    for case in copy.train:
        counts = manifest["images"][case.name]
        assert counts["kept"] == wanted(case.given, labels).sum() == math.ceil(keep * counts["objects"])
    assert (targets(copy.train[0])[0] == Ground.ANNOTATED).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_else_goes_over(tmp_path, layout):
    labels = layout(tmp_path / "whole")
    write_subset(folder(tmp_path / "whole"), tmp_path / "thin", Thinning(), labels)
    files = {
        str(path.relative_to(tmp_path / "whole"))
        for path in (tmp_path / "whole").rglob("*")
        if path.is_file()
    }
    copied = {
        str(path.relative_to(tmp_path / "thin")) for path in (tmp_path / "thin").rglob("*") if path.is_file()
    }
    assert copied == files | {MANIFEST}
    for name in files:
        same = (tmp_path / "whole" / name).read_bytes() == (tmp_path / "thin" / name).read_bytes()
        assert same == ("images" in name or "t_" not in name)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "thin"}


def test_objects_taken_away_leave_a_hole_in_what_is_exhaustive(tmp_path):
    labels = folder_of_geojson(tmp_path / "whole")
    write_subset(folder(tmp_path / "whole"), tmp_path / "thin", Thinning(keep=0.2), labels)
    read = read_annotations(tmp_path / "thin" / "annotations" / "t_1.geojson")
    region = read.take(read.of_classes(["Exhaustive"]))
    assert len(region) == 1
    whole = squares(seed=0)
    kept = read.of_classes(["a", "b"]).sum()
    assert kept == 6
    gone = 80.0 * 60.0 - region.areas_px[0]
    inside = (
        (whole.bounds_px[:, 2] < 80) & (whole.bounds_px[:, 3] < 60) & whole.of_classes(["a", "b"])
    ).sum()
    assert 36 * (inside - 6) <= gone <= 36 * 24
    assert {"Ignore*", "other", "remark"} <= set(read.class_names)


def test_the_lists_that_are_not_asked_for_go_with_the_points(tmp_path):
    labels = folder_of_points(tmp_path / "whole")
    write_subset(folder(tmp_path / "whole"), tmp_path / "thin", Thinning(keep=0.4), labels)
    before, after = (
        json.loads((tmp_path / root / "points/t_1.json").read_text()) for root in ("whole", "thin")
    )
    assert len(after["detection"]) == 10
    assert all(point in before["detection"] for point in after["detection"])
    assert after["epithelial"] == [point for point in before["epithelial"] if point in after["detection"]]


def test_other_lists_of_points_are_thinned_by_position(tmp_path):
    root = tmp_path / "whole"
    save_image(root / "images" / "t_1.png")
    (root / "points").mkdir()
    grid = [[x, y] for y in (10.0, 30.0, 50.0, 70.0) for x in (10.0, 30.0, 50.0, 70.0, 90.0)]
    lists = {
        "detection": [*grid, *([x + 3.0, y] for x, y in grid)],
        "a": [[x - 1.0, y] for x, y in grid],  # 1 px from its partner, 4 px from the other
        "b": [[x + 2.25, y] for x, y in grid],  # 0.75 px from the other
        "c": [[x, y + 1.125] for x, y in grid],  # too far from either
        "d": [],
    }
    (root / "points" / "t_1.json").write_text(json.dumps(lists))
    source = FolderSource(root=str(root), train=("t_*",))
    read = {}
    for keep in (0.5, 1.0):
        write_subset(source, tmp_path / str(keep), Thinning(keep=keep), LabelSpec())
        read[keep] = json.loads((tmp_path / str(keep) / "points" / "t_1.json").read_text())
    assert read[1.0] == lists
    half = read[0.5]["detection"]
    assert len(half) == 20
    assert read[0.5] == {
        "detection": half,
        "a": [[x - 1.0, y] for x, y in grid if [x, y] in half],
        "b": [[x + 2.25, y] for x, y in grid if [x + 3.0, y] in half],
        "c": [],
        "d": [],
    }
    assert 0 < len(read[0.5]["a"]) < 20


def test_holes_keep_the_order_and_take_the_objects_in_one_piece(tmp_path, monkeypatch):
    labels = folder_of_geojson(tmp_path / "whole")
    whole = squares(seed=0)
    last = whole.take(np.roll(np.arange(len(whole)), 5))  # the region in the middle of the file
    write_geojson(tmp_path / "whole" / "annotations" / "t_1.geojson", last)
    parts, concatenate = [], Annotations.concatenate
    monkeypatch.setattr(Annotations, "concatenate", lambda one: parts.append(len(one)) or concatenate(one))
    write_subset(folder(tmp_path / "whole"), tmp_path / "thin", Thinning(keep=0.5), labels)
    assert max(parts) == 2  # one piece, and one region
    monkeypatch.undo()
    read = read_annotations(tmp_path / "thin" / "annotations" / "t_1.geojson")
    found = [(read.class_names[k], *box) for k, box in zip(read.class_ids, read.bounds_px.tolist())]
    given = [(last.class_names[k], *box) for k, box in zip(last.class_ids, last.bounds_px.tolist())]
    kept = {one for one in found if one[0] != "Exhaustive"}
    assert [one[0] for one in found].index("Exhaustive") > 0
    assert [one for one in found if one in kept] == [one for one in given if one in kept]
    assert [one in kept for one in found] == [
        one in kept for one in given if one in kept or one[0] == "Exhaustive"
    ]


@pytest.mark.parametrize("regime", REGIMES)
def test_larger_shares_hold_smaller_ones(tmp_path, regime):
    labels = folder_of_geojson(tmp_path / "whole")
    held = []
    for keep in (0.2, 0.5):
        out = tmp_path / str(keep)
        thinning = Thinning(keep=keep, regime=regime, field_um=8.0, cluster_objects=4)
        write_subset(folder(tmp_path / "whole"), out, thinning, labels)
        read = read_annotations(out / "annotations" / "t_2.geojson")
        held.append({tuple(box) for box in read.bounds_px[read.of_classes(["a", "b"])].tolist()})
    assert held[0] < held[1]
    assert len(held[1]) == 15


@pytest.fixture
def slides(tmp_path):
    save_image(tmp_path / "one.png")
    write_geojson(tmp_path / "one.geojson.gz", squares())
    return SlideSource(slides=(str(tmp_path / "one.png"),), mpp=0.25, hold_out=0.25, block_um=5.0)


def test_slides_get_annotation_files(tmp_path, slides):
    manifest = write_subset(slides, tmp_path / "thin", Thinning(keep=0.5), LABELS)
    assert sorted(path.name for path in (tmp_path / "thin").iterdir()) == ["one.geojson", MANIFEST]
    assert json.loads((tmp_path / "thin" / MANIFEST).read_text()) == manifest
    assert manifest["keep"] == 0.5
    assert manifest["images"]["one"] == {
        "objects": 30,
        "kept": 15,
        "classes": manifest["images"]["one"]["classes"],
    }
    assert sum(one["kept"] for one in manifest["images"]["one"]["classes"].values()) == 15
    part = dataclasses.replace(slides, keep=0.5).load(LABELS, 0)
    copy = dataclasses.replace(slides, annotations=str(tmp_path / "thin")).load(LABELS, 0)
    np.testing.assert_array_equal(targets(copy.train[0]), targets(part.train[0]))
    assert len(copy.train[0].given) < len(squares())


def test_an_existing_folder_is_left_alone(tmp_path, slides):
    (tmp_path / "thin").mkdir()
    with pytest.raises(InputError, match=r"thin: exists already"):
        write_subset(slides, tmp_path / "thin", Thinning(), LABELS)
    assert list((tmp_path / "thin").iterdir()) == []


def test_after_a_failure_nothing_is_left(tmp_path, slides, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("os.rename", full)
    with pytest.raises(InputError, match="No space left"):
        write_subset(slides, tmp_path / "thin", Thinning(), LABELS)
    assert sorted(tmp_path.iterdir()) == before


def test_a_share_or_regime_that_cannot_be_leaves_nothing(tmp_path, slides):
    before = sorted(tmp_path.iterdir())
    for thinning in (Thinning(keep=0.0), Thinning(regime="some")):
        with pytest.raises(InputError):
            write_subset(slides, tmp_path / "thin", thinning, LABELS)
    assert sorted(tmp_path.iterdir()) == before


def test_where_links_are_impossible_images_are_copied(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(18, "Invalid cross-device link")

    labels = folder_of_label_maps(tmp_path / "whole")
    monkeypatch.setattr("os.link", refused)
    write_subset(folder(tmp_path / "whole"), tmp_path / "thin", Thinning(), labels)
    copy, original = (tmp_path / root / "images" / "t_1.png" for root in ("thin", "whole"))
    assert copy.read_bytes() == original.read_bytes()
    assert copy.stat().st_ino != original.stat().st_ino


def test_only_images_are_links(tmp_path):
    labels = folder_of_label_maps(tmp_path / "whole")
    (tmp_path / "whole" / "split.json").write_text(json.dumps({"learn": ["t_1", "t_2"], "tune": ["v_1"]}))
    source = FolderSource(
        root=str(tmp_path / "whole"), split_file="split.json", train=("learn",), validation=("tune",)
    )
    write_subset(source, tmp_path / "thin", Thinning(), labels)
    for name, linked in (("images/v_1.png", True), ("instances/v_1.png", False), ("split.json", False)):
        assert (tmp_path / "thin" / name).samefile(tmp_path / "whole" / name) == linked


def test_a_split_file_goes_with_its_images(tmp_path):
    labels = folder_of_label_maps(tmp_path / "whole")
    split = {"learn": ["t_1", "t_2"], "tune": ["v_1"], "rest": ["x_1"]}
    (tmp_path / "whole" / "split.json").write_text(json.dumps(split))
    source = FolderSource(root=str(tmp_path / "whole"), split_file="split.json", train=("learn",))
    write_subset(source, tmp_path / "thin", Thinning(), labels)
    moved = dataclasses.replace(source, root=str(tmp_path / "thin"))
    assert [case.name for case in moved.load(labels, 0).train] == ["t_1", "t_2"]


def test_a_source_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"SyntheticSource.*data\.keep"):
        write_subset(SyntheticSource(cache=str(tmp_path)), tmp_path / "thin", Thinning(), LabelSpec())


def test_real_label_maps_and_points(tmp_path, shared_data):
    for name, kind, mpp in (("kumar", "instances", 0.25), ("crchisto", "points", 0.5)):
        root = tmp_path / name
        for part in ("images", kind):
            (root / part).mkdir(parents=True)
            for path in sorted((shared_data / name / part).iterdir())[:2]:
                shutil.copy(path, root / part)
        source = FolderSource(root=str(root), mpp=mpp)
        write_subset(source, tmp_path / f"{name}-thin", Thinning(), LabelSpec())
        part = dataclasses.replace(source, keep=0.3).load(LabelSpec(), 0)
        copy = dataclasses.replace(source, root=str(tmp_path / f"{name}-thin")).load(LabelSpec(), 0)
        for one, other in zip(part.train, copy.train):
            np.testing.assert_array_equal(targets(other), targets(one))


def test_points_that_were_joined_are_told_apart_again(tmp_path):
    lists = {"all": [[3, 3], [12, 8], [20, 20], [30, 9]], "a": [[3.5, 3]], "b": [[20, 20.9], [35, 25]]}
    save_image(tmp_path / "whole" / "images" / "t_1.png")
    (tmp_path / "whole" / "points").mkdir()
    (tmp_path / "whole" / "points" / "t_1.json").write_text(json.dumps(lists))
    labels = LabelSpec(classes=("a", "b"), unknown_class=("all",))
    whole = FolderSource(root=str(tmp_path / "whole"), points_key="all", keep=0.6)
    write_subset(whole, tmp_path / "thin", Thinning(keep=0.6), labels)
    thin = dataclasses.replace(whole, root=str(tmp_path / "thin"), keep=1.0)
    (asked,), (read,) = (source.load(labels, 0).train for source in (whole, thin))
    assert len(read.given) == 3
    assert np.allclose(read.given.xy_px, asked.given.xy_px)
    assert label_ids(read.given, labels).tolist() == label_ids(asked.given, labels).tolist()
    assert not any("class points without" in note for note in thin.load(labels, 0).notes)
