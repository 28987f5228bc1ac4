"""Cut slides into shards of training tiles, once: resumable, checked, on all cores."""

import collections
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int32

from sparseshot_jax.data import storage
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.cut_tiles import NO_NEEDS
from sparseshot_jax.data.shards.manifest import (
    CONFIG,
    MANIFEST,
    SHARDS,
    SUFFIX,
    VERSION,
    WRITER_OPTIONS,
    Finished,
    Manifest,
    commit,
    completed,
    finished,
    mark_name,
    read_finished,
    read_manifest,
    whole_shards,
)
from sparseshot_jax.data.shards.plan import CutSpec, LostTiles, cases_digest, cut_tiles, plan_case
from sparseshot_jax.data.tiles import TileSpec, check_size
from sparseshot_jax.data.worker_pool import Workers
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Needs

SHARD_TILES = 1024  # of 256 pixels: about 80 MB
_PLAN = "plan.npz"

Progress = Callable[[int, int], None]  # shards done, shards in all


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What lies in a folder of shards."""

    tiles: int
    cells: int  # of these, central tiles of the tissue's cells: one epoch
    annotated: int  # of these, tiles that hold an annotated object's centre
    shards: int
    cut: int  # shards that this call cut; the others were there
    bytes: int  # of all shards
    faults: tuple[LostTiles, ...]  # what could not be read, a case each


def cut_shards(
    cases: Sequence[Case],
    spec: TileSpec,
    out: str,
    *,
    shard_tiles: int = SHARD_TILES,
    workers: int = 0,
    jpeg_quality: int | None = 95,
    seed: int = 0,
    needs: Needs = NO_NEEDS,
    on_progress: Progress | None = None,
) -> ShardSummary:
    """Cut every tile of the tissue, and tiles round annotated objects, into ArrayRecord shards.

    A shard is there whole or not at all, and is not cut again. Stopped anywhere, the same call goes on
    from there. A tile that cannot be read is left out, counted and named; the same call tries it again,
    and cuts again each shard that is missing or damaged. Damage is known by the size, and by the checksum
    where the shards are local; `reader.verify_shards` compares the checksums of remote ones.

    Args:
        cases: the training split.
        spec: size, resolution and choice of the tiles; see `plan.plan_case`.
        out: folder or URL.
        shard_tiles: tiles a shard, at least 1.
        workers: processes; 0 cuts in this one. Above 0, a script must have its `__main__` guarded.
        jpeg_quality: [1, 100]; None = PNG, without loss.
        seed: of which objects get a tile, and where in it they lie.
        needs: what the model is trained on beside ground and class.
        on_progress: told after each shard.

    Raises:
        InputError: nothing to cut, or `out` holds shards of something else: names what differs.
    """
    for name, value, least in (("shard_tiles", shard_tiles, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}; got {value}.")
    cut = CutSpec(tiles=spec, seed=seed, jpeg_quality=jpeg_quality, needs=needs)
    config = cut_config(cases, cut) | {"shard_tiles": shard_tiles}
    claim(out, config)
    url = storage.join(out, MANIFEST)
    whole = whole_shards(out)
    if storage.exists(url):
        manifest = read_manifest(out)
        if not manifest.faults and whole.issuperset(shard.name for shard in manifest.shards):
            return summarise(manifest, 0)
        storage.remove(url)  # first: what it says of the shards will not hold
    with Workers(workers) as processes:
        plan, faults = _plan(cases, cut, out, shard_tiles, whole, processes)
        names, new = _cut(cases, plan, cut, out, shard_tiles, whole, processes, on_progress)
    return summarise(commit(out, config, read_finished(out, names), faults), new)


def _cut(
    cases: Sequence[Case],
    plan: Int32[np.ndarray, "n 4"],
    cut: CutSpec,
    out: str,
    shard_tiles: int,
    whole: set[str],
    workers: Workers,
    on_progress: Progress | None,
) -> tuple[list[str], int]:
    """Names of all shards, and how many of them were cut now."""
    count = -(-len(plan) // shard_tiles)
    names = [f"{k:05d}{SUFFIX}" for k in range(count)]
    todo = [k for k, name in enumerate(names) if name not in whole]
    if on_progress:
        on_progress(count - len(todo), count)

    def jobs() -> Iterator[tuple]:
        for k in todo:
            rows = plan[k * shard_tiles : (k + 1) * shard_tiles]
            # a shard is sent the cases it cuts from and no others: annotations may be large
            parts = [(cases[c], rows[rows[:, 0] == c, 1:]) for c in np.unique(rows[:, 0]).tolist()]
            yield storage.join(out, SHARDS), names[k], parts, cut

    for done, _ in enumerate(workers.run(_cut_shard, jobs()), count - len(todo) + 1):
        if on_progress:
            on_progress(done, count)
    return names, len(todo)


def cut_config(cases: Sequence[Case], cut: CutSpec) -> dict[str, Any]:
    """What decides the records, JSON-ready.

    Raises:
        InputError: no case, two of one name, of different labels, or smaller than a tile.
    """
    if not cases:
        raise InputError("cutting shards needs at least one case; the training split is empty.")
    counts = collections.Counter(case.name for case in cases)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"cases need distinct names; {', '.join(twice[:5])} is not.")
    if any(case.labels != cases[0].labels for case in cases):
        raise InputError("the cases of one data set need the same labels. Load them with one labels section.")
    for case in cases:
        check_size(case, cut.tiles)
    content = {
        "version": VERSION,
        "tiles": dataclasses.asdict(cut.tiles),
        "labels": dataclasses.asdict(cases[0].labels),
        "seed": cut.seed,
        "jpeg_quality": cut.jpeg_quality,
        "needs": dataclasses.asdict(cut.needs),
        "cases": cases_digest(cases),
    }
    return json.loads(json.dumps(content))  # tuples to lists: as it will be read again


def claim(out: str, config: dict[str, Any]) -> None:
    """Take a folder for shards of this kind.

    Raises:
        InputError: it holds shards of something else.
    """
    url = storage.join(out, CONFIG)
    if not storage.exists(url):
        storage.write_bytes(url, json.dumps(config, indent=1).encode())
        return
    try:
        found = completed(json.loads(storage.read_bytes(url)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{url}: not the description of shards. Choose another folder.") from error
    differs = list(_differences(found, config, ""))
    if differs:
        more = f"; and {len(differs) - 5} more" if len(differs) > 5 else ""
        raise InputError(
            f"{out}: holds shards of something else: {'; '.join(differs[:5])}{more}. Choose another folder, "
            "or remove this one."
        )


def write_shard(
    folder: str, name: str, records: Sequence[bytes], faults: Sequence[LostTiles] = ()
) -> Finished:
    """Write one shard, and then the mark that it is finished.

    Raises:
        InputError: the place cannot be written.
    """
    url = storage.join(folder, name)
    with storage.staged(url) as path:
        try:
            writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
            for record in records:
                writer.write(record)
            writer.close()
        except RuntimeError as error:
            raise InputError(f"{url}: cannot be written: {str(error).splitlines()[0]}") from error
        done = finished(name, path, records, faults)
    storage.write_bytes(storage.join(folder, mark_name(name)), done.dumps())
    return done


def _cut_shard(folder: str, name: str, parts: Sequence[tuple[Case, np.ndarray]], cut: CutSpec) -> None:
    """Cases with their places of `plan_case`, to one shard. Runs in a worker."""
    results = [one for case, places in parts for one in cut_tiles(case, cut, places)]
    records = [one[1] for one in results if not isinstance(one, LostTiles)]
    write_shard(folder, name, records, [one for one in results if isinstance(one, LostTiles)])


def _plan(
    cases: Sequence[Case], cut: CutSpec, out: str, shard_tiles: int, whole: set[str], workers: Workers
) -> tuple[Int32[np.ndarray, "n 4"], tuple[LostTiles, ...]]:
    """All tiles, in the order of the cases: case, y, x, object. Found once: tissue takes long to find.

    Cases that could not be planned are tried again; shards that hold other tiles then leave `whole`.
    """
    url = storage.join(out, _PLAN)
    before, faults = np.zeros((0, 4), np.int32), {case.name: "" for case in cases}
    if storage.exists(url):
        before, faults = _read_plan(url)
    places = before
    if faults:
        todo = ((k, case, cut) for k, case in enumerate(cases) if case.name in faults)
        found = sorted(workers.run(_plan_one, todo), key=lambda p: p[0])
        rows = [np.insert(p, 0, k, axis=1) for k, p, _ in found if p is not None]
        faults = {cases[k].name: message for k, p, message in found if p is None}
        places = np.concatenate([before, *rows])
        places = places[np.argsort(places[:, 0], kind="stable")]
        for name in sorted(whole):
            start = int(name.removesuffix(SUFFIX)) * shard_tiles
            part = slice(start, start + shard_tiles)
            if not np.array_equal(before[part], places[part]):
                # before the plan is written: stopped in between, the next call plans again
                storage.remove(storage.join(out, SHARDS, mark_name(name)))
                whole.remove(name)
        content = io.BytesIO()
        noted = np.frombuffer(json.dumps(faults).encode(), np.uint8)
        np.savez_compressed(content, places=places, faults=noted)
        storage.write_bytes(url, content.getvalue())
    return places, tuple(LostTiles(case=case, tiles=0, message=text) for case, text in faults.items())


def _read_plan(url: str) -> tuple[Int32[np.ndarray, "n 4"], dict[str, str]]:
    """The places, and why cases have none."""
    try:
        with np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False) as stored:
            return stored["places"], dict(json.loads(stored["faults"].tobytes()))
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, json and numpy raise a dozen kinds for damaged bytes
        raise InputError(f"{url}: the plan of the shards is damaged. Remove it and cut again.") from error


def _plan_one(k: int, case: Case, cut: CutSpec) -> tuple[int, np.ndarray | None, str]:
    """The plan of case k, or why there is none. Runs in a worker."""
    try:
        return k, plan_case(case, cut), ""
    except InputError as error:
        return k, None, str(error)


def _differences(found: Any, wanted: Any, name: str) -> Iterator[str]:
    """`tiles.mpp is 0.5 there and 0.25 here`, for every value that differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*found, *(key for key in wanted if key not in found)]:
            inner = f"{name}.{key}" if name else key
            if key not in wanted:
                yield f"{inner} is there and not here"
            elif key not in found:
                yield f"{inner} is here and not there"
            else:
                yield from _differences(found[key], wanted[key], inner)
    elif found != wanted:
        if name.startswith("cases."):
            yield f"{name}: another size, resolution or other annotations"
        else:
            yield f"{name} is {found} there and {wanted} here"


def summarise(manifest: Manifest, cut: int) -> ShardSummary:
    """What lies there, `cut` shards of it new."""
    return ShardSummary(
        tiles=manifest.records,
        cells=manifest.cells,
        annotated=manifest.annotated,
        shards=len(manifest.shards),
        cut=cut,
        bytes=sum(shard.bytes for shard in manifest.shards),
        faults=manifest.faults,
    )
