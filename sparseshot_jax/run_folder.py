"""What a run folder records, and what it refuses: another config, other data, a stranger's files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparseshot_jax.config import ExperimentConfig, changed_mathematics, load_config, to_json
from sparseshot_jax.data.cases import Splits
from sparseshot_jax.data.cut_tiles import CutTiles
from sparseshot_jax.data.shards.reader import ShardTiles
from sparseshot_jax.errors import InputError
from sparseshot_jax.run import has_checkpoint, write_json


def check_folder(folder: Path, config: ExperimentConfig, *, extend: bool) -> None:
    """Refuse a folder that holds another run.

    Raises:
        InputError: names every field that would change the mathematics.
    """
    record = folder / "config.json"
    held = {child.name for child in folder.iterdir()} if folder.is_dir() else set()
    if held <= {"config.json", "data.json", "log.jsonl", "checkpoints"} and not has_checkpoint(folder):
        return  # new, or nothing came of the config there
    if record.is_file():
        old = load_config(record)
        changes = changed_mathematics(old, config)
        if extend and old.train.steps < config.train.steps:
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


def data_record(splits: Splits, tiles: CutTiles | ShardTiles) -> dict[str, dict[str, Any]]:
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


def check_data(folder: Path, data: dict[str, dict[str, Any]]) -> None:
    """Refuse to go on with other images or marks than the run began with.

    Raises:
        InputError: names the cases that differ.
    """
    record = folder / "data.json"
    if not (record.is_file() and has_checkpoint(folder)):
        return
    old = json.loads(record.read_text())
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
