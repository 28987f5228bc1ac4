"""What a sweep costs beside the steps it is made of: table 2's grid from one compilation.

    python scripts/benchmark_sweep.py --root $DATA/tnbc --steps 200

Trains 4 schedules (fixed 0.75, fixed 0.5, linear, sigmoid) x 2 shares of the labels (0.3, 0.6) x 3 seeds of a
small U-Net (table 2 itself is of a detector; scripts/reproduce_tables.py counts its compilations, too), and
prints how many training steps were compiled: it must be one for each layout of devices. After every group of
trials the same program is timed bare: on batches that lie on the devices, without data, log or checkpoint,
for as many steps as the group had; so other load of the machine falls on both.

The overhead is (seconds of the sweep without compiling) / (seconds of the same number of bare steps) - 1:
reading the data, cutting tiles, placing batches, log rows and checkpoints. There is no validation part, so
nothing is scored. Target: below 5 %. A trial's fixed costs (opening its folder, its first tiles, its last
checkpoint) are spread over its steps: more --steps, less overhead. On a CPU tiles are cut by the cores that
train, too: where the step is small, that shows.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import tyro

from sparseshot_jax import ablate, programs, sweep
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training import sharding
from sparseshot_jax.training.sharding import MeshSpec
from sparseshot_jax.training.trials import make_trial_layout
from sparseshot_jax.types import Batch, TrainState

SCHEDULES = (
    {"schedule": "fixed", "rho": "0.75"},
    {"schedule": "fixed", "rho": "0.5"},
    {"schedule": "linear"},
    {"schedule": "sigmoid"},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to train."""

    root: Path  # of TNBC: images/ and instances/, files named PATIENT_IMAGE
    steps: int = 200  # of a trial
    train: tuple[str, ...] = ("0[1-6]_*",)  # patterns of the training images
    shares: tuple[float, ...] = (0.3, 0.6)  # of the labels
    seeds: tuple[int, ...] = (0, 1, 2)
    base: int = 8  # channels of the U-Net at full resolution
    depth: int = 4  # its halvings
    tile_px: int = 128  # side of a tile
    batch: int = 4  # tiles a step of a trial
    together: int = 1  # trials at once, a device each; 0: all devices
    out: Path | None = None  # folder of the trials; where it is not given they are thrown away


def config_of(options: Options) -> ExperimentConfig:
    """The small config that all trials share."""
    return ExperimentConfig(
        name="benchmark_sweep",
        data=FolderSource(root=str(options.root), train=options.train, mpp=0.25),
        tiles=TileSpec(tile_px=options.tile_px, mpp=0.25, annotated_share=0.0, min_tissue=0.0),
        model=UNetSpec(base=options.base, depth=options.depth),
        loss=FocalExclusive(),
        train=TrainSpec(
            steps=options.steps,
            batch_size=options.batch,
            validate_every=options.steps,
            mesh=MeshSpec(data=1),
        ),
        predict=PredictSpec(core_px=options.tile_px),
    )


def table_2(options: Options) -> list[ablate.Trial]:
    """Its grid."""
    return [
        ablate.Trial(
            values={f"loss.{name}": value for name, value in schedule.items()} | {"data.keep": str(share)},
            seed=seed,
        )
        for schedule in SCHEDULES
        for share in options.shares
        for seed in options.seeds
    ]


