"""HoVer-Net's MATLAB files, the layout of CoNSeP, CPM17 and its other data sets: instances with types.

`inst_map` holds one whole number a pixel (0 = background); `inst_type` and `inst_centroid` one row an
instance, in the order of their numbers; `type_map` the type of every pixel. CPM17 and Kumar have the
first alone.
"""

import io
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.ndimage

from sparseshot_jax.data.annotations import Annotations, name_ids
from sparseshot_jax.data.formats.format import Format, Picture
from sparseshot_jax.data.formats.json_stream import read_document
from sparseshot_jax.data.formats.label_map import drawn_labels, label_map_to_annotations
from sparseshot_jax.data.formats.whole_file import whole_file
from sparseshot_jax.errors import InputError

MAX_BYTES = 1 << 30  # a file, and what it unpacks to
ARRAYS = ("inst_map", "type_map", "inst_type", "inst_centroid", "inst_uid")
WHAT = (
    "A HoVer-Net file holds inst_map (one whole number a pixel, 0 = background) and where known type_map, "
    "inst_type and inst_centroid"
)
_NUMERIC = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("double", "single", "logical"),
)
_COMPRESSED = 15  # type of an element that is a zlib stream


def read_hovernet(
    path: str | Path, class_names: Mapping[int, str] | None = None, *, max_bytes: int = MAX_BYTES
) -> Annotations:
    """Read the instances as polygons, ascending by number; see `label_map_to_annotations` for outlines.

    Args:
        path: the file.
        class_names: name of every type; None names each by its number, and all "object" where the file
            knows no types.
        max_bytes: limit on the file's size, also unpacked.

    Raises:
        InputError: the file cannot be read, its arrays do not fit together, or a type has no name.
    """
    arrays = read_instances(path, max_bytes=max_bytes)
    found = label_map_to_annotations(arrays["inst_map"], source=str(path))
    if not len(found) or "inst_type" not in arrays:
        return found
    types = arrays["inst_type"]
    known = {int(t): str(int(t)) for t in np.unique(types)} if class_names is None else class_names
    missing = sorted({int(t) for t in types} - set(known))
    if missing:
        raise InputError(
            f"{path}: the types must be among those named, {sorted(known)}; it holds {missing[:8]}. "
            "Name them too."
        )
    names, ids = name_ids([known[t] for t in types.tolist()], len(found))
    return Annotations(
        xy_px=found.xy_px,
        ring_offsets=found.ring_offsets,
        object_offsets=found.object_offsets,
        class_ids=ids,
        class_names=names,
        kind=found.kind,
        source=str(path),
    )


