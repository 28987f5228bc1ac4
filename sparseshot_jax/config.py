"""An experiment as one frozen value: what configs/ return, what the command line changes, what a run
folder records. It holds specs only; `experiment` turns them into objects."""

import dataclasses
import difflib
import importlib.util
import json
import math
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from etils import epath

from sparseshot_jax.codec import check_kind, make_converter, reasons
from sparseshot_jax.data import storage
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import SOURCES, Source
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import LOSSES, Loss
from sparseshot_jax.models import MODELS, Model
from sparseshot_jax.models.decode import DecodeSpec
from sparseshot_jax.predict.detections import GEOMETRIES
from sparseshot_jax.predict.watershed import SplitSpec
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.optimizer import OptimizerSpec
from sparseshot_jax.training.sharding import MeshSpec
from sparseshot_jax.training.step import REMAT

# The three choices that a registry offers. A checker sees the protocol, a parser the union.
REGISTRIES: dict[str, Mapping[str, type]] = {"data": SOURCES, "model": MODELS, "loss": LOSSES}
if TYPE_CHECKING:
    SourceSpec = Source
    ModelSpec = Model
    LossSpec = Loss
else:
    SourceSpec, ModelSpec, LossSpec = (Union[tuple(r.values())] for r in REGISTRIES.values())  # noqa: UP007


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The loop: how long, in what portions, and how often what happens."""

    steps: int = 2000  # optimiser steps of the whole run, > 0
    batch_size: int = 8  # tiles a step over all devices, > 0
    micro_batches: int = 1  # parts of a batch whose gradients are accumulated, > 0
    ema_decay: float = 0.0  # of the average of parameters that is evaluated; 0: the last ones, [0, 1)
    mesh: MeshSpec = MeshSpec()  # the devices, and what is split over them
    # What of the forward pass is kept for the backward pass; the rest is computed again:
    # "none" (nothing is), "convolutions" (their results are kept) or "blocks" (the results of blocks).
    remat: str = "none"
    prefetch: int = 2  # batches placed on the devices ahead of the step; 0: none
    log_every: int = 20  # steps
    validate_every: int = 500  # steps
    checkpoint_every: int = 500  # steps
    workers: int = 0  # processes that prepare batches; 0: threads of this one
    threads: int = 4  # reading threads a worker
    shards: str = ""  # folder or URL that "sparseshot data tile" wrote: its tiles in place of fresh cuts
    max_fault_share: float = 0.01  # of tiles that cannot be read, above which training stops, [0, 1]
    tensorboard: bool = False  # write RUN/tensorboard too; needs the extra of that name
    log_tiles: bool = False  # write RUN/tiles too: which tiles every step was given

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "micro_batches", "threads")
        for name in (*counts, "log_every", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("workers", "prefetch"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} must be at least 0; got {getattr(self, name)}. Try 0.")
        if self.remat not in REMAT:
            raise InputError(f"train.remat must be one of {', '.join(REMAT)}; got {self.remat!r}.")
        if not 0.0 <= self.max_fault_share <= 1.0:
            raise InputError(
                f"train.max_fault_share must be in [0, 1]; got {self.max_fault_share}. Try 0.01."
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise InputError(f"train.ema_decay must be in [0, 1); got {self.ema_decay}. Try 0.99.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSpec:
    """From a model's output to objects."""

    threshold: float = 0.5  # a pixel is foreground, a detection an object above it, (0, 1)
    core_px: int = 512  # side of a tile without its halo, pixels at the model's resolution
    batch_size: int = 4  # tiles a forward pass, over all devices of a process; one a device at least
    min_area_um2: float = 8.0  # smaller objects are left out, square micrometres
    simplify_px: float = 0.25  # outlines may be off by this for fewer vertices, model pixels, >= 0
    tissue_only: bool = True  # skip tiles of bare glass
    instances: bool = False  # segmentation: part cells that touch
    largest_um: float = 25.0  # with instances: diameter of the largest object, micrometres, > 0
    split: SplitSpec = SplitSpec()  # with instances: when one area is several objects
    decode: DecodeSpec = DecodeSpec()  # detection: which candidates are one object
    geometry: str = "box"  # detection: of the objects, box or point

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise InputError(f"predict.threshold must be in (0, 1); got {self.threshold}. Try 0.5.")
        for name in ("core_px", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"predict.{name} must be at least 1; got {getattr(self, name)}.")
        if not 0.0 < self.largest_um < math.inf:
            raise InputError(f"predict.largest_um must be above 0; got {self.largest_um}. Try 25.")
        if self.geometry not in GEOMETRIES:
            raise InputError(
                f"predict.geometry must be {' or '.join(GEOMETRIES)}; got {self.geometry!r}. Try box."
            )
        if self.decode.soft_sigma:
            raise InputError(
                "predict.decode.soft_sigma must be 0: across the tiles of a slide suppression is hard. "
                "`models.decode.detect` is soft on single images."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """When a prediction and a true object are one and the same."""

    distance_um: float = 3.0  # centres at most this far apart, > 0
    iou: float = 0.5  # boxes overlap at least so much, (0, 1]
    exclusive_class: str = ""  # class for which the exclusive recall is kept image by image

    def __post_init__(self) -> None:
        if not (0.0 < self.distance_um < math.inf and 0.0 < self.iou <= 1.0):
            raise InputError(
                "measure.distance_um must be above 0 and measure.iou in (0, 1]; got "
                f"{self.distance_um} and {self.iou}. Try 3 and 0.5."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that decides a result."""

    name: str  # of the run; its folder is runs/NAME unless --run says otherwise
    data: SourceSpec
    model: ModelSpec
    loss: LossSpec
    seed: int = 0  # of parameters, subsets, tiles and augmentation
    labels: LabelSpec = LabelSpec()
    tiles: TileSpec = TileSpec()
    augment: AugmentSpec = AugmentSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    train: TrainSpec = TrainSpec()
    predict: PredictSpec = PredictSpec()
    measure: MeasureSpec = MeasureSpec()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed must be at least 0; got {self.seed}. Try 0.")
        for name, value in _flat(to_json(self)):
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} must be a finite number; got {value}.")
        multiple = self.model.multiple
        for name, side in (("tiles.tile_px", self.tiles.tile_px), ("predict.core_px", self.predict.core_px)):
            if side % multiple:
                options = [n for n in (side // multiple * multiple, -(-side // multiple) * multiple) if n]
                raise InputError(
                    f"{name} must be divisible by {multiple}, which the model asks for; got {side}. Try "
                    f"{' or '.join(map(str, options))}."
                )
        wanted = self.measure.exclusive_class
        if wanted and wanted not in self.labels.names:
            raise InputError(
                f"measure.exclusive_class must be one of labels.classes, {', '.join(self.labels.names)}; "
                f"got {wanted!r}."
            )


_CONVERTER = make_converter(REGISTRIES)


def to_json(config: ExperimentConfig) -> dict[str, Any]:
    """The config as JSON values; what a registry offers carries its name as "kind"."""
    return _CONVERTER.unstructure(config, ExperimentConfig)


def from_json(values: Any, *, source: str = "config.json") -> ExperimentConfig:
    """The inverse of `to_json`.

    Raises:
        InputError: a field is missing, unknown or of the wrong type.
    """
    try:
        return _CONVERTER.structure(values, ExperimentConfig)
    except Exception as error:  # whatever a wrong value makes a dataclass raise
        raise InputError(f"{source}: {reasons(error)}") from error


def load_config(path: epath.PathLike) -> ExperimentConfig:
    """What `get_config()` of a Python file returns, or a run's config.json, which may be on gs:// or s3://.

    Fields that came after that run have their defaults.

    Raises:
        InputError: no such file (with the nearest name), an error in it (with its line), no get_config,
            or another type returned.
    """
    if not storage.is_local(path):
        return _recorded(path)
    path = storage.local_path(path)
    if not path.is_file():
        there = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), there, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Give a Python file, such as configs/unet_tnbc.py."
        raise InputError(f"no config file {path}. {hint}")
    if path.suffix == ".json":
        return _recorded(path)
    config = _executed(path)
    if not isinstance(config, ExperimentConfig):
        raise InputError(
            f"{path} must define get_config() and return an ExperimentConfig from it; got "
            f"{type(config).__name__}."
        )
    # Through JSON and back: a list becomes the tuple it stands for, and a wrong type is found here.
    return from_json(to_json(config), source=str(path))


def _recorded(path: epath.PathLike) -> ExperimentConfig:
    """The config that a run wrote, its fields under their names of today."""
    try:
        values = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}. Correct it, or start a new run.") from error
    train = values.get("train") if isinstance(values, dict) else None
    if isinstance(train, dict) and "devices" in train and "mesh" not in train:
        rest = {name: value for name, value in train.items() if name != "devices"}
        values = values | {"train": rest | {"mesh": {"data": train["devices"]}}}
    return from_json(values, source=str(path))


def _executed(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file. Give a .py config or a run's config.json.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config() if hasattr(module, "get_config") else None
    except Exception as error:  # the user's code may raise anything
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"{place}: {kind}{getattr(error, 'msg', error)}") from error


# What may change when a run goes on: the result does not depend on it.
_FREE = (
    *("train.workers", "train.threads", "train.mesh", "train.remat", "train.prefetch"),
    *("train.tensorboard", "train.log_tiles", "train.max_fault_share"),
    *("train.log_every", "train.validate_every", "train.checkpoint_every"),
    *("predict", "measure", "name"),
    *("data.root", "data.slides", "data.annotations", "data.truth", "data.cache"),
)


def changed_mathematics(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    """The fields, as "loss.alpha: 0.2 -> 0.1", that a resumed run may not change."""
    before, after = dict(_flat(to_json(old))), dict(_flat(to_json(new)))
    return [
        f"{name}: {before.get(name, '(absent)')} -> {after.get(name, '(absent)')}"
        for name in sorted(before | after)
        if before.get(name) != after.get(name) and not _is_free(name)
    ]


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(free + ".") for free in _FREE)


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, values


def override(config: ExperimentConfig, field: str, value: str) -> ExperimentConfig:
    """The config with one dotted field set from text; "loss", "model" or "data" alone switches the kind,
    which then starts from its defaults.

    Raises:
        InputError: no such field (with the nearest one), or a value that it cannot hold.

    """
    values = to_json(config)
    if field in REGISTRIES:
        values[field] = {"kind": check_kind(field, value, REGISTRIES[field])}
        return from_json(values, source=f"{field}={value}")
    *path, last = field.split(".")
    place: Any = values
    for name in path:
        place = place.get(name) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place or last == "kind" or isinstance(place[last], dict):
        near = difflib.get_close_matches(field, [name for name, _ in _flat(values)], n=1)
        raise InputError(f"no field {field}. " + (f"Did you mean {near[0]}?" if near else "See --help."))
    place[last] = _parsed(value, place[last])
    return from_json(values, source=f"{field}={value}")


_WORDS = {"True": True, "False": False, "None": None}


def _parsed(text: str, old: Any) -> Any:
    """The JSON or Python value that a text stands for, in a field that holds `old`."""
    if isinstance(old, str):
        return text
    if text in _WORDS:
        return _WORDS[text]
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    return [value] if isinstance(old, list | tuple) and isinstance(value, str) else value
