"""The verbs: train a config, report. Here specs become objects."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from sparseshot_jax import metrics, pictures
from sparseshot_jax.config import ExperimentConfig, to_json
from sparseshot_jax.data.cases import Splits
from sparseshot_jax.data.cut_tiles import CutTiles
from sparseshot_jax.data.pipeline import train_batches
from sparseshot_jax.data.shards.reader import ShardTiles
from sparseshot_jax.data.tiles import tile_index
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate import by_truth, pixel_counts
from sparseshot_jax.label_facts import label_facts, object_sizes_px, with_facts
from sparseshot_jax.losses import Cautious, Remembers
from sparseshot_jax.programs import compilations, form_of, fresh_state, hyper_schedule, train_program
from sparseshot_jax.report import write_report
from sparseshot_jax.run import Run, load, run_of
from sparseshot_jax.run_folder import (
    check_data,
    check_folder,
    data_record,
    extension,
    folder_path,
    record_config,
    write_json,
)
from sparseshot_jax.training import loop, processes, sharding
from sparseshot_jax.training.allocator import keep_freed_memory
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.log import JsonlLog
from sparseshot_jax.training.prefetch import Prefetch
from sparseshot_jax.training.recorder import Clock, Log, NoLog, Recorder
from sparseshot_jax.training.tensorboard import TensorBoard
from sparseshot_jax.training.tile_log import LoggedTiles
from sparseshot_jax.types import LabelFacts, TrainState

__all__ = ["Reporter", "Run", "compilations", "load", "train", "validate"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reporter:
    """Whom a run tells; every field may be left out."""

    on_start: Callable[[int, int], None] = lambda step, total: None  # resumed at, total steps
    on_log: Callable[[int, Mapping[str, float]], None] = lambda step, row: None
    on_validation: Callable[[int, Mapping[str, Any]], None] = lambda step, row: None
    on_case: Callable[[str], None] = lambda name: None
    note: Callable[[str], None] = lambda message: None
    warn: Callable[[str], None] = lambda message: None


def train(
    config: ExperimentConfig,
    folder: epath.PathLike | None = None,
    *,
    extend: bool | None = False,
    splits: Splits | None = None,
    facts: LabelFacts | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Train, or go on with, the run in `folder` (runs/NAME where it is None).

    In a job of many processes each calls this with the same arguments, after `training.processes.start`, and
    reads its part of the tiles. One of them writes and tells; all write the checkpoints.

    Args:
        config: everything that decides the result; of `relabel` see `rounds.train`, which trains again.
        folder: a local path, gs:// or s3://; made where it does not exist. One that holds a run of the
            same config resumes it.
        extend: let a run of fewer steps go on to `config.train.steps`. Schedules of the threshold and
            of the learning rate are then stretched to the new length, from where the run stands. None: as
            False, and no error offers it.
        splits: the data, where it was read already.
        facts: of their labels, where the loss's open numbers are to follow from those of other data.
        reporter: whom to tell.

    Raises:
        InputError: bad data, a folder of another config, a folder that cannot be written.
        loop.Interrupted: a signal came; the state is saved.
    """
    folder = folder_path(folder or f"runs/{config.name}")
    reporter = reporter if reporter and processes.is_lead() else Reporter()
    layout = layout_of(config)
    if layout.mesh.size < jax.device_count():
        reporter.note(f"train.mesh uses {layout.mesh.size} of {jax.device_count()} devices.")
    opening = opened(config, folder, layout, extend=extend, splits=splits, facts=facts, reporter=reporter)
    with opening as (state, recorder):
        state = loop.fit(state, recorder, step=train_program(form_of(config), layout))
    return run_of(folder, config, state)


def layout_of(config: ExperimentConfig) -> sharding.Layout:
    """The devices of the job as the config has them.

    Raises:
        InputError: a mesh that they do not make up, or that does not split the batches or tiles evenly.
    """
    layout = sharding.make_layout(config.train.mesh)
    sharding.meet(layout)
    sharding.check_batch_size(config.train.batch_size, layout, config.train.micro_batches)
    sharding.check_height(config.tiles.tile_px, layout, config.model.multiple)
    return layout


