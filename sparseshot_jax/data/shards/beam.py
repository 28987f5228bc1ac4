"""Cutting shards on a cluster: the tiles of `writer.cut_shards` by an Apache Beam pipeline.

The keys and the bytes of the records are those of `cut_shards`; which shard a record lies in is not. What
cannot be read is left out and counted; every other failure is the runner's to try again.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports] - an extra
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput  # pyright: ignore[reportMissingImports]

from sparseshot_jax.data import storage
from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.cut_tiles import NO_NEEDS
from sparseshot_jax.data.shards.manifest import (
    MANIFEST,
    SHARDS,
    SUFFIX,
    Finished,
    commit,
    read_manifest,
)
from sparseshot_jax.data.shards.plan import CutSpec, LostTiles, cut_tiles, plan_case
from sparseshot_jax.data.shards.writer import (
    SHARD_TILES,
    ShardSummary,
    claim,
    cut_config,
    summarise,
    write_shard,
)
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Needs

_BLOCK = 256  # tiles of a case that a worker is given at once, with the case's annotations
_FAULTS = "faults"
_LOG = logging.getLogger(__name__)


class CutCases(beam.PTransform):
    """Cases to (key, bytes) of every tile; what could not be read comes as `LostTiles` under "faults".

    Args:
        cut: what decides the bytes.
    """

    def __init__(self, cut: CutSpec):
        super().__init__()
        self._cut = cut

    def expand(self, input_or_inputs: Any) -> Any:
        """Plan each case, share out blocks of its tiles, cut them."""
        plan = input_or_inputs | "plan" >> beam.ParDo(_Plan(self._cut)).with_outputs(_FAULTS, main="blocks")
        tiles = (
            plan["blocks"]
            | "share out" >> beam.Reshuffle()
            | "cut" >> beam.ParDo(_Cut(self._cut)).with_outputs(_FAULTS, main="tiles")
        )
        faults = (plan[_FAULTS], tiles[_FAULTS]) | "all faults" >> beam.Flatten()
        return {"tiles": tiles["tiles"], _FAULTS: faults}


class WriteShards(beam.PTransform):
    """(key, bytes) of tiles to ArrayRecord shards; gives what was written as `Finished`.

    Args:
        folder: of the shards; a folder or URL that every worker can write.
        shard_tiles: tiles a shard at most.
    """

    def __init__(self, folder: str, shard_tiles: int):
        super().__init__()
        self._folder, self._shard_tiles = folder, shard_tiles

    def expand(self, input_or_inputs: Any) -> Any:
        """Group records by a hash of their keys, and write each group."""
        count = (
            input_or_inputs
            | "count" >> beam.combiners.Count.Globally()
            | "shards" >> beam.Map(lambda n, size: max(1, -(-n // size)), self._shard_tiles)
        )
        return (
            input_or_inputs
            | "to shards" >> beam.Map(_with_shard, AsSingleton(count))
            | "group" >> beam.GroupByKey()
            | "write" >> beam.Map(_write, self._folder)
        )


def run(
    cases: Sequence[Case],
    spec: TileSpec,
    out: str,
    *,
    options: PipelineOptions | None = None,
    shard_tiles: int = SHARD_TILES,
    jpeg_quality: int | None = 95,
    seed: int = 0,
    needs: Needs = NO_NEEDS,
) -> ShardSummary:
    """Cut shards with a Beam runner; `ShardTiles` reads them like those of `cut_shards`.

    Args:
        cases: the training split; its slides must be readable by every worker.
        spec: size, resolution and choice of the tiles.
        out: folder or URL that every worker can write.
        options: of the runner; None = Beam's default, one process of this machine.
        shard_tiles: tiles a shard, about.
        jpeg_quality: [1, 100]; None = PNG, without loss.
        seed: of which objects get a tile, and where in it they lie.
        needs: what the model is trained on beside ground and class.

    Raises:
        InputError: nothing to cut, or `out` holds shards of something else: names what differs.
    """
    if shard_tiles < 1:
        raise InputError(f"shard_tiles must be at least 1; got {shard_tiles}.")
    cut = CutSpec(tiles=spec, seed=seed, jpeg_quality=jpeg_quality, needs=needs)
    # shards of `cut_shards` and of a runner do not mix: their layouts differ
    config = cut_config(cases, cut) | {"shard_tiles": shard_tiles, "layout": "beam"}
    claim(out, config)
    if storage.exists(storage.join(out, MANIFEST)):
        return summarise(read_manifest(out), 0)
    with beam.Pipeline(options=options) as pipeline:
        result = pipeline | "cases" >> beam.Create(list(cases), reshuffle=True) | CutCases(cut)
        written = result["tiles"] | WriteShards(storage.join(out, SHARDS), shard_tiles)
        faults = AsList(result[_FAULTS])
        done = written | "all shards" >> beam.combiners.ToList()
        _ = done | "commit" >> beam.Map(_commit, out, config, faults)
    manifest = read_manifest(out)
    return summarise(manifest, len(manifest.shards))


class _Plan(beam.DoFn):
    """A case to blocks of places, each with the case."""

    def __init__(self, cut: CutSpec):
        super().__init__()
        self._cut = cut

    def process(self, element: Case, *args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            places = plan_case(element, self._cut)
        except InputError as error:
            _LOG.warning("%s", error)
            yield TaggedOutput(_FAULTS, LostTiles(case=element.name, tiles=0, message=str(error)))
            return
        for block in np.array_split(places, max(1, -(-len(places) // _BLOCK))):
            yield element, block


class _Cut(beam.DoFn):
    """A case and places to keys and bytes."""

    def __init__(self, cut: CutSpec):
        super().__init__()
        self._cut = cut

    def process(self, element: tuple[Case, np.ndarray], *args: Any, **kwargs: Any) -> Iterator[Any]:
        case, places = element
        for one in cut_tiles(case, self._cut, places):
            if isinstance(one, LostTiles):
                _LOG.warning("%s", one.message)
                yield TaggedOutput(_FAULTS, one)
            else:
                yield one


def _with_shard(tile: tuple[str, bytes], shards: int) -> tuple[int, tuple[str, bytes]]:
    digest = hashlib.blake2b(tile[0].encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % shards, tile


def _write(group: tuple[int, Iterable[tuple[str, bytes]]], folder: str) -> Finished:
    """The same file under the same name, however often the runner tries."""
    shard, tiles = group
    records = [data for _, data in sorted(tiles)]
    return write_shard(folder, f"{shard:05d}{SUFFIX}", records)


def _commit(parts: list[Finished], out: str, config: dict[str, Any], faults: list[LostTiles]) -> None:
    commit(out, config, sorted(parts, key=lambda part: part.shard.name), faults)
