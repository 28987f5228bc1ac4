"""What lies in a folder of shards: names of the files, what they hold, and how it is known to be whole."""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from sparseshot_jax.data import storage
from sparseshot_jax.data.shards.plan import LostTiles, add_faults
from sparseshot_jax.data.shards.records import describe
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Needs

VERSION = 1
MANIFEST = "manifest.json"  # written last: where it is, all is there
CONFIG = "config.json"  # written first: what the shards are made of
SHARDS = "shards"
SUFFIX = ".arrayrecord"
INDEX = "index"
WRITER_OPTIONS = "group_size:1,uncompressed"  # random access; the images are compressed already
_FETCHES = 16  # at once: small files of an object store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished file of records."""

    name: str  # in the folder of shards
    bytes: int
    records: int
    checksum: str  # blake2b-128 of the file


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A finished shard with what its records hold: its mark that it needs no cutting again."""

    shard: Shard
    cases: tuple[str, ...]  # names
    case: Int64[np.ndarray, "n"]  # of each record, into `cases`
    cell: Bool[np.ndarray, "n"]  # the central tile of a cell; else one round an object
    classes: UInt8[np.ndarray, "n 32"]  # one bit a class id, the first for objects of unknown class
    faults: tuple[LostTiles, ...]

    def dumps(self) -> bytes:
        """As bytes of an .npz."""
        meta = {"shard": vars(self.shard), "cases": self.cases, "faults": [vars(f) for f in self.faults]}
        out = io.BytesIO()
        np.savez_compressed(
            out,
            meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
            case=self.case,
            cell=self.cell,
            classes=self.classes,
        )
        return out.getvalue()

    @classmethod
    def loads(cls, data: bytes, url: str) -> "Finished":
        """From bytes of an .npz.

        Raises:
            InputError: damaged.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                meta = json.loads(arrays["meta"].tobytes())
                return cls(
                    shard=Shard(**meta["shard"]),
                    cases=tuple(meta["cases"]),
                    case=arrays["case"],
                    cell=arrays["cell"],
                    classes=arrays["classes"],
                    faults=tuple(LostTiles(**fault) for fault in meta["faults"]),
                )
        except Exception as error:  # zipfile, zlib, json and numpy raise a dozen kinds for damaged bytes
            raise InputError(f"{url}: the record of a shard is damaged. Remove it and cut again.") from error


