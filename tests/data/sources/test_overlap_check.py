import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.builders.tcga import KUMAR_SPLITS
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.sources import overlap_check
from sparseshot_jax.data.sources.overlap_check import check_disjoint, check_parts, image_id, patient_of
from sparseshot_jax.errors import InputError

TCGA = "TCGA-18-5592-01Z-00-DX1"


def case(name, pixels=None, seed=None):
    if pixels is None:
        seed = sum(map(ord, name)) if seed is None else seed
        pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    nothing = Annotations.empty()
    return Case(
        name=name,
        slide=ArraySlide(pixels),
        mpp=0.25,
        given=nothing,
        truth=nothing,
        held_out=None,
        labels=LabelSpec(),
    )


def splits(train, validation=(), test=()):
    return Splits(train=tuple(train), validation=tuple(validation), test=tuple(test))


def test_disjoint_splits_pass():
    assert check_disjoint(splits([case("a"), case("b")], [case("c")], [case("d")])) == []


@pytest.mark.parametrize("other", [f"{TCGA}.tif", TCGA.lower(), f"kumar_{TCGA}"])
def test_one_name_in_two_splits(other):
    with pytest.raises(InputError, match=rf"{other} in data\.test.*{TCGA} in data\.train.*same name"):
        check_disjoint(splits([case(TCGA, seed=0)], test=[case(other, seed=1)]))


def test_a_uuid_is_no_part_of_the_name():
    uuid = f"{TCGA}.F2A3A1B0-1111-2222-3333-0123456789AB.svs"
    assert image_id(uuid) == TCGA
    assert image_id("img1") != image_id("img10")
    with pytest.raises(InputError, match="same name"):
        check_disjoint(splits([case(TCGA, seed=0)], [case(uuid, seed=1)]))


def test_validation_and_test_are_kept_apart_too():
    with pytest.raises(InputError, match=r"b in data\.test.*b in data\.validation"):
        check_disjoint(splits([case("a")], [case("b")], [case("b")]))


def test_the_same_pixels_under_two_names():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    with pytest.raises(InputError, match=r"z in data\.validation.*a in data\.train.*same pixels"):
        check_disjoint(splits([case("a", pixels), case("b")], [case("z", pixels.copy())]))
    changed = pixels.copy()
    changed[8, 11, 2] ^= 1  # one bit
    assert check_disjoint(splits([case("a", pixels)], [case("z", changed)])) == []
    turned = np.ascontiguousarray(pixels.reshape(12, 9, 3))  # the same bytes in another shape
    assert check_disjoint(splits([case("a", pixels)], [case("z", turned)])) == []


def test_copies_within_a_split_and_blank_tiles_are_no_fault():
    blank = np.full((9, 12, 3), 255, np.uint8)
    same = case("a").slide.image
    assert check_disjoint(splits([case("a"), case("b", same), case("w", blank)], [case("x", blank)])) == []


def test_large_images_are_compared_at_less_resolution(monkeypatch):
    monkeypatch.setattr(overlap_check, "_HASHED_PX", 40)
    pixels = case("a").slide.image
    with pytest.raises(InputError, match="same pixels"):
        check_disjoint(splits([case("a", pixels)], [case("z", pixels)]))
    assert check_disjoint(splits([case("a")], [case("z")])) == []


def test_too_many_to_compare_is_told(monkeypatch):
    monkeypatch.setattr(overlap_check, "_MAX_COMPARED", 1)
    (note,) = check_disjoint(splits([case("a")], [case("z")]))
    assert "The pixels of 2 images" in note


def test_shared_patients_are_told_and_no_error():
    train = [case("TCGA-18-5592-01Z-00-DX1"), case("a")]
    test = [case("TCGA-18-5592-01Z-00-DX2"), case("b"), case("c")]
    (note,) = check_disjoint(splits(train, test=test), {"c": "7"})
    assert "1 of 2 patients of data.test are in data.train too (TCGA-18-5592)" in note
    (note,) = check_disjoint(splits([case("a")], [case("b")]), {"a": "7", "b": "7"})
    assert "of data.validation are in data.train too (7)" in note
    assert check_disjoint(splits([case("a")], [case("b")]), {"a": "", "b": ""}) == []
    assert patient_of("tcga-18-5592-01z") == "TCGA-18-5592"


def test_parts_that_are_known_to_be_the_same():
    for split in KUMAR_SPLITS:
        for pair in ((("kumar", split), ("monuseg", "train")), (("monuseg", "train"), ("kumar", split))):
            with pytest.raises(InputError, match=r"same images.*monuseg/test"):
                check_parts([pair[0]], [("tnbc", "test"), pair[1]])
    check_parts([("kumar", "train")], [("kumar", "test_same_organ"), ("monuseg", "test")])
    check_parts([("monuseg", "train")], [("monuseg", "test")])
    with pytest.raises(InputError, match=r"monuseg/train\[:50%\] must not train where kumar/validation"):
        check_parts([("monuseg", "train[:50%]")], [("kumar", "validation")])
