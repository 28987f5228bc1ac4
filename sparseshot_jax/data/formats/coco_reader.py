"""COCO JSON to annotations: polygons, run-length masks and boxes of one image or of many."""

import collections
import dataclasses
import difflib
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats import coco_rle
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.geojson_values import Fault, shown
from sparseshot_jax.data.formats.json_stream import load_json, read_document
from sparseshot_jax.data.formats.polygon_repair import UNCLOSED, Shapes, clean
from sparseshot_jax.errors import InputError

MAX_BYTES = 1 << 30  # a document, unpacked; it becomes five times its size in Python objects
IGNORED = "Ignore*"  # class of iscrowd = 1: QuPath's own name for a region to leave out

CROWDS = "{} crowd regions (iscrowd 1) became regions to ignore, class Ignore*."
KEYPOINTS = "Keypoints of {} annotations were left out."
NOTHING = "{} annotations with neither segmentation nor bbox were skipped."


def read_coco(path: str | Path, image: str | None = None, *, max_bytes: int = MAX_BYTES) -> Annotations:
    """Read the objects of one image.

    A segmentation becomes a polygon (its parts together one object; a mask along its pixels' edges); an
    annotation with a bbox alone becomes a box; iscrowd = 1 gives the class "Ignore*".

    Args:
        path: the file, plain or gzip.
        image: its `file_name`; None where the file holds one image.
        max_bytes: limit on the file's size, unpacked.

    Raises:
        InputError: the file cannot be read or is no COCO JSON, or `image` must be one of several.
    """
    images = read_coco_images(path, max_bytes=max_bytes)
    if image is None:
        if len(images) > 1:
            raise InputError(
                f"{path}: must hold one image; it holds {len(images)}: {', '.join(list(images)[:8])}"
                f"{', ...' if len(images) > 8 else ''}. Name one of them, or convert the file to one file "
                "an image: sparseshot data convert FILE FOLDER."
            )
        image = next(iter(images))
    if image not in images:
        close = difflib.get_close_matches(image, images, 3, 0.4) or list(images)[:8]
        raise InputError(f"{path}: holds no image {image!r}. Did you mean {', '.join(close)}?")
    return images[image][1]


def read_coco_images(
    path: str | Path, *, max_bytes: int = MAX_BYTES
) -> dict[str, tuple[Picture, Annotations]]:
    """Read the objects of every image, by `file_name`; see `read_coco`.

    Raises:
        InputError: the file cannot be read or is no COCO JSON; the message names file, place and remedy.
    """
    path = Path(path)
    return _File(path, load_json(read_document(path, max_bytes), path)).result()