def finished(name: str, path: Path, records: Sequence[bytes], faults: Sequence[LostTiles] = ()) -> Finished:
    """What is written beside a shard: a description of its file and of its records."""
    described = [describe(record) for record in records]
    cases = tuple(dict.fromkeys(one.case for one in described))
    number = {case: k for k, case in enumerate(cases)}
    bits = np.zeros((len(records), 256), bool)
    for row, one in zip(bits, described):
        row[list(one.classes)] = True
    return Finished(
        shard=Shard(name=name, bytes=path.stat().st_size, records=len(records), checksum=checksum(path)),
        cases=cases,
        case=np.array([number[one.case] for one in described], np.int64),
        cell=np.array([one.cell for one in described], bool),
        classes=np.packbits(bits, axis=1),
        faults=add_faults(faults),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """All of a folder of shards."""

    config: dict[str, Any]
    shards: tuple[Shard, ...]
    cases: tuple[str, ...]  # names
    cells: int
    annotated: int  # records that hold the centre of an annotated object
    faults: tuple[LostTiles, ...]
    index: dict[str, int]  # bytes of each array in the folder of the index

    @property
    def records(self) -> int:
        """In all shards."""
        return sum(shard.records for shard in self.shards)


def read_manifest(root: str) -> Manifest:
    """The manifest of a finished folder.

    Raises:
        InputError: there is none, the cutting did not end, or another version wrote it.
    """
    url = storage.join(root, MANIFEST)
    if not storage.exists(url):
        begun = storage.exists(storage.join(root, CONFIG))
        what = (
            "the cutting has not ended; run the same `data tile` command again"
            if begun
            else ("no shards there; check the folder, or cut some with `data tile`")
        )
        raise InputError(f"{url}: no such file: {what}.")
    try:
        found = json.loads(storage.read_bytes(url))
        if found["version"] != VERSION:
            raise InputError(
                f"{url}: version {found['version']}; this program reads version {VERSION}. Cut again."
            )
        return Manifest(
            config=completed(found["config"]),
            shards=tuple(Shard(**shard) for shard in found["shards"]),
            cases=tuple(found["cases"]),
            cells=found["cells"],
            annotated=found["annotated"],
            faults=tuple(LostTiles(**fault) for fault in found["faults"]),
            index=dict(found["index"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url}: not a manifest of shards. Copy it or cut the shards again.") from error


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What shards are made of, with what earlier versions of the program did not write."""
    absent = {"unknown_class": [], "class_radius_um": [], "share": None, "ring_um": None}
    labels = absent | config["labels"]
    return {"needs": dataclasses.asdict(Needs()), **config, "labels": labels}


def commit(
    root: str, config: dict[str, Any], parts: Sequence[Finished], faults: Sequence[LostTiles]
) -> Manifest:
    """Write the index of all records, and then the manifest.

    Raises:
        InputError: there is no record at all, or the folder cannot be written.
    """
    total = add_faults([*faults, *(fault for part in parts for fault in part.faults)])
    arrays, names = _index(parts)
    if not len(arrays["cells"]) and not len(arrays["annotated_records"]):
        why = f" {total[0].case}: {total[0].message}" if total else " No case holds any tissue."
        raise InputError(f"{root}: no tile could be cut.{why}")
    sizes = {}
    for name, array in arrays.items():
        out = io.BytesIO()
        np.save(out, array)
        sizes[f"{name}.npy"] = len(out.getvalue())
        storage.write_bytes(storage.join(root, INDEX, f"{name}.npy"), out.getvalue())
    manifest = Manifest(
        config=config,
        shards=tuple(part.shard for part in parts),
        cases=names,
        cells=len(arrays["cells"]),
        annotated=len(arrays["annotated_records"]),
        faults=total,
        index=sizes,
    )
    content = {"version": VERSION, **vars(manifest)}
    content["shards"] = [vars(shard) for shard in manifest.shards]
    content["faults"] = [vars(fault) for fault in manifest.faults]
    storage.write_bytes(storage.join(root, MANIFEST), json.dumps(content, indent=1).encode())
    return manifest


def _index(parts: Sequence[Finished]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Numbers of the records that are cells, that hold annotated objects a case, and a class."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.cases))
    number = {name: k for k, name in enumerate(names)}
    tables = [np.array([number[name] for name in part.cases], np.int64)[part.case] for part in parts]
    case = np.concatenate([*tables, np.zeros(0, np.int64)])
    cell = np.concatenate([*(part.cell for part in parts), np.zeros(0, bool)])
    packed = np.concatenate([*(part.classes for part in parts), np.zeros((0, 32), np.uint8)])
    held = np.flatnonzero(packed.any(axis=1))
    held = held[np.argsort(case[held], kind="stable")]
    _, counts = np.unique(case[held], return_counts=True)
    # Class 0 is an object of unknown class: none that could be balanced.
    by_class = [np.flatnonzero(packed[:, k // 8] & (128 >> k % 8)) for k in range(1, 256)]
    by_class = [records for records in by_class if len(records)]
    arrays = {
        "shard_offsets": _offsets([part.shard.records for part in parts]),
        "cells": np.flatnonzero(cell),
        "annotated_records": held,
        "annotated_offsets": _offsets(counts),
        "class_records": np.concatenate([*by_class, np.zeros(0, np.int64)]),
        "class_offsets": _offsets([len(records) for records in by_class]),
    }
    kinds = {name: "<i8" if name.endswith("offsets") else "<i4" for name in arrays}
    return {name: array.astype(kinds[name]) for name, array in arrays.items()}, names


def checksum(path: str | os.PathLike[str]) -> str:
    """Of a local file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_finished(root: str, names: Sequence[str]) -> list[Finished]:
    """The marks of finished shards, in the order of their names.

    Raises:
        InputError: one is damaged or gone.
    """
    urls = [storage.join(root, SHARDS, mark_name(name)) for name in names]
    with ThreadPoolExecutor(_FETCHES) as pool:
        return [Finished.loads(data, url) for data, url in zip(pool.map(storage.read_bytes, urls), urls)]


def whole_shards(root: str) -> set[str]:
    """Names of the shards that need no cutting again.

    They are marked as finished, without tiles that could not be read, and have the size they had then;
    local ones the checksum too. Remote ones would have to be fetched for that.

    Raises:
        InputError: a mark cannot be read, which does not make its shard damaged.
    """
    folder = storage.join(root, SHARDS)
    there = set(storage.list_names(folder))

    def is_whole(name: str) -> bool:
        mark = storage.join(folder, mark_name(name))
        data = storage.read_bytes(mark)
        try:
            done = Finished.loads(data, mark)
        except InputError:
            return False
        url = storage.join(folder, name)
        if done.faults or storage.size_of(url) != done.shard.bytes:
            return False
        return not storage.is_local(url) or checksum(storage.local_path(url)) == done.shard.checksum

    marked = [name for name in there if name.endswith(SUFFIX) and mark_name(name) in there]
    with ThreadPoolExecutor(_FETCHES) as pool:
        return {name for name, whole in zip(marked, pool.map(is_whole, marked)) if whole}


def mark_name(shard: str) -> str:
    """The file that says that a shard is finished.

    >>> mark_name("00012.arrayrecord")
    '00012.npz'
    """
    return shard.removesuffix(SUFFIX) + ".npz"


def _offsets(counts: Sequence[int] | np.ndarray) -> Int64[np.ndarray, "n"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
