"""Time and memory to open a tile index of 20,000 slides and to draw tiles from it.

    python scripts/benchmark_index.py                               # 10 million tiles; 0.4 GB on disk
    python scripts/benchmark_index.py --slides 100 --tiles 50000    # a quick look

The index is written first, its tissue masks and objects of the usual size for slides of 500 tiles. A new
process then opens it, draws, and tells how much its resident memory grew (all of it: pages of mapped
files that it looked at included). Targets at full size: below 2 s, below 200 MB.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from sparseshot_jax.data.tile_index import CASE, TileIndex, save_index

_TILE_PX = 256
_TILE_MASK_PX = 8  # side of a tile in pixels of the tissue mask: 256 px at 0.5 um, and 16 um

_MEASURE = """
import json, sys, time
import numpy as np
from sparseshot_jax.data.tile_index import open_index
from sparseshot_jax.data.tiles import TileSpec, draw_tile

def resident_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmRSS"))

folder, draws = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
spec = TileSpec(class_balance=0.5)
before = resident_mb()
begin = time.perf_counter()
index = open_index(folder)
opened = time.perf_counter() - begin
for cell in rng.integers(len(index.cells), size=draws):
    draw_tile(index, spec, index.cells[cell], rng)
drawn = time.perf_counter() - begin - opened
result = {"open_s": opened, "draw_us": 1e6 * drawn / draws, "added_mb": resident_mb() - before}
print(json.dumps(result | {"tiles": len(index.cells), "slides": len(index.cases)}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to build and to measure."""

    slides: int = 20_000
    tiles: int = 10_000_000  # cells with tissue, of all slides
    objects: int = 100  # annotated ones a slide
    draws: int = 10_000
    json: bool = False  # print JSON in place of a table


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "index"
        save_index(_synthetic(options), folder)
        disk = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        command = [sys.executable, "-c", _MEASURE, str(folder), str(options.draws)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    result["disk_mb"] = disk
    if options.json:
        print(json.dumps({**dataclasses.asdict(options), **result}))
        return
    table = Table(
        "", "measured", "target", title=f"{result['tiles']:,} tiles over {result['slides']:,} slides"
    )
    table.add_row("open", f"{result['open_s']:.3f} s", "2 s")
    table.add_row(f"memory after {options.draws:,} random tiles", f"{result['added_mb']:.0f} MB", "200 MB")
    table.add_row("one tile", f"{result['draw_us']:.0f} us", "")
    table.add_row("on disk", f"{disk:.0f} MB", "")
    Console().print(table)


def _synthetic(options: Options) -> TileIndex:
    """Round tissue that fills half of each slide."""
    per_slide = options.tiles // options.slides
    side = int(np.ceil(np.sqrt(2 * per_slide)))  # cells
    y, x = np.mgrid[:side, :side]
    nearest = np.argsort(np.hypot(y - side / 2, x - side / 2), axis=None)[:per_slide]
    local = np.stack(np.divmod(np.sort(nearest), side), axis=1)
    cells = np.empty((options.slides, per_slide, 3), np.int32)
    cells[..., 0] = np.arange(options.slides)[:, None]
    cells[..., 1:] = local
    tissue = np.zeros((side, side), bool)
    tissue[tuple(local.T)] = True
    mask = np.packbits(tissue.repeat(_TILE_MASK_PX, 0).repeat(_TILE_MASK_PX, 1), axis=1)
    rng = np.random.default_rng(0)
    count = options.slides * options.objects
    classes = rng.integers(1, 6, count).astype(np.uint8)
    text = [part.encode() for k in range(options.slides) for part in _names(k)]
    return TileIndex(
        tile_px=_TILE_PX,
        min_tissue=0.1,
        cells=cells.reshape(-1, 3),
        objects_yx=rng.uniform(0, side * _TILE_PX, (count, 2)),
        object_offsets=np.arange(options.slides + 1) * options.objects,
        object_classes=classes,
        by_class=np.argsort(classes, kind="stable").astype(np.int32),
        class_offsets=np.cumsum([0, *np.bincount(classes, minlength=6)[1:]]),
        cases=_cases(options.slides, side, mask.shape),
        mask_bytes=np.tile(mask.ravel(), options.slides),
        text=np.frombuffer(b"".join(text), np.uint8),
        text_offsets=np.cumsum([0, *(len(part) for part in text)]),
    )


def _cases(slides: int, side: int, mask: tuple[int, ...]) -> np.ndarray:
    table = np.zeros(slides, CASE)
    table["height"] = table["width"] = table["slide_height"] = table["slide_width"] = side * _TILE_PX
    table["rows"] = table["columns"] = side
    table["mpp"], table["scale"], table["mask_scale"] = 0.5, 1.0, _TILE_PX / _TILE_MASK_PX
    table["mask_height"], table["mask_width"] = mask[0], 8 * mask[1]
    table["mask_start"] = np.arange(slides) * (mask[0] * mask[1])
    return table


def _names(slide: int) -> tuple[str, str]:
    return f"slide_{slide:05d}", f"gs://bucket/cohort/batch_{slide // 100:03d}/slide_{slide:05d}.svs"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