def read_instances(path: str | Path, *, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """The arrays of a file, checked against each other.

    Returns:
        inst_map: int32 [h, w], the numbers of the instances as in the file.
        inst_uid: int32 [n], the numbers that occur, ascending.
        type_map: int32 [h, w], where the file has it.
        inst_type: int32 [n], the type of each instance; from type_map where the file has only that, and
            absent where it has neither.
        inst_centroid: float64 [n, 2], x and y, pixels, 0 = centre of the first pixel, where the file has it.

    Raises:
        InputError: the file cannot be read, or its arrays do not fit together.
    """
    path = Path(path)
    given = _loaded(path, max_bytes)
    if "inst_map" not in given:
        raise InputError(f"{path}: holds no inst_map; it holds {sorted(given) or 'no array'}. {WHAT}.")
    labels = _whole_numbers(path, "inst_map", given["inst_map"])
    if labels.ndim != 2 or not labels.size:
        raise InputError(f"{path}: inst_map must be two-dimensional; its shape is {labels.shape}. {WHAT}.")
    numbers = np.unique(labels)
    numbers = numbers[numbers > 0]
    found = {"inst_map": labels, "inst_uid": numbers}
    if "type_map" in given:
        found["type_map"] = _whole_numbers(path, "type_map", given["type_map"])
        if found["type_map"].shape != labels.shape:
            raise InputError(
                f"{path}: type_map must have the shape of inst_map, {labels.shape}; it has "
                f"{found['type_map'].shape}."
            )
    if "inst_type" in given:
        types = _whole_numbers(path, "inst_type", given["inst_type"]).reshape(-1)
        found["inst_type"] = types[_rows(path, "inst_type", len(types), numbers, given)]
    elif "type_map" in given:
        found["inst_type"] = _commonest(labels, found["type_map"], numbers)
    if "inst_centroid" in given:
        centroids = np.asarray(given["inst_centroid"], np.float64)
        if centroids.ndim != 2 or centroids.shape[1] != 2:
            if centroids.size or len(numbers):
                raise InputError(
                    f"{path}: inst_centroid must have a row x, y an instance; its shape is {centroids.shape}."
                )
            centroids = centroids.reshape(0, 2)
        found["inst_centroid"] = centroids[_rows(path, "inst_centroid", len(centroids), numbers, given)]
    return found


def write_hovernet(path: str | Path, annotations: Annotations, picture: Picture) -> None:
    """Write the four arrays; a later object hides an earlier one. See `type_numbers` for classes.

    Args:
        path: the file to write.
        annotations: polygons and boxes.
        picture: its width and height are needed.

    Raises:
        InputError: an object is a point, the size is missing, or the file cannot be written.
    """
    path = Path(path)
    drawn = drawn_labels(path, annotations, picture)
    seen = np.unique(drawn)
    seen = seen[seen > 0]
    # Without gaps: other readers take row k of inst_type for instance k + 1.
    renumbered = np.zeros(len(annotations) + 1, np.int32)
    renumbered[seen] = np.arange(1, len(seen) + 1)
    labels = renumbered[drawn]
    numbers = type_numbers(annotations.class_names)
    types = np.array([numbers[name] for name in annotations.class_names], np.int32)
    of_object = types[annotations.class_ids[seen - 1]] if len(seen) else np.zeros(0, np.int32)
    centres = (
        scipy.ndimage.center_of_mass(labels > 0, labels, np.arange(1, len(seen) + 1)) if len(seen) else []
    )
    arrays = {
        "inst_map": labels,
        "type_map": np.append(0, of_object).astype(np.int32)[labels],
        "inst_type": of_object[:, None],
        "inst_centroid": np.array(centres, np.float64).reshape(-1, 2)[:, ::-1],
    }
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, arrays, do_compression=True)
    with whole_file(path) as stream:
        # In place of scipy's, which holds the time: equal objects give equal files.
        stream.write(b"MATLAB 5.0 MAT-file: instances as HoVer-Net keeps them".ljust(116))
        stream.write(buffer.getbuffer()[116:])


def type_numbers(class_names: tuple[str, ...]) -> dict[str, int]:
    """The types of classes: the names themselves where all are numbers from 1 on, else 1, 2, ... in order.

    >>> type_numbers(("tumour", "stroma"))
    {'tumour': 1, 'stroma': 2}
    >>> type_numbers(("3", "1"))
    {'3': 3, '1': 1}
    """
    if all(name.isascii() and name.isdecimal() and 0 < int(name[:9]) == int(name) for name in class_names):
        return {name: int(name) for name in class_names}
    return {name: number for number, name in enumerate(class_names, 1)}


