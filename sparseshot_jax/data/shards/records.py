"""One training tile as bytes: an encoded image, and targets in runs that unpack in microseconds."""

import dataclasses
import io
import struct
import types
from collections.abc import Iterator, Mapping

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from sparseshot_jax.data.tile_objects import empty_objects
from sparseshot_jax.errors import InputError

# Little-endian: mark; y, x; level-0 pixels per output pixel; height, width; is a cell; lengths of key,
# case, classes; runs; bytes of the image. Then: run lengths (16 bits), grounds, labels, classes, key, case,
# image. A record of the second mark goes on with what a model needs beside these: places for objects,
# objects, objects left out, bytes of the distance. Then: boxes (32 bits a side), labels, the distance as PNG.
_HEADER = struct.Struct("<4siid2H?3HII")
_MORE = struct.Struct("<4I")
_MARK, _MARK_MORE = b"SSJ1", b"SSJ2"
_LONGEST_RUN = 0xFFFF
_MOST_PLACES = 1 << 20  # for objects of a tile: no damaged record makes more memory than that
_JPEG_START = b"\xff\xd8"
# What the image libraries and the unpacking raise for bytes that are no record.
_FAILURES = (ValueError, OSError, SyntaxError, struct.error, TypeError, RuntimeError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TilePlace:
    """Which tile a record is."""

    key: str  # unique in its data set, the same whoever cuts it
    case: str  # name of the image
    y: int  # origin, output pixels
    x: int
    scale: float  # level-0 pixels per output pixel
    cell: bool  # the central tile of a cell of the grid; else one drawn round an object
    classes: tuple[int, ...]  # ids of the annotated objects whose centres it holds, rising


def encode_record(
    place: TilePlace,
    image: UInt8[np.ndarray, "h w 3"],
    ground: UInt8[np.ndarray, "h w"],
    label: UInt8[np.ndarray, "h w"],
    more: Mapping[str, np.ndarray] = types.MappingProxyType({}),
    *,
    jpeg_quality: int | None,
) -> bytes:
    """The bytes of a record, a function of its values and of the image library's version alone.

    Args:
        place: which tile it is.
        image: RGB.
        ground: `Ground` codes.
        label: class 1..C where annotated, 0 elsewhere.
        more: what `TileObjects.objects_in` gives and "distance" uint8 [h, w]: either, both or none.
        jpeg_quality: [1, 100], colour at full resolution; None = PNG, without loss.
    """
    lengths, grounds, labels = _runs(ground, label)
    key, case, classes = place.key.encode(), place.case.encode(), bytes(place.classes)
    picture = _encoded(image, jpeg_quality)
    header = _HEADER.pack(
        _MARK_MORE if more else _MARK,
        place.y,
        place.x,
        place.scale,
        *ground.shape,
        place.cell,
        len(key),
        len(case),
        len(classes),
        len(lengths),
        len(picture),
    )
    runs = lengths.astype("<u2").tobytes() + grounds.tobytes() + labels.tobytes()
    return b"".join((header, runs, classes, key, case, picture, *_encoded_more(more)))


def decode_tile(data: bytes) -> dict[str, np.ndarray]:
    """Image, ground and label of a record, and its objects and distance where it has them: what training
    reads, as fast as it can be.

    Raises:
        InputError: these bytes are no record, or a damaged one.
    """
    try:
        mark, _, _, _, height, width, _, key, case, classes, runs, size = _HEADER.unpack_from(data)
        begin = _HEADER.size
        end = begin + 4 * runs + classes + key + case + size
        _check_length(mark, data, end)
        lengths = np.frombuffer(data, "<u2", runs, begin)
        codes = np.frombuffer(data, np.uint8, 2 * runs, begin + 2 * runs)
        ground = np.repeat(codes[:runs], lengths).reshape(height, width)
        label = np.repeat(codes[runs:], lengths).reshape(height, width)
        image = _decoded(memoryview(data)[end - size : end], height, width)
        more = _decoded_more(data, end, height, width) if mark == _MARK_MORE else {}
    except _FAILURES as error:
        raise InputError(f"the record is damaged ({error}). Cut its shard again.") from error
    return {"image": image, "ground": ground, "label": label, **more}


def describe(data: bytes) -> TilePlace:
    """What a record says of itself.

    Raises:
        InputError: these bytes are no record, or a damaged one.
    """
    try:
        mark, y, x, scale, _, _, cell, key, case, classes, runs, size = _HEADER.unpack_from(data)
        begin = _HEADER.size + 4 * runs
        _check_length(mark, data, begin + classes + key + case + size)
        parts = (data[low : low + length] for low, length in _spans(begin, classes, key, case))
        held, name, owner = tuple(next(parts)), next(parts).decode(), next(parts).decode()
    except _FAILURES as error:
        raise InputError(f"the record is damaged ({error}). Cut its shard again.") from error
    return TilePlace(key=name, case=owner, y=y, x=x, scale=scale, cell=cell, classes=held)


def _check_length(mark: bytes, data: bytes, end: int) -> None:
    """`end` is where the image ends: the record too, or what a model needs beside it begins."""
    if mark == _MARK_MORE:
        _, objects, _, distance = _MORE.unpack_from(data, end)
        end += _MORE.size + 17 * objects + distance
    if mark not in (_MARK, _MARK_MORE) or len(data) != end:
        raise ValueError("not the bytes of a tile")


def _encoded_more(more: Mapping[str, np.ndarray]) -> tuple[bytes, ...]:
    if not more:
        return ()
    tile = {**empty_objects(0), **more}
    held = tile["object_present"]  # those that are there come first
    distance = b""
    if "distance" in more:
        out = io.BytesIO()
        Image.fromarray(more["distance"]).save(out, "PNG")
        distance = out.getvalue()
    return (
        _MORE.pack(len(held), int(held.sum()), int(tile["left_out"]), len(distance)),
        tile["boxes_yxyx_px"][held].astype("<f4").tobytes(),
        tile["object_label"][held].tobytes(),
        distance,
    )


def _decoded_more(data: bytes, begin: int, height: int, width: int) -> dict[str, np.ndarray]:
    places, objects, left_out, size = _MORE.unpack_from(data, begin)
    begin += _MORE.size
    more: dict[str, np.ndarray] = {}
    if objects > places or places > _MOST_PLACES:
        raise ValueError(f"{objects} objects in {places} places")
    if places:
        more = empty_objects(places)
        more["boxes_yxyx_px"][:objects] = np.frombuffer(data, "<f4", 4 * objects, begin).reshape(-1, 4)
        more["object_label"][:objects] = np.frombuffer(data, np.uint8, objects, begin + 16 * objects)
        more["object_present"][:objects] = True
        more["left_out"][...] = left_out
    if size:
        with Image.open(io.BytesIO(data[-size:]), formats=("PNG",)) as picture:
            if picture.size != (width, height) or picture.mode != "L":
                raise ValueError(f"a distance of {picture.size}, {picture.mode}")
            more["distance"] = np.asarray(picture)
    return more


def _encoded(image: UInt8[np.ndarray, "h w 3"], jpeg_quality: int | None) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(image)
    if jpeg_quality is None:
        picture.save(out, "PNG")
    else:
        # Stain is told by colour, and a nucleus is a few pixels wide: no chroma subsampling.
        picture.save(out, "JPEG", quality=jpeg_quality, subsampling=0)
    return out.getvalue()


def _decoded(data: memoryview, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image; its own header is looked at first, so that no record makes a larger one.

    simplejpeg gives Pillow's pixels (both are libjpeg-turbo) in three quarters of the time: Pillow keeps four
    bytes a pixel, and copies them twice.
    """
    if data[:2] == _JPEG_START:
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            raise ValueError("a JPEG image of another size")
        image = np.empty((height, width, 3), np.uint8)
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=image)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        if picture.size != (width, height) or picture.mode != "RGB":
            raise ValueError(f"an image of {picture.size}, {picture.mode}")
        return np.asarray(picture)


def _runs(
    ground: UInt8[np.ndarray, "h w"], label: UInt8[np.ndarray, "h w"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Length, ground and label of the runs of equal pixels in reading order, none above 65535."""
    flat_ground, flat_label = ground.ravel(), label.ravel()
    change = (flat_ground[1:] != flat_ground[:-1]) | (flat_label[1:] != flat_label[:-1])
    starts = np.concatenate([[0], np.flatnonzero(change) + 1])
    longest = np.arange(0, flat_ground.size, _LONGEST_RUN)
    if len(longest) > 1:
        starts = np.union1d(starts, longest)
    lengths = np.diff(starts, append=flat_ground.size)
    return lengths, flat_ground[starts], flat_label[starts]


def _spans(begin: int, *lengths: int) -> Iterator[tuple[int, int]]:
    for length in lengths:
        yield begin, length
        begin += length
