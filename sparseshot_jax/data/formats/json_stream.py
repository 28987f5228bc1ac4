"""The features of a GeoJSON file a few megabytes at a time, whatever the file's size.

A JSON document held as Python objects takes ten times its own size. So the document is held as bytes,
cut between features by counting brackets, and only one piece at a time becomes objects.
"""

import contextlib
import gc
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import Int64

from sparseshot_jax.errors import InputError

MAX_BYTES = 4 << 30  # default limit on a document, unpacked
CHUNK_BYTES = 2 << 20  # a piece that is parsed at once; about 150 bytes of Python objects a vertex
SCAN_BYTES = 4 << 20  # a piece that is scanned at once

_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1
_MARK = _STEP != 0
_MARK[ord('"')] = True
_FEATURES_KEY = re.compile(rb'"features"\s*:\s*\Z')


def read_document(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file, unpacked where it is gzip (by content, not by name).

    Raises:
        InputError: the file cannot be read, is a broken gzip file, or unpacks to more than `max_bytes`.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            document = io.BytesIO()  # hands its bytes out without a copy
            # Piece by piece: a small gzip file may unpack to terabytes.
            while piece := stream.read(1 << 20):
                document.write(piece)
                if document.tell() > max_bytes:
                    raise InputError(
                        f"{path}: must be at most {max_bytes:,} bytes"
                        f"{' once unpacked' if packed else ''}; it is larger. Split it, or read it "
                        "with a larger max_bytes."
                    )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the gzip file is broken ({error}). Copy or export it again.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}. Check the path.") from error
    return document.getvalue().removeprefix(b"\xef\xbb\xbf")


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection in here: it walks a tree of lists that is being built again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def feature_chunks(document: bytes, path: Path) -> Iterator[tuple[int, list[Any]]]:
    """Pieces of the list of features, in order, each with the number of its first feature.

    Takes a FeatureCollection, a bare list of features, or one feature.

    Raises:
        InputError: the document is not JSON, or holds no list of features.
    """
    begin, ends, stop = _features_array(document)
    if stop < 0:  # a single feature, or a document that the parser will find fault with
        yield 0, _only_feature(load_json(document, path), path)
        return
    envelope = load_json(document[:begin] + document[stop:], path, skipped=(begin, stop - begin))
    if isinstance(envelope, dict) and not isinstance(envelope.get("features"), list):
        raise InputError(f"{path}: two lists are named 'features'; keep one of them.")
    number, start = 0, begin
    for end in _cuts(ends, begin, stop):
        # A later piece begins with the comma after the feature before it; a 0 stands for that feature,
        # so that the parser finds fault with a missing or a dangling comma.
        head = b"[" if start == begin else b"[0"
        text = head + document[start:end] + b"]"
        features = load_json(text, path, document=document, offset=start - len(head))
        features = features[len(head) - 1 :]
        if features:
            yield number, features
        number, start = number + len(features), end


def load_json(
    text: bytes,
    path: Path,
    *,
    document: bytes = b"",
    offset: int = 0,
    skipped: tuple[int, int] = (0, 0),
) -> Any:
    """Parsed JSON, NaN and Infinity tolerated, or an InputError that names the place in the file.

    Args:
        text: what to parse.
        path: the file, for the message.
        document: the whole document where `text` is a piece of it.
        offset: where in the document `text` begins.
        skipped: (position, length) of what was cut out of the document to make `text`.
    """
    with collector_paused():
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            fault = error
        if b"NaN" in text or b"Infinity" in text:  # not JSON, but Python and Java write them
            try:
                return json.loads(text)
            except (ValueError, RecursionError):
                pass  # broken besides: report what orjson found
    try:
        at = len(text.decode()[: fault.pos].encode())  # the parser counts characters, a file bytes
    except UnicodeDecodeError as error:
        at = error.start
    if at >= skipped[0]:
        at += skipped[1]
    reason = str(fault).split(": line")[0]
    raise InputError(
        f"{path}: is not valid JSON: {reason}, {_place(document or text, at + offset)}. "
        "It must be UTF-8 text as QuPath exports it; export or copy it again."
    ) from fault


