"""Tiles a second of the training pipeline beside the bare reader's, on a JPEG pyramid.

    python scripts/benchmark_input.py                  # 16,384 x 16,384, about two minutes
    python scripts/benchmark_input.py --size 4096      # a quick look

Both read windows of the same distribution with as many threads, in alternating rounds; the pipeline
also chooses them, draws the targets of 50 marked cells a tile, and stacks batches. The ratio of the medians
should be at least 0.8.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastslide
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.pipeline import TrainBatches, tile_dataset
from sparseshot_jax.data.pyramid import write_pyramid
from sparseshot_jax.data.slides import open_slide
from sparseshot_jax.data.synthetic import Scene, SyntheticSlide
from sparseshot_jax.data.tiles import TileSpec, draw_tile, tile_index
from sparseshot_jax.types import Window

_MPP = 0.5
_PATCH_PX = 1024  # drawn once and repeated: the reader does not mind
_CELLS_PER_MPX = 200  # marked ones: 30 % of dense tumour at 0.5 um a pixel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to time."""

    size: int = 16384  # side of the slide, level-0 pixels
    tile: int = 512  # side of a training tile, pixels
    batch: int = 8  # tiles a batch
    threads: int = 4  # of the pipeline and of the bare reader alike
    rounds: int = 7  # of each, alternating
    batches: int = 30  # a round
    slide: str = ""  # keep the slide in this file; "" = a temporary one
    json: bool = False  # print JSON in place of a table


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(options.slide or Path(scratch) / "benchmark.tiff")
        if not path.exists():
            _draw(path, options.size)
        spec = TileSpec(tile_px=options.tile, mpp=_MPP)
        result = _compare(_case(path, options.size), spec, options)
    if options.json:
        print(json.dumps({**dataclasses.asdict(options), **result}))
        return
    table = Table("", "tiles a second", "Mpx a second", title=f"{options.size} px, {options.threads} threads")
    for name in ("fastslide", "pipeline"):
        rate = result[name]
        table.add_row(name, f"{rate:.0f}", f"{rate * options.tile**2 / 1e6:.0f}")
    table.add_row("ratio", f"{result['ratio']:.2f}", "target 0.80")
    Console().print(table)


def _compare(case: Case, spec: TileSpec, options: Options) -> dict[str, float]:
    tiles = options.batch * options.batches
    # A sequence with an end: nothing is read ahead while the other one is timed.
    dataset = tile_dataset([case], spec, seed=0)[:tiles]
    pipeline = TrainBatches(dataset, batch_size=options.batch, threads=options.threads)
    windows = _windows(case, spec, tiles)
    reader = fastslide.FastSlide.from_file_path(case.slide.path)

    def read(window: Window) -> object:
        corner = (int(window.x_px), int(window.y_px))
        return reader.read_region(corner, 0, (window.width, window.height)).numpy()

    with ThreadPoolExecutor(options.threads) as pool:

        def bare() -> None:
            for _ in pool.map(read, windows):
                pass

        def whole() -> None:
            pipeline.set_state({"next_batch": 0})
            for _ in pipeline:
                pass

        seconds: dict[str, list[float]] = {"fastslide": [], "pipeline": []}
        for timed in range(-1, options.rounds):
            for name, run in (("fastslide", bare), ("pipeline", whole)):
                took = _seconds(run)
                if timed >= 0:  # the first round fills caches
                    seconds[name].append(took)
    pipeline.close()
    rates = {name: tiles / statistics.median(times) for name, times in seconds.items()}
    return {**rates, "ratio": rates["pipeline"] / rates["fastslide"]}


def _seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _windows(case: Case, spec: TileSpec, count: int) -> list[Window]:
    """Places as the pipeline draws them."""
    index = tile_index([case], spec)
    rng = np.random.default_rng(0)
    cells = index.cells[rng.integers(len(index.cells), size=count)]
    places = [draw_tile(index, spec, cell, rng) for cell in cells]
    return [index.grids[case_].window(y, x) for case_, y, x in places]


def _case(path: Path, size: int) -> Case:
    rng = np.random.default_rng(0)
    centres = rng.uniform(20, size - 20, (int(_CELLS_PER_MPX * size**2 / 1e6), 1, 2))
    turn = np.arange(24) * (2 * np.pi / 24)
    outline = np.stack([np.cos(turn), np.sin(turn)], axis=-1) * rng.uniform(8, 14, (len(centres), 1, 1))
    n, vertices = len(centres), len(turn)
    cells = Annotations(
        xy_px=(centres + outline).reshape(-1, 2),
        ring_offsets=np.arange(n + 1) * vertices,
        object_offsets=np.arange(n + 1),
        class_ids=np.zeros(n, np.int32),
        class_names=("tumour",),
        kind=np.full(n, Kind.POLYGON, np.uint8),
    )
    slide = open_slide(path)
    labels = LabelSpec(classes=("tumour",))
    return Case(name="", slide=slide, mpp=_MPP, given=cells, truth=None, held_out=None, labels=labels)


def _draw(path: Path, size: int) -> None:
    scene = Scene(SyntheticSlide(width=2 * _PATCH_PX, height=2 * _PATCH_PX, mpp=_MPP))
    patch = scene.draw(_PATCH_PX // 2, _PATCH_PX // 2, _PATCH_PX, _PATCH_PX)

    def draw(x: int, y: int, width: int, height: int) -> np.ndarray:
        return patch[np.ix_((y + np.arange(height)) % _PATCH_PX, (x + np.arange(width)) % _PATCH_PX)]

    write_pyramid(path, draw, size, size, mpp=_MPP)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