class _File:
    """One document taken apart: its lists checked, its annotations dealt to their images."""

    def __init__(self, path: Path, document: Any):
        self.path = path
        self.names: dict[str, int] = {}  # class name -> place
        self.categories: dict[Any, int] = {}  # id -> place in names
        self.pictures: dict[Any, Picture] = {}  # by id
        self.objects: dict[Any, _Flat] = {}  # by id of the image
        self.document = self._checked(document)

    def _checked(self, document: Any) -> dict[str, Any]:
        what = "a COCO file maps 'images', 'annotations' and 'categories' to lists"
        if type(document) is list and document and type(document[0]) is dict and "image_id" in document[0]:
            raise InputError(
                f"{self.path}: is a list of COCO results, without the images and categories they point "
                f"to; {what}. Put the list under 'annotations' of the file the results were made for."
            )
        if type(document) is not dict or "images" not in document:
            held = sorted(document)[:8] if type(document) is dict else f"a {type(document).__name__}"
            raise InputError(f"{self.path}: must be COCO JSON: {what}; it holds {held}. Export it as COCO.")
        for key in ("images", "annotations", "categories"):
            if type(document.get(key, [])) is not list:
                raise InputError(f"{self.path}: {key!r} must be a list; {what}. Export it again.")
        if not document["images"]:
            raise InputError(f"{self.path}: 'images' is empty; it must name what was annotated.")
        return document

    def result(self) -> dict[str, tuple[Picture, Annotations]]:
        """Every image with its objects, in the file's order."""
        self._each("categories", self._add_category)
        listed = len(self.names)
        for name in ("", IGNORED):
            self.names.setdefault(name, len(self.names))
        seen: set[str] = set()
        self._each("images", lambda entry: self._add_image(entry, seen))
        self._each("annotations", self._add_annotation)
        return {
            picture.name: (picture, self._annotations(self.objects[key], listed))
            for key, picture in self.pictures.items()
        }

    def _each(self, key: str, add: Callable[[dict[str, Any]], None]) -> None:
        for number, entry in enumerate(self.document.get(key, [])):
            try:
                if type(entry) is not dict:
                    raise Fault(f"must be a mapping; it is {shown(entry)}")
                add(entry)
            except Fault as fault:
                raise self._broken(key, number, str(fault)) from None

    def _add_category(self, entry: dict[str, Any]) -> None:
        name = _name(entry.get("name"), "name")
        self.categories[_identity(entry, self.categories)] = self.names.setdefault(name, len(self.names))

    def _add_image(self, entry: dict[str, Any], seen: set[str]) -> None:
        key = _identity(entry, self.pictures)
        name = _name(entry.get("file_name", str(key)), "file_name")
        if name in seen:
            raise Fault(f"names the file {name!r} a second time")
        seen.add(name)
        width, height = (_side(entry.get(side), side) for side in ("width", "height"))
        self.pictures[key] = Picture(name=name, width=width, height=height)
        self.objects[key] = _Flat()

    def _add_annotation(self, entry: dict[str, Any]) -> None:
        flat, picture = (
            _found(entry.get("image_id"), at, "image_id") for at in (self.objects, self.pictures)
        )
        crowd = entry.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise Fault(f"must have iscrowd 0 or 1; it is {shown(crowd)}")
        category = entry.get("category_id")
        if crowd:
            class_id = self.names[IGNORED]
        elif category is None:
            class_id = self.names[""]
        else:
            class_id = _found(category, self.categories, "category_id")
        flat.counts[KEYPOINTS] += bool(entry.get("keypoints"))
        if entry.get("segmentation"):
            flat.add(_parts(entry["segmentation"], picture), class_id, Kind.POLYGON)
        elif entry.get("bbox"):
            flat.add([[_box(entry["bbox"])]], class_id, Kind.BOX)
        else:
            flat.counts[NOTHING] += 1
            return
        flat.counts[CROWDS] += crowd

    def _annotations(self, flat: "_Flat", listed: int) -> Annotations:
        shapes = Shapes(
            xy=flat.vertices(),
            ring_offsets=rings.offsets_of(np.array([len(ring) // 2 for ring in flat.rings], np.int64)),
            part_offsets=rings.offsets_of(np.array(flat.rings_of_part, np.int64)),
            object_offsets=rings.offsets_of(np.array(flat.parts_of_object, np.int64)),
            class_ids=np.array(flat.class_ids, np.int32),
            kind=np.array(flat.kind, np.uint8),
        )
        found = clean(shapes, tuple(self.names), flat.counts)
        del flat.counts[UNCLOSED]  # COCO closes no ring: nothing to tell
        notes = [text.format(count) for text, count in flat.counts.items() if count]
        if not len(found):
            notes.append("The file holds no object of this image that can be used.")
        # The categories of the file in any case, "" and "Ignore*" where an object has them.
        kept = np.union1d(np.arange(listed), found.class_ids)
        names = tuple(self.names)
        return dataclasses.replace(
            found,
            class_ids=np.searchsorted(kept, found.class_ids).astype(np.int32),
            class_names=tuple(names[k] for k in kept.tolist()),
            source=str(self.path),
            notes=tuple(notes),
        )

    def _broken(self, key: str, number: int, what: str) -> InputError:
        return InputError(
            f"{self.path}: entry {number} of {key!r} (the first is 0) {what}. "
            "Correct or delete it, or export the file again."
        )


class _Flat:
    """The objects of one image: rings x0, y0, x1, y1, ... of parts of objects."""

    def __init__(self):
        self.rings: list[list] = []
        self.rings_of_part: list[int] = []
        self.parts_of_object: list[int] = []
        self.class_ids: list[int] = []
        self.kind: list[Kind] = []
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, parts: list[list[list]], class_id: int, kind: Kind) -> None:
        """One object."""
        # An empty mask or ring is kept as one without extent: it is rejected, and counted, with those.
        for part in parts or [[[]]]:
            self.rings += [ring or [0, 0] for ring in part]
            self.rings_of_part.append(len(part))
        self.parts_of_object.append(len(parts or [[]]))
        self.class_ids.append(class_id)
        self.kind.append(kind)

    def vertices(self) -> Float64[np.ndarray, "v 2"]:
        """All vertices; the numbers were checked when they came in."""
        numbers = itertools.chain.from_iterable(self.rings)
        return np.fromiter(numbers, np.float64, sum(map(len, self.rings))).reshape(-1, 2)


def _identity(entry: dict[str, Any], known: dict[Any, Any]) -> int | str:
    key: Any = entry.get("id")
    if type(key) not in (int, str):
        raise Fault(f"must have an id; it is {shown(key)}")
    if key in known:
        raise Fault(f"has the id {shown(key)} of an earlier entry")
    return key


def _found(key: Any, known: dict[Any, Any], what: str) -> Any:
    if type(key) not in (int, str) or key not in known:
        listed = {"image_id": "images", "category_id": "categories"}[what]
        raise Fault(f"names the {what} {shown(key)}, which no entry of {listed!r} has")
    return known[key]


def _name(value: Any, what: str) -> str:
    if type(value) is not str:
        raise Fault(f"must have a {what}; it is {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Fault(f"has a {what} that is not valid Unicode") from None
    return value


def _side(value: Any, what: str) -> int | None:
    if value is None or value == 0:  # 0 = not filled in
        return None
    if type(value) is not int or not 0 < value <= coco_rle.MAX_SIDE:
        raise Fault(f"must have a {what} of 1 to {coco_rle.MAX_SIDE:,} pixels; it is {shown(value)}")
    return value


def _box(value: Any) -> list[float]:
    """The corners, in order, of x, y, width, height."""
    if type(value) is not list or len(value) != 4:
        raise Fault(f"must have a bbox [x, y, width, height]; it is {shown(value)}")
    x, y, width, height = _numbers(value)
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _parts(value: Any, picture: Picture) -> list[list[list]]:
    if type(value) is dict:
        parts = _mask_parts(value, picture)
        return [[ring.reshape(-1).tolist() for ring in part] for part in parts]
    if type(value) is not list:
        raise Fault(f"must have a segmentation of polygons or a mask; it is {shown(value)}")
    polygons = value if type(value[0]) is list else [value]
    for polygon in polygons:
        if type(polygon) is not list or len(polygon) % 2:
            raise Fault(
                f"must have polygons [x0, y0, x1, y1, ...], an even count of numbers; one is {shown(polygon)}"
            )
    return [[_numbers(polygon)] for polygon in polygons]


def _mask_parts(value: dict[str, Any], picture: Picture) -> list[list[np.ndarray]]:
    size, counts = value.get("size"), value.get("counts")
    if type(size) is not list or len(size) != 2:
        raise Fault(f"must have a mask with a size [height, width]; it is {shown(size)}")
    height, width = (_side(side, "size") for side in size)
    if height is None or width is None:
        raise Fault(f"must have a mask of one pixel at least; its size is {shown(size)}")
    if (height, width) != (picture.height or height, picture.width or width):
        raise Fault(
            f"must have a mask of its image's size, {picture.height} x {picture.width} (height x width); it "
            f"is {height} x {width}"
        )
    try:
        if type(counts) is str:
            runs = coco_rle.decode_counts(counts)
        elif type(counts) is list and all(type(run) is int and 0 <= run < 1 << 62 for run in counts):
            runs = np.array(counts, np.int64)
        else:
            raise ValueError(f"its counts must be text or a list of whole numbers; they are {shown(counts)}")
        return coco_rle.outline(runs, height, width)
    except ValueError as error:
        raise Fault(f"has a mask that cannot be read: {error}") from None


def _numbers(values: list) -> list[float]:
    """The values where all are numbers (null, as JavaScript writes NaN, becomes NaN)."""
    if {*map(type, values)} == {float}:  # the usual file, quickly
        return values
    return [_number(value) for value in values]


def _number(value: Any) -> float:
    if value is None:  # how JavaScript writes NaN
        return math.nan
    if type(value) not in (int, float):
        raise Fault(f"must hold numbers; it holds {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf
