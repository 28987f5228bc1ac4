"""Seconds of one step of N trials: one a device through one program, against N steps one after another.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 python scripts/benchmark_trials.py   # on a CPU
    python scripts/benchmark_trials.py --trials 8 --base 64 --dtype bfloat16                # on 8 GPUs

Both take turns, so that other load on the machine falls on both; the ratio is of medians. Devices made of
one CPU share its cores, and one step uses them all: there the ratio says what lock-step costs (target: at
most 1), on devices of their own what it gains (1 / N at best).
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.optimizer import OptimizerSpec, make_optimizer
from sparseshot_jax.training.step import init_state, make_train_step
from sparseshot_jax.training.tasks import TASKS
from sparseshot_jax.training.trials import make_trial_layout
from sparseshot_jax.types import Batch, Hyper, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    trials: int = 2  # and devices
    base: int = 16  # channels of the U-Net at full resolution
    depth: int = 4  # its halvings
    dtype: str = "float32"  # of the model's arithmetic, or bfloat16
    batch: int = 4  # tiles a trial
    tile_px: int = 128  # side of a tile
    rounds: int = 8  # turns
    steps: int = 3  # timed steps a turn


def make_batch(options: Options) -> Batch:
    """Random tiles of which a tenth is annotated."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.tile_px, options.tile_px)
    annotated = jnp.asarray(rng.random(shape) < 0.1, jnp.uint8)
    image = jnp.asarray(rng.integers(0, 256, (*shape, 3)), jnp.uint8)
    return Batch(image=image, ground=annotated, label=annotated, valid=jnp.ones(options.batch, bool))


def make_step(options: Options) -> tuple[Callable[[int], TrainState], Callable[..., Any]]:
    """Seed -> a fresh state; and the pure step."""
    spec, optimizer = UNetSpec(base=options.base, depth=options.depth, dtype=options.dtype), OptimizerSpec()

    def fresh(seed: int) -> tuple[nnx.GraphDef, TrainState]:
        return init_state(spec.build(classes=1, rngs=nnx.Rngs(seed)), make_optimizer(optimizer), ema=False)

    step = make_train_step(
        graphdef=fresh(0)[0],
        objective=TASKS[spec.task].objective(spec, FocalExclusive().terms),
        optimizer=make_optimizer(optimizer),
        augmentation=AugmentSpec(),
    )
    return lambda seed: fresh(seed)[1], step


def main(options: Options) -> None:
    """Measure and print."""
    fresh, step = make_step(options)
    batch = make_batch(options)
    hyper = Hyper(
        loss={name: jnp.float32(value) for name, value in FocalExclusive().hyper(0.5).items()},
        learning_rate=jnp.float32(1e-3),
        ema_decay=jnp.float32(0.0),
        seed=jnp.uint32(0),
    )
    layout = make_trial_layout(jax.devices()[: options.trials])
    together, alone = layout.program(step), jax.jit(step, donate_argnums=0)
    stacked = layout.stacked(fresh(seed) for seed in range(options.trials))
    batches = layout.joined([jax.device_put(batch, device) for device in layout.devices])
    hypers = jax.tree.map(lambda number: np.stack([number] * options.trials), hyper)
    states, placed = [fresh(seed) for seed in range(options.trials)], jax.device_put(batch)

    def run_together() -> None:
        nonlocal stacked
        stacked, measures = together(stacked, batches, hypers)
        jax.block_until_ready(measures)

    def run_alone() -> None:
        for trial, state in enumerate(states):
            states[trial], measures = alone(state, placed, hyper)
            jax.block_until_ready(measures)

    seconds: dict[str, list[float]] = {"together": [], "one after another": []}
    for turn in range(options.rounds + 1):
        for name, run in (("together", run_together), ("one after another", run_alone)):
            for _ in range(options.steps):
                begin = time.perf_counter()
                run()
                if turn:  # the first compiles
                    seconds[name].append(time.perf_counter() - begin)
    for name, times in seconds.items():
        print(f"{options.trials} trials {name}: {statistics.median(times):.3f} s a step of all")
    ratio = statistics.median(seconds["together"]) / statistics.median(seconds["one after another"])
    print(f"ratio {ratio:.2f} on {layout.devices[0].device_kind} x {len(layout.devices)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