def _loaded(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    document = read_document(path, max_bytes)
    if document[:10] == b"MATLAB 7.3" or b"\x89HDF\r\n" in (document[:6], document[512:518]):
        raise InputError(
            f"{path}: is a MATLAB 7.3 file (HDF5), which cannot be read; save it with -v7 in MATLAB, or with "
            "scipy.io.savemat."
        )
    try:
        _check_unpacked(path, document, max_bytes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            listed = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(io.BytesIO(document))}
            wanted = [name for name in ARRAYS if name in listed]
            for name in wanted:
                shape, kind = listed[name]
                # A cell or a structure would reserve what its shape claims, whatever the file holds.
                if kind not in _NUMERIC or np.prod(shape, dtype=np.float64) * 8 > max_bytes:
                    raise InputError(
                        f"{path}: {name} must be an array of numbers of at most {max_bytes:,} bytes; it is "
                        f"{kind} of shape {shape}. {WHAT}."
                    )
            arrays = scipy.io.loadmat(io.BytesIO(document), variable_names=wanted)
    except InputError:
        raise
    except Exception as error:  # scipy raises whatever the byte at hand leads to
        raise InputError(
            f"{path}: cannot be read as a MATLAB file: {error or type(error).__name__}. Check the path, or "
            f"save it again. {WHAT}."
        ) from error
    held = {name: arrays[name] for name in wanted if name in arrays}
    return {name: array for name, array in held.items() if isinstance(array, np.ndarray)}


def _check_unpacked(path: Path, document: bytes, max_bytes: int) -> None:
    """Refuse compressed elements that unpack to more than `max_bytes`: scipy has no limit of its own."""
    if document[126:128] not in (b"IM", b"MI"):  # MATLAB 4 packs nothing
        return
    order = "little" if document[126:128] == b"IM" else "big"
    at, left = 128, max_bytes
    while at + 8 <= len(document):
        kind, size = (int.from_bytes(document[at + k : at + k + 4], order) for k in (0, 4))
        if kind == _COMPRESSED:
            packed, stream = document[at + 8 : at + 8 + size], zlib.decompressobj()
            while packed and not stream.eof:
                left -= len(stream.decompress(packed, 1 << 20))
                packed = stream.unconsumed_tail
                if left < 0:
                    raise InputError(
                        f"{path}: must unpack to at most {max_bytes:,} bytes; it is larger. Read it with a "
                        "larger max_bytes."
                    )
        at += 8 + size


def _whole_numbers(path: Path, name: str, array: Any) -> np.ndarray:
    """As int32; MATLAB keeps whole numbers as double."""
    array = np.asarray(array)
    if array.dtype.kind not in "iufb":
        raise InputError(f"{path}: {name} must hold whole numbers; it is of type {array.dtype}. {WHAT}.")
    fits = bool(((array >= 0) & (array < 1 << 31)).all())  # False for NaN
    if not fits or (array.dtype.kind == "f" and not (array == np.floor(array)).all()):
        raise InputError(f"{path}: {name} must hold whole numbers from 0 to 2,147,483,647. {WHAT}.")
    return array.astype(np.int32)


def _rows(
    path: Path, name: str, rows: int, numbers: np.ndarray, given: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Which row belongs to each instance."""
    if "inst_uid" in given:
        listed = _whole_numbers(path, "inst_uid", given["inst_uid"]).reshape(-1)
        order = np.argsort(listed, kind="stable")
        place = np.searchsorted(listed, numbers, sorter=order)
        if len(listed) == rows and (place < rows).all() and (listed[order[place]] == numbers).all():
            return order[place]
    if rows == len(numbers):
        return np.arange(rows)
    if len(numbers) and rows >= numbers[-1]:  # a row for every number, also for those that do not occur
        return numbers - 1
    raise InputError(
        f"{path}: {name} must have a row an instance; it has {rows}, and inst_map holds {len(numbers)} "
        f"instances{f', numbered up to {numbers[-1]}' if len(numbers) else ''}. Save the file again."
    )


def _commonest(labels: np.ndarray, types: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The type that most pixels of each instance have; of equals the lowest."""
    inside = labels > 0
    place = np.searchsorted(numbers, labels[inside])
    values, kind = np.unique(types[inside], return_inverse=True)
    pairs, counts = np.unique(place * len(values) + kind, return_counts=True)
    order = np.lexsort((pairs, -counts, pairs // max(len(values), 1)))
    first = np.unique((pairs // max(len(values), 1))[order], return_index=True)[1]
    return values[pairs[order][first] % max(len(values), 1)].astype(np.int32)


HOVERNET = Format(
    title="HoVer-Net .mat",
    suffixes=(".mat",),
    read=read_hovernet,
    write=write_hovernet,
    keeps=(
        "polygons with holes and parts; classes as numbers; exact to whole pixels; of objects that overlap "
        "the later one hides the other; boxes become polygons; points are refused"
    ),
    origin="pixel by pixel: the first of the array is the top left one",
)
