"""The one type that every annotation format reads into, and every writer takes."""

import dataclasses
import enum
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt8

from sparseshot_jax.data import rings
from sparseshot_jax.data.box_index import BoxIndex
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window


class Kind(enum.IntEnum):
    """How an object was marked."""

    POLYGON = 0  # outline, holes and parts allowed
    POINT = 1
    BOX = 2  # upright rectangle: the extent is known, the outline is not


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Annotations:
    """Polygons, points and boxes in level-0 pixels, held flat: a million objects are seven arrays.

    Ring i is `xy_px[ring_offsets[i]:ring_offsets[i + 1]]`; object k is the rings
    `object_offsets[k]..object_offsets[k + 1]`. Inside is even-odd over all rings of an object, so that
    outer rings, holes and separate parts need no marks. Rings of one object do not cross.

    Raises:
        InputError: the arrays do not fit together.
    """

    xy_px: Float64[np.ndarray, "v 2"]  # vertices x, y; level-0 pixels, finite
    ring_offsets: Int64[np.ndarray, "r_plus_1"]  # into xy_px; a ring is not closed (first != last)
    object_offsets: Int64[np.ndarray, "n_plus_1"]  # into the rings; one ring an object at least
    class_ids: Int32[np.ndarray, "n"]  # index into class_names
    class_names: tuple[str, ...]  # distinct; "" = unclassified
    kind: UInt8[np.ndarray, "n"]  # `Kind`; a point is one ring of one vertex, a box one ring of four
    source: str = ""  # file it came from
    notes: tuple[str, ...] = ()  # what the reader repaired or rejected, a sentence each, with counts

    def __post_init__(self):
        vertices, count = len(self.xy_px), len(self.class_ids)
        self._check_offsets("ring_offsets", self.ring_offsets, vertices)
        self._check_offsets("object_offsets", self.object_offsets, len(self.ring_offsets) - 1)
        self._require(
            len(self.object_offsets) - 1 == count == len(self.kind),
            f"object_offsets, class_ids and kind must describe the same objects; got "
            f"{len(self.object_offsets) - 1}, {count} and {len(self.kind)}",
        )
        known = len(self.class_names)
        self._require(
            count == 0 or bool(self.class_ids.min() >= 0 and self.class_ids.max() < known),
            f"class_ids must be indices into the {known} class_names",
        )
        self._require(len(set(self.class_names)) == known, "class_names must be distinct")
        self._require(bool(np.isfinite(self.xy_px).all()), "xy_px must be finite")
        self._require(count == 0 or bool(self.kind.max() <= max(Kind)), "kind must hold `Kind` codes")
        single = np.diff(self.object_offsets) == 1
        vertices = np.where(single, np.diff(self.ring_offsets)[self.object_offsets[:-1]], 0)
        self._require(
            bool((vertices[self.is_point] == 1).all()), "a point must be exactly one ring of one vertex"
        )
        self._require(
            bool((vertices[self.kind == Kind.BOX] == 4).all()),
            "a box must be exactly one ring of four vertices",
        )
        short = int((np.diff(self.ring_offsets) < 3).sum() - self.is_point.sum())
        self._require(short == 0, f"polygon rings need 3 vertices; {short} have fewer")

    def _check_offsets(self, name: str, offsets: np.ndarray, total: int) -> None:
        ends = len(offsets) > 0 and bool(offsets[0] == 0 and offsets[-1] == total)
        self._require(
            ends and bool((np.diff(offsets) > 0).all()),
            f"{name} must rise strictly from 0 to {total}",
        )

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            place = f"{self.source}: " if self.source else ""
            raise InputError(
                f"{place}annotations are inconsistent: {message}. "
                "Build them with Annotations.from_polygons or from_points."
            )

    def __len__(self) -> int:
        return len(self.class_ids)

    def __getstate__(self) -> dict:  # without what was computed: it is as large again, and soon made
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def empty(
        cls, class_names: tuple[str, ...] = (), *, source: str = "", notes: tuple[str, ...] = ()
    ) -> "Annotations":
        """No object at all.

        >>> len(Annotations.empty())
        0
        """
        return cls(
            xy_px=np.zeros((0, 2)),
            ring_offsets=np.zeros(1, np.int64),
            object_offsets=np.zeros(1, np.int64),
            class_ids=np.zeros(0, np.int32),
            class_names=class_names,
            kind=np.zeros(0, np.uint8),
            source=source,
            notes=notes,
        )

    @classmethod
    def from_polygons(
        cls, objects: Sequence, classes: Sequence[str] | str = "", *, source: str = ""
    ) -> "Annotations":
        """Polygons from nested lists.

        Args:
            objects: for each object a list of rings; for each ring an [m, 2] list or array of x, y in
                level-0 pixels. A last vertex that repeats the first is dropped.
            classes: a name for each object, or one name for all.
            source: the file they came from.

        >>> square = [[0, 0], [4, 0], [4, 4], [0, 4]]
        >>> float(Annotations.from_polygons([[square]], "tumour").areas_px[0])
        16.0
        """
        flat = [np.asarray(ring, np.float64).reshape(-1, 2) for rings_ in objects for ring in rings_]
        flat = [r[:-1] if len(r) > 1 and (r[0] == r[-1]).all() else r for r in flat]
        names, ids = name_ids(classes, len(objects))
        return cls(
            xy_px=np.concatenate([*flat, np.zeros((0, 2))]),
            ring_offsets=rings.offsets_of(np.array([len(ring) for ring in flat], np.int64)),
            object_offsets=rings.offsets_of(np.array([len(o) for o in objects], np.int64)),
            class_ids=ids,
            class_names=names,
            kind=np.full(len(objects), Kind.POLYGON, np.uint8),
            source=source,
        )

    @classmethod
    def from_points(
        cls, xy_px: Sequence | np.ndarray, classes: Sequence[str] | str = "", *, source: str = ""
    ) -> "Annotations":
        """Points [n, 2] (x, y in level-0 pixels) with a class name each, or one name for all."""
        xy = np.asarray(xy_px, np.float64).reshape(-1, 2)
        names, ids = name_ids(classes, len(xy))
        return cls(
            xy_px=xy,
            ring_offsets=np.arange(len(xy) + 1),
            object_offsets=np.arange(len(xy) + 1),
            class_ids=ids,
            class_names=names,
            kind=np.full(len(xy), Kind.POINT, np.uint8),
            source=source,
        )

    @classmethod
    def from_boxes(
        cls, boxes_xyxy_px: Sequence | np.ndarray, classes: Sequence[str] | str = "", *, source: str = ""
    ) -> "Annotations":
        """Boxes [n, 4] (x0, y0, x1, y1 in level-0 pixels) with a class name each, or one name for all."""
        boxes = np.asarray(boxes_xyxy_px, np.float64).reshape(-1, 4)
        names, ids = name_ids(classes, len(boxes))
        return cls(
            xy_px=boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2),
            ring_offsets=np.arange(len(boxes) + 1) * 4,
            object_offsets=np.arange(len(boxes) + 1),
            class_ids=ids,
            class_names=names,
            kind=np.full(len(boxes), Kind.BOX, np.uint8),
            source=source,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Annotations"]) -> "Annotations":
        """All objects of all parts in order; class names, sources and notes are merged."""
        if not parts:
            return cls.empty()
        names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
        place = {name: i for i, name in enumerate(names)}
        ids = [
            np.array([place[name] for name in part.class_names], np.int32)[part.class_ids] for part in parts
        ]
        sources = dict.fromkeys(part.source for part in parts if part.source)
        notes = [
            f"{part.source}: {note}" if len(sources) > 1 and part.source else note
            for part in parts
            for note in part.notes
        ]
        return cls(
            xy_px=np.concatenate([part.xy_px for part in parts]),
            ring_offsets=_joined([part.ring_offsets for part in parts]),
            object_offsets=_joined([part.object_offsets for part in parts]),
            class_ids=np.concatenate(ids),
            class_names=names,
            kind=np.concatenate([part.kind for part in parts]),
            source=", ".join(sources),
            notes=tuple(dict.fromkeys(notes)),
        )

    def take(self, which: np.ndarray) -> "Annotations":
        """The objects of an index array or a boolean mask, in its order."""
        which = np.asarray(which)
        index = np.flatnonzero(which) if which.dtype == bool else which.astype(np.int64)
        if which.dtype == bool and len(which) != len(self):
            raise InputError(f"a mask must have {len(self)} elements, one an object; got {len(which)}")
        ring_counts = np.diff(self.object_offsets)[index]
        ring_index = rings.ranges(self.object_offsets[:-1][index], ring_counts)
        lengths = np.diff(self.ring_offsets)[ring_index]
        vertices = rings.ranges(self.ring_offsets[:-1][ring_index], lengths)
        return dataclasses.replace(
            self,
            xy_px=self.xy_px[vertices],
            ring_offsets=rings.offsets_of(lengths),
            object_offsets=rings.offsets_of(ring_counts),
            class_ids=self.class_ids[index],
            kind=self.kind[index],
        )

    def of_classes(self, names: Sequence[str]) -> Bool[np.ndarray, "n"]:
        """True where the object's class is one of `names`."""
        wanted = np.array([name in names for name in self.class_names], bool)
        return wanted[self.class_ids]

    def transformed(self, scale: float = 1.0, dx: float = 0.0, dy: float = 0.0) -> "Annotations":
        """Every vertex times `scale`, then moved by (dx, dy)."""
        return dataclasses.replace(self, xy_px=self.xy_px * scale + np.array([dx, dy], np.float64))

    def discs(self, radius_px: float | Float64[np.ndarray, "n"], vertices: int = 24) -> "Annotations":
        """Points as regular polygons with the area of a disc of `radius_px` (one, or each); others as is."""
        if not self.is_point.any():
            return self
        turn = 2 * np.pi / vertices
        radius = np.broadcast_to(radius_px * np.sqrt(turn / np.sin(turn)), len(self))[self.is_point]
        angle = np.arange(vertices) * turn
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        point_ring = np.repeat(self.is_point, np.diff(self.object_offsets))
        lengths = np.where(point_ring, vertices, np.diff(self.ring_offsets))
        repeats = np.repeat(np.where(point_ring, vertices, 1), np.diff(self.ring_offsets))
        xy = np.repeat(self.xy_px, repeats, axis=0)
        from_point = np.repeat(repeats > 1, repeats)
        xy[from_point] += (radius[:, None, None] * circle).reshape(-1, 2)
        return dataclasses.replace(
            self,
            xy_px=xy,
            ring_offsets=rings.offsets_of(lengths),
            kind=np.where(self.is_point, np.uint8(Kind.POLYGON), self.kind),
        )

    def touching(self, window: Window) -> Int64[np.ndarray, "m"]:
        """Indices, ascending, of the objects whose bounding box meets the window."""
        return self._boxes.touching(window)

    @property
    def is_point(self) -> Bool[np.ndarray, "n"]:
        """True for points."""
        return self.kind == Kind.POINT

    @property
    def nbytes(self) -> int:
        """Bytes held, without what is computed from them."""
        arrays = self.xy_px, self.ring_offsets, self.object_offsets, self.class_ids, self.kind
        return sum(array.nbytes for array in arrays)

    @functools.cached_property
    def bounds_px(self) -> Float64[np.ndarray, "n 4"]:
        """Bounding boxes x0, y0, x1, y1 in level-0 pixels."""
        bounds = np.zeros((len(self), 4), order="F")  # columns are what is compared
        if len(self):
            starts = self.ring_offsets[self.object_offsets[:-1]]
            bounds[:, :2] = np.minimum.reduceat(self.xy_px, starts, axis=0)
            bounds[:, 2:] = np.maximum.reduceat(self.xy_px, starts, axis=0)
        return bounds

    @functools.cached_property
    def _boxes(self) -> BoxIndex:
        return BoxIndex(self.bounds_px)

    @functools.cached_property
    def nesting(self) -> tuple[Int64[np.ndarray, "r"], Int64[np.ndarray, "r"]]:
        """Depth and parent of every ring: see `rings.nesting`. Odd depth is a hole."""
        return rings.nesting(self.xy_px, self.ring_offsets, self.object_offsets)

    @functools.cached_property
    def areas_px(self) -> Float64[np.ndarray, "n"]:
        """Areas in square level-0 pixels, holes taken out; 0 for points."""
        return self._moments[0]

    @functools.cached_property
    def centroids_px(self) -> Float64[np.ndarray, "n 2"]:
        """Area centroids x, y in level-0 pixels; of a point (or a flat polygon) its first vertex."""
        return self._moments[1]

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return rings.object_moments(self.xy_px, self.ring_offsets, self.object_offsets, self.nesting[0])


def name_ids(classes: Sequence[str] | str, count: int) -> tuple[tuple[str, ...], Int32[np.ndarray, "n"]]:
    """Distinct names in order of appearance, and the index of each object's name among them.

    >>> name_ids(["b", "a", "b"], 3)
    (('b', 'a'), array([0, 1, 0], dtype=int32))
    """
    if isinstance(classes, str):
        return (classes,), np.zeros(count, np.int32)
    if len(classes) != count:
        raise InputError(f"there must be as many classes as objects, {count}; got {len(classes)}.")
    place: dict[str, int] = {}
    ids = np.array([place.setdefault(name, len(place)) for name in classes], np.int32)
    return tuple(place), ids


def _joined(parts: Sequence[np.ndarray]) -> Int64[np.ndarray, "k_plus_1"]:
    return rings.offsets_of(np.concatenate([np.diff(part) for part in parts]))
