"""What a person sees in the terminal: progress of long work, notes, warnings."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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


class SweepProgress:
    """One bar for all trials of a sweep, in steps; lines above it for what is worth one."""

    def __init__(self, progress: Progress, title: str, steps: Mapping[str, int]):
        self._progress, self._steps = progress, steps
        self._reached = dict.fromkeys(steps, 0)
        self._finished: set[str] = set()
        self._task = progress.add_task(escape(title), total=sum(steps.values()), status="")
        self._draw()

    def reporter_of(self, name: str) -> Reporter:
        """Whom the trial of that name tells."""

        def reach(step: int) -> None:
            self._reached[name] = step
            self._draw()

        return Reporter(
            on_start=lambda step, total: reach(step),
            on_log=lambda step, row: reach(step),
            warn=lambda message: self._line(f"[yellow]warning: {escape(f'{name}: {message}')}[/yellow]"),
        )

    def done(self, name: str, row: Mapping[str, Any]) -> None:
        """A trial is finished, or failed, and this is its row."""
        self._finished.add(name)
        self._reached[name] = self._steps[name]
        if "error" in row:
            self._line(f"[yellow]{escape(name)}: {escape(row['error'])}[/yellow]")
        else:
            self._line(escape(f"{name}: {row.get('dice_pooled', row.get('f1_distance', row))}"))
        self._draw()

    def _draw(self) -> None:
        status = f"steps, {len(self._finished)}/{len(self._steps)} trials"
        self._progress.update(self._task, completed=sum(self._reached.values()), status=status)

    def _line(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)


@contextlib.contextmanager
def sweep_progress(title: str, steps: Mapping[str, int]) -> Iterator[SweepProgress]:
    """A bar for a sweep whose trials, by name, have so many steps."""
    with _progress() as progress:
        yield SweepProgress(progress, title, steps)


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
