"""Milliseconds from a detector's output to its objects: decoding and suppression, by number of objects.

    python scripts/benchmark_decode.py                     # 500, 2,000 and 5,000 objects; 2 threads on a CPU
    python scripts/benchmark_decode.py --json numbers.json

The cells round an object's centre all propose a box near its own, centred within the cell, as a trained
detector's do; the others are background. Arrays stay on the device. The time on all CPUs is given too: other
load on the machine adds less to it. Target: 5,000 objects of one tile below 50 ms on 2 CPU cores.
"""

import dataclasses
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from sparseshot_jax.models.decode import DecodeSpec, detect
from sparseshot_jax.types import CellOutput

_TARGET_MS = 50.0
_CLASSES = 4
_MPP = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    objects: tuple[int, ...] = (500, 2000, 5000)  # of a tile
    stride_px: int = 8
    cells: int = 160  # a side of the tile: 1,280 pixels at stride 8
    size_px: float = 20.0  # side of a box, on average
    threshold: float = 0.02
    repeats: int = 15
    threads: int = 2  # CPU threads
    soft: bool = True  # also soft suppression, whose steps follow one another
    json: Path | None = None  # where to write the numbers


def make_output(objects: int, options: Options) -> CellOutput:
    """The 3 x 3 cells round each object propose it, with scores that fall from its centre."""
    rng = np.random.default_rng(objects)
    side, stride = options.cells, options.stride_px
    # A jittered lattice: objects touch, as cells in tissue do, and few hide one another.
    columns = int(np.ceil(np.sqrt(objects)))
    lattice = np.stack(np.divmod(rng.permutation(columns**2)[:objects], columns), -1)
    centre = (lattice + rng.uniform(0.2, 0.8, (objects, 2))) * side / columns  # in cells
    logit = rng.normal(-6.0, 0.5, (side, side))
    place = np.moveaxis(np.indices((side, side)), 0, -1) + 0.5
    half = np.full((side, side, 2), options.size_px / 2)
    around = np.argwhere(np.ones((3, 3))) - 1
    for one in centre:
        size = options.size_px / 2 * np.exp(rng.normal(0, 0.15, 2))
        peak = rng.normal(3.0, 1.0)
        for y, x in np.floor(one).astype(int) + around:
            score = peak - 5.0 * np.sum((one - (y + 0.5, x + 0.5)) ** 2)
            if 0 <= y < side and 0 <= x < side and score > logit[y, x]:
                logit[y, x] = score
                place[y, x] = np.clip(one, (y, x), (y + 1, x + 1))
                half[y, x] = size * np.exp(rng.normal(0, 0.03, 2))
    place *= stride
    boxes = np.concatenate([place - half, place + half], -1)
    classes = rng.normal(size=(1, side, side, 1, _CLASSES))
    return CellOutput(
        objectness=jnp.asarray(logit[None, :, :, None], jnp.float32),
        boxes_yxyx_px=jnp.asarray(boxes[None, :, :, None], jnp.float32),
        classes=jnp.asarray(classes, jnp.float32),
        anchors_px=jnp.full((1, 2), options.size_px, jnp.float32),
    )


def measure(objects: int, spec: DecodeSpec, options: Options) -> dict[str, float | str]:
    """Median milliseconds, with how many candidates came and how many objects were found."""
    output = make_output(objects, options)
    decode = jax.jit(detect, static_argnames=("spec", "stride_px"))
    keywords = {"spec": spec, "stride_px": options.stride_px, "threshold": options.threshold}
    keywords |= spec.limits(mpp=_MPP)
    detections, _ = jax.block_until_ready(decode(output, **keywords))  # compiles
    wall, cpu = [], []
    for _ in range(options.repeats):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(decode(output, **keywords))
        wall.append(1e3 * (time.perf_counter() - begin))
        cpu.append(1e3 * (time.process_time() - begin_cpu))
    return {
        "rule": "soft, iou" if spec.soft_sigma else f"hard, {spec.by}",
        "objects": objects,
        "candidates": int(jnp.sum(jax.nn.sigmoid(output.objectness) > options.threshold)),
        "found": int(jnp.sum(detections.valid)),
        "median_ms": statistics.median(wall),
        "fastest_ms": min(wall),
        "cpu_ms": statistics.median(cpu),
    }


def main(options: Options) -> None:
    if hasattr(os, "sched_setaffinity"):  # before JAX counts the CPUs
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    specs = [DecodeSpec(), DecodeSpec(by="distance")] + [DecodeSpec(soft_sigma=0.5)] * options.soft
    results = [measure(objects, spec, options) for spec in specs for objects in options.objects]
    show(results, options)


def show(results: list[dict[str, float | str]], options: Options) -> None:
    """A table on the screen and, where asked for, the numbers as JSON."""
    device = jax.devices()[0]
    machine = f"{device.device_kind}, {platform.machine()}, {options.threads} CPU threads"
    title = f"jax {jax.__version__} on {machine}; {options.cells} x {options.cells} cells"
    table = Table("rule", "objects", "candidates", "found", "median, ms", "fastest", "CPU, ms", title=title)
    for r in results:
        counts = [f"{r[name]:,}" for name in ("objects", "candidates", "found")]
        times = [f"{r[name]:.1f}" for name in ("median_ms", "fastest_ms", "cpu_ms")]
        table.add_row(str(r["rule"]), *counts, *times)
    console = Console()
    console.print(table)
    console.print(f"target: hard suppression of 5,000 objects below {_TARGET_MS:.0f} ms on 2 CPU cores")
    if options.json:
        options.json.write_text(json.dumps({"machine": title, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
