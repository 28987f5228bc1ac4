"""Writing pyramidal slides: tiled JPEG BigTIFF from a function that draws regions.

TIFF 6.0 with JPEG tiles (TIFF Technical Note 2) in BigTIFF's 64-bit layout. It is written here and
not by tifffile, which needs a further package for JPEG and takes one whole level at a time: here the
tiles of all levels are appended as they are drawn, in bounded memory, and the directories come last.
"""

import dataclasses
import io
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sparseshot_jax.errors import InputError

Draw = Callable[[int, int, int, int], UInt8[np.ndarray, "h w 3"]]

_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16  # TIFF field types
_FORMATS = {_SHORT: "H", _LONG: "I", _RATIONAL: "I", _LONG8: "Q"}


def write_pyramid(
    path: str | os.PathLike[str],
    draw: Draw,
    width: int,
    height: int,
    *,
    mpp: float,
    tile_px: int = 512,
    quality: int = 85,
) -> None:
    """Write a slide whose levels halve until one tile holds the whole.

    Memory is two rows of tiles of the finest level. The file appears under its name when complete.

    Args:
        path: the file, .tif or .tiff.
        draw: (x, y, width, height) in level-0 pixels -> RGB; called tile by tile, row by row, each
            tile once, cut at the right and lower edge.
        width: level-0 pixels.
        height: level-0 pixels.
        mpp: micrometres a level-0 pixel, kept in the resolution tags, where fastslide, OpenSlide
            and QuPath look.
        tile_px: side of the stored tiles, a multiple of 16.
        quality: JPEG quality, 1 to 95.

    Raises:
        InputError: a size that no slide can have.
    """
    if width < 1 or height < 1 or tile_px < 16 or tile_px % 16 or not 0.0 < mpp < math.inf:
        raise InputError(
            f"{path}: a pyramid needs width and height >= 1, tile_px a multiple of 16 and mpp > 0; "
            f"got {width} x {height}, tile_px {tile_px}, mpp {mpp}. Try tile_px=512."
        )
    part = Path(f"{os.fspath(path)}.part")
    try:
        with part.open("wb") as file:
            file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))  # BigTIFF; first directory: later
            levels = _levels(file, width, height, tile_px, quality)
            for y in range(0, height, tile_px):
                rows = min(tile_px, height - y)
                tiles = [draw(x, y, min(tile_px, width - x), rows) for x in range(0, width, tile_px)]
                levels[0].add(np.concatenate(tiles, axis=1))
            _write_directories(file, levels, tile_px, mpp)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@dataclasses.dataclass(kw_only=True)
class _Level:
    """One level in the making: takes rows, writes tiles, hands halved rows to the next level."""

    file: BinaryIO
    width: int
    height: int
    tile_px: int
    quality: int
    coarser: "_Level | None"
    band: UInt8[np.ndarray, "tile_px width 3"] = dataclasses.field(init=False)  # rows not yet written
    filled: int = 0  # rows of `band` in use
    taken: int = 0  # rows taken so far, written ones included
    offsets: list[int] = dataclasses.field(default_factory=list)  # of the tiles, bytes
    counts: list[int] = dataclasses.field(default_factory=list)  # their lengths, bytes

    def __post_init__(self) -> None:
        self.band = np.empty((self.tile_px, self.width, 3), np.uint8)

    def add(self, rows: UInt8[np.ndarray, "n width 3"]) -> None:
        """Take the next rows; they never cross a tile's edge, since tile heights are even."""
        self.band[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)
        self.taken += len(rows)
        if self.filled == self.tile_px or self.taken == self.height:
            band = self.band[: self.filled]
            for x in range(0, self.width, self.tile_px):
                self._write_tile(band[:, x : x + self.tile_px])
            if self.coarser is not None:
                self.coarser.add(_halved(band))
            self.filled = 0

    def _write_tile(self, pixels: np.ndarray) -> None:
        down, right = self.tile_px - pixels.shape[0], self.tile_px - pixels.shape[1]
        if down or right:  # repeat the edge: a hard one would ring into the image
            pixels = np.pad(pixels, ((0, down), (0, right), (0, 0)), mode="edge")
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=self.quality, subsampling="4:2:0")
        self.offsets.append(self.file.tell())
        self.counts.append(self.file.write(encoded.getbuffer()))


