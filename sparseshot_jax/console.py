"""What a person sees in the terminal: progress of long work, notes, warnings."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from sparseshot_jax.experiment import Reporter

CONSOLE = Console(highlight=False)
ERRORS = Console(highlight=False, stderr=True)


def say(text: object) -> None:
    """Print a line as it is: brackets in it are no markup, and a long path is not broken in two."""
    CONSOLE.print(text, markup=False, soft_wrap=True)


@contextlib.contextmanager
def training_progress(title: str) -> Iterator[Reporter]:
    """A reporter that draws one line for a training run: step, loss, keep rate, speed, time left."""
    with _progress() as progress:
        task = progress.add_task(escape(title), total=None, status="")

        def on_log(step: int, row: Mapping[str, float]) -> None:
            status = (
                f"loss {row['loss']:.4f}  kept {row['keep_rate']:.0%}  {row['images_per_second']:.0f} tiles/s"
            )
            progress.update(task, completed=step, status=status)

        def on_start(step: int, total: int) -> None:
            if 0 < step < total:
                progress.console.print(f"{escape(title)}: goes on from step {step}")
            status = "finished before" if step >= total else "compiling"
            progress.update(task, completed=step, total=total, status=status)

        yield Reporter(
            on_start=on_start,
            on_log=on_log,
            note=lambda message: progress.console.print(f"[dim]note: {escape(message)}[/dim]"),
            warn=lambda message: progress.console.print(f"[yellow]warning: {escape(message)}[/yellow]"),
        )


@dataclasses.dataclass(kw_only=True)
class _Trial:
    """What is known of a trial while its sweep runs."""

    total: int  # steps
    state: str = "waiting"
    step: int = 0
    loss: float | None = None
    best: float | None = None  # of the validation measure, higher is better
    score: float | None = None  # of the finished trial


class SweepProgress:
    """The trials of a sweep in a table that is drawn again as they go on; lines above it for warnings.

    Where the output is no terminal each trial is a line when it is finished.
    """

    def __init__(self, title: str, steps: Mapping[str, int], *, expected: int = 0):
        """`expected`: steps of all trials, where not all are known from the start."""
        self._title, self._expected = title, expected
        self._trials = {name: _Trial(total=total) for name, total in steps.items()}
        self._begin, self._before = time.monotonic(), 0
        self._lock = threading.Lock()

    def add(self, steps: Mapping[str, int]) -> None:
        """Trials that were decided on after the start."""
        with self._lock:
            self._trials |= {name: _Trial(total=n) for name, n in steps.items() if name not in self._trials}

    def reporter_of(self, name: str) -> Reporter:
        """Whom the trial of that name tells."""
        trial = self._trials[name]

        def on_start(step: int, total: int) -> None:
            trial.state, trial.step, trial.total = "compiling", step, total
            self._before += step  # these steps cost no time today

        def on_log(step: int, row: Mapping[str, Any]) -> None:
            trial.step, trial.loss = step, row.get("loss")
            trial.state = "scoring" if step >= trial.total else "training"

        def on_validation(step: int, row: Mapping[str, Any]) -> None:
            found = measure_of(row)
            if found is not None:
                trial.best = found if trial.best is None else max(trial.best, found)

        return Reporter(
            on_start=on_start,
            on_log=on_log,
            on_validation=on_validation,
            warn=lambda message: self._line(f"[yellow]warning: {escape(f'{name}: {message}')}[/yellow]"),
        )

    def done(self, name: str, row: Mapping[str, Any]) -> None:
        """A trial is finished, or failed, and this is its row."""
        trial = self._trials[name]
        if trial.state == "waiting":  # finished before this call
            self._before += trial.total
        trial.state, trial.step = "failed" if "error" in row else "done", trial.total
        trial.score = measure_of(row)
        if "error" in row:
            self._line(f"[yellow]{escape(name)}: {escape(row['error'])}[/yellow]")
        elif not CONSOLE.is_terminal:
            score = row if trial.score is None else f"{trial.score:.4f}"
            self._line(escape(f"{name}: {score}  ({self.summary()})"))

    def summary(self) -> str:
        """How far all of it is, and how long the rest takes at the speed so far."""
        trials = list(self._trials.values())
        done = sum(trial.step for trial in trials)
        total = max(sum(trial.total for trial in trials), self._expected)
        over = sum(trial.state in ("done", "failed") for trial in trials)
        fresh, seconds = done - self._before, time.monotonic() - self._begin
        left = "" if fresh <= 0 or done >= total else f", {_clock(seconds / fresh * (total - done))} left"
        return f"{over}/{len(trials)} trials, {done}/{total} steps, {_clock(seconds)} so far{left}"

    def __rich__(self) -> Table:
        """The table: trials at work first, then the finished ones, the best first."""
        table = Table(title=escape(f"{self._title}: {self.summary()}"), title_justify="left")
        table.add_column("trial", overflow="fold")
        for name in ("state", "step", "loss", "best so far"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        with self._lock:
            ordered = sorted(self._trials.items(), key=_rank)
        room = max(4, CONSOLE.height - 8)
        for name, trial in ordered[:room]:
            best = trial.score if trial.score is not None else trial.best
            table.add_row(
                escape(name),
                trial.state,
                f"{trial.step}/{trial.total}",
                "" if trial.loss is None else f"{trial.loss:.4f}",
                "" if best is None else f"{best:.4f}",
            )
        if len(ordered) > room:
            table.caption = f"and {len(ordered) - room} more"
        return table

    def _line(self, text: str) -> None:
        CONSOLE.print(text, soft_wrap=True)


def measure_of(row: Mapping[str, Any]) -> float | None:
    """The number of a validation row by which trials are compared at a glance."""
    names = ("dice_pooled", "f1_distance", "lee_liu", "recall")
    return next((row[name] for name in names if isinstance(row.get(name), int | float)), None)


def _rank(item: tuple[str, _Trial]) -> tuple[int, float]:
    _, trial = item
    order = {"compiling": 0, "training": 0, "scoring": 0, "done": 1, "failed": 2, "waiting": 3}
    return order[trial.state], -(trial.score or 0.0)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@contextlib.contextmanager
def sweep_progress(title: str, steps: Mapping[str, int], *, expected: int = 0) -> Iterator[SweepProgress]:
    """The table of a sweep whose trials, by name, have so many steps; see `SweepProgress`."""
    progress = SweepProgress(title, steps, expected=expected)
    if not CONSOLE.is_terminal or CONSOLE.quiet:
        yield progress
        return
    with Live(progress, console=CONSOLE, refresh_per_second=2):
        yield progress


@contextlib.contextmanager
def tile_progress(title: str) -> Iterator[Callable[[int, int, int], None]]:
    """A callback (tiles done, tiles in all, objects) that draws a bar with the time left."""
    with _progress() as progress:
        task = progress.add_task(escape(title), total=None, status="")

        def on_progress(done: int, total: int, objects: int) -> None:
            progress.update(task, completed=done, total=total, status=f"{objects} objects")

        yield on_progress


@contextlib.contextmanager
def shard_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (shards done, shards in all) that draws a bar with the time left."""
    with _progress() as progress:
        task = progress.add_task(escape(title), total=None, status="shards")
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=CONSOLE,
    )
