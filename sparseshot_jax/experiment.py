"""The verbs: train a config, run a trial of a sweep, report. Here specs become objects."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64

from sparseshot_jax import metrics, pictures
from sparseshot_jax.ablate import Trial
from sparseshot_jax.config import ExperimentConfig, override, to_json
from sparseshot_jax.data.cases import Case, Source, Splits, scale_at
from sparseshot_jax.data.cut_tiles import CutTiles
from sparseshot_jax.data.labels import LabelSpec, wanted
from sparseshot_jax.data.pipeline import train_batches
from sparseshot_jax.data.shards.reader import ShardTiles
from sparseshot_jax.data.tile_objects import object_boxes_px
from sparseshot_jax.data.tiles import tile_index
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate import by_truth, pixel_counts
from sparseshot_jax.programs import compilations, form_of, fresh_state, hyper_schedule, train_program
from sparseshot_jax.report import write_report
from sparseshot_jax.run import Run, load, run_of, write_json
from sparseshot_jax.run_folder import check_data, check_folder, data_record, extension, record_config
from sparseshot_jax.training import loop, sharding
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.log import JsonlLog
from sparseshot_jax.training.prefetch import Prefetch
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
    layout = sharding.make_layout(config.train.mesh)
    sharding.check_batch_size(config.train.batch_size, layout, config.train.micro_batches)
    sharding.check_height(config.tiles.tile_px, layout, config.model.multiple)
    check_folder(folder, config, extend=extend)
    if jax.process_count() > 1:
        raise InputError(
            "training runs in one process, over all of its devices; this job has "
            f"{jax.process_count()} processes. Start one."
        )
    if splits is None:
        splits = config.data.load(config.labels, config.seed)
    tiles = training_tiles(config, splits)
    data = data_record(splits, tiles)
    check_data(folder, data)
    for note in splits.notes:
        reporter.note(note)

    sizes = object_sizes_px(splits.train, config) if config.model.needs.objects else None
    state = layout.place_state(fresh_state(config, sizes))
    share, shares = layout.share
    batches = train_batches(
        tiles,
        batch_size=config.train.batch_size // shares,
        seed=config.seed,
        workers=config.train.workers,
        threads=config.train.threads,
        process_index=share,
        process_count=shares,
        max_fault_share=config.train.max_fault_share,
        on_fault=reporter.warn,
    )
    if extend and (longer := extension(folder, config)):
        reporter.note(longer)
    record_config(folder, config)  # not before the data were found to be good
    write_json(folder / "data.json", data)
    with Checkpoints(folder / "checkpoints", config=to_json(config)) as checkpoints:
        if checkpoints.latest_step is not None:
            state, position = checkpoints.restore(state)
            batches.set_state(position)
        start = int(state.step)
        reporter.on_start(start, config.train.steps)
        board = TensorBoard(folder / "tensorboard", resume_step=start) if config.train.tensorboard else None
        log = JsonlLog(folder / "log.jsonl", resume_step=start, mirror=board)
        ahead = Prefetch(batches, layout.place, config.train.prefetch)
        try:
            state = loop.fit(
                state,
                step=train_program(form_of(config), layout),
                batches=ahead,
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
            ahead.close()
            batches.close()
    return run_of(folder, config, state)


def object_sizes_px(cases: Sequence[Case], config: ExperimentConfig) -> Float64[np.ndarray, "n 2"]:
    """Height and width of the annotated objects' boxes, pixels at the model's resolution."""
    sizes = [np.zeros((0, 2))]
    for case in cases:
        objects = case.given.take(wanted(case.given, case.labels))
        boxes = object_boxes_px(objects, case.labels, mpp=case.mpp)
        scale = scale_at(case.slide, case.mpp, config.tiles.mpp)
        sizes.append((boxes[:, 2:] - boxes[:, :2])[:, ::-1] / scale)
    return np.concatenate(sizes)


def training_tiles(config: ExperimentConfig, splits: Splits) -> CutTiles | ShardTiles:
    """Where the training tiles of a config come from: cut from its cases, or read from its shards.

    Raises:
        InputError: no cases, no tissue, a tile larger than its image; shards of other tiles or labels.
    """
    if not config.train.shards:
        if not splits.train:
            raise InputError("training needs at least one case; the training split is empty.")
        index = tile_index(splits.train, config.tiles)
        return CutTiles(splits.train, config.tiles, index, needs=config.model.needs)
    tiles = ShardTiles(
        config.train.shards,
        annotated_share=config.tiles.annotated_share,
        class_balance=config.tiles.class_balance,
        needs=config.model.needs,
    )
    asked, cut = to_json(config), tiles.manifest.config
    names = [("tiles", name) for name in ("tile_px", "mpp")] + [("labels", name) for name in asked["labels"]]
    other = [
        f"{part}.{name} {cut[part][name]} (asked: {asked[part][name]})"
        for part, name in names
        if cut[part][name] != asked[part][name]
    ]
    if other:
        raise InputError(
            f"{config.train.shards}: the shards were cut with {', '.join(other)}. Give these fields the "
            "values of the shards, or cut others (sparseshot data tile)."
        )
    return tiles


def validate(run: Run, splits: Splits) -> dict[str, Any]:
    """One validation row: Dice or F1 on dense images, or what held-out objects support."""
    dense, sparse = by_truth(splits.validation)
    row: dict[str, Any] = {}
    if dense and run.detects:
        row |= _detection_row(run.measure(dense, threshold_carried=None, split="validation", seed=0))
    elif dense:
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
        row |= run.measure_held_out(sparse)
    return row


def _detection_row(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    fixed, best = (evaluation["operating_points"][point] for point in ("fixed", "oracle"))
    return {
        "f1_distance": fixed["f1_distance"]["mean"],
        "f1_iou": fixed["f1_iou"]["mean"],
        "best_threshold": best["threshold"],
        "f1_distance_best": best["f1_distance"]["mean"],
    }


def run_trial(config: ExperimentConfig, trial: Trial, folder: Path) -> dict[str, float]:
    """Train and score one trial of a sweep in `folder`/NAME; trials of one form share a compilation.

    Returns:
        The last validation row, or the scores at the fixed and the oracle threshold where there is a
        test part alone.
    """
    config = trial_config(config, trial)
    splits = _splits(config.data, config.labels, config.seed)
    run = train(config, folder / trial.name, splits=splits)
    if splits.validation:
        row = [row for row in run.rows() if row["event"] == "validation"][-1]
        return {key: value for key, value in row.items() if key not in ("event", "step")}
    if not splits.test:
        return {"loss": run.rows()[-1]["loss"]}
    points = run.evaluate(splits)["operating_points"]
    measure = "f1_distance" if run.detects else "dice_pooled"
    return {f"{measure}_{name}": point[measure]["mean"] for name, point in points.items()}


def trial_config(config: ExperimentConfig, trial: Trial) -> ExperimentConfig:
    """The config of one trial.

    Raises:
        InputError: a field that is not there, or a value that it cannot hold.
    """
    for field, value in trial.values.items():
        config = override(config, field, value)
    return dataclasses.replace(config, seed=trial.seed, name=trial.name)


@functools.lru_cache(maxsize=4)
def _splits(data: Source, labels: LabelSpec, seed: int) -> Splits:
    """The trials of a sweep that share their data read it once."""
    return data.load(labels, seed)


def report(run: Run) -> Path:
    """Write RUN/report.html: curves, results, pictures, config, versions."""
    splits = run.splits()
    evaluation = run.evaluation_of(splits)
    held_out = evaluation.get("held_out")
    notes = list(splits.notes)
    if "operating_points" not in evaluation and held_out:
        notes = [pictures.NO_DENSE_OBJECTS if run.detects else pictures.NO_DENSE_TRUTH, *notes]
    if run.detects and pictures.truth_is_points(splits):
        notes.append(pictures.POINT_TRUTH)
    write_report(
        run.folder / "report.html",
        title=run.config.name,
        config=to_json(run.config),
        rows=run.rows(),
        evaluation=evaluation if "operating_points" in evaluation else None,  # pyright: ignore
        held_out=held_out,
        panels=pictures.panels({"prediction": run}, splits),
        notes=notes,
        versions=pictures.versions(),
    )
    return run.folder / "report.html"
