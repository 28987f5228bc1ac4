"""Seams, speed and memory of prediction on a synthetic slide.

    python scripts/benchmark_predict.py --size 20000
    python scripts/benchmark_predict.py --size 4000 --run runs/demo --json predict.json

Without --run the objects come from a colour threshold behind a 5 x 5 blur, which costs next to nothing:
pixels a second are then those of reading, contouring and writing. The seams are always measured through a
U-Net, the run's or one with random parameters.
"""

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import shapely
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.slides.slide import ArraySlide, Slide, open_slide
from sparseshot_jax.data.slides.tissue import tissue_mask
from sparseshot_jax.data.synthetic.scene import draw_slide
from sparseshot_jax.models import UNetSpec, class_probabilities, scale_image
from sparseshot_jax.predict import predict, probability_map, write_predictions
from sparseshot_jax.predict.seams import SeamlessContours
from sparseshot_jax.types import Window

MPP = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What `predict` needs of a model."""

    probability: Callable[[Any], Any]
    halo_px: int
    multiple: int
    classes: tuple[str, ...] = ("object",)
    mpp: float = MPP


class Shifted:
    """A slide moved right and down by whole pixels: the tiles' grid falls elsewhere on it."""

    def __init__(self, slide: Slide, by_px: int):
        self._slide, self._by_px = slide, by_px
        self.path, self.mpp, self.downsamples = slide.path, slide.mpp, slide.downsamples
        self.width, self.height = slide.width + by_px, slide.height + by_px

    def read(self, window: Window) -> np.ndarray:
        """As the slide's own."""
        moved = dataclasses.replace(window, x_px=window.x_px - self._by_px, y_px=window.y_px - self._by_px)
        return self._slide.read(moved)


def colour_model() -> Model:
    """Blue-stained things: optical density of red, blurred, above a threshold."""

    @jax.jit
    def probability(batch):
        density = -jnp.log((batch[..., :1].astype(jnp.float32) + 1) / 256)
        total = jax.lax.reduce_window(density, 0.0, jax.lax.add, (1, 5, 5, 1), (1, 1, 1, 1), "SAME")
        return jax.nn.sigmoid(12 * (total / 25 - 0.55))

    return Model(probability=probability, halo_px=16, multiple=16)


def unet_model() -> Model:
    """A U-Net of the default size with random parameters."""
    spec = UNetSpec(prior=0.5)
    model = jax.jit(lambda: nnx.state(spec.build(classes=1, rngs=nnx.Rngs(0))))()
    graph = nnx.graphdef(nnx.eval_shape(lambda: spec.build(classes=1, rngs=nnx.Rngs(0))))

    @jax.jit
    def probability(batch):
        logits = nnx.merge(graph, model)(scale_image(batch), train=False)
        return class_probabilities(40 * logits)  # else p stays within 0.01 of its mean

    return Model(probability=probability, halo_px=spec.receptive_radius_px, multiple=spec.multiple)


def run_model(folder: Path) -> Model:
    """The model of a run folder."""
    from sparseshot_jax.run import load

    run = load(folder)
    return Model(
        probability=run.probability,
        halo_px=run.config.model.receptive_radius_px,
        multiple=run.config.model.multiple,
        classes=run.config.labels.names,
        mpp=run.config.tiles.mpp,
    )


def objects_of(model: Model, slide: Slide, path: Path, core_px: int) -> Annotations:
    """Predicted objects, through the file as a user gets them."""
    write_predictions(path, stream(model, slide, core_px))
    return read_geojson(path)


def stream(model: Model, slide: Slide, core_px: int):
    return predict(
        model.probability,
        slide,
        class_names=model.classes,
        mpp=MPP,
        model_mpp=model.mpp,
        core_px=core_px,
        halo_px=model.halo_px,
        multiple=model.multiple,
        tissue=tissue_mask(slide),
    )


