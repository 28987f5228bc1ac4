"""Seams, speed and memory of slide-wide detection on a synthetic slide.

    python scripts/benchmark_detect.py --size 20000
    python scripts/benchmark_detect.py --size 4000 --json detect.json

Objects of the whole slide come from a colour threshold behind a 5 x 5 blur, one peak a cell, which costs
next to nothing: pixels a second are then those of reading, merging and writing. Seams are also measured
through a detector with random parameters, in tiles against one pass. Its speed is that of the network alone,
taking turns with a U-Net of equal width; target: at least 3 times the U-Net's pixels a second.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Float64
from rich.console import Console
from rich.table import Table
from scipy.spatial import KDTree

from sparseshot_jax.data.slides.slide import ArraySlide, Slide, open_slide
from sparseshot_jax.data.slides.tissue import tissue_mask
from sparseshot_jax.data.synthetic.scene import draw_slide
from sparseshot_jax.models import UNetSpec, scale_image
from sparseshot_jax.models.yollo import YolloSpec
from sparseshot_jax.predict import DetectionPart, Suppression, predict_detections, write_predictions
from sparseshot_jax.predict.candidates import Candidates
from sparseshot_jax.predict.merge import TileMerger
from sparseshot_jax.types import CellOutput, Window

MPP = 0.5
STRIDE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector:
    """What `predict_detections` needs of a model."""

    cells: Callable[[Any], CellOutput]
    halo_px: int
    rule: Suppression
    multiple: int = STRIDE
    threshold: float = 0.5


class Shifted:
    """A slide moved right and down by whole cells: the tiles' grid falls elsewhere on it."""

    def __init__(self, slide: Slide, by_px: int):
        self._slide, self._by_px = slide, by_px
        self.path, self.mpp, self.downsamples = slide.path, slide.mpp, slide.downsamples
        self.width, self.height = slide.width + by_px, slide.height + by_px

    def read(self, window: Window) -> np.ndarray:
        """As the slide's own."""
        moved = dataclasses.replace(window, x_px=window.x_px - self._by_px, y_px=window.y_px - self._by_px)
        return self._slide.read(moved)


def colour_detector() -> Detector:
    """Blue-stained things: optical density of red, blurred; the box sits on the densest pixel of a cell."""

    @jax.jit
    def cells(batch):
        density = -jnp.log((batch[..., 0].astype(jnp.float32) + 1) / 256)
        total = jax.lax.reduce_window(density, 0.0, jax.lax.add, (1, 5, 5), (1, 1, 1), "SAME") / 25
        b, h, w = total.shape
        rows, columns = h // STRIDE, w // STRIDE
        inside = total.reshape(b, rows, STRIDE, columns, STRIDE).swapaxes(2, 3).reshape(b, rows, columns, -1)
        best = inside.argmax(-1)
        centre = jnp.stack(
            [
                best // STRIDE + jnp.arange(rows)[None, :, None] * STRIDE,
                best % STRIDE + jnp.arange(columns)[None, None] * STRIDE,
            ],
            axis=-1,
        )
        boxes = jnp.concatenate([centre - 7.5, centre + 8.5], axis=-1)
        return CellOutput(
            objectness=(12 * (inside.max(-1) - 0.55))[..., None],
            boxes_yxyx_px=boxes[..., None, :],
            classes=jnp.zeros((b, rows, columns, 1, 1)),
            anchors_px=jnp.full((1, 2), 16.0),
        )

    return Detector(cells=cells, halo_px=8, rule=Suppression(iou=0.3))


def network_detector(width: int) -> Detector:
    """A YOLLO-style detector with random parameters, its scores spread."""
    spec = YolloSpec(width=width, stride=STRIDE)
    state = jax.jit(lambda: nnx.state(spec.build(classes=1, rngs=nnx.Rngs(0))))()
    graph = nnx.graphdef(nnx.eval_shape(lambda: spec.build(classes=1, rngs=nnx.Rngs(0))))

    @jax.jit
    def cells(batch):
        output = nnx.merge(graph, state)(scale_image(batch), train=False)
        return dataclasses.replace(output, objectness=5 * (output.objectness + 4.595))  # else all are 0.01

    return Detector(cells=cells, halo_px=spec.receptive_radius_px, multiple=spec.multiple, rule=Suppression())


