"""Annotations to GeoJSON that QuPath 0.4 and later opens, in constant memory."""

import contextlib
import gzip
import hashlib
import itertools
import os
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.geojson_values import BOX
from sparseshot_jax.errors import InputError

# Okabe and Ito's colours, told apart by colour-blind readers; without black, which hides on nuclei.
PALETTE = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
)
OBJECT_TYPES = ("annotation", "detection", "cell", "tile")
CHUNK_OBJECTS = 4096  # objects that are turned into JSON at once
BOX_METADATA = b',"metadata":{"kind":"%b"}' % BOX.encode()  # QuPath 0.5 and later keeps it


class GeoJsonWriter:
    """A FeatureCollection written piece by piece; the file appears under its name only when complete.

    Use it in a `with` block. After an exception nothing is left behind, and a file that stood there
    before is untouched. The same objects in the same order give the same bytes, ids included.

    Args:
        path: the file to write; gzip where it ends in `.gz`. Its folder must exist.

    Raises:
        InputError: the file cannot be written; the message names path and remedy.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._streams: list[BinaryIO] = []
        self._colours: dict[str, tuple[int, int, int]] = {}
        self._count = 0

    def __enter__(self) -> "GeoJsonWriter":
        try:
            self._streams.append(self._temporary.open("wb"))
            if self.path.suffix == ".gz":
                # No name and no time inside: equal objects give equal files.
                packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=self._streams[0], mtime=0)
                self._streams.append(packed)  # pyright: ignore[reportArgumentType]
            self._put(b'{"type":"FeatureCollection","features":[')
        except OSError as error:
            self._discard()
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._put(b"\n]}\n")
            while self._streams:
                self._streams.pop().close()
            os.replace(self._temporary, self.path)
        except OSError as fault:
            self._discard()
            raise self._unwritable(fault) from fault

    def write(
        self,
        annotations: Annotations,
        probabilities: np.ndarray | None = None,
        object_type: str = "detection",
        measurements: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Append all objects.

        Args:
            annotations: objects in level-0 pixels, written to 0.001 px.
            probabilities: one number an object, [n]; becomes the measurement "probability".
            object_type: QuPath's kind of object: annotation, detection, cell or tile.
            measurements: name -> one number an object, [n]; what is not finite is left out.
        """
        if object_type not in OBJECT_TYPES:
            raise InputError(f"object_type must be one of {OBJECT_TYPES}; got {object_type!r}.")
        columns = dict(measurements or {})
        if probabilities is not None:
            columns = {"probability": probabilities, **columns}
        for name, values in columns.items():
            if np.shape(values) != (len(annotations),):
                raise InputError(
                    f"{self.path}: measurement {name!r} must have shape ({len(annotations)},), a "
                    f"number an object; got {np.shape(values)}."
                )
        for name in annotations.class_names:
            self._colours.setdefault(name, PALETTE[len(self._colours) % len(PALETTE)])
        for start in range(0, len(annotations), CHUNK_OBJECTS):
            stop = min(start + CHUNK_OBJECTS, len(annotations))
            self._write_chunk(
                annotations.take(np.arange(start, stop)),
                {name: np.asarray(values)[start:stop] for name, values in columns.items()},
                object_type,
            )

    def _write_chunk(
        self, annotations: Annotations, columns: dict[str, np.ndarray], object_type: str
    ) -> None:
        starts = self._property_starts(annotations, object_type)
        boxes = (annotations.kind == Kind.BOX).tolist()
        lines = []
        for shape, class_id, box, row in zip(
            _geometries(annotations),
            annotations.class_ids.tolist(),
            boxes,
            _measurement_rows(columns, len(annotations)),
        ):
            # From number and shape: unique in the file, equal from run to run.
            digest = hashlib.sha1(b"%d " % self._count + shape, usedforsecurity=False).hexdigest()
            lines.append(
                b'{"type":"Feature","id":"%b","geometry":%b,"properties":{%b%b%b}}'
                % (
                    _uuid5(digest).encode(),
                    shape,
                    starts[class_id],
                    BOX_METADATA if box else b"",
                    b',"measurements":{%b}' % row if row else b"",
                )
            )
            self._count += 1
        head = b"\n" if self._count == len(lines) else b",\n"
        try:
            self._put(head + b",\n".join(lines))
        except OSError as error:
            raise self._unwritable(error) from error

    def _property_starts(self, annotations: Annotations, object_type: str) -> list[bytes]:
        """How the properties of an object of each class begin."""
        starts = []
        for name in annotations.class_names:
            properties: dict[str, Any] = {"objectType": object_type}
            if name:
                properties["classification"] = {"name": name, "color": self._colours[name]}
            starts.append(orjson.dumps(properties)[1:-1])
        return starts

    def _put(self, data: bytes) -> None:
        if not self._streams:
            raise InputError(f"{self.path}: is not open; use the writer in a `with` block.")
        self._streams[-1].write(data)

    def _discard(self) -> None:
        while self._streams:
            # A full disk fails once more on close; the first failure is the one to report.
            with contextlib.suppress(OSError):
                self._streams.pop().close()
        self._temporary.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path}: cannot be written: {error.strerror or error}. Check that its folder "
            "exists, may be written to and has space left."
        )


