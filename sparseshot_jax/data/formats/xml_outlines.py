"""Outlines gathered vertex by vertex while an XML file streams past: flat arrays, no object a vertex."""

import array
import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.polygon_repair import UNCLOSED, Shapes, clean

EMPTY = "{} objects without vertices were skipped."
NOTHING = "The file holds no object that can be used."


class Outlines:
    """Vertices are added to the outline at hand; a `close_` method makes an object, or points, of it."""

    def __init__(self):
        self.xy = array.array("d")  # x, y, x, y, ...
        self.ends = array.array("q", [0])  # of each closed ring, in vertices
        self.class_ids = array.array("i")
        self.kind = array.array("B")
        self.names: dict[str, int] = {}
        self.counts: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return len(self.kind)

    def open_vertices(self) -> Float64[np.ndarray, "v 2"]:
        """A copy of the vertices of the outline at hand."""
        # A view would forbid the array to grow as long as it lives.
        return np.array(self.xy[2 * self.ends[-1] :], np.float64).reshape(-1, 2)

    def drop(self) -> None:
        """Forget the outline at hand."""
        del self.xy[2 * self.ends[-1] :]

    def replace(self, vertices: Float64[np.ndarray, "v 2"]) -> None:
        """Give the outline at hand other vertices."""
        self.drop()
        self.xy.extend(vertices.ravel().tolist())

    def close_polygon(self, class_name: str) -> None:
        """An outline, whatever its shape."""
        if len(self.xy) == 2 * self.ends[-1]:
            self.counts[EMPTY] += 1
            return
        self._close(len(self.xy) // 2, class_name, Kind.POLYGON)

    def close_points(self, class_name: str) -> None:
        """A point a vertex."""
        if len(self.xy) == 2 * self.ends[-1]:
            self.counts[EMPTY] += 1
        for end in range(self.ends[-1] + 1, len(self.xy) // 2 + 1):
            self._close(end, class_name, Kind.POINT)

    def close_box(self, class_name: str) -> None:
        """A box from its four corners or from two opposite ones; a polygon where it is not upright."""
        vertices = self.open_vertices()
        if len(vertices) == 5 and (vertices[0] == vertices[4]).all():
            vertices = vertices[:4]
        if len(vertices) != 2 and not _upright(vertices):
            self.close_polygon(class_name)
            return
        (x0, y0), (x1, y1) = vertices.min(axis=0), vertices.max(axis=0)
        self.replace(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]))
        self._close(len(self.xy) // 2, class_name, Kind.BOX)

    def ring_offsets(self) -> Int64[np.ndarray, "r_plus_1"]:
        """Offsets of the closed rings, in vertices."""
        return np.array(self.ends, np.int64)

    def vertices(self) -> Float64[np.ndarray, "v 2"]:
        """All vertices of the closed rings."""
        return np.frombuffer(self.xy, np.float64, 2 * self.ends[-1]).reshape(-1, 2)

    def result(
        self, path: Path, holes: Mapping[int, Sequence[int]] | None = None, skipped: Sequence[int] = ()
    ) -> Annotations:
        """Every closed ring as an object, cleaned; `notes` counts what was odd.

        Args:
            path: the file, for `source`.
            holes: ring -> the rings that are holes in it.
            skipped: rings that are no objects (the holes).
        """
        kind = np.array(self.kind, np.uint8)
        outer = np.setdiff1d(np.arange(len(self)), np.array(skipped, np.int64))
        offsets = self.ring_offsets()
        counts = np.ones(len(outer), np.int64)
        index = outer
        if holes:
            cut = [[ring, *holes.get(ring, ())] for ring in outer.tolist()]
            counts = np.array([len(part) for part in cut], np.int64)
            index = np.array([ring for part in cut for ring in part], np.int64)
            kind[list(holes)] = Kind.POLYGON  # a box has no holes
        xy = self.vertices()
        if skipped:
            lengths = np.diff(offsets)[index]
            xy = xy[rings.ranges(offsets[:-1][index], lengths)]
            offsets = rings.offsets_of(lengths)
        shapes = Shapes(
            xy=xy,
            ring_offsets=offsets,
            part_offsets=rings.offsets_of(counts),
            object_offsets=np.arange(len(outer) + 1),
            class_ids=np.array(self.class_ids, np.int32)[outer],
            kind=kind[outer],
        )
        annotations = clean(shapes, tuple(self.names), self.counts)
        del self.counts[UNCLOSED]  # XML formats leave the last edge out: nothing was mended
        notes = [text.format(count) for text, count in self.counts.items() if count]
        if not len(annotations):
            notes.append(NOTHING)
        return dataclasses.replace(annotations, source=str(path), notes=tuple(notes))

    def _close(self, end: int, class_name: str, kind: Kind) -> None:
        self.ends.append(end)
        self.class_ids.append(self.names.setdefault(class_name, len(self.names)))
        self.kind.append(kind)


def counted(text: str) -> str:
    """A name from a file, made fit for a sentence of `counts`: short, and no place for the number.

    >>> counted("{x}")
    '{{x}}'
    """
    return text[:40].replace("{", "{{").replace("}", "}}")


def _upright(vertices: Float64[np.ndarray, "v 2"]) -> bool:
    """True for four corners of a rectangle along the axes, in order; False where it has no area."""
    if len(vertices) != 4:
        return False
    same = np.roll(vertices, -1, axis=0) == vertices
    return bool((same[:, 0] != same[:, 1]).all() and (same[:, 0] != np.roll(same[:, 0], 1)).all())
