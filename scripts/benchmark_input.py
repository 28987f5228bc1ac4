"""Tiles a second of the training pipeline beside bare readers and PyTorch's, on a JPEG pyramid.

    python scripts/benchmark_input.py                  # 16,384 x 16,384, about ten minutes
    python scripts/benchmark_input.py --size 4096      # a quick look

Everything reads windows of the same distribution with as many threads (or worker processes), in alternating
rounds of one run. The bare readers only decode; the pipelines also choose the tiles, draw the targets of 50
marked cells a tile, and stack batches; the PyTorch loaders read, draw the same targets by the same code, and
stack (`--no-loader-targets`: they only read and stack). Targets: from slides at least 0.85
of bare fastslide, from shards at least 0.9 of bare JPEG decoding (Pillow's) of the same bytes, and ahead of
both loaders, which need torch and tiffslide and are left out where those are absent.
"""

import dataclasses
import importlib.util
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastslide
import numpy as np
import simplejpeg
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.cut_tiles import CutTiles
from sparseshot_jax.data.labels import LabelSpec, TargetMaps
from sparseshot_jax.data.pipeline import Tiles, TrainBatches, tile_dataset
from sparseshot_jax.data.shards.reader import ShardTiles
from sparseshot_jax.data.shards.writer import cut_shards
from sparseshot_jax.data.slides.pyramid import write_pyramid
from sparseshot_jax.data.slides.slide import open_slide
from sparseshot_jax.data.synthetic.scene import Scene, SyntheticSlide
from sparseshot_jax.data.tiles import TileSpec, draw_tile, tile_index
from sparseshot_jax.types import Needs, Window

_MPP = 0.5
_PATCH_PX = 1024  # drawn once and repeated: the reader does not mind
_CELLS_PER_MPX = 200  # marked ones: 30 % of dense tumour at 0.5 um a pixel
Run = Callable[[], None]  # reads one round of tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to time."""

    size: int = 16384  # side of the slide, level-0 pixels
    tile: int = 512  # side of a training tile, pixels
    batch: int = 8  # tiles a batch
    objects: int = 0  # places for boxes a tile that the pipelines give, as to a detector
    distance: bool = False  # the pipelines draw the depth of each pixel in its cell, too
    threads: int = 4  # of the pipeline and of the bare readers alike
    workers: int = os.cpu_count() or 1  # processes of the PyTorch loaders
    loader_targets: bool = True  # the PyTorch loaders draw targets too, as training needs them
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
        case = _case(path, options.size)
        windows = _windows(case, spec, options.batch * options.batches)
        shards = str(Path(scratch) / "shards")
        needs = Needs(objects=options.objects, distance=options.distance)
        cut_shards([case], spec, shards, needs=needs)
        tiles = CutTiles([case], spec, tile_index([case], spec), needs=needs)
        with ThreadPoolExecutor(options.threads) as pool:
            runs = {
                "fastslide": _bare(pool, _fastslide(case), windows),
                "pipeline from slides": _pipeline(tiles, options),
                "JPEG decoding": _bare(pool, _decode, _pictures(case, windows)),
                "JPEG decoding, simplejpeg": _bare(pool, _decode_simply, _pictures(case, windows)),
                "pipeline from shards": _pipeline(ShardTiles(shards), options),
                **_torch_loaders(case, windows, options),
            }
            result = _compare(runs, len(windows), options.rounds)
    if options.json:
        print(json.dumps({**dataclasses.asdict(options), "tiles_per_second": result}))
        return
    _print(result, options)


