"""The verbs: train a config, run a trial of a sweep, report. Here specs become objects."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from sparseshot_jax import metrics, pictures
from sparseshot_jax.ablate import Trial
from sparseshot_jax.config import (
    ExperimentConfig,
    changed_mathematics,
    load_config,
    override,
    to_json,
)
from sparseshot_jax.data.cases import Source, Splits
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.pipeline import train_batches
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate import measure_sparse, pixel_counts
from sparseshot_jax.programs import compilations, form_of, fresh_state, hyper_schedule, programs
from sparseshot_jax.report import write_report
from sparseshot_jax.run import Run, has_checkpoint, load, run_of, write_json
from sparseshot_jax.training import loop, sharding
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.log import JsonlLog
from sparseshot_jax.training.tensorboard import TensorBoard

__all__ = ["Reporter", "Run", "compilations", "load", "run_trial", "train", "validate"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reporter:
    """Whom a run tells; every field may be left out."""

    on_start: Callable[[int, int], None] = lambda step, total: None  # resumed at, total steps
    on_log: Callable[[int, Mapping[str, float]], None] = lambda step, row: None
    on_case: Callable[[str], None] = lambda name: None
    note: Callable[[str], None] = lambda message: None
    warn: Callable[[str], None] = lambda message: None


def train(
    config: ExperimentConfig,
    folder: str | Path | None = None,
    *,
    extend: bool = False,
    splits: Splits | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Train, or go on with, the run in `folder` (runs/NAME where it is None).

    Args:
        config: everything that decides the result.
        folder: made where it does not exist. One that holds a run of the same config resumes it.
        extend: let a run of fewer steps go on to `config.train.steps`. Schedules of the threshold and
            of the learning rate are then stretched to the new length, from where the run stands.
        splits: the data, where it was read already.
        reporter: whom to tell.

    Raises:
        InputError: bad data, a folder of another config, a folder that cannot be written.
        loop.Interrupted: a signal came; the state is saved.
    """
    folder, reporter = Path(folder or Path("runs") / config.name), reporter or Reporter()
    mesh = sharding.make_mesh(config.train.devices)
    sharding.check_batch_size(config.train.batch_size, mesh, config.train.micro_batches)
    check_folder(folder, config, extend=extend)
    if splits is None:
        splits = read_splits(config)
    for note in splits.notes:
        reporter.note(note)

    state = jax.device_put(fresh_state(config), sharding.replicated(mesh))
    batches = train_batches(
        splits.train,
        config.tiles,
        batch_size=config.train.batch_size // jax.process_count(),
        seed=config.seed,
        workers=config.train.workers,
        threads=config.train.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if extend and (longer := extension(folder, config)):
        reporter.note(longer)
    record_config(folder, config)  # not before the data were found to be good
    with Checkpoints(folder / "checkpoints", config=to_json(config)) as checkpoints:
        if checkpoints.latest_step is not None:
            state, position = checkpoints.restore(state)
            batches.set_state(position)
        start = int(state.step)
        reporter.on_start(start, config.train.steps)
        board = TensorBoard(folder / "tensorboard", resume_step=start) if config.train.tensorboard else None
        log = JsonlLog(folder / "log.jsonl", resume_step=start, mirror=board)
        try:
            state = loop.fit(
                state,
                step=programs(form_of(config)).train_step,
                batches=batches,
                place=lambda batch: sharding.place_batch(batch, mesh),
                hyper_at=hyper_schedule(config),
                validate=lambda state: validate(run_of(folder, config, state), splits),
                checkpoints=checkpoints,
                log=log,
                cadence=loop.Cadence(
                    total=config.train.steps,
                    log=config.train.log_every,
                    validate=config.train.validate_every,
                    checkpoint=config.train.checkpoint_every,
                ),
                on_log=reporter.on_log,
                warn=reporter.warn,
            )
        finally:
            log.close()
            batches.close()
    return run_of(folder, config, state)


def validate(run: Run, splits: Splits) -> dict[str, Any]:
    """One validation row: Dice on dense images, or recall beside area on held-out objects."""
    dense = [case for case in splits.validation if case.held_out is None]
    sparse = [case for case in splits.validation if case.held_out is not None]
    row: dict[str, Any] = {}
    if dense:
        counts = pixel_counts(run.probability_map, dense, mpp=run.config.tiles.mpp)
        best = metrics.best_threshold(counts)
        pooled = counts.sum(0)
        row |= {
            "dice_pooled": float(metrics.dice(pooled, 0.5)),
            "dice_image": float(metrics.dice(counts, 0.5).mean()),
            "best_threshold": best,
            "dice_pooled_best": float(metrics.dice(pooled, best)),
        }
    if sparse:
        row |= measure_sparse(
            run.probability, sparse, tiles=run.config.tiles, multiple=run.config.model.multiple
        )
    return row


def check_folder(folder: Path, config: ExperimentConfig, *, extend: bool) -> None:
    """Refuse a folder that holds another run.

    Raises:
        InputError: names every field that would change the mathematics.
    """
    record = folder / "config.json"
    held = {child.name for child in folder.iterdir()} if folder.is_dir() else set()
    if held <= {"config.json", "log.jsonl", "checkpoints"} and not has_checkpoint(folder):
        return  # new, or nothing came of the config there
    if record.is_file():
        changes = changed_mathematics(load_config(record), config)
        if extend and load_config(record).train.steps < config.train.steps:
            changes = [change for change in changes if not change.startswith("train.steps:")]
        if changes:
            hint = (
                " To train for longer, add --extend."
                if any(change.startswith("train.steps:") for change in changes)
                else ""
            )
            raise InputError(
                f"{folder} holds a run of another config: {'; '.join(changes)}. Give these their old "
                f"values to go on with it, or name another folder.{hint}"
            )
    else:
        raise InputError(
            f"{folder} exists, is not empty, and holds no run (no config.json). Name another folder."
        )


def extension(folder: Path, config: ExperimentConfig) -> str | None:
    """What more steps do to the schedules of the run in `folder`; None where there are no more."""
    record = folder / "config.json"
    steps = load_config(record).train.steps if record.is_file() else config.train.steps
    if steps >= config.train.steps:
        return None
    return (
        f"extended from {steps} to {config.train.steps} steps: the schedules of the threshold and of the "
        "learning rate are stretched to the new length, so both step back from where they stood."
    )


def record_config(folder: Path, config: ExperimentConfig) -> None:
    """Make the folder and write its config.json.

    Raises:
        InputError: why it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", to_json(config))
    except OSError as error:
        raise InputError(
            f"cannot write to the run folder {folder}: {error}. Choose a writable one, or free some space."
        ) from error


def run_trial(config: ExperimentConfig, trial: Trial, folder: Path) -> dict[str, float]:
    """Train and score one trial of a sweep in `folder`/NAME; trials of one form share a compilation.

    Returns:
        The last validation row, or the scores at the fixed and the oracle threshold where there is a
        test part alone.
    """
    for field, value in trial.values.items():
        config = override(config, field, value)
    config = dataclasses.replace(config, seed=trial.seed, name=trial.name)
    splits = read_splits(config)
    run = train(config, folder / trial.name, splits=splits)
    if splits.validation:
        row = [row for row in run.rows() if row["event"] == "validation"][-1]
        return {key: value for key, value in row.items() if key not in ("event", "step")}
    if not splits.test:
        return {"loss": run.rows()[-1]["loss"]}
    points = run.evaluate(splits)["operating_points"]
    return {f"dice_pooled_{name}": point["dice_pooled"]["mean"] for name, point in points.items()}


@functools.lru_cache(maxsize=4)
def _splits(data: Source, labels: LabelSpec, seed: int) -> Splits:
    return data.load(labels, seed)


def read_splits(config: ExperimentConfig) -> Splits:
    """The config's data; trials that share it read it once."""
    return _splits(config.data, config.labels, config.seed)


def report(run: Run) -> Path:
    """Write RUN/report.html: curves, results, pictures, config, versions."""
    splits = read_splits(run.config)
    evaluation = run.evaluation_of(splits)
    held_out = evaluation.get("held_out")
    notes = list(splits.notes)
    if "operating_points" not in evaluation and held_out:
        notes = [
            pictures.NO_DENSE_TRUTH,
            f"Recall on {held_out['held_out']} held-out objects: {held_out['recall']:.3f}, with "
            f"{held_out['predicted_area']:.1%} of the tissue above p = {held_out['threshold']}.",
            *notes,
        ]
    write_report(
        run.folder / "report.html",
        title=run.config.name,
        config=to_json(run.config),
        rows=run.rows(),
        evaluation=evaluation if "operating_points" in evaluation else None,  # pyright: ignore
        panels=pictures.panels({"prediction": run}, splits),
        notes=notes,
        versions=pictures.versions(),
    )
    return run.folder / "report.html"
