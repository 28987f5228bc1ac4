"""Where the time of a training step goes: the training of a config itself, timed, counted and traced.

    result = profile(config, Path("profile"), steps=20)

Real data through the real pipeline, the program that `train` runs, on the same devices. Nothing of it is
kept but what is measured.
"""

import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from sparseshot_jax import experiment
from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.errors import InputError
from sparseshot_jax.flops import flops
from sparseshot_jax.hardware import chip_of, measured_peak
from sparseshot_jax.operations import operations_of, read_trace
from sparseshot_jax.programs import form_of, train_program
from sparseshot_jax.training import processes
from sparseshot_jax.training.recorder import Recorder
from sparseshot_jax.types import TrainState

WARM_UP = 3  # steps before any is timed: the first ones find caches cold and the reading threads behind
TRACED = 3  # steps in the trace; each makes some megabytes of it


def profile(
    config: ExperimentConfig, out: Path, *, steps: int = 20, reporter: experiment.Reporter | None = None
) -> dict[str, Any]:
    """Measure `steps` training steps of a config and write a trace of a few more to `out`/trace.

    Of many processes the lead alone traces.

    Returns:
        JSON values; `report.step_profile` shows them. Times in seconds, memory in bytes, shares in [0, 1].
        Without operations in all processes but the lead.

    Raises:
        InputError: fewer than 2 steps, `out` cannot be written, or as `experiment.train`.
    """
    if steps < 2:
        raise InputError(f"steps must be at least 2, for a median; got {steps}. Try 20.")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, tensorboard=False))
    layout = experiment.layout_of(config)
    reporter = reporter or experiment.Reporter()
    with (
        _scratch(out) as folder,
        experiment.opened(config, folder / "run", layout, reporter=reporter) as (state, run),
    ):
        training = _Training(train_program(form_of(config), layout), state, run)
        compiled = training.compile()
        for _ in range(WARM_UP):
            training.step()
        done_s, wait_s = training.timed(steps)
        training.traced(out / "trace")
    events = read_trace(out / "trace") if processes.is_lead() else []
    batch = training.batch
    count = layout.mesh.size
    return {
        "name": config.name,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": count,
        "mesh": dict(layout.mesh.shape),
        "dtype": _dtype(config),
        "images": len(batch.valid),
        "tile_px": config.tiles.tile_px,
        "start": training.start_s,
        "steps": steps,
        **_speed(done_s, wait_s, images=len(batch.valid), pixels=batch.ground.size),
        **_work(training, compiled, steps / done_s[-1], count, _dtype(config)),
        "memory": _memory(compiled),
        "operations": operations_of(events, compiled.as_text()),
        "trace": str(out / "trace"),
    }


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[epath.Path]:
    """A folder inside `out` that all processes of a job see, gone afterwards."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=".run_", dir=out) if processes.is_lead() else ""
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error}. Choose another folder with --out.") from error
    folder = processes.gather(made)[0]
    try:
        yield epath.Path(folder)
    finally:
        if processes.is_lead():
            shutil.rmtree(folder, ignore_errors=True)


class _Training:
    """The loop of training without what it writes: batch, step, and the clock."""

    def __init__(self, program: Any, state: TrainState, run: Recorder):
        self._program, self._state, self._run = program, state, run
        began = time.perf_counter()
        self.batch, self._hyper = run.inputs()
        self.start_s = {"first_batch": time.perf_counter() - began}
        self._wait_s = 0.0

    def compile(self) -> Any:
        """The compiled program; calling the jitted one finds it compiled."""
        began = time.perf_counter()
        lowered = self._program.lower(self._state, self.batch, self._hyper)
        traced = time.perf_counter()
        compiled = lowered.compile()
        self.start_s |= {"tracing": traced - began, "compiling": time.perf_counter() - traced}
        return compiled

    def equations_flops(self) -> int:
        """Those that the mathematics of a step asks for, over all devices."""
        return flops(self._program, self._state, self.batch, self._hyper)

    def step(self) -> Any:
        """One step, which may run on after this returns; its measures."""
        began = time.perf_counter()
        batch, hyper = self._run.inputs()
        self._wait_s += time.perf_counter() - began
        self._state, measures = self._program(self._state, batch, hyper)
        return measures

    def timed(self, steps: int) -> tuple[np.ndarray, float]:
        """Seconds after which each step was done, and seconds that all of them waited for input.

        As in training the host is one step ahead of the devices.
        """
        self._wait_s = 0.0
        jax.block_until_ready(self._state)
        done, pending = [], None
        began = time.perf_counter()
        for _ in range(steps):
            measures = self.step()
            if pending is not None:
                jax.block_until_ready(pending)
                done.append(time.perf_counter() - began)
            pending = measures
        jax.block_until_ready(self._state)
        done.append(time.perf_counter() - began)
        return np.array(done), self._wait_s

    def traced(self, folder: Path) -> None:
        """Run `TRACED` steps; the lead writes a trace of them."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every Python call: it would slow the step and fill the trace
        # The file has the machine's name: two processes of one machine would write the same.
        lead = processes.is_lead()
        tracing = (
            jax.profiler.trace(str(folder), profiler_options=options) if lead else contextlib.nullcontext()
        )
        with tracing:
            for number in range(TRACED):
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    jax.block_until_ready(self.step())


def _speed(done_s: np.ndarray, wait_s: float, *, images: int, pixels: int) -> dict[str, Any]:
    each = np.diff(done_s, prepend=0.0)
    low, median, high = np.quantile(each, (0.1, 0.5, 0.9))
    rate = len(done_s) / done_s[-1]
    return {
        "step_s": {"median": float(median), "p10": float(low), "p90": float(high)},
        "images_per_second": float(images * rate),
        "megapixels_per_second": float(pixels * rate / 1e6),
        "wait_share": min(wait_s / float(done_s[-1]), 1.0),
    }


def _work(training: _Training, compiled: Any, rate: float, devices: int, dtype: str) -> dict[str, Any]:
    """Operations of a step, and what share of the devices' peak they make at `rate` steps a second."""
    chip = chip_of(jax.devices()[0])
    if chip:
        peak, source = devices * chip.flops_s(dtype), f"{devices} x {chip.name}, stated: {chip.source}"
    else:  # the devices of a CPU share its cores
        peak, source = jax.process_count() * measured_peak(dtype), f"measured: a matrix product in {dtype}"
    cost = compiled.cost_analysis() or {}
    asked = training.equations_flops()
    return {
        "flops": {"asked": asked, "compiled": float(cost.get("flops", 0.0)) * devices},
        "flops_per_second": asked * rate,
        "peak": {"flops_per_second": peak, "source": source},
        "utilisation": asked * rate / peak,
    }


def _memory(compiled: Any) -> dict[str, Any]:
    """Bytes on the fullest device: its high-water mark where the back end keeps one, else the compiler's."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    plan = compiled.memory_analysis()
    parts = {
        "arguments": plan.argument_size_in_bytes,
        "temporaries": plan.temp_size_in_bytes,
        "results": plan.output_size_in_bytes - plan.alias_size_in_bytes,  # the state is overwritten
    }
    return {
        "bytes": max(peaks, default=sum(parts.values())),
        "source": "peak in use" if peaks else "compiler's plan of the step",
        "limit": max((one.get("bytes_limit", 0) for one in stats), default=0),
        "plan": parts,
    }


def _dtype(config: ExperimentConfig) -> str:
    return str(getattr(config.model, "dtype", "float32"))
