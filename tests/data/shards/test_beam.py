# ruff: noqa: E402 - the skip comes before what it skips
import dataclasses

import numpy as np
import pytest

beam = pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.shards.beam import CutCases, run
from sparseshot_jax.data.shards.plan import CutSpec, LostTiles
from sparseshot_jax.data.shards.reader import ShardTiles, verify_shards
from sparseshot_jax.data.shards.records import describe
from sparseshot_jax.data.shards.writer import cut_shards
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError

# Beam's own code warns of its dependencies' age.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SPEC = TileSpec(tile_px=32, mpp=0.5, annotated_share=0.5, min_tissue=0.0)


@dataclasses.dataclass
class BadSlide:
    """Damaged below row 64."""

    path: str = "bad.tif"
    width: int = 96
    height: int = 128
    mpp: float | None = 0.5
    downsamples: tuple[float, ...] = (1.0,)

    def read(self, window):
        if window.y_px + window.height > 64:
            raise InputError("bad.tif: cannot be read.")
        return np.zeros((window.height, window.width, 3), np.uint8)


def case_of(k, slide=None):
    rng = np.random.default_rng(k)
    image = rng.integers(0, 255, (128, 96, 3), dtype=np.uint8)
    corners = rng.uniform(0, 80, (k, 2)).tolist()
    boxes = [[[[x, y], [x + 8, y], [x + 8, y + 6], [x, y + 6]]] for x, y in corners]
    return Case(
        name=f"case{k}",
        slide=slide or ArraySlide(image, 0.5, path=f"case{k}.tif"),
        mpp=0.5,
        given=Annotations.from_polygons(boxes, "a"),
        truth=None,
        held_out=None,
        labels=LabelSpec(classes=("a",)),
    )


@pytest.fixture
def cases():
    return [*(case_of(k) for k in range(4)), case_of(4, BadSlide())]


def contents(root):
    tiles = ShardTiles(root)
    found = {}
    for k, shard in enumerate(tiles.manifest.shards):
        for position in range(shard.records):
            (data,) = tiles._readers().get(k).read([position])
            found[describe(data).key] = data
    return found


def test_the_keys_and_bytes_are_those_of_one_machine(cases, tmp_path):
    ours, theirs = str(tmp_path / "a"), str(tmp_path / "b")
    here = cut_shards(cases, SPEC, ours, shard_tiles=10)
    there = run(cases, SPEC, theirs, shard_tiles=10, options=PipelineOptions(["--runner=DirectRunner"]))
    assert contents(ours) == contents(theirs)
    assert here.faults == there.faults != ()
    assert (here.tiles, here.cells, here.annotated) == (there.tiles, there.cells, there.annotated)
    verify_shards(theirs)
    tile = ShardTiles(theirs).read(0, np.random.default_rng(0))
    assert tile["image"].shape == (32, 32, 3)
    assert run(cases, SPEC, theirs, shard_tiles=10).cut == 0  # it is there already
    with pytest.raises(InputError, match="holds shards of something else: layout"):
        cut_shards(cases, SPEC, theirs, shard_tiles=10)
    with pytest.raises(InputError, match="shard_tiles"):
        run(cases, SPEC, theirs, shard_tiles=0)


def test_the_transform_alone(cases):
    with test_pipeline.TestPipeline() as pipeline:
        result = pipeline | beam.Create(cases) | CutCases(CutSpec(tiles=SPEC))

        def tiles(found):
            # of the bad slide 9 cells and 2 objects reach below row 64
            assert len({key for key, _ in found}) == len(found) == 5 * 12 + 10 - 11
            assert all(describe(data).key == key for key, data in found)

        def faults(found):
            assert {type(fault) for fault in found} == {LostTiles}
            assert {fault.case for fault in found} == {"case4"}

        assert_that(result["tiles"], tiles, label="tiles")
        assert_that(result["faults"], faults, label="faults")
