"""The pyramid writer: every decoder sees the right colours, sizes and resolution."""

import numpy as np
import openslide
import pytest
import tifffile

from sparseshot_jax.data.slides.pyramid import write_pyramid
from sparseshot_jax.data.slides.slide import FileSlide
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

WIDTH, HEIGHT = 403, 301
COLOURS = np.array([[230, 120, 180], [60, 40, 110], [240, 240, 240], [200, 60, 60]], np.uint8)


def _draw(x, y, width, height):
    """Four quarters of one colour each."""
    right = np.arange(x, x + width) >= 208
    lower = np.arange(y, y + height) >= 160
    return COLOURS[right[None, :] + 2 * lower[:, None]]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("pyramid") / "quarters.tiff"
    write_pyramid(path, _draw, WIDTH, HEIGHT, mpp=0.2631, tile_px=64)
    return path


@pytest.mark.parametrize("backend", ["fastslide", "openslide"])
def test_colours_sizes_and_resolution(path, backend):
    slide = FileSlide(str(path), backend)
    assert slide._sizes == ((403, 301), (202, 151), (101, 76), (51, 38))
    assert slide.mpp == pytest.approx(0.2631, rel=1e-5)
    for scale in (1.0, 2.0, 4.0, 8.0):
        for k, (x, y) in enumerate([(80, 80), (290, 80), (80, 230), (290, 230)]):
            size = max(int(40 / scale), 2)
            window = Window(x_px=x, y_px=y, width=size, height=size, scale=scale)
            got = slide.read(window).astype(float).mean(axis=(0, 1))
            # Quality 85 and integer colour conversion: 3 grey levels on flat colours.
            assert np.abs(got - COLOURS[k]).max() < 4.0, (scale, k, got)


def test_tags_as_readers_expect_them(path):
    assert openslide.OpenSlide.detect_format(path) == "generic-tiff"
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        assert [page.is_reduced for page in tiff.pages] == [False, True, True, True]
        page = tiff.pages[0]
        assert page.is_tiled
        assert page.tags["ResolutionUnit"].value == 3  # centimetre


def test_each_tile_is_drawn_once(tmp_path):
    calls = []

    def draw(x, y, width, height):
        calls.append((x, y, width, height))
        return _draw(x, y, width, height)

    write_pyramid(tmp_path / "a.tiff", draw, 130, 70, mpp=1.0, tile_px=64)
    assert calls == [(x, y, w, h) for y, h in ((0, 64), (64, 6)) for x, w in ((0, 64), (64, 64), (128, 2))]


def test_a_failure_leaves_no_file(tmp_path):
    def draw(x, y, width, height):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pyramid(tmp_path / "a.tiff", draw, 100, 100, mpp=1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"tile_px": 100}, {"mpp": 0.0}, {"width": 0}])
def test_impossible_sizes_are_refused(tmp_path, wrong):
    sizes = {"width": 100, "height": 100, "mpp": 1.0} | wrong
    with pytest.raises(InputError, match="a pyramid needs"):
        write_pyramid(tmp_path / "a.tiff", _draw, **sizes)
