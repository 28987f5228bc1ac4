"""Aperio ImageScope's XML annotations, in which Kumar and MoNuSeg are released; HALO's are alike."""

import array
import itertools
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Float64, Int64

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.format import Format, Picture
from sparseshot_jax.data.formats.geojson_writer import PALETTE
from sparseshot_jax.data.formats.json_stream import MAX_BYTES
from sparseshot_jax.data.formats.polygon_repair import MAX_COORDINATE
from sparseshot_jax.data.formats.whole_file import whole_file
from sparseshot_jax.data.formats.xml_outlines import Outlines, counted
from sparseshot_jax.data.formats.xml_stream import Attributes, Handlers, number, parse
from sparseshot_jax.data.formats.xml_writer import HEAD, Outline, check_names, quoted, shown

HOLES = "{} negative regions were cut out of the regions round them."
LONE = "{} negative regions that meet no region of their layer were skipped."
ELLIPSES = "{} ellipses became polygons of 64 vertices."
ELLIPSE_VERTICES = 64

_LAYER = ("Annotations", "Annotation")
_REGION = (*_LAYER, "Regions", "Region")
# Region/@Type, as ImageScope numbers it and as HALO names it; a ruler and an arrow enclose nothing.
_SHAPES = {"0": "polygon", "1": "rectangle", "2": "ellipse", "3": "arrow", "4": "ruler"}
_TYPES = {Kind.POLYGON: 0, Kind.POINT: 0, Kind.BOX: 1}


