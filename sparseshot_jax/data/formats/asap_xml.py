"""ASAP's XML annotations (also those of CAMELYON): polygons, splines, rectangles, dots, in groups."""

import array
import itertools
from pathlib import Path

import numpy as np

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.format import Format, Picture
from sparseshot_jax.data.formats.geojson_writer import PALETTE
from sparseshot_jax.data.formats.json_stream import MAX_BYTES
from sparseshot_jax.data.formats.whole_file import whole_file
from sparseshot_jax.data.formats.xml_outlines import Outlines, counted
from sparseshot_jax.data.formats.xml_stream import Attributes, Handlers, XmlFault, number, parse
from sparseshot_jax.data.formats.xml_writer import HEAD, Outline, check_names, quoted, shown

UNCLASSIFIED = "None"  # the group of annotations without one
SORTED = "{} outlines had their vertices out of order; they were sorted by Order."
_ANNOTATION = ("ASAP_Annotations", "Annotations", "Annotation")
_TYPES = {Kind.POLYGON: "Polygon", Kind.POINT: "Dot", Kind.BOX: "Rectangle"}
_COLOURS = tuple("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in PALETTE)


def read_asap(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Annotations:
    """Read an ASAP file; the class of an object is its group, "" where that is "None".

    A spline is read as the polygon through its points, as ASAP's own masks draw it. A PointSet gives
    a point a vertex. Other types (Measurement) are skipped and counted.

    Args:
        path: the file.
        max_bytes: limit on its size.

    Raises:
        InputError: the file cannot be read or is no ASAP XML; the message names file, place and remedy.
    """
    path = Path(path)
    reader = _Reader()
    parse(path, reader.handlers(), max_bytes=max_bytes)
    return reader.outlines.result(path)


class _Reader:
    def __init__(self):
        self.outlines = Outlines()
        self.type = ""
        self.class_name = ""
        self.orders = array.array("q")  # of the annotation at hand
        self.sorted = True

    def handlers(self) -> Handlers:
        """What the parser calls."""
        return Handlers(
            start={
                _ANNOTATION: self._annotation,
                (*_ANNOTATION, "Coordinates", "Coordinate"): self._coordinate,
            },
            end={_ANNOTATION: self._close},
            roots=_ANNOTATION[:1],
            title="ASAP XML",
        )

    def _annotation(self, attributes: Attributes) -> None:
        if "Type" not in attributes:
            raise XmlFault("attribute Type is missing; it is Polygon, Spline, Rectangle, Dot or PointSet")
        self.type = attributes["Type"]
        group = attributes.get("PartOfGroup", UNCLASSIFIED)
        self.class_name = "" if group == UNCLASSIFIED else group
        self.orders, self.sorted = array.array("q"), True

    def _coordinate(self, attributes: Attributes) -> None:
        outlines, orders = self.outlines, self.orders
        x, y = number(attributes, "X"), number(attributes, "Y")
        outlines.xy.append(x)
        outlines.xy.append(y)
        try:
            orders.append(int(attributes.get("Order", len(orders))))
        except (ValueError, OverflowError):
            raise XmlFault(f"Order must be a whole number; it is {attributes['Order'][:40]!r}") from None
        if len(orders) > 1 and orders[-1] < orders[-2]:
            self.sorted = False

    def _close(self) -> None:
        outlines = self.outlines
        if not self.sorted:
            order = np.argsort(np.array(self.orders), kind="stable")
            outlines.replace(outlines.open_vertices()[order])
            outlines.counts[SORTED] += 1
        if self.type in ("Polygon", "Spline"):
            outlines.close_polygon(self.class_name)
        elif self.type in ("Dot", "PointSet"):
            outlines.close_points(self.class_name)
        elif self.type == "Rectangle":
            outlines.close_box(self.class_name)
        else:
            outlines.drop()
            outlines.counts[f"{{}} annotations of type {counted(self.type)} were skipped."] += 1


def write_asap(path: str | Path, annotations: Annotations, picture: Picture | None = None) -> None:
    """Write all objects, a group a class; coordinates to 0.001 px.

    The format has no holes and no parts: such an object becomes one outline with cuts without width.

    Args:
        path: the file to write. Its folder must exist.
        annotations: objects in level-0 pixels.
        picture: not used; the format says nothing of the image.

    Raises:
        InputError: the file cannot be written, or the name of a class cannot be.
    """
    path = Path(path)
    check_names(path, annotations, reserved=(UNCLASSIFIED,))
    groups = [quoted(name or UNCLASSIFIED) for name in annotations.class_names]
    colours = [colour for _, colour in zip(groups, itertools.cycle(_COLOURS))]
    outline = Outline(annotations)
    with whole_file(path) as stream:
        stream.write(HEAD + b"<ASAP_Annotations>\n\t<Annotations>\n")
        for k, (class_id, kind) in enumerate(zip(annotations.class_ids.tolist(), annotations.kind.tolist())):
            lines = [
                f'\t\t<Annotation Name="Annotation {k}" Type="{_TYPES[Kind(kind)]}" '
                f'PartOfGroup={groups[class_id]} Color="{colours[class_id]}">\n\t\t\t<Coordinates>\n'
            ]
            lines += [
                f'\t\t\t\t<Coordinate Order="{i}" X="{shown(x)}" Y="{shown(y)}" />\n'
                for i, (x, y) in enumerate(outline.of(k).tolist())
            ]
            lines.append("\t\t\t</Coordinates>\n\t\t</Annotation>\n")
            stream.write("".join(lines).encode())
        stream.write(b"\t</Annotations>\n\t<AnnotationGroups>\n")
        for class_id in np.unique(annotations.class_ids).tolist():
            if annotations.class_names[class_id]:
                stream.write(
                    f'\t\t<Group Name={groups[class_id]} PartOfGroup="{UNCLASSIFIED}" '
                    f'Color="{colours[class_id]}">\n'
                    "\t\t\t<Attributes />\n\t\t</Group>\n".encode()
                )
        stream.write(b"\t</AnnotationGroups>\n</ASAP_Annotations>\n")


ASAP = Format(
    title="ASAP XML",
    suffixes=(".xml",),
    read=read_asap,
    write=write_asap,
    marks=(b"<ASAP_Annotations",),
    keeps="polygons, points, boxes and classes, to 0.001 px; holes and parts by cuts without width",
    origin="level-0 pixels from the image's top left corner",
)