class Bare:
    """The program of the sweep on batches that are placed already."""

    def __init__(self, config: ExperimentConfig, group: sweep.Group):
        """`group`: any of the sweep; all have the same form and devices."""
        self._config, shape = config, programs.form_of(config)
        hyper = programs.hyper_schedule(config)(0)
        if not group.devices:
            layout = sweep.layout_of(config)
            self._step, self._hyper = programs.train_program(shape, layout), hyper
            self._fresh = lambda: layout.place_state(programs.fresh_state(config))
            self._batch = layout.place(_random_batch(config))
            return
        trials = make_trial_layout(group.devices)
        layouts = [sharding.make_layout(devices=[device]) for device in group.devices]
        self._step = programs.trials_program(shape, trials)
        self._fresh = lambda: trials.stacked(one.place_state(programs.fresh_state(config)) for one in layouts)
        self._batch = trials.joined([one.place(_random_batch(config)) for one in layouts])
        self._hyper = jax.tree.map(lambda number: np.stack([number] * len(layouts)), hyper)

    def compile(self) -> float:
        """Seconds until the first step is done; later ones find it compiled, in the sweep too."""
        state, begin = self._fresh(), time.perf_counter()
        jax.block_until_ready(self._step(state, self._batch, self._hyper)[1])
        return time.perf_counter() - begin

    def seconds(self, steps: int) -> float:
        """Of so many steps; the numbers of all are fetched at the end."""
        state: TrainState = self._fresh()
        jax.block_until_ready(state)
        begin, measures = time.perf_counter(), []
        for _ in range(steps):
            state, found = self._step(state, self._batch, self._hyper)
            measures.append(found)
        jax.device_get(measures)
        return time.perf_counter() - begin


def _random_batch(config: ExperimentConfig) -> Batch:
    """Tiles of noise of which a tenth is annotated: what a step costs does not depend on them."""
    rng = np.random.default_rng(0)
    shape = (config.train.batch_size, config.tiles.tile_px, config.tiles.tile_px)
    annotated = (rng.random(shape) < 0.1).astype(np.uint8)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    return Batch(image=image, ground=annotated, label=annotated, valid=np.ones(shape[0], bool))  # pyright: ignore


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Run the sweep, and the bare steps between its groups."""
    config, trials = config_of(options), table_2(options)
    groups = sweep.grouped(config, trials, sweep.trial_devices(config, options.together))
    bare = Bare(config, groups[0])
    before = programs.compilations()
    compiling, alone, shared = bare.compile(), [], []

    def timed(rest: Sequence[ablate.Trial]) -> Iterator[tuple[Sequence[ablate.Trial], Sequence[Any]]]:
        for group in sweep.left_of(groups, rest):
            begin = time.perf_counter()
            rows = list(sweep.run_group(config, group, folder))
            shared.append(time.perf_counter() - begin)
            rounds = options.steps * (1 if group.devices else len(group.trials))
            alone.append(bare.seconds(rounds))
            yield group.trials, rows

    rows = ablate.run_trials(trials, timed, folder / "results.jsonl")
    return {
        "trials": len(trials),
        "steps": options.steps,
        "failed": sum("error" in row for row in rows),
        "compilations": programs.compilations() - before,
        "expected": sweep.programs_expected(config, groups),
        "device": f"{len(groups[0].devices) or 1} x {jax.devices()[0].device_kind}",
        "compiling_s": compiling,
        "sweep_s": sum(shared),
        "bare_s": sum(alone),
        "overhead": sum(shared) / sum(alone) - 1.0,
        # The middle one: a burst of other load falls on one side of one group.
        "median_overhead": float(np.median(np.array(shared) / np.array(alone))) - 1.0,
    }


def main(options: Options) -> None:
    """Measure and print."""
    with TemporaryDirectory() as scratch:
        found = measure(options, options.out or Path(scratch))
    print(
        f"{found['trials']} trials of {found['steps']} steps on {found['device']}: "
        f"{found['compilations']} training step(s) compiled, {found['expected']} expected, in "
        f"{found['compiling_s']:.1f} s"
    )
    print(
        f"sweep without compiling, nothing scored: {found['sweep_s']:.1f} s; the same steps bare: "
        f"{found['bare_s']:.1f} s; overhead {found['overhead']:.1%} (target below 5 %), median of the groups "
        f"{found['median_overhead']:.1%}"
    )
    print(json.dumps(found))
    if found["compilations"] != found["expected"]:
        raise SystemExit("more was compiled than one step for each form and set of devices")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