def seams(model: Model, slide: Slide, side: int, core_px: int) -> dict[str, float]:
    """p of tiles against p of one pass over a crop of the slide, and the objects of both."""
    x, y = (max(0, (n - side) // 2) for n in (slide.width, slide.height))
    crop = ArraySlide(slide.read(Window(x_px=x, y_px=y, width=side, height=side)), mpp=MPP)
    maps, areas = [], []
    for core in (core_px, -(-side // model.multiple) * model.multiple):
        p = probability_map(
            model.probability,
            crop,
            mpp=MPP,
            model_mpp=MPP,
            core_px=core,
            halo_px=model.halo_px,
            multiple=model.multiple,
            batch_size=1,
        )
        maps.append(p)
        areas.append(contoured_areas(p[..., 0], core, float(np.median(maps[0]))))
    return {
        "largest |dp|": float(np.abs(maps[0] - maps[1]).max()),
        "spread of p": float(maps[1].std()),
        "objects, tiles": len(areas[0]),
        "objects, one pass": len(areas[1]),
        "largest difference in area, px": float(np.abs(areas[0] - areas[1]).max())
        if len(areas[0]) == len(areas[1])
        else float("nan"),
    }


def contoured_areas(p: np.ndarray, core_px: int, threshold: float) -> np.ndarray:
    """Areas of the objects of one class, contoured tile by tile, sorted."""
    height, width = p.shape
    contours = SeamlessContours(width=width, height=height, threshold=threshold)
    found = [
        contours.add(x, y, p[y : y + core_px, x : x + core_px]).outlines.areas_px
        for y in range(0, height, core_px)
        for x in range(0, width, core_px)
    ]
    return np.sort(np.concatenate(found))


def object_f1(a: Annotations, b: Annotations) -> float:
    """F1 of two sets of disjoint objects matched at IoU > 0.5, where every match is unique."""
    left, right = (_outers(objects) for objects in (a, b))
    i, j = shapely.STRtree(right).query(left, predicate="intersects")
    shared = shapely.area(shapely.intersection(left[i], right[j]))
    union = shapely.area(left[i]) + shapely.area(right[j]) - shared
    return 2 * int((shared > 0.5 * union).sum()) / max(1, len(left) + len(right))


def _outers(objects: Annotations) -> np.ndarray:
    ring = np.repeat(np.arange(len(objects.ring_offsets) - 1), np.diff(objects.ring_offsets))
    polygons = np.asarray(shapely.polygons(shapely.linearrings(objects.xy_px, indices=ring)))
    return shapely.make_valid(polygons[objects.object_offsets[:-1]])


def measure(model: Model, path: Path, core_px: int) -> dict[str, float]:
    """One prediction of a whole slide in this process: time and peak memory."""
    slide = open_slide(path)
    begin = time.perf_counter()
    count = write_predictions(path.with_name("measured.geojson"), stream(model, slide, core_px))
    seconds = time.perf_counter() - begin
    return {
        "objects": count,
        "seconds": seconds,
        "Mpx/s": slide.width * slide.height / seconds / 1e6,
        "peak MiB": peak_mib(),
    }


def peak_mib() -> float:
    """Peak resident memory of this process. `getrusage` would count the parent's at the time of the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def main(
    size: int = 20_000,
    run: Path | None = None,
    core_px: int = 512,
    crop_px: int = 2048,
    json_path: Path | None = None,
    measure_slide: Path | None = None,
) -> None:
    """Benchmark prediction.

    Args:
        size: side of the synthetic slide, pixels.
        run: run folder of the model.
        core_px: side of a tile without its halo.
        crop_px: side of the crop on which seams are measured; 0 leaves that out.
        json_path: where to write the numbers.
        measure_slide: used by the script itself: predict this slide, print time and memory.
    """
    model = run_model(run) if run else colour_model()
    if measure_slide:
        print(json.dumps(measure(model, measure_slide, core_px)))
        return
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: draw_slide(Path(folder) / str(n), width=n, height=n).slide for n in (size // 2, size)}
        for n, path in paths.items():
            command = [sys.executable, __file__, "--measure-slide", str(path), "--core-px", str(core_px)]
            command += ["--run", str(run)] if run else []
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows[f"{n} px"] = json.loads(output.splitlines()[-1])
        small, large = rows[f"{size // 2} px"], rows[f"{size} px"]
        rows["memory"] = {"ratio of peaks": large["peak MiB"] / small["peak MiB"]}
        slide = open_slide(paths[size])
        plain = objects_of(model, slide, Path(folder) / "plain.geojson", core_px)
        by_px = round(core_px // 2 * model.mpp / MPP)
        moved = objects_of(model, Shifted(slide, by_px), Path(folder) / "moved.geojson", core_px)
        shifted = moved.transformed(dx=-by_px, dy=-by_px)
        rows["grid moved by half a tile"] = {"object F1": object_f1(plain, shifted)}
        if crop_px:
            rows["seams"] = seams(model if run else unet_model(), slide, crop_px, core_px)
    table = Table("measured on", "quantity", "value", title="Prediction")
    for name, values in rows.items():
        for quantity, value in values.items():
            table.add_row(name, quantity, f"{value:.6g}")
    Console().print(table)
    if json_path:
        json_path.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