def _compare(runs: dict[str, Run], tiles: int, rounds: int) -> dict[str, list[float]]:
    """Tiles a second of each, round by round; the first round fills caches and is left out."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for timed in range(-1, rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if timed >= 0:
                rates[name].append(tiles / (time.perf_counter() - begin))
    return rates


def _print(rates: dict[str, list[float]], options: Options) -> None:
    middle = {name: statistics.median(found) for name, found in rates.items()}
    compared = {"pipeline from slides": ("fastslide", 0.85), "pipeline from shards": ("JPEG decoding", 0.9)}
    title = f"{options.size} px slide, {options.tile} px tiles, {options.threads} threads"
    table = Table("", "tiles a second", "range", "Mpx a second", "ratio", title=title)
    for name, found in rates.items():
        ratio = ""
        if name in compared:
            bare, target = compared[name]
            ratio = f"{middle[name] / middle[bare]:.2f} of {bare} (target {target})"
        span = f"{min(found):.0f} to {max(found):.0f}"
        table.add_row(name, f"{middle[name]:.0f}", span, f"{middle[name] * options.tile**2 / 1e6:.0f}", ratio)
    Console(width=110).print(table)


def _pipeline(tiles: Tiles, options: Options) -> Run:
    # A sequence with an end: nothing is read ahead while another one is timed.
    dataset = tile_dataset(tiles, seed=0)[: options.batch * options.batches]
    batches = TrainBatches(dataset, batch_size=options.batch, threads=options.threads)

    def run() -> None:
        batches.set_state({"next_batch": 0})
        for _ in batches:
            pass

    return run


def _bare(pool: ThreadPoolExecutor, read: Callable[[Any], object], items: list[Any]) -> Run:
    def run() -> None:
        for _ in pool.map(read, items):
            pass

    return run


def _fastslide(case: Case) -> Callable[[Window], object]:
    reader = fastslide.FastSlide.from_file_path(case.slide.path)
    return lambda w: reader.read_region((int(w.x_px), int(w.y_px)), 0, (w.width, w.height)).numpy()


def _pictures(case: Case, windows: list[Window]) -> list[bytes]:
    """The windows as JPEG, as a shard holds them."""
    pictures = []
    for window in windows:
        out = io.BytesIO()
        Image.fromarray(case.slide.read(window)).save(out, "JPEG", quality=95, subsampling=0)
        pictures.append(out.getvalue())
    return pictures


def _decode(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)))


def _decode_simply(picture: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(picture, "RGB", fastdct=False, fastupsample=False)


def _torch_loaders(case: Case, windows: list[Window], options: Options) -> dict[str, Run]:
    """A DataLoader over each reader that is installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    readers = [name for name in ("tiffslide", "openslide") if importlib.util.find_spec(name)]
    return {f"PyTorch, {name}": _torch_loader(name, case, windows, options) for name in readers}


class _TorchTiles:
    """What a DataLoader asks of a data set; each worker opens the slide for itself."""

    def __init__(self, library: str, case: Case, windows: list[Window], targets: bool):
        self._library, self._path, self._windows = library, case.slide.path, windows
        self._targets = TargetMaps(case.given, case.labels, mpp=case.mpp) if targets else None
        self._slide: Any = None

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, k: int) -> tuple[np.ndarray, ...]:
        if self._slide is None:
            module = importlib.import_module(self._library)
            kind = module.TiffSlide if self._library == "tiffslide" else module.OpenSlide
            self._slide = kind(self._path)
        w = self._windows[k]
        region = self._slide.read_region((int(w.x_px), int(w.y_px)), 0, (w.width, w.height))
        image = np.array(region.convert("RGB"))  # torch wants it writable
        return (image, *self._targets.draw(w)) if self._targets else (image,)


def _torch_loader(library: str, case: Case, windows: list[Window], options: Options) -> Run:
    from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]

    loader = DataLoader(
        _TorchTiles(library, case, windows, options.loader_targets),  # pyright: ignore[reportArgumentType]
        batch_size=options.batch,
        num_workers=options.workers,
        multiprocessing_context="forkserver",
        persistent_workers=True,
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


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
    return Case(name="slide", slide=slide, mpp=_MPP, given=cells, truth=None, held_out=None, labels=labels)


def _draw(path: Path, size: int) -> None:
    scene = Scene(SyntheticSlide(width=2 * _PATCH_PX, height=2 * _PATCH_PX, mpp=_MPP))
    patch = scene.draw(_PATCH_PX // 2, _PATCH_PX // 2, _PATCH_PX, _PATCH_PX)

    def draw(x: int, y: int, width: int, height: int) -> np.ndarray:
        return patch[np.ix_((y + np.arange(height)) % _PATCH_PX, (x + np.arange(width)) % _PATCH_PX)]

    write_pyramid(path, draw, size, size, mpp=_MPP)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
