"""What a run folder records, and what it refuses: another config, other data, a stranger's files."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from sparseshot_jax.config import ExperimentConfig, changed_mathematics, load_config, to_json
from sparseshot_jax.data import storage
from sparseshot_jax.data.cases import Splits
from sparseshot_jax.data.cut_tiles import CutTiles
from sparseshot_jax.data.shards.reader import ShardTiles
from sparseshot_jax.errors import InputError
from sparseshot_jax.training.checkpoint import whole_steps
from sparseshot_jax.training.tensorboard import check_tensorboard

# What a run has written when it stops before its first checkpoint.
_BEGUN = {
    *("config.json", "data.json", "label_facts.json", "log.jsonl", "tiles", "tensorboard", "checkpoints"),
    *("round-0", "pseudo_labels", "pseudo_labels.json"),
}


def folder_path(folder: epath.PathLike) -> epath.Path:
    """The path of a run folder: a local one, gs:// or s3://.

    Raises:
        InputError: another kind of URL, or one that pathlib has been through.

    >>> folder_path("s3://bucket/runs") / "unet"
    PosixGPath('s3://bucket/runs/unet')
    """
    text = os.fspath(folder)
    scheme, found, rest = text.partition(":/")
    if not storage.is_local(text) and scheme not in ("gs", "s3"):
        raise InputError(
            f"a run folder must be a local path, or on gs:// or s3://; got {text}. Train there, and copy it."
        )
    if found and scheme in ("gs", "s3") and not rest.startswith("/"):
        raise InputError(
            f"a run folder on {scheme}:// must be given as text or epath.Path; pathlib made {text} of it."
        )
    return epath.Path(storage.local_path(text) if storage.is_local(text) else text)


def has_checkpoint(folder: epath.PathLike) -> bool:
    """Whether the run in a folder got as far as a whole checkpoint.

    Raises:
        InputError: the storage cannot be reached, or its driver is not installed.
    """
    return bool(whole_steps(storage.join(folder, "checkpoints")))


def write_json(path: epath.PathLike, values: Any) -> None:
    """Whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    storage.write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def read_json(path: epath.PathLike) -> Any:
    """What `write_json` wrote; None where there is no such file.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    if not storage.exists(path):
        return None
    try:
        return json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}. Correct it, or remove it.") from error


def check_folder(
    folder: epath.PathLike, config: ExperimentConfig, *, extend: bool | None, option: str = ""
) -> None:
    """Refuse a folder that holds another run, or where not all can be written that the config asks for.

    Args:
        folder: of the run or the sweep.
        config: what is to go on there.
        extend: let the run there go on to more steps. None: the caller cannot, and no message offers it.
        option: of the caller, that names another folder.

    Raises:
        InputError: names every field that would change the mathematics.
    """
    if config.train.tensorboard:
        check_tensorboard(folder)
    record = storage.join(folder, "config.json")
    held = {name for name in storage.list_names(folder) if not name.startswith(".")}
    parts = [storage.join(folder, "round-0"), folder] if "round-0" in held else [folder]
    if held <= _BEGUN and not any(map(has_checkpoint, parts)):
        return  # new, or nothing came of the config there
    if storage.exists(record):
        old = load_config(record)
        changes = changed_mathematics(old, config)
        if extend and old.train.steps < config.train.steps:
            changes = [change for change in changes if not change.startswith("train.steps:")]
        if changes:
            longer = extend is False and old.train.steps < config.train.steps
            hint = " To train for longer, add --extend." if longer else ""
            raise InputError(
                f"{folder} holds a run of another config: {'; '.join(changes)}. Give these their old "
                f"values to go on with it, or name another folder{f' with {option}' if option else ''}.{hint}"
            )
    else:
        raise InputError(
            f"{folder} exists, is not empty, and holds no run (no config.json). Name another folder."
        )


def extension(folder: epath.PathLike, config: ExperimentConfig) -> str | None:
    """What more steps do to the schedules of the run in `folder`; None where there are no more."""
    record = storage.join(folder, "config.json")
    steps = load_config(record).train.steps if storage.exists(record) else config.train.steps
    if steps >= config.train.steps:
        return None
    return (
        f"extended from {steps} to {config.train.steps} steps: the schedules of the threshold and of the "
        "learning rate are stretched to the new length, so both step back from where they stood."
    )


def data_record(splits: Splits, tiles: CutTiles | ShardTiles | None = None) -> dict[str, dict[str, Any]]:
    """What training is told of each case, as far as a resumed run must find it again."""
    if isinstance(tiles, ShardTiles):
        shards = json.dumps([shard.checksum for shard in tiles.manifest.shards])
        digest = hashlib.blake2b(shards.encode(), digest_size=8).hexdigest()
        return {"shards": {"objects": tiles.manifest.annotated, "hash": digest}}
    record = {}
    for case in splits.train:
        digest = hashlib.blake2b(digest_size=8)
        for part in (case.given.xy_px, case.given.object_offsets, case.given.class_ids):
            digest.update(np.ascontiguousarray(part).tobytes())
        record[case.name] = {"objects": len(case.given), "hash": digest.hexdigest()}
    return record


def check_data(folder: epath.PathLike, data: dict[str, dict[str, Any]]) -> None:
    """Refuse to go on with other images or marks than the run began with.

    Raises:
        InputError: names the cases that differ.
    """
    old = read_json(storage.join(folder, "data.json"))
    if old is None or not has_checkpoint(folder):
        return
    changed = [
        f"{name} ({_objects(old, name)} -> {_objects(data, name)})"
        for name in sorted(old | data)
        if old.get(name) != data.get(name)
    ]
    if changed:
        raise InputError(
            f"{folder} was trained on other images or marks: {', '.join(changed[:5])}"
            f"{' and more' if len(changed) > 5 else ''}. Name another folder to train on these."
        )


def _objects(data: Mapping[str, Mapping[str, Any]], name: str) -> str:
    return f"{data[name]['objects']} objects" if name in data else "absent"


def record_config(folder: epath.PathLike, config: ExperimentConfig) -> None:
    """Make the folder and write its config.json.

    Raises:
        InputError: why it cannot be written.
    """
    try:
        write_json(storage.join(folder, "config.json"), to_json(config))
    except InputError as error:
        raise InputError(f"cannot write to the run folder {folder}: {error}") from error
