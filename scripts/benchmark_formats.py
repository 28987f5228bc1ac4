"""Time and memory of reading and writing a large GeoJSON file.

    python scripts/benchmark_formats.py
    python scripts/benchmark_formats.py --objects 100000 --gzip --json formats.json

Every measurement runs in a process of its own, so that its peak memory is that of one job. The row "start"
is what the interpreter and its libraries take. CPU seconds hardly change when others use the machine, wall
seconds do.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.geojson import read_geojson, write_geojson

Job = Literal["start", "write", "read"]
JOBS: tuple[Job, ...] = ("start", "write", "read")
CLASSES = ("Tumor", "Stroma", "Immune cells")


def cells(objects: int, vertices: int, seed: int = 0) -> Annotations:
    """Round objects with uneven outlines, as cell detectors give them, on a slide of 80,000 px."""
    rng = np.random.default_rng(seed)
    angle = np.arange(vertices) * 2 * np.pi / vertices
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    xy = rng.uniform(8, 12, (objects, vertices, 1)) * circle + rng.uniform(0, 80_000, (objects, 1, 2))
    return Annotations(
        xy_px=xy.reshape(-1, 2),
        ring_offsets=np.arange(objects + 1) * vertices,
        object_offsets=np.arange(objects + 1),
        class_ids=rng.integers(0, len(CLASSES), objects).astype(np.int32),
        class_names=CLASSES,
        kind=np.full(objects, Kind.POLYGON, np.uint8),
    )


def measure(job: Job, path: Path, objects: int, vertices: int) -> dict[str, float]:
    """One job in this process. What is written is made beforehand, and counts for memory, not for time."""
    made = cells(objects, vertices) if job == "write" else Annotations.empty()
    cpu, wall = time.process_time(), time.perf_counter()
    if job == "write":
        write_geojson(path, made, probabilities=np.linspace(0, 1, objects))
    if job == "read":
        found = read_geojson(path)
        if len(found) != objects or found.notes:
            raise SystemExit(f"{path}: read {len(found)} objects of {objects}; {' '.join(found.notes)}")
    return {
        "CPU s": time.process_time() - cpu,
        "wall s": time.perf_counter() - wall,
        "peak MiB": peak_mib(),
        "file MB": 0.0 if job == "start" else path.stat().st_size / 1e6,
    }


def peak_mib() -> float:
    """Peak resident memory of this process. `getrusage` would count the parent's at the time of the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def main(
    objects: int = 1_000_000,
    vertices: int = 24,
    rounds: int = 3,
    gzip: bool = False,
    json_path: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    job: tuple[Job, Path] | None = None,
) -> None:
    """Benchmark the GeoJSON reader and writer.

    Args:
        objects: polygons in the file.
        vertices: of each polygon.
        rounds: times that each job is measured; the table gives the median and the range.
        gzip: write and read the file packed.
        json_path: where to write the numbers, all rounds.
        job: used by the script itself: measure this job on this file, print the numbers.
    """
    if job:
        print(json.dumps(measure(*job, objects, vertices)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in JOBS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("cells.geojson.gz" if gzip else "cells.geojson")
        for _ in range(rounds):
            for name in JOBS:
                command = [sys.executable, __file__, "--objects", str(objects), "--vertices", str(vertices)]
                command += ["--job", name, str(path)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[name].append(json.loads(output))
    title = f"GeoJSON, {objects:,} polygons of {vertices} vertices, {rounds} rounds"
    quantities = list(found["read"][0])
    table = Table("job", *quantities, title=title)
    for name, measured in found.items():
        table.add_row(name, *(spread([one[quantity] for one in measured]) for quantity in quantities))
    Console().print(table)
    if json_path:
        json_path.write_text(json.dumps(found, indent=2))


def spread(values: list[float]) -> str:
    """Median, and the range where there is one.

    >>> spread([1.0, 3.0, 2.0])
    '2.0 (1.0-3.0)'
    """
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.1f} ({low:.1f}-{high:.1f})" if high - low > 0.05 else f"{middle:.1f}"


if __name__ == "__main__":
    tyro.cli(main)
