"""GeoJSON to annotations: (Multi)Polygon and (Multi)Point features, classes as QuPath names them."""

import collections
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.geojson_values import (
    Fault,
    child_features,
    class_name,
    ellipse,
    is_box,
    shown,
    vertex_xy,
)
from sparseshot_jax.data.formats.json_stream import (
    MAX_BYTES,
    collector_paused,
    feature_chunks,
    read_document,
)
from sparseshot_jax.data.formats.polygon_repair import Shapes, clean
from sparseshot_jax.errors import InputError


def read_geojson(path: str | Path, *, max_bytes: int = MAX_BYTES, nuclei: bool = False) -> Annotations:
    """Read a GeoJSON file (a FeatureCollection, a list of features, or one feature; plain or gzip).

    What can be repaired is repaired and what has no area or place is left out; `notes` of the result
    counts both. A class is `properties.classification`, its `name` where it is a mapping. An ellipse of
    QuPath's is read as one. Objects inside others (`properties.childObjects`) follow these.

    Args:
        path: the file.
        max_bytes: limit on its size, unpacked.
        nuclei: of a cell that has both outlines, take the nucleus's, not the cell's.

    Returns:
        One object a feature; a MultiPoint gives one object a point.

    Raises:
        InputError: the file cannot be read or is no GeoJSON; the message names file, place and remedy.
    """
    path = Path(path)
    reader = _Reader(path, nuclei)
    with collector_paused():  # the lists of a piece hold no cycles
        for first, features in feature_chunks(read_document(path, max_bytes), path):
            reader.add(first, features)
    return reader.result()


class _Reader:
    """Turns pieces of the feature list into flat arrays, and counts what was odd."""

    def __init__(self, path: Path, nuclei: bool):
        self.path = path
        self.nuclei = nuclei
        self.names: dict[str, int] = {}
        self.parts: list[Annotations] = []
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, first: int, features: list[Any]) -> None:
        """Read the next features; `first` is the number of the first of them in the file."""
        flat = _Flat()
        for number, feature in enumerate(features, first):
            flat.number = number
            try:
                waiting = self._add_feature(flat, feature)
                while waiting:  # as deep as the file nests them, so no recursion
                    waiting = self._add_feature(flat, waiting[0]) + waiting[1:]
            except Fault as fault:
                raise self._broken(number, str(fault)) from None
        shapes = Shapes(
            xy=self._vertices(flat),
            ring_offsets=rings.offsets_of(np.fromiter(map(len, flat.rings), np.int64, len(flat.rings))),
            part_offsets=rings.offsets_of(np.array(flat.rings_of_part, np.int64)),
            object_offsets=rings.offsets_of(np.array(flat.parts_of_object, np.int64)),
            class_ids=np.array(flat.class_ids, np.int32),
            kind=np.array(flat.kind, np.uint8),
        )
        self.parts.append(clean(shapes, tuple(self.names), self.counts))

    def result(self) -> Annotations:
        """All features read so far as one value."""
        names = tuple(self.names)
        total = Annotations.concatenate([Annotations.empty(names), *self.parts])
        notes = [text.format(count) for text, count in self.counts.items() if count]
        if not len(total):
            notes.append("The file holds no object that can be used.")
        return dataclasses.replace(total, source=str(self.path), notes=tuple(notes))

    def _add_feature(self, flat: "_Flat", feature: Any) -> list[Any]:
        """Add one feature; returns those inside it."""
        if type(feature) is not dict:
            raise Fault(f"it must be a mapping; it is {shown(feature)}")
        properties = feature.get("properties")
        inside = child_features(properties)
        if inside:
            self.counts["{} objects inside other objects were read as objects of their own."] += len(inside)
        geometry = feature.get("geometry")
        if "nucleusGeometry" in feature:
            geometry = self._cell_or_nucleus(geometry, feature["nucleusGeometry"])
        if geometry is None:
            self.counts["{} features without geometry were skipped."] += 1
            return inside
        if type(geometry) is not dict:
            raise Fault(f"geometry must be a mapping; it is {shown(geometry)}")
        shape = geometry.get("type")
        if type(shape) is not str:
            raise Fault(f"geometry.type must be a name such as 'Polygon'; it is {shown(shape)}")
        if shape not in ("Polygon", "MultiPolygon", "Point", "MultiPoint"):
            # Doubled braces: a name from the file must not act as a place for the count.
            safe = shape[:40].replace("{", "{{").replace("}", "}}")
            self.counts[f"{{}} features of geometry type {safe} were skipped."] += 1
            return inside
        coordinates = geometry.get("coordinates")
        if type(coordinates) is not list:
            raise Fault(f"geometry.coordinates must be a list; it is {shown(coordinates)}")
        if not coordinates:
            self.counts["{} features with empty geometry were skipped."] += 1
            return inside
        class_id = self._class_id(properties)
        if shape == "Polygon":
            if geometry.get("isEllipse") is True:
                coordinates = ellipse(coordinates)
            flat.add_polygons([coordinates], class_id, is_box(properties, coordinates))
        elif shape == "MultiPolygon":
            flat.add_polygons(coordinates, class_id)
        else:
            flat.add_points([coordinates] if shape == "Point" else coordinates, class_id)
        return inside

    def _cell_or_nucleus(self, cell: Any, nucleus: Any) -> Any:
        if nucleus is None:
            return cell
        chosen, other = ("nucleus", "cell") if self.nuclei else ("cell", "nucleus")
        self.counts[f"{{}} cells have an outline of the {other} too; that of the {chosen} was read."] += 1
        return nucleus if self.nuclei else cell

    def _class_id(self, properties: Any) -> int:
        name = class_name(properties)
        known = self.names.get(name)
        if known is None:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise Fault(f"the class name {name!r} is not valid Unicode") from None
            known = self.names[name] = len(self.names)
        return known

    def _vertices(self, flat: "_Flat") -> np.ndarray:
        """All vertices [v, 2]; the quick way, and where that fails vertex by vertex."""
        chain = itertools.chain.from_iterable
        vertices = list(chain(flat.rings))
        try:
            # No dtype asked for: numpy would turn the text "12" into a number without a word.
            if set(map(len, vertices)) == {2}:
                xy = np.array(list(chain(vertices)))
                xy = xy.reshape(-1, 2) if xy.ndim == 1 else np.zeros(0)
            else:
                xy = np.array(vertices)
        except (TypeError, ValueError, OverflowError):
            xy = np.zeros(0)
        if xy.dtype.kind in "iuf" and xy.ndim == 2 and xy.shape[-1] >= 2:
            return xy[:, :2].astype(np.float64, copy=False)
        careful = []
        for number, ring in zip(flat.ring_feature, flat.rings):
            for k, vertex in enumerate(ring):
                try:
                    careful.append(vertex_xy(vertex))
                except Fault as fault:
                    raise self._broken(number, f"vertex {k} of a ring {fault}") from None
        return np.array(careful, np.float64).reshape(-1, 2)

    def _broken(self, number: int, what: str) -> InputError:
        return InputError(
            f"{self.path}: feature {number} (the first is 0) is broken: {what}. "
            "Correct or delete it, or export the objects again."
        )


