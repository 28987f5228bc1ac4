"""Where a TIFF keeps its JPEG tiles, and whether they are sound: see `jpeg_check` for why to ask.

TIFF 6.0 and BigTIFF, either byte order. A tile is looked at once, before it is first decoded: most streams of
one slide begin with the same bytes, and behind these a count of markers is enough.
"""

import contextlib
import os
import struct
import weakref
from collections.abc import Sequence

import numpy as np

from sparseshot_jax.data.slides.jpeg_check import head_length, jpeg_fault, scan_fault

_WIDTH, _HEIGHT, _COMPRESSION, _STRIPS, _STRIP_ROWS, _STRIP_BYTES = 256, 257, 259, 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _SUB_IFDS, _JPEG_TABLES = 322, 323, 324, 325, 330, 347
_TYPES = {1: "u1", 3: "u2", 4: "u4", 7: "u1", 13: "u4", 16: "u8", 18: "u8"}
_JPEG = 7
_MOST_DIRECTORIES = 1000
_MOST_BYTES = 1 << 28  # of one tag, and of one tile: beyond it the file is not looked into


class DamagedTile(Exception):
    """A tile that must not reach the decoder. Says which, and what is wrong."""


class JpegTiles:
    """The JPEG tiles of the levels of one file. A file that is no TIFF, or has none, has no such levels.

    Args:
        path: any file.
        sizes: (width, height) of the levels; one that no single directory has stays unchecked.
    """

    def __init__(self, path: str, sizes: Sequence[tuple[int, int]]):
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._written = self._time_written()
        self._levels: list[_Level | None] = [None] * len(sizes)
        with contextlib.suppress(_NotSuch):
            found = [level for level in _Directories(self._file).levels() if level is not None]
            for k, size in enumerate(sizes):
                fitting = [level for level in found if level.size == size]
                if len(fitting) == 1:
                    self._levels[k] = fitting[0]

    @property
    def sparse(self) -> bool:
        """True where tiles were left out, as some writers do with glass."""
        return any(level is not None and not level.counts.all() for level in self._levels)

    def check(self, level: int, x: int, y: int, width: int, height: int) -> None:
        """Look at the tiles of a region (pixels of the level, inside it) that were not looked at yet.

        Raises:
            DamagedTile: one of them is not sound.
        """
        tiles = self._levels[level]
        if tiles is None:
            return
        written = self._time_written()
        if written != self._written:  # somebody copies over it while it is read
            self._written = written
            for one in filter(None, self._levels):
                one.sound[:] = False
        rows = range(y // tiles.tile[1], (y + height - 1) // tiles.tile[1] + 1)
        columns = range(x // tiles.tile[0], (x + width - 1) // tiles.tile[0] + 1)
        for row in rows:
            for column in columns:
                if not tiles.sound[row * tiles.across + column]:
                    self._look(tiles, row, column)

    def _time_written(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_mtime_ns, status.st_size

    def _look(self, tiles: "_Level", row: int, column: int) -> None:
        k = row * tiles.across + column
        offset, count = int(tiles.offsets[k]), int(tiles.counts[k])
        if count > _MOST_BYTES:  # a whole level in one stream: no such file was seen to do harm
            return
        inside = 0 <= offset <= offset + count <= self._written[1]
        stream = os.pread(self._file, count, offset) if inside else b""
        if tiles.head and stream.startswith(tiles.head):
            fault = scan_fault(stream, len(tiles.head))
        else:
            fault = jpeg_fault(stream, tables=tiles.tables, max_side=max(tiles.tile))
            if not fault and not tiles.head:
                tiles.head = stream[: head_length(stream)]
        if len(stream) != count:
            fault = "the file ends within it"
        if fault:
            raise DamagedTile(f"the JPEG tile in row {row}, column {column} is damaged ({fault})")
        tiles.sound[k] = True


class _Level:
    """The tiles of one directory; a strip is a tile as wide as the image."""

    def __init__(self, size: tuple[int, int], tile: tuple[int, int], offsets, counts, tables: bytes):
        self.size, self.tile = size, tile  # (width, height), pixels
        self.across = -(-size[0] // tile[0])
        self.offsets, self.counts = offsets, counts  # bytes, row by row
        self.tables = tables
        self.head = b""  # of the first sound tile, up to its picture data
        self.sound = np.zeros(len(offsets), bool)


class _NotSuch(Exception):
    """The file is no TIFF, or not one that this module understands."""


class _Directories:
    """The tags of a TIFF file."""

    def __init__(self, file: int):
        self._file = file
        head = os.pread(file, 16, 0)
        self._order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        self._big = self._order != "" and head[2:4] == struct.pack(f"{self._order}H", 43)
        if not self._order or not (self._big or head[2:4] == struct.pack(f"{self._order}H", 42)):
            raise _NotSuch
        self._link = "Q" if self._big else "I"
        self._first = self._unpack(self._link, 8 if self._big else 4)[0]

    def levels(self) -> "list[_Level | None]":
        """One for each directory with an image; None where its pixels are no JPEG tiles."""
        todo, seen, found = [self._first], set(), []
        while todo and len(seen) < _MOST_DIRECTORIES:
            at = todo.pop(0)
            if at == 0 or at in seen:
                continue
            seen.add(at)
            tags, following = self._tags(at)
            todo.append(following)
            todo += [int(k) for k in self._values(tags, _SUB_IFDS)]
            found.append(self._level(tags))
        return found

    def _tags(self, at: int) -> tuple[dict[int, tuple[int, int, int]], int]:
        """Tag -> (type, number of values, where its value field is); and the next directory."""
        count_format, entry = ("Q", 20) if self._big else ("H", 12)
        (count,) = self._unpack(count_format, at)
        if count > 4096:
            raise _NotSuch
        at += struct.calcsize(f"={count_format}")
        tags = {}
        for k in range(count):
            tag, kind, values = self._unpack(f"HH{self._link}", at + k * entry)
            tags[tag] = kind, values, at + k * entry + struct.calcsize(f"=HH{self._link}")
        return tags, self._unpack(self._link, at + count * entry)[0]

    def _values(self, tags: dict[int, tuple[int, int, int]], tag: int) -> np.ndarray:
        kind, count, at = tags.get(tag, (4, 0, 0))
        if kind not in _TYPES:
            raise _NotSuch
        dtype = np.dtype(self._order + _TYPES[kind])
        size = dtype.itemsize * count
        if size > _MOST_BYTES:
            raise _NotSuch
        if size > struct.calcsize(f"={self._link}"):
            at = self._unpack(self._link, at)[0]
        data = os.pread(self._file, size, at) if size else b""
        if len(data) < size:
            raise _NotSuch
        return np.frombuffer(data, dtype).astype(np.int64)

    def _level(self, tags: dict[int, tuple[int, int, int]]) -> _Level | None:
        def one(tag: int, default: int = 0) -> int:
            values = self._values(tags, tag)
            return int(values[0]) if len(values) else default

        width, height = one(_WIDTH), one(_HEIGHT)
        if one(_COMPRESSION) != _JPEG or not width or not height:
            return None
        if _TILES in tags:
            tile = one(_TILE_WIDTH), one(_TILE_HEIGHT)
            offsets, counts = self._values(tags, _TILES), self._values(tags, _TILE_BYTES)
        else:
            tile = width, min(one(_STRIP_ROWS, height), height)
            offsets, counts = self._values(tags, _STRIPS), self._values(tags, _STRIP_BYTES)
        if min(tile) < 1 or len(offsets) != len(counts):
            return None
        if len(offsets) != -(-width // tile[0]) * -(-height // tile[1]):
            return None  # a plane for each colour
        tables = self._values(tags, _JPEG_TABLES).astype(np.uint8).tobytes()
        return _Level((width, height), tile, offsets, counts, tables)

    def _unpack(self, layout: str, at: int) -> tuple[int, ...]:
        layout = self._order + layout
        try:
            return struct.unpack(layout, os.pread(self._file, struct.calcsize(layout), at))
        except (struct.error, OSError, OverflowError) as error:
            raise _NotSuch from error
