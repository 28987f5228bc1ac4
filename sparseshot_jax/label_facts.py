"""What training data say of their own labels, for a loss whose spec leaves a number open."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.data.cases import Case, Splits, scale_at
from sparseshot_jax.data.labels import wanted
from sparseshot_jax.data.pipeline import Tiles
from sparseshot_jax.data.stacking import Tile
from sparseshot_jax.data.tile_objects import object_boxes_px
from sparseshot_jax.data.tiles import TileSpec, object_index, objects_round
from sparseshot_jax.errors import InputError
from sparseshot_jax.training import processes
from sparseshot_jax.training.tasks import TASKS
from sparseshot_jax.types import Ground, LabelFacts

_TILES = 64  # looked at for the annotated fraction of the ground
_DRAWS = 4096  # of tiles round annotated objects, of which only the place is asked
_APART = 1.25  # factor between a share that is told and the one that is counted, beyond which it is said
_SOME = LabelFacts(share=0.3, annotated_fraction=0.1)


def label_facts(config: ExperimentConfig, splits: Splits, tiles: Tiles) -> LabelFacts | None:
    """What the loss's open numbers follow from; None where it leaves none open.

    In a job of many processes all call it, and get the same.

    Args:
        config: whose loss it is for. What it says of the share goes before what can be counted.
        splits: the data, of which training sees the marks of the training part.
        tiles: of training; some are read where the loss asks for the prevalence of objects.

    Raises:
        InputError: no tile can be read, or none of those read holds a mark.
    """
    if not open_fields(config.loss):
        return None
    told, counted = told_share(config), counted_share(splits.train)
    share = counted if told is None else told
    return LabelFacts(
        share=share,
        counted=counted if told and _contradicted(told, counted) else None,
        share_in_tiles=share_in_tiles(share, splits.train, config.tiles, len(tiles)),
        annotated_fraction=_annotated_fraction(config, tiles)
        if getattr(config.loss, "needs_prior", False)
        else None,
    )


def _contradicted(told: float, counted: float | None) -> bool:
    """Whether truth says so; a folder of which all marks are used has no other truth, and says nothing."""
    return counted is not None and counted < 1.0 and not 1 / _APART < told / counted < _APART


def told_share(config: ExperimentConfig) -> float | None:
    """`labels.share`, said of the marks in the files, times the part of them that training is told of.

    What a source keeps back (`data.hold_out`) lies on unannotated ground as any unmarked object does.
    """
    if config.labels.share is None:
        return None
    keep, train_keep = (getattr(config.data, name, 1.0) for name in ("keep", "train_keep"))
    return config.labels.share * keep * (1.0 - getattr(config.data, "hold_out", 0.0)) * train_keep


def counted_share(cases: Sequence[Case]) -> float | None:
    """Annotated objects over all of them; None where a case has no dense truth to count the others."""
    given = truth = 0
    for case in cases:
        if case.truth is None:
            return None
        given += int(wanted(case.given, case.labels).sum())
        truth += int(wanted(case.truth, case.labels).sum())
    return min(1.0, given / truth) if given else None


def share_in_tiles(share: float | None, cases: Sequence[Case], spec: TileSpec, tiles: int) -> float | None:
    """Of the objects that training tiles show, those annotated; tiles round such ones show more of them.

    Of a case's N objects M are annotated, N = M / c. Beside the object that a tile is drawn round lie n - 1
    other annotated ones: a share (M - 1) / (N - 1), if they were chosen at random, of all that lie there.

    Args:
        share: c, of all objects, (0, 1]; None: nobody knows.
        cases: of training.
        spec: how tiles are drawn.
        tiles: of one epoch; side by side they cover the ground.

    Returns:
        (0, 1]; None where no tile is drawn round an object, or the share is not known.
    """
    if share is None or not spec.annotated_share or not cases:
        return None
    index = object_index(cases, spec)
    if not len(index.annotated):
        return None
    held, marks = objects_round(index, spec, _DRAWS, np.random.default_rng(0))
    anywhere = len(index.object_classes) / tiles
    told = marks > 1  # one mark alone does not tell how close objects lie
    each = ((marks / share - 1.0) / (marks - 1.0).clip(1.0))[told]  # objects for one annotated one
    beside = ((held - 1.0)[told] * each).mean() if told.any() else anywhere / share
    part = spec.annotated_share
    annotated = (1.0 - part) * anywhere + part * held.mean()
    of_all = (1.0 - part) * anywhere / share + part * (1.0 + beside)
    return min(1.0, float(annotated / of_all))


def open_fields(loss: Any) -> list[str]:
    """Fields that a loss leaves None and that `fitted` would fill in.

    >>> from sparseshot_jax.losses import FocalExclusive
    >>> open_fields(FocalExclusive(rho=None, alpha=None)), open_fields(FocalExclusive(rho=None))
    (['alpha'], [])
    """
    if not hasattr(loss, "fitted"):
        return []
    names = [field.name for field in dataclasses.fields(loss) if getattr(loss, field.name) is None]
    fitted = loss.fitted(_SOME)
    return [name for name in names if getattr(fitted, name) is not None]


def with_facts(
    config: ExperimentConfig,
    facts: LabelFacts | None,
    *,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> tuple[ExperimentConfig, dict[str, Any]]:
    """The config, its loss's open numbers filled in from the facts, and a record of both, if any.

    Raises:
        InputError: the facts do not tell what the loss needs.
    """
    loss: Any = config.loss
    if facts is None:
        return config, {}
    fitted = loss.fitted(facts)
    filled = {name: getattr(fitted, name) for name in open_fields(loss)}
    parts = [f"{'an unknown share' if facts.share is None else f'{facts.share:.1%}'} of the objects"]
    if facts.share_in_tiles is not None:
        parts.append(f"{facts.share_in_tiles:.1%} of those in training tiles")
    if facts.annotated_fraction is not None:
        parts.append(f"{facts.annotated_fraction:.2%} of the ground")
    values = ", ".join(f"loss.{name} = {value:.4g}" for name, value in filled.items())
    note(f"{', '.join(parts)} are annotated: {values}.")
    if facts.counted is not None:
        warn(
            f"by the truth beside the marks it is {facts.counted:.1%}. labels.share is of the marks in the "
            "files, before data.keep and its like take theirs: leave it out where all is marked there."
        )
    return dataclasses.replace(config, loss=fitted), dataclasses.asdict(facts) | {"loss": filled}


def without_data(config: ExperimentConfig) -> ExperimentConfig:
    """The config for a program that is compiled and not trained: open numbers have some value."""
    loss: Any = config.loss
    return dataclasses.replace(config, loss=loss.fitted(_SOME)) if open_fields(loss) else config


def object_sizes_px(cases: Sequence[Case], mpp: float) -> Float64[np.ndarray, "n 2"]:
    """Height and width of the annotated objects' boxes, pixels of `mpp` micrometres."""
    sizes = [np.zeros((0, 2))]
    for case in cases:
        objects = case.given.take(wanted(case.given, case.labels))
        boxes = object_boxes_px(objects, case.labels, mpp=case.mpp)
        sizes.append((boxes[:, 2:] - boxes[:, :2])[:, ::-1] / scale_at(case.slide, case.mpp, mpp))
    return np.concatenate(sizes)