class _Flat:
    """Nested lists taken apart: rings of parts (polygons) of objects."""

    def __init__(self):
        self.number = 0  # the feature at hand
        self.rings: list[list] = []
        self.ring_feature: list[int] = []
        self.rings_of_part: list[int] = []
        self.parts_of_object: list[int] = []
        self.class_ids: list[int] = []
        self.kind: list[Kind] = []

    def add_polygons(self, polygons: list[Any], class_id: int, box: bool = False) -> None:
        """One object of one or more polygons, each a list of rings."""
        for polygon in polygons:
            if type(polygon) is not list or not polygon:
                raise Fault(f"a polygon must be a list of rings; it is {shown(polygon)}")
            for ring in polygon:
                if type(ring) is not list:
                    raise Fault(f"a ring must be a list of vertices; it is {shown(ring)}")
                # One without vertices is kept as one without extent: it is rejected, and counted, so.
                self.rings.append(ring or [[0, 0]])
                self.ring_feature.append(self.number)
            self.rings_of_part.append(len(polygon))
        self._add_object(len(polygons), class_id, Kind.BOX if box else Kind.POLYGON)

    def add_points(self, points: list[Any], class_id: int) -> None:
        """An object a point."""
        for point in points:
            self.rings.append([point])
            self.ring_feature.append(self.number)
            self.rings_of_part.append(1)
            self._add_object(1, class_id, Kind.POINT)

    def _add_object(self, parts: int, class_id: int, kind: Kind) -> None:
        self.parts_of_object.append(parts)
        self.class_ids.append(class_id)
        self.kind.append(kind)
