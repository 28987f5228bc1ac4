"""What this machine and installation can do: one line a question, with a remedy where the answer is no."""

import importlib.util
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.markup import escape

from sparseshot_jax.console import CONSOLE
from sparseshot_jax.errors import InputError


def check() -> bool:
    """Print the answers; False where something that training needs is missing."""
    fine = True
    for name, question in _QUESTIONS.items():
        try:
            CONSOLE.print(f"[green]ok[/green]    {name}: {escape(question())}", soft_wrap=True)
        except Exception as error:  # a doctor reports whatever it meets
            fine = False
            CONSOLE.print(f"[red]fails[/red] {name}: {escape(str(error))}", soft_wrap=True)
    return fine


def _devices() -> str:
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return f"jax {jax.__version__}, {len(kinds)} x {kinds[0]}, {os.cpu_count()} CPU cores"


def _step() -> str:
    import jax
    import jax.numpy as jnp

    from sparseshot_jax.demo import demo_config
    from sparseshot_jax.label_facts import without_data
    from sparseshot_jax.programs import form_of, fresh_state, hyper_schedule, train_program
    from sparseshot_jax.training.sharding import MeshSpec, make_layout
    from sparseshot_jax.types import Batch

    config = without_data(demo_config())
    shape = (2, 64, 64)
    batch = Batch(
        image=jnp.full((*shape, 3), 200, jnp.uint8),
        ground=jnp.zeros(shape, jnp.uint8),
        label=jnp.zeros(shape, jnp.uint8),
        valid=jnp.ones(2, bool),
    )
    began = time.perf_counter()
    layout = make_layout(MeshSpec(data=1))
    step = train_program(form_of(config), layout)
    _, measures = step(fresh_state(config), layout.place(batch), hyper_schedule(config)(0))
    loss = float(jax.device_get(measures.loss))
    if not math.isfinite(loss):
        raise InputError(f"a training step gave the loss {loss}")
    return f"a training step compiles and runs in {time.perf_counter() - began:.0f} s"


def _slides() -> str:
    import fastslide
    import openslide

    from sparseshot_jax.data.synthetic.scene import draw_slide

    with tempfile.TemporaryDirectory() as folder:
        paths = draw_slide(folder, width=256, height=256)
        fastslide.FastSlide.from_file_path(str(paths.slide)).close()
        openslide.OpenSlide(str(paths.slide)).close()
    return "fastslide and OpenSlide open a pyramidal JPEG TIFF"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 2:
        raise InputError(f"only {free:.1f} GiB are free here; a run folder needs up to 2. Free some.")
    return f"{free:.0f} GiB free in {Path.cwd()}"


def _extras() -> str:
    def told(package: str, extra: str) -> str:
        there = importlib.util.find_spec(package) is not None
        return f"{package} is " + ("there" if there else f'not there (pip install "sparseshot-jax[{extra}]")')

    return f"{told('tensorboardX', 'tensorboard')}; {told('optuna', 'search')}"


_QUESTIONS: dict[str, Callable[[], str]] = {
    "devices": _devices,
    "training": _step,
    "slides": _slides,
    "disk": _disk,
    "extras": _extras,
}
