"""Images a second of a U-Net's training step on an accelerator, beside PyTorch's, and fed from shards.

    python scripts/benchmark_gpu.py --torch-python ENV/bin/python
    python scripts/benchmark_gpu.py --base 8 --tile-px 64 --batch 4 --rounds 1     # a CPU, to try it

Both train the same network with cross-entropy and Adam on one device and one batch that lies there, in
bfloat16: JAX as `sparseshot train` runs it, PyTorch with torch.compile, channels_last and autocast. They take
turns; while one runs the other waits. Then the same network is trained on shards with the focal exclusive
loss and augmentation, and what it waits for input is measured.
Targets: 1.2 times PyTorch's images a second; waiting under 2 %.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both need room on the device

import jax
import tyro
from etils import epath
from rich.console import Console
from rich.table import Table

from sparseshot_jax import experiment
from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.shards.writer import cut_shards
from sparseshot_jax.data.sources import SyntheticSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.flops import flops
from sparseshot_jax.hardware import chip_of, measured_peak
from sparseshot_jax.losses import CrossEntropy, FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.profile import profile
from sparseshot_jax.programs import form_of, train_program
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.sharding import MeshSpec, make_layout

_TORCH = (
    Path(__file__).with_name("torch_unet.py").read_text()
    + """
import sys, time, torch
from torch import nn
base, depth, batch, size, steps = map(int, sys.argv[1:6])
dtype = getattr(torch, sys.argv[6])
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")
model = UNet(base, depth).to(device, memory_format=torch.channels_last)
adam = torch.optim.Adam(model.parameters(), 1e-3, fused=device == "cuda")
x = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
y = (torch.rand(batch, 1, size, size, device=device) < 0.1).float()
def loss_of(x, y):
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        output = model(x)
    return nn.functional.binary_cross_entropy_with_logits(output.float(), y)
if device == "cuda":
    loss_of = torch.compile(loss_of)
def run(steps):
    for _ in range(steps):
        adam.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        adam.step()
    loss.item()
run(3)
print(f"PyTorch {torch.__version__}", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    run(steps)
    print(time.perf_counter() - start, flush=True)
"""
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    base: int = 64  # channels of the U-Net at full resolution
    depth: int = 4  # halvings
    dtype: str = "bfloat16"  # of the arithmetic
    batch: int = 16  # tiles
    tile_px: int = 512  # side of a tile
    rounds: int = 5  # turns
    steps: int = 20  # timed steps a turn, and from shards
    threads: int = 8  # that read shards
    torch_python: Path | None = None  # a Python that has PyTorch; none: no such comparison
    json: Path | None = None  # where to write the numbers


def config_of(options: Options, folder: Path) -> ExperimentConfig:
    """Training on a synthetic slide at `folder`, on one device."""
    return ExperimentConfig(
        name="benchmark_gpu",
        data=SyntheticSource(cache=str(folder / "slides"), train_px=max(5 * options.tile_px, 512)),
        labels=LabelSpec(classes=("tumour",), unused=("lymphocyte", "fibroblast")),
        tiles=TileSpec(tile_px=options.tile_px, mpp=0.5, annotated_share=0.5),
        model=UNetSpec(base=options.base, depth=options.depth, dtype=options.dtype),
        loss=FocalExclusive(),
        train=TrainSpec(
            steps=1000,
            batch_size=options.batch,
            threads=options.threads,
            mesh=MeshSpec(data=1),
            shards=str(folder / "shards"),
        ),
    )


@contextmanager
def jax_side(config: ExperimentConfig, steps: int) -> Iterator[tuple[Callable[[], float], int]]:
    """What runs `steps` steps on one batch and gives their seconds; and the FLOPs of a step."""
    plain = AugmentSpec(dihedral=False, stain=0.0, brightness=0.0, contrast=0.0)
    config = dataclasses.replace(config, loss=CrossEntropy(), augment=plain)
    layout = make_layout(config.train.mesh)
    program = train_program(form_of(config), layout)
    with (
        tempfile.TemporaryDirectory() as scratch,
        experiment.opened(config, epath.Path(scratch) / "run", layout, reporter=experiment.Reporter()) as (
            state,
            run,
        ),
    ):
        batch, hyper = run.inputs()
        work = flops(program, state, batch, hyper)

        def measure(count: int = steps) -> float:
            nonlocal state
            began = time.perf_counter()
            for _ in range(count):
                state, _ = program(state, batch, hyper)
            jax.block_until_ready(state)
            return time.perf_counter() - began

        measure(3)
        yield measure, work


@contextmanager
def torch_side(options: Options) -> Iterator[tuple[Callable[[], float], str]]:
    """What runs as many steps in PyTorch, in a process that stays; and PyTorch's version."""
    numbers = (options.base, options.depth, options.batch, options.tile_px, options.steps)
    command = [str(options.torch_python), "-c", _TORCH, *map(str, numbers), options.dtype]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        given, said = process.stdin, process.stdout
        assert given is not None
        assert said is not None

        def measure() -> float:
            given.write("go\n")
            given.flush()
            return float(said.readline())

        yield measure, said.readline().strip()


def measured(options: Options, folder: Path) -> dict[str, Any]:
    """Every number, as JSON values."""
    config = config_of(options, folder)
    splits = config.data.load(config.labels, config.seed)
    cut_shards(splits.train, config.tiles, str(folder / "shards"))
    chip = chip_of(jax.devices()[0])
    with ExitStack() as opened:
        measure, work = opened.enter_context(jax_side(config, options.steps))
        sides = {f"JAX {jax.__version__}": measure}
        if options.torch_python:
            measure, name = opened.enter_context(torch_side(options))
            sides[name] = measure
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, measure in sides.items():
                seconds[name].append(measure() / options.steps)
    return {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "device": chip.name if chip else f"{jax.devices()[0].device_kind} (peak measured)",
        "peak_flops_per_second": chip.flops_s(options.dtype) if chip else measured_peak(options.dtype),
        "flops": work,
        "step_s": {name: statistics.median(values) for name, values in seconds.items()},
        "from_shards": profile(config, folder / "profile", steps=options.steps),
    }


def show(result: dict[str, Any]) -> None:
    """The numbers as a table."""
    options, fed = result["options"], result["from_shards"]
    table = Table("U-Net, training step", "ms", "images/s", "utilisation", "waiting for input")
    rates = {}
    for name, seconds in result["step_s"].items():
        rates[name] = options["batch"] / seconds
        used = result["flops"] / seconds / result["peak_flops_per_second"]
        table.add_row(name, f"{1e3 * seconds:.1f}", f"{rates[name]:.1f}", f"{used:.1%}", "")
    table.add_row(
        f"JAX {fed['jax']}, fed from shards",
        f"{1e3 * fed['step_s']['median']:.1f}",
        f"{fed['images_per_second']:.1f}",
        f"{fed['utilisation']:.1%}",
        f"{fed['wait_share']:.1%} (target < 2 %)",
    )
    console = Console()
    console.print(table)
    console.print(
        f"base {options['base']}, {options['batch']} x {options['tile_px']}², {options['dtype']}, "
        f"{result['device']}: {result['flops'] / 1e12:.3g} TFLOP a step"
    )
    if len(rates) == 2:
        ours, theirs = rates.values()
        console.print(f"JAX / PyTorch: {ours / theirs:.2f} (target >= 1.2)")


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark_gpu_") as folder:
        result = measured(options, Path(folder))
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
