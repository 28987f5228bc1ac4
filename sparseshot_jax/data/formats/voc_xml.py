"""Pascal VOC XML: the boxes of one image."""

import array
import collections
import dataclasses
from pathlib import Path

import numpy as np

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.format import Format, Picture
from sparseshot_jax.data.formats.json_stream import MAX_BYTES
from sparseshot_jax.data.formats.polygon_repair import MAX_COORDINATE, NOT_FINITE
from sparseshot_jax.data.formats.whole_file import whole_file
from sparseshot_jax.data.formats.xml_outlines import NOTHING
from sparseshot_jax.data.formats.xml_stream import Attributes, Handlers, XmlFault, number_of, parse
from sparseshot_jax.data.formats.xml_writer import HEAD, check_names, escaped, shown
from sparseshot_jax.errors import InputError

DEGENERATE = "{} boxes without width or height (xmax <= xmin or ymax <= ymin) were rejected."
BEYOND = "{} boxes reach beyond the image; they were kept as they are."
DIFFICULT = "{} objects are marked difficult; they were kept."
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_OBJECT = ("annotation", "object")


def read_voc(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Annotations:
    """Read the boxes of a Pascal VOC file.

    The files count pixels from 1 and include the last one, as VOC's own development kit does: xmin = 1,
    xmax = 1 is the first column of pixels. So a box covers [xmin - 1, xmax] in level-0 pixels.

    Args:
        path: the file.
        max_bytes: limit on its size.

    Raises:
        InputError: the file cannot be read or is no VOC XML; the message names file, place and remedy.
    """
    path = Path(path)
    reader = _Reader()
    parse(path, reader.handlers(), max_bytes=max_bytes)
    return reader.result(path)


class _Reader:
    def __init__(self):
        self.size: dict[str, float] = {}
        self.at_hand: dict[str, float] = {}  # the sides of the object at hand
        self.name: str | None = None
        self.difficult = False
        self.sides = array.array("d")
        self.names: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()

    def handlers(self) -> Handlers:
        """What the parser calls."""

        def side(name: str):
            return lambda text: self.at_hand.__setitem__(name, number_of(text, "it"))

        def length(name: str):
            return lambda text: self.size.__setitem__(name, number_of(text, "it"))

        return Handlers(
            start={_OBJECT: self._object},
            text={
                (*_OBJECT, "name"): self._name,
                (*_OBJECT, "difficult"): self._difficult,
                **{(*_OBJECT, "bndbox", name): side(name) for name in _SIDES},
                **{("annotation", "size", name): length(name) for name in ("width", "height")},
            },
            end={_OBJECT: self._close},
            roots=("annotation",),
            title="Pascal VOC XML",
        )

    def result(self, path: Path) -> Annotations:
        """The boxes that can be used."""
        boxes = np.array(self.sides, np.float64).reshape(-1, 4)
        finite = (np.abs(boxes) <= MAX_COORDINATE).all(axis=1)  # False for NaN
        sized = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        self.counts[NOT_FINITE] += int((~finite).sum())
        self.counts[DEGENERATE] += int((finite & ~sized).sum())
        kept = np.flatnonzero(finite & sized)
        boxes = boxes[kept] - np.array([1.0, 1.0, 0.0, 0.0])
        width, height = self.size.get("width", 0), self.size.get("height", 0)
        if width > 0 and height > 0:  # some programs write 0 for unknown
            beyond = (boxes[:, :2] < 0).any(axis=1) | (boxes[:, 2:] > np.array([width, height])).any(axis=1)
            self.counts[BEYOND] += int(beyond.sum())
        notes = [text.format(count) for text, count in self.counts.items() if count]
        if not len(kept):
            notes.append(NOTHING)
        annotations = Annotations.from_boxes(boxes, [self.names[k] for k in kept.tolist()])
        return dataclasses.replace(annotations, source=str(path), notes=tuple(notes))

    def _object(self, attributes: Attributes) -> None:
        self.at_hand, self.name, self.difficult = {}, None, False

    def _name(self, text: str) -> None:
        self.name = text.strip()

    def _difficult(self, text: str) -> None:
        self.difficult = text.strip().lower() in ("1", "true")

    def _close(self) -> None:
        if self.name is None:
            raise XmlFault("it has no <name>")
        missing = [name for name in _SIDES if name not in self.at_hand]
        if missing:
            raise XmlFault(f"its <bndbox> has no <{missing[0]}>")
        self.counts[DIFFICULT] += self.difficult
        self.sides.extend(self.at_hand[name] for name in _SIDES)
        self.names.append(self.name)


def write_voc(path: str | Path, annotations: Annotations, picture: Picture) -> None:
    """Write the bounding box of every object; whole numbers as such, others to 0.001 px.

    Args:
        path: the file to write. Its folder must exist.
        annotations: polygons and boxes in level-0 pixels.
        picture: the image; its width and height must be known.

    Raises:
        InputError: the image's size is unknown, an object is a point, the file cannot be written, or
            the name of a class cannot be.
    """
    path = Path(path)
    if picture.width is None or picture.height is None:
        raise InputError(f"{path}: Pascal VOC states the image's width and height. Name the image as well.")
    if annotations.is_point.any():
        raise InputError(
            f"{path}: Pascal VOC holds boxes, and {int(annotations.is_point.sum())} of {len(annotations)} "
            "objects are points. Choose a format that keeps points, such as ASAP XML or GeoJSON."
        )
    check_names(path, annotations)
    names = [escaped(name) for name in annotations.class_names]
    edge = np.array([0.0, 0.0, -picture.width, -picture.height])
    # A box that reaches the edge is likely to be cut by it: what annotation programs call truncated.
    cut = np.any((annotations.bounds_px + edge) * np.array([-1, -1, 1, 1]) >= 0, axis=1)
    with whole_file(path) as stream:
        stream.write(
            HEAD
            + f"<annotation>\n\t<folder></folder>\n\t<filename>{_filename(path, picture)}</filename>\n"
            "\t<source>\n\t\t<database>Unknown</database>\n\t</source>\n"
            f"\t<size>\n\t\t<width>{picture.width}</width>\n\t\t<height>{picture.height}</height>\n"
            "\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>\n".encode()
        )
        rows = zip(annotations.class_ids.tolist(), annotations.bounds_px.tolist(), cut.tolist())
        for class_id, (x0, y0, x1, y1), truncated in rows:
            stream.write(
                f"\t<object>\n\t\t<name>{names[class_id]}</name>\n\t\t<pose>Unspecified</pose>\n"
                f"\t\t<truncated>{int(truncated)}</truncated>\n\t\t<difficult>0</difficult>\n"
                f"\t\t<bndbox>\n\t\t\t<xmin>{shown(x0 + 1)}</xmin>\n\t\t\t<ymin>{shown(y0 + 1)}</ymin>\n"
                f"\t\t\t<xmax>{shown(x1)}</xmax>\n\t\t\t<ymax>{shown(y1)}</ymax>\n\t\t</bndbox>\n"
                "\t</object>\n".encode()
            )
        stream.write(b"</annotation>\n")


def _filename(path: Path, picture: Picture) -> str:
    # Names of files may hold what XML cannot; the image is told by the name of this file as well.
    return escaped("".join(c for c in picture.name or path.stem if c.isprintable()))


VOC = Format(
    title="Pascal VOC XML",
    suffixes=(".xml",),
    read=read_voc,
    write=write_voc,
    marks=(b"<annotation",),
    keeps="bounding boxes of more than one pixel and classes, to 0.001 px",
    origin="pixels from 1, the last one included: xmin 1, xmax 10 is [0, 10] in level-0 pixels",
)
