"""Annotations to GeoJSON that QuPath 0.4 and later opens, in constant memory."""

import contextlib
import gzip
import hashlib
import itertools
import os
import types
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from sparseshot_jax.data.annotations import Annotations
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
        classes = [
            {"name": name, "color": self._colours[name]} if name else None for name in annotations.class_names
        ]
        rows = _measurement_rows(columns, len(annotations))
        lines = []
        for geometry, class_id, row in zip(_geometries(annotations), annotations.class_ids.tolist(), rows):
            properties: dict[str, Any] = {"objectType": object_type}
            if classes[class_id] is not None:
                properties["classification"] = classes[class_id]
            if row:
                properties["measurements"] = row
            lines.append(self._feature(geometry, properties))
        try:
            self._put(b",".join(lines) if self._count == len(lines) else b"," + b",".join(lines))
        except OSError as error:
            raise self._unwritable(error) from error

    def _feature(self, geometry: dict, properties: dict) -> bytes:
        shape = orjson.dumps(geometry)
        # From number and shape: unique in the file, equal from run to run.
        digest = hashlib.sha1(b"%d " % self._count + shape, usedforsecurity=False).digest()
        name = uuid.UUID(bytes=digest[:16], version=5)
        self._count += 1
        rest = orjson.dumps(properties)
        return b'\n{"type":"Feature","id":"%b","geometry":%b,"properties":%b}' % (
            str(name).encode(),
            shape,
            rest,
        )

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


def _measurement_rows(columns: dict[str, np.ndarray], count: int) -> list[dict[str, float]]:
    """A mapping an object; six decimals, so that float32 values do not spread to 17 digits."""
    rows: list[dict[str, float]] = [{} for _ in range(count)]
    for name, values in columns.items():
        values = np.asarray(values, np.float64).round(6)
        for k in np.flatnonzero(np.isfinite(values)).tolist():
            rows[k][name] = float(values[k])
    return rows


def _geometries(annotations: Annotations) -> list[dict]:
    """GeoJSON geometries; most objects are one ring, the others are sorted into shells and holes."""
    xy = annotations.xy_px.round(3).tolist()
    bounds = annotations.ring_offsets.tolist()
    first = annotations.object_offsets.tolist()
    depth, parent = (values.tolist() for values in annotations.nesting)
    closed = [[*xy[a:b], xy[a]] for a, b in itertools.pairwise(bounds)]
    geometries = []
    for k, is_point in enumerate(annotations.is_point.tolist()):
        begin, end = first[k], first[k + 1]
        if is_point:
            geometries.append({"type": "Point", "coordinates": closed[begin][0]})
        elif end - begin == 1:
            geometries.append({"type": "Polygon", "coordinates": [closed[begin]]})
        else:
            shells = {r: [closed[r]] for r in range(begin, end) if depth[r] % 2 == 0}
            for r in range(begin, end):
                if depth[r] % 2:
                    shells[parent[r]].append(closed[r])
            parts = list(shells.values())
            single = len(parts) == 1
            geometries.append(
                {
                    "type": "Polygon" if single else "MultiPolygon",
                    "coordinates": parts[0] if single else parts,
                }
            )
    return geometries