def write_geojson(
    path: str | Path,
    annotations: Annotations,
    probabilities: np.ndarray | None = None,
    object_type: str = "detection",
    measurements: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write one file at once; arguments as in `GeoJsonWriter.write`."""
    with GeoJsonWriter(path) as writer:
        writer.write(annotations, probabilities, object_type, measurements)


def _uuid5(digest: str) -> str:
    """A hexadecimal digest as a UUID of version 5 (RFC 9562), without the cost of uuid.UUID."""
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def _measurement_rows(columns: dict[str, np.ndarray], count: int) -> Iterable[bytes]:
    """What stands in each object's mapping of measurements."""
    if not columns:
        return itertools.repeat(b"", count)
    entries = []
    for name, values in columns.items():
        # Six decimals, so that float32 values do not spread to 17 digits. What is not finite becomes null.
        numbers = _dumps(np.asarray(values, np.float64).round(6))[1:-1].split(b",")
        key = orjson.dumps(name) + b":"
        entries.append([b"" if number == b"null" else key + number for number in numbers])
    return [b",".join(filter(None, row)) for row in zip(*entries)]


def _geometries(annotations: Annotations) -> list[bytes]:
    """GeoJSON geometries; most objects are one ring, the others are sorted into shells and holes."""
    texts = _ring_texts(annotations)
    first = annotations.object_offsets.tolist()
    depth, parent = (values.tolist() for values in annotations.nesting)
    shapes = []
    for k, is_point in enumerate(annotations.is_point.tolist()):
        begin, end = first[k], first[k + 1]
        if is_point:
            shapes.append(b'{"type":"Point","coordinates":%b}' % texts[begin])
        elif end - begin == 1:
            shapes.append(b'{"type":"Polygon","coordinates":[[%b]]}' % texts[begin])
        else:
            shells = {r: [texts[r]] for r in range(begin, end) if depth[r] % 2 == 0}
            for r in range(begin, end):
                if depth[r] % 2:
                    shells[parent[r]].append(texts[r])
            parts = [b"[[%b]]" % b"],[".join(shell) for shell in shells.values()]
            shapes.append(
                b'{"type":"Polygon","coordinates":%b}' % parts[0]
                if len(parts) == 1
                else b'{"type":"MultiPolygon","coordinates":[%b]}' % b",".join(parts)
            )
    return shapes


def _ring_texts(annotations: Annotations) -> list[bytes]:
    """Vertices of each ring as JSON, "[x,y],[x,y]", the first once more at the end; of a point once."""
    lengths = np.diff(annotations.ring_offsets)
    first = annotations.ring_offsets[:-1]
    closing = np.where(np.repeat(annotations.is_point, np.diff(annotations.object_offsets)), 0, 1)
    closed = rings.ranges(first, lengths + closing)
    ends = np.cumsum(lengths + closing)
    closed[ends[closing == 1] - 1] = first[closing == 1]
    xy = np.ascontiguousarray(annotations.xy_px[closed].round(3))
    # All rings at once, and cut where a ring ends: much quicker than ring by ring.
    pieces = [xy[a:b] for a, b in itertools.pairwise([0, *ends.tolist()])]
    return [b"[%b]" % text for text in _dumps(pieces)[3:-3].split(b"]],[[")]


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
