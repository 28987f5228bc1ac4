"""A slide shared by processes: here one process that has all of the bands, one after the other."""

import json

import numpy as np
import pytest
from scipy import ndimage

from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict import predict, predict_instances, write_predictions, write_shared

COMMON = {
    **{"mpp": 0.25, "model_mpp": 0.25, "core_px": 24, "halo_px": 0, "threads": 1},
    **{"class_names": ("a",), "threshold": 0.7, "min_area_um2": 0.0},
}


@pytest.fixture(scope="module")
def slide():
    z = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(110, 60, 3)), (2.0, 2.0, 0.0))
    return ArraySlide((255 / (1 + np.exp(-3 * z / z.std()))).astype(np.uint8), mpp=0.25)


def redness(batch):
    return batch[..., :1].astype(np.float32) / 255


def features(path):
    """What stands in a file, in an order that does not hang on how it was found."""
    found = []
    for feature in json.loads(path.read_text())["features"]:
        ring = feature["geometry"]["coordinates"][0][:-1]
        start = ring.index(min(ring))
        found.append((ring[start:] + ring[:start], feature["properties"]["measurements"]["area um^2"]))
    return sorted(found)


@pytest.mark.parametrize("touching", [False, True])
def test_the_file_is_that_of_one_process(slide, tmp_path, touching):
    def work(band=None):
        about = {} if band is None else {"band": band}
        if touching:
            return predict_instances(redness, slide, depth=False, largest_um=4.0, **COMMON, **about)
        return predict(redness, slide, **COMMON, **about)

    count = write_predictions(tmp_path / "one.geojson", work())
    assert count > 8
    assert write_shared(tmp_path / "many.geojson", work, bands=3) == count
    assert features(tmp_path / "many.geojson") == features(tmp_path / "one.geojson")
    assert {path.name for path in tmp_path.iterdir()} == {"one.geojson", "many.geojson"}


def test_a_mistake_in_one_band_leaves_nothing_behind(slide, tmp_path):
    def broken(batch):
        return redness(batch) * 2

    with pytest.raises(InputError, match=r"p must lie in \[0, 1\]"):
        write_shared(
            tmp_path / "a.geojson", lambda band: predict(broken, slide, band=band, **COMMON), bands=2
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_of_each_process_is_no_shared_one(slide, tmp_path, monkeypatch):
    monkeypatch.setattr("sparseshot_jax.predict.shared.storage.exists", lambda url: "of-2" not in str(url))
    with pytest.raises(InputError, match="that all of them share"):
        write_shared(
            tmp_path / "a.geojson", lambda band: predict(redness, slide, band=band, **COMMON), bands=2
        )
