"""Tissue and glass."""

import os

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.slides.slide import ArraySlide, open_slide
from sparseshot_jax.data.slides.tissue import TissueMask, otsu, tissue_mask
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Masks are kept here and not in the home folder."""
    monkeypatch.setenv("SPARSESHOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tissue"


def _disc(side=1600, radius=500, speck=False):
    """Pink tissue on glass, with sensor noise."""
    y, x = np.mgrid[0:side, 0:side] + 0.5
    inside = np.hypot(x - side / 2, y - side / 2) < radius
    if speck:
        inside |= np.hypot(x - 100, y - 100) < 20
    image = np.where(inside[..., None], [220, 130, 190], [243, 242, 244])
    noise = np.random.default_rng(0).integers(-3, 4, image.shape)
    return (image + noise).astype(np.uint8), inside


def test_a_disc_on_glass():
    image, inside = _disc()
    mask = tissue_mask(ArraySlide(image, 0.5))
    assert mask.scale == 32.0
    # One ring of mask pixels round the disc may go either way: 32 px of 500, twice.
    assert mask.mask.mean() == pytest.approx(inside.mean(), rel=0.13)
    assert mask.mask[25, 25]
    assert not mask.mask[0, 0]


def test_dust_is_no_tissue():
    clean, dusty = (tissue_mask(ArraySlide(_disc(speck=speck)[0], 0.5)).mask for speck in (False, True))
    np.testing.assert_array_equal(clean, dusty)


def test_a_crop_without_glass_is_all_tissue():
    image = np.random.default_rng(0).normal([190, 110, 170], 25, (1200, 1200, 3))
    assert tissue_mask(ArraySlide(image.clip(0, 255).astype(np.uint8), 0.5)).mask.all()


def test_a_narrow_crop_is_all_tissue():
    assert tissue_mask(ArraySlide(_disc(400, 100)[0], 0.25)).mask.all()


def test_glass_alone_is_kept_whole():
    blank = np.full((1200, 1200, 3), 244, np.uint8)
    assert tissue_mask(ArraySlide(blank, 0.5)).mask.all()


def test_fraction_is_exact_area():
    mask = np.zeros((10, 20), bool)
    mask[2:6, 4:9] = True
    windows = [
        Window(x_px=0, y_px=0, width=200, height=100),
        Window(x_px=40, y_px=20, width=50, height=40),
        Window(x_px=45, y_px=20, width=10, height=10, scale=0.5),
        Window(x_px=35, y_px=20, width=10, height=10),
        Window(x_px=85, y_px=55, width=10, height=10),
        Window(x_px=-50, y_px=20, width=100, height=40),
        Window(x_px=900, y_px=900, width=9, height=9),
    ]
    got = TissueMask(mask=mask, scale=10.0).fraction(windows)
    np.testing.assert_allclose(got, [0.1, 1.0, 1.0, 0.5, 0.25, 0.1, 0.0], atol=1e-12)
    assert TissueMask(mask=mask, scale=10.0).fraction([]).shape == (0,)


def test_otsu_splits_two_peaks_in_the_middle():
    values = np.repeat(np.array([10, 90], np.uint8), [300, 100])[None]
    assert 10 <= otsu(values) < 90
    assert otsu(values) == pytest.approx(49.5)


def test_resolution_must_be_positive():
    with pytest.raises(InputError, match="um_per_pixel must be positive"):
        tissue_mask(ArraySlide(_disc()[0]), um_per_pixel=0.0)


def test_a_scanner_file(shared_data):
    mask = tissue_mask(open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs")).mask
    assert 0.25 < mask.mean() < 0.55
    assert not mask[:20, :15].any()  # glass in the corner
    assert mask[70:90, 25:50].mean() > 0.9  # dermis


class Counted:
    """A slide that counts its reads."""

    def __init__(self, path, mpp=0.5):
        self._slide = open_slide(path, mpp=mpp)
        self.reads = 0

    def __getattr__(self, name):
        return getattr(self._slide, name)

    def read(self, window):
        self.reads += 1
        return self._slide.read(window)


@pytest.fixture
def disc(tmp_path):
    Image.fromarray(_disc()[0]).save(tmp_path / "disc.png", compress_level=1)
    return tmp_path / "disc.png"


def _found(path, *, reads, **options):
    """The mask, found by reading the slide or not."""
    slide = Counted(path, options.pop("mpp", 0.5))
    mask = tissue_mask(slide, **options)
    assert (slide.reads > 0) == reads
    return mask


def test_a_mask_is_kept_until_the_file_or_a_setting_changes(disc, folder):
    first = _found(disc, reads=True)
    again = _found(disc, reads=False)
    np.testing.assert_array_equal(again.mask, first.mask)
    assert again.scale == first.scale
    assert [path.suffix for path in folder.iterdir()] == [".npz"]  # and nothing half written
    _found(disc, reads=True, um_per_pixel=20.0)
    _found(disc, reads=True, mpp=0.7)
    _found(disc, reads=False)
    status = disc.stat()
    os.utime(disc, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    _found(disc, reads=True)
    _found(disc, reads=False)


def test_another_version_finds_anew(disc, monkeypatch):
    _found(disc, reads=True)
    monkeypatch.setattr("sparseshot_jax.data.slides.tissue.VERSION", -1)
    _found(disc, reads=True)


@pytest.mark.parametrize("damage", [b"", b"no mask", None])
def test_a_broken_mask_is_found_anew(disc, folder, damage):
    want = _found(disc, reads=True).mask
    (kept,) = folder.iterdir()
    data = kept.read_bytes()
    kept.write_bytes(data[: len(data) // 2] if damage is None else damage)
    np.testing.assert_array_equal(_found(disc, reads=True).mask, want)
    _found(disc, reads=False)


def test_a_folder_that_cannot_be_written_to_is_passed_over(disc, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSESHOT_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert _found(disc, reads=True).mask.any()


def test_an_image_in_memory_leaves_nothing(folder):
    tissue_mask(ArraySlide(_disc()[0], 0.5))
    assert not folder.exists()
