"""The synthetic slide: truth that fits the pixels, the same in any order, nested shares."""

import json

import numpy as np
import pytest

from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.data.slides.slide import open_slide
from sparseshot_jax.data.slides.tissue import tissue_mask
from sparseshot_jax.data.synthetic.scene import Scene, SyntheticSlide, draw_slide
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

SPEC = SyntheticSlide(seed=3, width=1200, height=1200)


@pytest.fixture(scope="module")
def scene():
    return Scene(SPEC)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return draw_slide(tmp_path_factory.mktemp("demo"), seed=3, width=1200, height=1200)


def test_a_region_is_the_same_in_any_tiling(scene):
    whole = scene.draw(500, 400, 200, 160).astype(int)
    parts = np.concatenate([scene.draw(500, 400, 90, 160), scene.draw(590, 400, 110, 160)], axis=1)
    # Matrix products of another shape round differently in the last bit: one grey level at most.
    assert abs(whole - parts).max() <= 1


def test_the_seed_is_the_slide():
    window = (500, 500, 128, 128)
    first, again, other = (
        Scene(SyntheticSlide(seed=seed, width=1200, height=1200)).draw(*window) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_outlines_lie_on_the_nuclei(scene):
    """Red is dark inside the outlines and light round them; moved by 6 px the contrast falls."""
    image = scene.draw(0, 0, 1200, 1200)[..., 0].astype(float)
    truth = scene.truth()

    def contrast(dx, dy):
        ids = rasterize(truth, Window(x_px=dx, y_px=dy, width=1200, height=1200))
        return image[ids == 0].mean() - image[ids > 0].mean()

    here = contrast(0, 0)
    assert here > 50.0
    assert all(contrast(*d) < 0.85 * here for d in ((6, 0), (-6, 0), (0, 6), (0, -6)))


def test_files_fit_together(paths):
    slide = open_slide(paths.slide)
    assert (slide.width, slide.height) == (1200, 1200)
    assert slide.mpp == pytest.approx(0.5)
    truth = json.loads(paths.truth.read_text())["features"]
    given = json.loads(paths.given.read_text())["features"]
    names = [f["properties"]["classification"]["name"] for f in truth]
    assert set(names) == {"tumour", "lymphocyte", "fibroblast"}
    assert {f["properties"]["classification"]["name"] for f in given} == {"tumour"}
    assert {f["properties"]["objectType"] for f in given} == {"annotation"}
    assert len(given) == np.ceil(0.3 * names.count("tumour"))
    outlines = {json.dumps(f["geometry"]) for f in truth}
    assert all(json.dumps(f["geometry"]) in outlines for f in given)


def test_there_is_glass_and_tissue(paths):
    assert 0.3 < tissue_mask(open_slide(paths.slide)).mask.mean() < 0.95


def test_a_larger_share_contains_a_smaller_one(scene):
    few, many = (
        set(Scene(SyntheticSlide(seed=3, width=1200, height=1200, keep=keep)).given().tolist())
        for keep in (0.1, 0.5)
    )
    assert few < many


def test_cells_lie_inside_the_slide(scene):
    bounds = scene.truth().bounds_px
    assert (bounds > 0.0).all()
    assert (bounds < 1200.0).all()


@pytest.mark.parametrize("wrong", [{"keep": 1.5}, {"width": 10}, {"mpp": 40.0}])
def test_impossible_specs_are_refused(wrong):
    with pytest.raises(InputError, match="Try"):
        SyntheticSlide(**wrong)