def stream(detector: Detector, slide: Slide, core_px: int, **options: Any) -> Iterator[DetectionPart]:
    """Detections of one class."""
    return predict_detections(
        detector.cells,
        slide,
        class_names=("object",),
        mpp=MPP,
        model_mpp=MPP,
        stride=STRIDE,
        core_px=core_px,
        halo_px=detector.halo_px,
        multiple=detector.multiple,
        threshold=detector.threshold,
        rule=detector.rule,
        **options,
    )


def detections(detector: Detector, slide: Slide, core_px: int, **options: Any) -> DetectionPart:
    """All of them at once."""
    return DetectionPart.concatenate(
        list(stream(detector, slide, core_px, **options)), class_names=("object",)
    )


def matches(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"], gate: float) -> np.ndarray:
    """Pairs of indices of centres that are each other's nearest, within the gate."""
    if not len(a) or not len(b):
        return np.zeros((0, 2), np.int64)
    distance, of_a = map(np.asarray, KDTree(b).query(a))
    of_b = np.asarray(KDTree(a).query(b)[1])
    mutual = (of_b[of_a] == np.arange(len(a))) & (distance < gate)
    return np.stack([np.flatnonzero(mutual), of_a[mutual]], axis=1)


def agreement(a: DetectionPart, b: DetectionPart, shift_px: float = 0.0) -> dict[str, float]:
    """Whether two predictions hold the same objects; centres within a tenth of a pixel match."""
    pairs = matches(a.centres_xy_px, b.centres_xy_px - shift_px, 0.1)
    apart = np.abs(a.score[pairs[:, 0]] - b.score[pairs[:, 1]])
    return {
        "objects": len(a.score),
        "objects of the other": len(b.score),
        "object F1": 2 * len(pairs) / max(1, len(a.score) + len(b.score)),
        "largest difference in score": float(apart.max(initial=0.0)),
        "spread of score": float(a.score.std()) if len(a.score) else 0.0,
    }


def seams(detector: Detector, slide: Slide, side: int, core_px: int) -> dict[str, float]:
    """Objects of tiles against objects of one pass over a crop of the slide."""
    x, y = (max(0, (n - side) // 2) for n in (slide.width, slide.height))
    crop = ArraySlide(slide.read(Window(x_px=x, y_px=y, width=side, height=side)), mpp=MPP)
    whole = -(-side // detector.multiple) * detector.multiple
    many, one = (detections(detector, crop, core, batch_size=1) for core in (core_px, whole))
    return agreement(many, one)


def inference(width: int, rounds: int) -> dict[str, float]:
    """Pixels a second of the networks alone, taking turns."""
    batch = np.random.default_rng(0).integers(0, 256, (2, 512, 512, 3), np.uint8)
    spec = UNetSpec(base=width)
    state = jax.jit(lambda: nnx.state(spec.build(classes=1, rngs=nnx.Rngs(0))))()
    graph = nnx.graphdef(nnx.eval_shape(lambda: spec.build(classes=1, rngs=nnx.Rngs(0))))
    unet = jax.jit(lambda batch: nnx.merge(graph, state)(scale_image(batch), train=False))
    programs = {"U-Net": unet, "detector": network_detector(width).cells}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for k in range(rounds + 1):  # the first round compiles
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(batch))
            if k:
                seconds[name].append(time.perf_counter() - begin)
    mpx = {name: batch[..., 0].size / 1e6 / statistics.median(taken) for name, taken in seconds.items()}
    return {f"{name}, Mpx/s": value for name, value in mpx.items()} | {
        "detector over U-Net": mpx["detector"] / mpx["U-Net"]
    }


def merging(count: int, side: int = 16_384, core_px: int = 512) -> dict[str, float]:
    """Time and waiting candidates of the merger alone: random boxes, some six an object."""
    rng = np.random.default_rng(0)
    centre = np.repeat(rng.uniform(0, side, (count // 6, 2)), 6, axis=0)
    centre = (centre + rng.normal(0.0, 2.0, centre.shape)).clip(0, side - 1)
    half = rng.uniform(8, 14, centre.shape)
    every = Candidates(
        boxes_xyxy_px=np.concatenate([centre - half, centre + half], axis=1),
        score=rng.uniform(size=len(centre)).astype(np.float32),
        class_p=np.ones((len(centre), 1), np.float32),
        place=np.arange(len(centre)),
    )
    across = side // core_px
    tile = (centre // core_px).astype(int) @ np.array([1, across])
    parts = np.split(np.argsort(tile, kind="stable"), np.cumsum(np.bincount(tile, minlength=across**2))[:-1])
    merger = TileMerger(width=side, height=side, rule=Suppression(), classes=1, reach_out_px=STRIDE + 1.0)
    begin, kept, most = time.perf_counter(), 0, 0
    for k, part in enumerate(parts):
        y, x = (core_px * n for n in divmod(k, across))
        kept += len(merger.add(every.take(part), x0=x, y0=y, x1=x + core_px, y1=y + core_px))
        most = max(most, merger.waiting)
    seconds = time.perf_counter() - begin
    return {
        "candidates": len(centre),
        "objects": kept,
        "seconds": seconds,
        "candidates/s": len(centre) / seconds,
        "waiting at most": most,
    }


def measure(path: Path, core_px: int) -> dict[str, float]:
    """One prediction of a whole slide in this process: time and peak memory."""
    slide, detector = open_slide(path), colour_detector()
    begin = time.perf_counter()
    parts = stream(detector, slide, core_px, tissue=tissue_mask(slide))
    count = write_predictions(path.with_name("measured.geojson"), parts)
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
    core_px: int = 512,
    crop_px: int = 4096,
    width: int = 16,
    rounds: int = 5,
    candidates: int = 1_000_000,
    json_path: Path | None = None,
    measure_slide: Path | None = None,
) -> None:
    """Benchmark slide-wide detection.

    Args:
        size: side of the synthetic slide, pixels.
        core_px: side of a tile without its halo.
        crop_px: side of the crop on which seams are measured; 0 leaves that out.
        width: of the networks.
        rounds: of their timing; 0 leaves that out.
        candidates: given to the merger alone; 0 leaves that out.
        json_path: where to write the numbers.
        measure_slide: used by the script itself: predict this slide, print time and memory.
    """
    if measure_slide:
        print(json.dumps(measure(measure_slide, core_px)))
        return
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: draw_slide(Path(folder) / str(n), width=n, height=n).slide for n in (size // 2, size)}
        for n, path in paths.items():
            command = [sys.executable, __file__, "--measure-slide", str(path), "--core-px", str(core_px)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows[f"{n} px"] = json.loads(output.splitlines()[-1])
        small, large = rows[f"{size // 2} px"], rows[f"{size} px"]
        rows["memory"] = {"ratio of peaks": large["peak MiB"] / small["peak MiB"]}
        slide, detector = open_slide(paths[size]), colour_detector()
        by_px = core_px // 2 // STRIDE * STRIDE
        plain, moved = (detections(detector, s, core_px) for s in (slide, Shifted(slide, by_px)))
        rows["grid moved by half a tile"] = agreement(plain, moved, by_px)
        if crop_px:
            rows[f"tiles and one pass, {crop_px} px"] = seams(
                network_detector(width), slide, crop_px, core_px
            )
    if candidates:
        rows["merger"] = merging(candidates)
    if rounds:
        rows[f"networks, width {width}"] = inference(width, rounds)
    table = Table("measured on", "quantity", "value", title="Detection")
    for name, values in rows.items():
        for quantity, value in values.items():
            table.add_row(name, quantity, f"{value:.6g}")
    Console().print(table)
    if json_path:
        json_path.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
