"""Slides and marks behind a URL."""

import fsspec
import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import SlideSource
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Two slides with marks in a store that is no disk."""
    monkeypatch.setenv("SPARSESHOT_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    rng = np.random.default_rng(0)
    pixels = {}
    for k, name in enumerate(("a", "b")):
        pixels[name] = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels[name]).save(tmp_path / f"{name}.png")
        marks = Annotations.from_points([[10.5, 20.5], [30 + k, 40]], "tumour")
        write_geojson(tmp_path / f"{name}.geojson", marks)
        for suffix in ("png", "geojson"):
            store.put_file(str(tmp_path / f"{name}.{suffix}"), f"/bucket/slides/{name}.{suffix}")
    yield pixels
    store.rm("/bucket", recursive=True)


def test_slides_of_a_url_are_fetched_with_their_marks(bucket):
    source = SlideSource(slides=("memory://bucket/slides/*.png",), mpp=0.5, hold_out=0.0)
    cases = source.load(LabelSpec(), 0).train
    assert [case.name for case in cases] == ["a", "b"]
    for k, case in enumerate(cases):
        whole = Window(x_px=0, y_px=0, width=80, height=64)
        np.testing.assert_array_equal(case.slide.read(whole), bucket[case.name])
        np.testing.assert_allclose(case.given.xy_px, [[10.5, 20.5], [30 + k, 40]])


def test_a_slide_that_is_not_there(bucket):
    with pytest.raises(InputError, match="no such slide"):
        SlideSource(slides=("memory://bucket/slides/c.png",), mpp=0.5).load(LabelSpec(), 0)


def test_marks_that_are_not_there(bucket):
    source = SlideSource(
        slides=("memory://bucket/slides/*.png",), annotations="memory://bucket/marks", mpp=0.5
    )
    with pytest.raises(InputError, match="no annotations"):
        source.load(LabelSpec(), 0)