def _only_feature(document: Any, path: Path) -> list[Any]:
    """The features of a document without a list of them in the usual place."""
    if not isinstance(document, dict):
        raise InputError(
            f"{path}: must hold GeoJSON features; it holds a {type(document).__name__}. "
            "Export the objects as GeoJSON."
        )
    if "features" in document:
        if not isinstance(document["features"], list):
            raise InputError(
                f"{path}: 'features' must be a list; it is a "
                f"{type(document['features']).__name__}. Export the file again."
            )
        return document["features"]
    if "geometry" in document:
        return [document]
    if "coordinates" in document:
        return [{"geometry": document}]
    raise InputError(
        f"{path}: must be a FeatureCollection, a list of features or one feature; it has the keys "
        f"{sorted(map(str, document))[:8]}. Export the objects as GeoJSON."
    )


def _features_array(document: bytes) -> tuple[int, Int64[np.ndarray, "k"], int]:
    """Where the list of features begins, where each of its elements ends, and where the list stops.

    The stop is -1 where there is no such list or it is never closed.
    """
    begin, inner = -1, 0
    ends: list[np.ndarray] = []
    for at, level, step in _brackets(document):
        first = 0
        if begin < 0:
            for i in np.flatnonzero((step > 0) & (level <= 2)):
                if _opens_features(document, int(at[i]), int(level[i])):
                    begin, inner, first = int(at[i]) + 1, int(level[i]), int(i) + 1
                    break
            else:
                continue
        at, level, step = at[first:], level[first:], step[first:]
        closing = np.flatnonzero(level < inner)
        if len(closing):
            at, level, step = at[: closing[0] + 1], level[: closing[0] + 1], step[: closing[0] + 1]
        ends.append(at[(step < 0) & (level == inner)] + 1)
        if len(closing):
            return begin, np.concatenate(ends), int(at[-1])
    return begin, np.zeros(0, np.int64), -1


def _opens_features(document: bytes, at: int, level: int) -> bool:
    if document[at] != ord("["):
        return False
    if level == 1:
        return not document[:at].strip()
    return _FEATURES_KEY.search(document, max(0, at - 200), at) is not None


def _brackets(
    document: bytes,
) -> Iterator[tuple[Int64[np.ndarray, "k"], Int64[np.ndarray, "k"], np.ndarray]]:
    """Position, depth after it and step (+1 or -1) of every bracket outside strings, by pieces."""
    quoted, depth = 0, 0
    escaped = False  # the block before ended with a backslash that escapes the first byte of this one
    for start in range(0, len(document), SCAN_BYTES):
        piece = document[start : start + SCAN_BYTES]
        if escaped or b"\\" in piece:  # an escaped quote must not end its string
            piece = re.sub(rb"\\.", b"__", b"\\" * escaped + piece, flags=re.DOTALL)[escaped:]
            escaped = piece.endswith(b"\\")
        block = np.frombuffer(piece, np.uint8)
        at = np.flatnonzero(_MARK[block])
        mark = block[at]
        quotes = np.cumsum(mark == ord('"')) + quoted
        step = _STEP[mark] * (quotes % 2 == 0)
        at, step = at[step != 0], step[step != 0]
        level = depth + np.cumsum(step, dtype=np.int64)
        yield at + start, level, step
        quoted = int(quotes[-1]) if len(quotes) else quoted
        depth = int(level[-1]) if len(level) else depth


def _cuts(ends: Int64[np.ndarray, "k"], begin: int, stop: int) -> list[int]:
    """Ends of the pieces: the first end of a feature past every CHUNK_BYTES, and the list's end."""
    wanted = np.arange(begin + CHUNK_BYTES, stop, CHUNK_BYTES)
    chosen = np.searchsorted(ends, wanted)
    return [*np.unique(ends[chosen[chosen < len(ends)]]).tolist(), stop]


def _place(document: bytes, at: int) -> str:
    line = document.count(b"\n", 0, at) + 1
    return f"line {line}, byte {at}"
