"""Seconds of a training step: exclusive loss beside cross-entropy, JAX beside PyTorch; compilations.

    python scripts/benchmark_step.py                                  # losses and compilations
    python scripts/benchmark_step.py --torch-python ENV/bin/python    # also PyTorch's step
    python scripts/benchmark_step.py --model yollo                    # the detector's step

What is compared takes turns, so that other load on the machine falls on both; ratios are of medians.
Targets: focal exclusive over cross-entropy at most 1.02; JAX over PyTorch (channels last) at most
1.25 with jax 0.10, 1.0 with the newest. No number of a loss may cause a compilation. With GLIBC_TUNABLES= in
the environment the allocator is left as it is (`training.allocator`).
"""

import dataclasses
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from sparseshot_jax.losses import CrossEntropy, FocalExclusive, Loss
from sparseshot_jax.models import UNetSpec, YolloSpec
from sparseshot_jax.training.allocator import keep_freed_memory
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.step import init_state, make_train_step
from sparseshot_jax.training.tasks import TASKS
from sparseshot_jax.types import Batch, Hyper, Measures, Objects, TrainState

_NO_AUGMENTATION = AugmentSpec(dihedral=False, stain=0.0, brightness=0.0, contrast=0.0)

_TORCH = (
    Path(__file__).with_name("torch_unet.py").read_text()
    + """
import sys, time, torch
from torch import nn
base, depth, batch, size, steps, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
model = UNet(base, depth).to(memory_format=torch.channels_last)
adam = torch.optim.Adam(model.parameters(), 1e-3)
x = torch.rand(batch, 3, size, size).to(memory_format=torch.channels_last)
y = (torch.rand(batch, 1, size, size) < 0.1).float()
for i in range(steps + 2):
    start = time.perf_counter()
    adam.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
    loss.backward()
    adam.step()
    loss.item()
    if i > 1:
        print(time.perf_counter() - start)
"""
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    model: Literal["unet", "yollo"] = "unet"
    base: int = 16  # channels of the U-Net at full resolution, of the detector at half
    depth: int = 4  # halvings of the U-Net
    objects: int = 64  # annotated ones a tile, of a detector
    dtype: str = "float32"  # of the model's arithmetic, or bfloat16
    batch: int = 4  # tiles
    tile_px: int = 256  # side of a tile
    rounds: int = 5  # turns
    steps: int = 4  # timed steps a turn
    threads: int = 2  # CPU threads, of either framework
    torch_python: Path | None = None  # a Python that has PyTorch; none: no such comparison
    json: Path | None = None  # where to write the numbers


def make_batch(options: Options) -> Batch:
    """Random tiles of which a tenth is annotated; with boxes for a detector, and no ground drawn."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.tile_px, options.tile_px)
    detects = options.model == "yollo"
    annotated = jnp.asarray((rng.random(shape) < 0.1) & (not detects), jnp.uint8)
    image = jnp.asarray(rng.integers(0, 256, (*shape, 3)), jnp.uint8)
    valid = jnp.ones(options.batch, bool)
    objects = boxes_of(options, rng) if detects else None
    return Batch(image=image, ground=annotated, label=annotated, valid=valid, objects=objects)


def boxes_of(options: Options, rng: np.random.Generator) -> Objects:
    """Boxes of about 24 pixels, in twice as many places."""
    places = (options.batch, 2 * options.objects)
    centre = rng.uniform(0, options.tile_px, (*places, 2))
    half = rng.uniform(9, 15, (*places, 2))
    present = np.broadcast_to(np.arange(places[1]) < options.objects, places)
    boxes = np.concatenate([centre - half, centre + half], axis=-1) * present[..., None]
    return Objects(
        boxes_yxyx_px=jnp.asarray(boxes, jnp.float32),
        label=jnp.asarray(present, jnp.uint8),
        present=jnp.asarray(present),
        left_out=jnp.zeros(options.batch, jnp.int32),
    )


class Stepper:
    """One model in training with one compiled step."""

    def __init__(self, loss: Loss, options: Options):
        spec = UNetSpec(base=options.base, depth=options.depth, dtype=options.dtype)
        if options.model == "yollo":
            spec = YolloSpec(width=options.base, dtype=options.dtype)
        optimizer = optax.scale_by_adam()
        graphdef, self.state = init_state(spec.build(classes=1, rngs=nnx.Rngs(0)), optimizer, ema=False)
        self.numbers = {
            f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.metadata.get("traced")
        }
        step = make_train_step(
            graphdef=graphdef,
            objective=TASKS[spec.task].objective(spec, loss.terms),
            optimizer=optimizer,
            augmentation=_NO_AUGMENTATION,
        )
        self.traces = 0  # each is a compilation

        def counted(state: TrainState, batch: Batch, hyper: Hyper) -> tuple[TrainState, Measures]:
            self.traces += 1
            return step(state, batch, hyper)

        self.compiled = jax.jit(counted, donate_argnames=("state",))
        self.batch = make_batch(options)
        self.loss = loss
        self(loss)

    def __call__(self, loss: Loss | None = None, t: float = 0.5) -> float:
        """Seconds of one step, with the numbers of `loss` at time t."""
        numbers = (loss or self.loss).hyper(t)
        hyper = Hyper(loss=numbers, model=self.numbers, learning_rate=1e-3, ema_decay=0.99, seed=0)
        start = time.perf_counter()
        self.state, measures = self.compiled(self.state, self.batch, hyper)
        jax.block_until_ready((self.state, measures))
        return time.perf_counter() - start


def torch_seconds(options: Options) -> list[float]:
    """Seconds of each step of the same U-Net in PyTorch, in a process of its own."""
    size = (options.base, options.depth, options.batch, options.tile_px)
    numbers = map(str, (*size, options.steps, options.threads))
    command = [str(options.torch_python), "-c", _TORCH, *numbers]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(line) for line in output.split()]


def take_turns(sides: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            seconds[name] += measure()
    return {name: statistics.median(values) for name, values in seconds.items()}


def count_compilations(plain: Stepper, focal: Stepper) -> int:
    """Compilations that new thresholds, schedules, weights and times cause."""
    before = plain.traces + focal.traces
    plain(CrossEntropy(background_weight=0.3))
    for rho, alpha, gamma in ((0.5, 0.2, 0.1), (0.9, 0.06, 2.0), (1.0, 1.0, 0.0)):
        focal(FocalExclusive(schedule="fixed", rho=rho, alpha=alpha, gamma=gamma))
    for schedule in ("linear", "sigmoid", "power"):
        focal(FocalExclusive(schedule=schedule), t=0.25)
    return plain.traces + focal.traces - before


def main(options: Options) -> None:
    if hasattr(os, "sched_setaffinity"):  # before JAX counts the CPUs
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    if jax.default_backend() == "cpu":
        keep_freed_memory()  # as training does
    plain, focal = Stepper(CrossEntropy(), options), Stepper(FocalExclusive(), options)
    sides = {"focal exclusive": lambda: [focal()], "cross-entropy": lambda: [plain()]}
    results = [(take_turns(sides, options.rounds * options.steps), 1.02)]
    if options.torch_python and options.model == "unet":
        sides = {
            f"jax {jax.__version__}": lambda: [plain() for _ in range(options.steps)],
            "PyTorch": lambda: torch_seconds(options),
        }
        old = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12)
        results.append((take_turns(sides, options.rounds), 1.25 if old else 1.0))
    show(options, results, count_compilations(plain, focal))


def show(options: Options, results: list[tuple[dict[str, float], float]], compilations: int) -> None:
    """A table on the screen and, where asked for, the numbers as JSON."""
    table = Table("step", "median, s", "beside", "median, s", "ratio", "target")
    ratios = {}
    for seconds, target in results:
        (name, ours), (other, theirs) = seconds.items()
        ratios[f"{name} / {other}"] = ours / theirs
        table.add_row(name, f"{ours:.3f}", other, f"{theirs:.3f}", f"{ours / theirs:.3f}", f"<= {target}")
    console = Console()
    console.print(table)
    console.print(f"compilations that new numbers of a loss caused: {compilations} (target 0)")
    if options.json:
        text = json.dumps({"ratios": ratios, "compilations": compilations}, indent=2)
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