@contextlib.contextmanager
def opened(
    config: ExperimentConfig,
    folder: epath.Path,
    layout: sharding.Layout,
    *,
    extend: bool | None = False,
    splits: Splits | None = None,
    facts: LabelFacts | None = None,
    reporter: Reporter,
    clock: Clock | None = None,
) -> Iterator[tuple[TrainState, Recorder]]:
    """The run in `folder`, new or as far as it got: its state, and what feeds and records it.

    `layout` says on which devices: those of a job, or the one of a trial. Trials in lock-step share a
    `clock`.

    Raises:
        InputError: as of `train`.
    """
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    check_folder(folder, config, extend=extend)
    if splits is None:
        splits = config.data.load(config.labels, config.seed)
    tiles = training_tiles(config, splits)
    data = data_record(splits, tiles)
    check_data(folder, data)
    for note in splits.notes:
        reporter.note(note)

    if isinstance(config.loss, Cautious):
        for caution in config.loss.cautions(getattr(config.model, "prior", 1.0)):
            reporter.warn(caution)
    facts = label_facts(config, splits, tiles) if facts is None else facts
    told, record = with_facts(config, facts, note=reporter.note, warn=reporter.warn)
    sizes = object_sizes_px(splits.train, config.tiles.mpp) if config.model.needs.objects else None
    canvas = tiles.canvas_px if isinstance(tiles, CutTiles) else None
    state = layout.place_state(fresh_state(config, sizes, canvas))
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
    with contextlib.ExitStack() as closing:
        closing.callback(batches.close)
        if processes.is_lead():  # and not before the data were found to be good
            record_config(folder, config)
            write_json(folder / "data.json", data)
            if record:
                write_json(folder / "label_facts.json", record)
        processes.barrier("folder")
        checkpoints = closing.enter_context(Checkpoints(folder / "checkpoints", config=to_json(config)))
        if checkpoints.latest_step is not None:
            state, position = checkpoints.restore(state)
            batches.set_state(position)
        start = int(state.step)
        reporter.on_start(start, config.train.steps)
        feed = ahead = Prefetch(batches, layout.place, config.train.prefetch)
        closing.callback(ahead.close)
        if config.train.log_tiles:
            feed = LoggedTiles(ahead, batches.held, folder=folder / "tiles", resume_step=start)
            closing.callback(feed.close)
        recorder = Recorder(
            done=start,
            batches=feed,
            hyper_at=hyper_schedule(told),
            validate=lambda state: _told(validate(run_of(folder, config, state), splits), state, reporter),
            checkpoints=checkpoints,
            log=_log(folder, config, start, closing),
            cadence=loop.Cadence(
                total=config.train.steps,
                log=config.train.log_every,
                validate=config.train.validate_every,
                checkpoint=config.train.checkpoint_every,
            ),
            on_log=reporter.on_log,
            warn=reporter.warn,
            clock=clock,
        )
        yield state, recorder


def _told(row: dict[str, Any], state: TrainState, reporter: Reporter) -> dict[str, Any]:
    reporter.on_validation(int(state.step), row)
    return row


def _log(folder: epath.Path, config: ExperimentConfig, step: int, closing: contextlib.ExitStack) -> Log:
    """The log of the run, which goes on from a step; of many processes one writes it."""
    if not processes.is_lead():
        return NoLog()
    board = TensorBoard(folder / "tensorboard", resume_step=step) if config.train.tensorboard else None
    log = JsonlLog(folder / "log.jsonl", resume_step=step, mirror=board)
    closing.callback(log.close)
    return log


def training_tiles(config: ExperimentConfig, splits: Splits) -> CutTiles | ShardTiles:
    """Where the training tiles of a config come from: cut from its cases, or read from its shards.

    Raises:
        InputError: no cases, no tissue, a tile larger than its image; shards of other tiles or labels.
    """
    if not config.train.shards:
        if not splits.train:
            raise InputError("training needs at least one case; the training split is empty.")
        index = tile_index(splits.train, config.tiles)
        places = isinstance(config.loss, Remembers)
        return CutTiles(splits.train, config.tiles, index, needs=config.model.needs, places=places)
    if isinstance(config.loss, Remembers):
        raise InputError(
            f"{config.train.shards}: loss elr remembers every pixel, and tiles of shards do not say where "
            "they were cut. Leave train.shards out, or choose another loss."
        )
    tiles = ShardTiles(
        config.train.shards,
        annotated_share=config.tiles.annotated_share,
        class_balance=config.tiles.class_balance,
        needs=config.model.needs,
    )
    asked, cut = to_json(config), tiles.manifest.config
    names = [("tiles", name) for name in ("tile_px", "mpp")] + [
        ("labels", name)
        for name in asked["labels"]
        if name != "share"  # it says how to train on the tiles, and not what is in them
    ]
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


def report(run: Run) -> epath.Path:
    """Write RUN/report.html: curves, results, pictures, config, versions."""
    splits = run.splits()
    evaluation = run.evaluation_of(splits)
    held_out = evaluation.get("held_out")
    notes = list(splits.notes)
    if "operating_points" not in evaluation and held_out:
        notes = [pictures.NO_DENSE_OBJECTS if run.detects else pictures.NO_DENSE_TRUTH, *notes]
    if run.detects and pictures.truth_is_points(splits):
        notes.append(pictures.POINT_TRUTH)
    if processes.is_lead():
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