def _levels(file: BinaryIO, width: int, height: int, tile_px: int, quality: int) -> list[_Level]:
    sizes = [(width, height)]
    while max(sizes[-1]) > tile_px:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    levels: list[_Level] = []
    for w, h in reversed(sizes):
        coarser = levels[0] if levels else None
        level = _Level(file=file, width=w, height=h, tile_px=tile_px, quality=quality, coarser=coarser)
        levels.insert(0, level)
    return levels


def _halved(rows: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, rounded; an odd edge is repeated."""
    odd_h, odd_w = rows.shape[0] % 2, rows.shape[1] % 2
    if odd_h or odd_w:
        rows = np.pad(rows, ((0, odd_h), (0, odd_w), (0, 0)), mode="edge")
    total = rows[0::2].astype(np.uint16) + rows[1::2]
    return ((total[:, 0::2] + total[:, 1::2] + 2) // 4).astype(np.uint8)


def _write_directories(file: BinaryIO, levels: list[_Level], tile_px: int, mpp: float) -> None:
    link = 8  # where the offset of the next directory belongs
    for k, level in enumerate(levels):
        entries = _entries(level, k, tile_px, mpp)
        fields = []
        for tag, kind, values in entries:
            data = struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
            if len(data) > 8:  # longer values lie outside the directory
                offset = _aligned_end(file)
                file.write(data)
                data = struct.pack("<Q", offset)
            count = len(values) // (2 if kind == _RATIONAL else 1)
            fields.append(struct.pack("<HHQ", tag, kind, count) + data.ljust(8, b"\0"))
        start = _aligned_end(file)
        file.write(struct.pack("<Q", len(fields)) + b"".join(fields) + struct.pack("<Q", 0))
        end = file.tell()
        file.seek(link)
        file.write(struct.pack("<Q", start))
        file.seek(end)
        link = end - 8


def _entries(level: _Level, index: int, tile_px: int, mpp: float) -> list[tuple[int, int, list[int]]]:
    """Tags of one level, ascending as TIFF demands: (tag, type, values)."""
    pixels_per_cm = 1e4 / (mpp * 2**index)
    rational = [round(pixels_per_cm * 1e4), 10_000]
    return [
        (254, _LONG, [int(index > 0)]),  # NewSubfileType: 1 = a reduced image
        (256, _LONG, [level.width]),
        (257, _LONG, [level.height]),
        (258, _SHORT, [8, 8, 8]),  # BitsPerSample
        (259, _SHORT, [7]),  # Compression: JPEG
        (262, _SHORT, [6]),  # PhotometricInterpretation: YCbCr, as JPEG stores it
        (277, _SHORT, [3]),  # SamplesPerPixel
        (282, _RATIONAL, rational),  # XResolution
        (283, _RATIONAL, rational),  # YResolution
        (284, _SHORT, [1]),  # PlanarConfiguration: interleaved
        (296, _SHORT, [3]),  # ResolutionUnit: centimetre
        (322, _LONG, [tile_px]),  # TileWidth
        (323, _LONG, [tile_px]),  # TileLength
        (324, _LONG8, level.offsets),
        (325, _LONG8, level.counts),
        (530, _SHORT, [2, 2]),  # YCbCrSubSampling: 4:2:0
    ]


def _aligned_end(file: BinaryIO) -> int:
    """End of the file, padded to 8 bytes."""
    file.write(b"\0" * (-file.tell() % 8))
    return file.tell()