def read_imagescope(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Annotations:
    """Read an ImageScope file, one object a region.

    The class of a region is its layer's: the layer's Name, else the Value of its attribute Description,
    else the Name of its first other attribute (MoNuSAC); and where the layer has none of them, the
    region's Text. A region of one vertex is a point.

    A negative region is a hole of the region that contains it: of the last one of its layer before it,
    else of the first one after it. One that lies across the border is cut out of all that it meets.

    Args:
        path: the file.
        max_bytes: limit on its size.

    Raises:
        InputError: the file cannot be read or is no ImageScope XML; the message names file, place and
            remedy.
    """
    path = Path(path)
    reader = _Reader()
    parse(path, reader.handlers(), max_bytes=max_bytes)
    holes = reader.holes() if reader.negative else None
    return reader.outlines.result(path, holes, reader.negative)


class _Reader:
    def __init__(self):
        self.outlines = Outlines()
        self.layer = -1
        self.layer_of = array.array("q")  # of each region that was closed
        self.negative: list[int] = []  # the closed rings that are negative regions
        self.class_name = ""
        self.region: Attributes = {}

    def handlers(self) -> Handlers:
        """What the parser calls."""
        return Handlers(
            start={
                _LAYER: self._open_layer,
                (*_LAYER, "Attributes", "Attribute"): self._attribute,
                _REGION: self._open_region,
                (*_REGION, "Vertices", "Vertex"): self._vertex,
                (*_REGION, "Vertices", "V"): self._vertex,
            },
            end={_REGION: self._close_region},
            roots=_LAYER[:1],
            title="Aperio ImageScope XML",
        )

    def _open_layer(self, attributes: Attributes) -> None:
        self.layer += 1
        self.class_name = attributes.get("Name", "")

    def _attribute(self, attributes: Attributes) -> None:
        name, value = attributes.get("Name", ""), attributes.get("Value", "")
        self.class_name = self.class_name or (value if name in ("", "Description") else name)

    def _open_region(self, attributes: Attributes) -> None:
        self.region = attributes

    def _vertex(self, attributes: Attributes) -> None:
        x, y = number(attributes, "X"), number(attributes, "Y")
        self.outlines.xy.append(x)
        self.outlines.xy.append(y)

    def _close_region(self) -> None:
        outlines, first = self.outlines, len(self.outlines)
        given = self.region.get("Type", "0")
        shape = _SHAPES.get(given, given.lower())
        class_name = self.class_name or self.region.get("Text", "")
        vertices = len(outlines.xy) // 2 - outlines.ends[-1]
        if shape not in ("polygon", "rectangle", "ellipse"):
            outlines.drop()
            outlines.counts[f"{{}} regions of type {counted(shape)} were skipped."] += 1
        elif vertices == 1:
            outlines.close_points(class_name)
        elif shape == "rectangle":
            outlines.close_box(class_name)
        else:
            if shape == "ellipse" and vertices == 2:  # else it is drawn out already
                outlines.replace(_ellipse(outlines.open_vertices()))
                outlines.counts[ELLIPSES] += 1
            outlines.close_polygon(class_name)
        added = len(outlines) - first
        self.layer_of.extend([self.layer] * added)
        if added and _is_set(self.region.get("NegativeROA", "0")):
            self.negative.append(first)

    def holes(self) -> dict[int, list[int]]:
        """Which negative regions are cut out of which region; both are counted as closed."""
        outlines = self.outlines
        xy, offsets, layer_of = outlines.vertices(), outlines.ring_offsets(), np.array(self.layer_of)
        finite = np.logical_and.reduceat((np.abs(xy) <= MAX_COORDINATE).all(axis=1), offsets[:-1])
        solid = finite & (np.diff(offsets) > 2)
        found: dict[int, list[int]] = {}
        for layer, negative in itertools.groupby(self.negative, lambda ring: layer_of[ring]):
            inner = np.array(list(negative))
            first, last = np.searchsorted(layer_of, [layer, layer + 1])
            outer = np.setdiff1d(first + np.flatnonzero(solid[first:last]), inner)
            tree = shapely.STRtree(_polygons(xy, offsets, outer))
            usable = inner[solid[inner]]
            lone = len(inner) - len(usable)
            for ring, hole in zip(usable.tolist(), _polygons(xy, offsets, usable)):
                cut = _cut(outer, tree, ring, hole)
                for k in cut:
                    found.setdefault(k, []).append(ring)
                lone += not cut
            outlines.counts[LONE] += lone
            outlines.counts[HOLES] += len(inner) - lone
        return found


def _polygons(
    xy: Float64[np.ndarray, "v 2"], offsets: Int64[np.ndarray, "r_plus_1"], which: np.ndarray
) -> np.ndarray:
    """Valid shapely polygons (or multipolygons) of some of the rings."""
    if not len(which):
        return np.zeros(0, object)
    starts, lengths = offsets[which], offsets[which + 1] - offsets[which]
    shapes = rings.polygons(xy[rings.ranges(starts, lengths)], rings.offsets_of(lengths))
    return shapely.make_valid(shapes, method="structure", keep_collapsed=False)


def _cut(outer: np.ndarray, tree: shapely.STRtree, ring: int, hole: shapely.Geometry) -> list[int]:
    """The regions that a negative region is cut out of."""
    near = np.sort(tree.query(hole, predicate="intersects"))
    around = outer[near[shapely.covers(tree.geometries[near], hole)]]
    if len(around):
        before = around[around < ring]
        return [int(before[-1] if len(before) else around[0])]
    shared = shapely.area(shapely.intersection(tree.geometries[near], hole)) > 0
    return outer[near[shared]].tolist()


def _is_set(text: str) -> bool:
    return text.strip().lower() in ("1", "true")


def _ellipse(corners: Float64[np.ndarray, "2 2"]) -> Float64[np.ndarray, "v 2"]:
    """The ellipse in a box of two opposite corners, as a polygon of its area."""
    turn = 2 * np.pi / ELLIPSE_VERTICES
    radii = np.abs(corners[1] - corners[0]) / 2 * np.sqrt(turn / np.sin(turn))
    angle = np.arange(ELLIPSE_VERTICES) * turn
    return corners.mean(axis=0) + radii * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def write_imagescope(path: str | Path, annotations: Annotations, picture: Picture | None = None) -> None:
    """Write all objects, a layer a class; coordinates to 0.001 px.

    A hole becomes a negative region right after its region. An object of separate parts becomes one
    outline with cuts without width, since the format has no parts.

    Args:
        path: the file to write. Its folder must exist.
        annotations: objects in level-0 pixels; they are grouped by class.
        picture: not used; the format says nothing of the image.

    Raises:
        InputError: the file cannot be written, or the name of a class cannot be.
    """
    path = Path(path)
    check_names(path, annotations)
    outline = Outline(annotations)
    with whole_file(path) as stream:
        stream.write(HEAD + b"<Annotations>\n")
        for layer, class_id in enumerate(np.unique(annotations.class_ids).tolist(), 1):
            red, green, blue = PALETTE[class_id % len(PALETTE)]
            stream.write(
                f'  <Annotation Id="{layer}" Name={quoted(annotations.class_names[class_id])} '
                'ReadOnly="0" NameReadOnly="0" LineColorReadOnly="0" Incremental="0" Type="4" '
                f'LineColor="{blue << 16 | green << 8 | red}" Visible="1" Selected="0" '
                'MarkupImagePath="" MacroName="">\n    <Attributes />\n    <Regions>\n'
                "      <RegionAttributeHeaders />\n".encode()
            )
            numbers = itertools.count(1)
            for k in np.flatnonzero(annotations.class_ids == class_id).tolist():
                kind = _TYPES[Kind(int(annotations.kind[k]))]
                for vertices, negative in outline.with_holes(k):
                    stream.write(_region(next(numbers), kind, vertices, negative).encode())
            stream.write(b"    </Regions>\n    <Plots />\n  </Annotation>\n")
        stream.write(b"</Annotations>\n")


def _region(number: int, kind: int, vertices: Float64[np.ndarray, "v 2"], negative: bool) -> str:
    lines = "".join(
        f'          <Vertex X="{shown(x)}" Y="{shown(y)}" Z="0" />\n' for x, y in vertices.tolist()
    )
    return (
        f'      <Region Id="{number}" Type="{kind}" Zoom="1" Selected="0" ImageLocation="" ImageFocus="-1" '
        f'Text="" NegativeROA="{int(negative)}" InputRegionId="0" Analyze="1" DisplayId="{number}">\n'
        f"        <Attributes />\n        <Vertices>\n{lines}        </Vertices>\n      </Region>\n"
    )


IMAGESCOPE = Format(
    title="Aperio ImageScope XML",
    suffixes=(".xml", ".annotations"),
    read=read_imagescope,
    write=write_imagescope,
    marks=(b"<Annotations",),
    keeps="polygons, holes, points, boxes and classes, to 0.001 px; parts by cuts without width",
    origin="level-0 pixels from the image's top left corner",
)
