"""An experiment as one frozen value: what configs/ return, what the command line changes, what a run
folder records. It holds specs only; `experiment` turns them into objects."""

import dataclasses
import difflib
import importlib.util
import json
import math
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from etils import epath

from sparseshot_jax.codec import check_kind, make_converter, reasons
from sparseshot_jax.data import storage
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import SOURCES, Source
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.fields import flat, missing
from sparseshot_jax.losses import LOSSES, Loss
from sparseshot_jax.models import MODELS, Model
from sparseshot_jax.specs import MeasureSpec as MeasureSpec
from sparseshot_jax.specs import PredictSpec as PredictSpec
from sparseshot_jax.specs import TrainSpec as TrainSpec
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.optimizer import OptimizerSpec
from sparseshot_jax.training.relabel import RelabelSpec

# The three choices that a registry offers. A checker sees the protocol, a parser the union.
REGISTRIES: dict[str, Mapping[str, type]] = {"data": SOURCES, "model": MODELS, "loss": LOSSES}
if TYPE_CHECKING:
    SourceSpec = Source
    ModelSpec = Model
    LossSpec = Loss
else:
    SourceSpec, ModelSpec, LossSpec = (Union[tuple(r.values())] for r in REGISTRIES.values())  # noqa: UP007


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
    relabel: RelabelSpec = RelabelSpec()
    predict: PredictSpec = PredictSpec()
    measure: MeasureSpec = MeasureSpec()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed must be at least 0; got {self.seed}. Try 0.")
        for name, value in flat(to_json(self)):
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
        if self.train.micro_batches > 1 and getattr(self.loss, "set_level", False):
            raise InputError(
                f"train.micro_batches must be 1 with the loss {type(self.loss).__name__}, which is of the "
                f"whole batch and cannot be added up from its parts; got {self.train.micro_batches}. Try "
                "train.micro_batches 1 with train.remat convolutions or a smaller train.batch_size."
            )
        if self.relabel.rounds and self.train.shards:
            raise InputError(
                "relabel.rounds needs tiles that are cut afresh, since every round adds to the marks; got "
                f"train.shards {self.train.shards!r}. Leave one of the two out."
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
        raise InputError(f"{source}: {reasons(error, values)}") from error


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
    loss = values.get("loss") if isinstance(values, dict) else None
    if isinstance(loss, dict) and "share_factor" in loss:
        rest = {name: value for name, value in loss.items() if name not in ("share", "share_factor")}
        share: Any = loss.get("share")
        if share is not None:
            rest["alpha"] = loss["share_factor"] * share / (1.0 - share)
        values = values | {"loss": rest}
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
    before, after = dict(flat(to_json(old))), dict(flat(to_json(new)))
    return [
        f"{name}: {before.get(name, '(absent)')} -> {after.get(name, '(absent)')}"
        for name in sorted(before | after)
        if before.get(name) != after.get(name) and not _is_free(name)
    ]


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(free + ".") for free in _FREE)


def override(config: ExperimentConfig, field: str, value: str) -> ExperimentConfig:
    """The config with one dotted field set from text; "loss", "model" or "data" alone switches the kind,
    which then starts from its defaults.

    Raises:
        InputError: no such field (with those there are, the nearest, and the kinds that have it), or a value
            that it cannot hold.
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
        raise InputError(missing(values, field, REGISTRIES))
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