def _annotated_fraction(config: ExperimentConfig, tiles: Tiles) -> float:
    """Annotated elements over annotated and unannotated ones, in tiles drawn as training draws them."""
    chosen = np.random.default_rng(config.seed).choice(len(tiles), min(_TILES, len(tiles)), replace=False)

    def count(place: int) -> tuple[int, int] | str:
        try:
            tile = tiles.read(place, np.random.default_rng([config.seed, place]))
        except InputError as error:  # training passes such tiles over, too, and says so
            return str(error)
        return _annotated_and_not(tile, config)

    found = processes.dealt([int(place) for place in chosen], count)
    counts = [one for one in found if not isinstance(one, str)]
    if not counts:
        raise InputError(f"none of {len(found)} training tiles can be read. The first: {found[0]}")
    annotated, unannotated = (sum(column) for column in zip(*counts))
    if not annotated:
        raise InputError(
            f"none of {len(counts)} training tiles holds an annotated object, and the prevalence of the "
            "others cannot be estimated. Raise tiles.annotated_share, or give loss.prior."
        )
    return annotated / (annotated + unannotated)


def _annotated_and_not(tile: Tile, config: ExperimentConfig) -> tuple[int, int]:
    """Annotated and unannotated elements of one tile: pixels, or the places of a detector's grid."""
    unannotated = int((tile["ground"] == Ground.UNANNOTATED).sum())
    if not config.model.needs.objects:
        return int((tile["ground"] == Ground.ANNOTATED).sum()), unannotated
    elements = TASKS[config.model.task].elements(config.model)
    annotated = _centres_inside(tile)  # the ground was drawn without the objects
    return annotated, max(0, unannotated // config.model.multiple**2 * elements - annotated)


def _centres_inside(tile: Tile) -> int:
    """Objects of a tile that a cell of it can be matched to."""
    boxes = tile["boxes_yxyx_px"][tile["object_present"]]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return int(((centres >= 0) & (centres < tile["ground"].shape)).all(axis=1).sum())
