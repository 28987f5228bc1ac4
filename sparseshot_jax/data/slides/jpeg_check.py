"""Is a JPEG stream safe to decode? Asked before a decoder that knows no way back is given it.

libjpeg's own answer to a broken structure is to end the process. Where every marker is in its place, it can
but draw wrong pixels.
"""

import re
from collections.abc import Iterator

_SOI, _EOI, _SOS, _DQT, _DHT, _DRI = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
_FRAMES = (0xC0, 0xC1)  # baseline and extended: all of the picture in one scan
_SKIPPED = (*range(0xE0, 0xF0), 0xFE, 0xDC)  # application data, comments, number of lines
_BARE = (0x01, *range(0xD0, 0xD8))  # markers without a length
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # in picture data: neither stuffing nor restart


class _Damaged(Exception):
    """What is wrong, in a few words."""


def jpeg_fault(stream: bytes, *, tables: bytes = b"", max_side: int = 65_500) -> str:
    """What is wrong with the structure of a JPEG stream of one scan; "" = nothing.

    Args:
        stream: from its first byte to its last.
        tables: another stream that holds the quantisation and Huffman tables this one lacks (TIFF's
            JPEGTables); "" = there is none.
        max_side: largest width and height that are plausible, pixels.

    >>> jpeg_fault(b"GIF89a")
    'no JPEG stream begins here'
    """
    known, start = _Known(max_side), 0
    try:
        for part in (tables, stream) if tables else (stream,):
            for marker, body, end in _segments(part):
                known.take(marker, body)
                start = end
        fault = known.fault()
    except _Damaged as error:
        return str(error)
    return fault or scan_fault(stream, start)


def head_length(stream: bytes) -> int:
    """Bytes before the picture data of a stream in which `jpeg_fault` finds nothing wrong."""
    return [end for _, _, end in _segments(stream)][-1]


def scan_fault(stream: bytes, start: int) -> str:
    """What is wrong with the picture data, which begin at byte `start`; "" = nothing."""
    lone = stream.count(b"\xff", start) - stream.count(b"\xff\x00", start)
    if lone == 1 and stream.endswith(b"\xff\xd9"):  # the usual stream, in a few microseconds
        return ""
    found = _MARKER.search(stream, start)
    if found and found[1][0] != _EOI:
        return f"marker {found[1][0]:#04x} within the picture data, at byte {found.start()}"
    return ""


def _segments(stream: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, body and end of each segment, up to and with the scan's header or the end of image."""
    if stream[:2] != bytes((0xFF, _SOI)):
        raise _Damaged("no JPEG stream begins here")
    at = 2
    while True:
        while stream[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if len(stream) < at + 2:
            raise _Damaged("the stream ends within its head")
        if stream[at] != 0xFF:
            raise _Damaged(f"no marker at byte {at}")
        marker, at = stream[at + 1], at + 2
        if marker in _BARE:
            continue
        if marker == _EOI:
            return
        length = int.from_bytes(stream[at : at + 2], "big")
        if length < 2 or len(stream) < at + length:
            raise _Damaged(f"segment {marker:#04x} at byte {at - 2} is longer than the stream")
        yield marker, stream[at + 2 : at + length], at + length
        at += length
        if marker == _SOS:
            return


class _Known:
    """What the segments so far have said, checked as libjpeg checks it."""

    def __init__(self, max_side: int):
        self._max_side = max_side
        self._quantisation: set[int] = set()
        self._huffman: set[int] = set()  # 0..3 for DC, 16..19 for AC
        self._components: dict[int, int] = {}  # id -> quantisation table
        self._used: set[int] | None = None  # Huffman tables of the scan, named as above

    def take(self, marker: int, body: bytes) -> None:
        if marker == _DQT:
            self._take_quantisation(body)
        elif marker == _DHT:
            self._take_huffman(body)
        elif marker in _FRAMES:
            self._take_frame(body)
        elif marker == _SOS:
            self._take_scan(body)
        elif marker == _DRI:
            _require(len(body) == 2, "a wrong restart interval")
        else:
            _require(marker in _SKIPPED, f"marker {marker:#04x}, which is unknown or of another kind of JPEG")

    def fault(self) -> str:
        """What the parts lack together."""
        if self._used is None:
            return "no picture in the stream"
        if not set(self._components.values()) <= self._quantisation:
            return "a quantisation table is missing"
        if self._huffman and not self._used <= self._huffman:  # none at all: the standard's own are meant
            return "a Huffman table is missing"
        return ""

    def _take_quantisation(self, body: bytes) -> None:
        while body:
            wide, name = body[0] >> 4, body[0] & 15
            size = 1 + 64 * (1 + wide)
            _require(wide <= 1 and name <= 3 and len(body) >= size, "a wrong quantisation table")
            self._quantisation.add(name)
            body = body[size:]

    def _take_huffman(self, body: bytes) -> None:
        while body:
            name, counts = body[0], body[1:17]
            total = sum(counts)
            fits = len(counts) == 16 and total <= 256 and len(body) >= 17 + total
            _require(fits and name & 0xEF <= 3, "a wrong Huffman table")
            symbols = body[17 : 17 + total]
            _require(name >= 16 or not total or max(symbols) <= 15, "a wrong Huffman symbol")
            code, last = 0, max((k for k, n in enumerate(counts) if n), default=-1)
            for length in range(last + 1):  # a code of all ones is not allowed
                code += counts[length]
                _require(code < 1 << (length + 1), "an overfull Huffman table")
                code <<= 1
            self._huffman.add(name)
            body = body[17 + total :]

    def _take_frame(self, body: bytes) -> None:
        _require(not self._components, "two frames in one stream")
        count = body[5] if len(body) > 5 else 0
        _require(1 <= count <= 4 and len(body) == 6 + 3 * count, "a wrong frame header")
        height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        _require(body[0] == 8, f"{body[0]} bits a sample")
        plausible = 1 <= height <= self._max_side and 1 <= width <= self._max_side
        _require(plausible, f"a size of {width} x {height} pixels")
        for k in range(count):
            name, sampling, table = body[6 + 3 * k : 9 + 3 * k]
            good = 1 <= sampling >> 4 <= 4 and 1 <= sampling & 15 <= 4 and table <= 3
            _require(good and name not in self._components, "a wrong colour component")
            self._components[name] = table

    def _take_scan(self, body: bytes) -> None:
        count = body[0] if body else 0
        _require(1 <= count <= 4 and len(body) == 4 + 2 * count, "a wrong scan header")
        names, tables = body[1 : 1 + 2 * count : 2], body[2 : 2 + 2 * count : 2]
        _require(sorted(names) == sorted(self._components), "a scan that leaves colours out")
        _require(all(t >> 4 <= 3 and t & 15 <= 3 for t in tables), "a wrong table name")
        self._used = {name for t in tables for name in (t >> 4, 16 + (t & 15))}


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Damaged(otherwise)
