"""Objects to targets: which class means what, and the four kinds of ground pixel by pixel."""

import dataclasses
import difflib
import enum
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.depth import Depths
from sparseshot_jax.data.rasterize import fill, rasterize
from sparseshot_jax.data.ring_ground import RingGround
from sparseshot_jax.data.run_table import RunCache
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground, Window

# The class that `sparsify` gives to objects taken away inside an exhaustively annotated region: their
# pixels are unannotated again, since "background" would be false. No file can hold this name.
DROPPED = "\0dropped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """What the class names in the annotation files mean.

    `classes` are exact names; the other names may hold `*` and `?`. A name in several fields counts
    in the first of: classes, unknown_class, known_background, ignored_regions, exhaustive_regions, unused.
    """

    classes: tuple[str, ...] = ()  # wanted classes, ids 1..C in this order, at most 255; () = every
    # object not named below is of one class, "object"
    unknown_class: tuple[str, ...] = ()  # wanted objects whose class nobody knows; `classes` are then named
    known_background: tuple[str, ...] = ()  # marked and not wanted: their area is background
    ignored_regions: tuple[str, ...] = ("Ignore*",)  # outside the loss and outside every measure
    exhaustive_regions: tuple[str, ...] = ("Exhaustive",)  # every object inside is marked
    unused: tuple[str, ...] = ()  # in the files and to be passed over, "" = unclassified objects
    point_radius_um: float = 3.0  # micrometres: a point object becomes a disc, > 0
    class_radius_um: tuple[float, ...] = ()  # the same for a point of each of `classes`, in their order;
    # () = point_radius_um for all. A point of unknown class takes point_radius_um
    share: float | None = None  # of the wanted objects round your marks, those that are marked, (0, 1];
    # None: counted where the images have dense truth, else nobody knows
    # Training alone: unannotated ground counts only where r1 < d < r2 micrometres from the nearest
    # annotated object's centroid (METHOD: ignore_ring, 2.75 and 5.5); the rest of it is ignored. None: all
    # of it counts. A detector's cell counts where half of it does: make the ring about a cell wide.
    ring_um: tuple[float, float] | None = None

    def __post_init__(self):
        if self.point_radius_um <= 0:
            raise InputError(
                f"labels.point_radius_um must be above 0 micrometres; got {self.point_radius_um}."
            )
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise InputError(f"labels.share must be in (0, 1]; got {self.share}. Try 0.3.")
        if self.ring_um is not None and not 0.0 <= self.ring_um[0] < self.ring_um[1]:
            raise InputError(
                f"labels.ring_um must be two radii in micrometres, 0 <= r1 < r2; got {list(self.ring_um)}. "
                "Try 2.75 5.5."
            )
        radii = list(self.class_radius_um)
        if radii and len(radii) != len(self.names):
            raise InputError(
                f"labels.class_radius_um must hold a radius for each of {', '.join(self.names)}, in this "
                f"order, or nothing; got {radii}."
            )
        if any(radius <= 0 for radius in radii):
            raise InputError(f"labels.class_radius_um must be above 0 micrometres each; got {radii}.")
        if self.unknown_class and not self.classes:
            raise InputError(
                "labels.unknown_class names objects of none of labels.classes, which must not be empty "
                f"then; got unknown_class {list(self.unknown_class)}. Name the classes, or leave both empty."
            )
        if len(set(self.classes)) < len(self.classes) or len(self.classes) > 255:
            raise InputError(f"labels.classes must be at most 255 distinct names; got {list(self.classes)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes 1..C."""
        return self.classes or ("object",)


class Role(enum.IntEnum):
    """What a class is to the training, in drawing order: a later one overwrites an earlier one."""

    UNKNOWN = 0  # the spec does not name it
    UNUSED = 1
    EXHAUSTIVE = 2
    DROPPED = 3
    BACKGROUND = 4
    OBJECT = 5
    IGNORED = 6


_GROUND = {
    Role.EXHAUSTIVE: Ground.BACKGROUND,
    Role.DROPPED: Ground.UNANNOTATED,
    Role.BACKGROUND: Ground.BACKGROUND,
    Role.OBJECT: Ground.ANNOTATED,
    Role.IGNORED: Ground.IGNORED,
}


def role_of(name: str, spec: LabelSpec) -> Role:
    """The role of a class name.

    >>> role_of("Ignore*", LabelSpec()).name, role_of("tumour", LabelSpec(classes=("stroma",))).name
    ('IGNORED', 'UNKNOWN')
    """
    if name == DROPPED:
        return Role.DROPPED
    if name in spec.classes:
        return Role.OBJECT
    for patterns, role in (
        (spec.unknown_class, Role.OBJECT),
        (spec.known_background, Role.BACKGROUND),
        (spec.ignored_regions, Role.IGNORED),
        (spec.exhaustive_regions, Role.EXHAUSTIVE),
        (spec.unused, Role.UNUSED),
    ):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return role
    return Role.UNKNOWN if spec.classes else Role.OBJECT


def roles(annotations: Annotations, spec: LabelSpec) -> Int32[np.ndarray, "n"]:
    """`Role` of each object."""
    table = np.array([role_of(name, spec) for name in annotations.class_names], np.int32)
    return table[annotations.class_ids] if len(table) else np.zeros(0, np.int32)


def wanted(annotations: Annotations, spec: LabelSpec) -> Bool[np.ndarray, "n"]:
    """True for the objects that training is to find."""
    return roles(annotations, spec) == Role.OBJECT


def label_ids(annotations: Annotations, spec: LabelSpec) -> Int32[np.ndarray, "n"]:
    """Class id 1..C of each object; 0 for one of unknown class, and for what is not wanted (see `wanted`)."""
    place = {name: i + 1 for i, name in enumerate(spec.classes)}
    other = 0 if spec.classes else 1
    table = np.array([place.get(name, other) for name in annotations.class_names], np.int32)
    ids = table[annotations.class_ids] if len(table) else np.zeros(0, np.int32)
    return np.where(wanted(annotations, spec), ids, 0).astype(np.int32)


def point_radii_um(annotations: Annotations, spec: LabelSpec) -> Float64[np.ndarray, "n"]:
    """Micrometres of the disc that stands for each object, were it a point."""
    radii = np.array(
        [spec.point_radius_um, *(spec.class_radius_um or [spec.point_radius_um] * len(spec.names))]
    )
    each = radii[label_ids(annotations, spec)]
    # What was taken away has lost its class: the largest it can have had, since less would leave a rim of
    # it as background.
    each[annotations.of_classes([DROPPED])] = radii.max()
    return each


def discs(annotations: Annotations, spec: LabelSpec, *, mpp: float) -> Annotations:
    """Every point as the disc that stands for it, polygons and boxes as they are."""
    return annotations.discs(point_radii_um(annotations, spec) / mpp)


def check_classes(annotations: Annotations, spec: LabelSpec) -> None:
    """Every class with an object must have a role.

    Raises:
        InputError: names the file, the unknown classes with their counts, and what to do.
    """
    unknown = roles(annotations, spec) == Role.UNKNOWN
    if not unknown.any():
        return
    ids, counts = np.unique(annotations.class_ids[unknown], return_counts=True)
    found = [(annotations.class_names[i], int(n)) for i, n in zip(ids, counts)]
    listed = ", ".join(f"{name or '(unclassified)'!s} ({n} objects)" for name, n in found)
    known = [
        *spec.classes,
        *spec.unknown_class,
        *spec.known_background,
        *spec.ignored_regions,
        *spec.exhaustive_regions,
    ]
    raise InputError(
        f"{annotations.source or 'annotations'}: every class must be named in the config; not named: "
        f"{listed}.{_suggestion([name for name, _ in found], known)} Add it to labels.classes (to be "
        "found), labels.known_background (marked, not wanted), labels.ignored_regions (outside the "
        'loss) or labels.unused (passed over; "" stands for unclassified objects).'
    )


def _suggestion(names: Sequence[str], known: Sequence[str]) -> str:
    lower = {name.lower(): name for name in known}
    close = []
    for name in names:
        for match in difflib.get_close_matches(name.lower(), list(lower), n=1):
            close.append(f"{lower[match]} for {name}")
    return f" Did you mean {', '.join(close)}?" if close else ""


class TargetMaps:
    """The objects of one case sorted by role, to be drawn for many windows.

    Args:
        annotations: objects and regions in level-0 pixels.
        spec: what their classes mean.
        mpp: micrometres a level-0 pixel, for the radius of points.
    """

    def __init__(self, annotations: Annotations, spec: LabelSpec, *, mpp: float):
        shapes = discs(annotations, spec, mpp=mpp)
        role = roles(shapes, spec)
        labels = label_ids(shapes, spec)
        # Class id of each object, or the one id of all; 0 for an unknown one and for what is not wanted.
        self._layers: list[tuple[Role, Annotations, RunCache, np.ndarray | int]] = []
        for one in _GROUND:
            chosen = role == one
            if chosen.any():
                ids = labels[chosen].astype(np.uint8)
                layer = shapes.take(chosen)
                single = bool((ids == ids[0]).all())
                self._layers.append((one, layer, RunCache(layer), int(ids[0]) if single else ids))

        self._depths = Depths(self.objects())
        self._ring = None
        if spec.ring_um is not None:
            inner, outer = (radius / mpp for radius in spec.ring_um)
            marked = annotations.take(wanted(annotations, spec))  # as they are: a point's own place
            self._ring = RingGround(marked, (inner, outer))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        layers = sum(cache.nbytes for _, _, cache, _ in self._layers)
        return layers + (self._ring.nbytes if self._ring else 0)

    def objects(self) -> Annotations:
        """The wanted objects as polygons."""
        for role, shapes, _, _ in self._layers:
            if role == Role.OBJECT:
                return shapes
        return Annotations.empty()

    def draw(
        self, window: Window, *, objects: bool = True, ring: bool = False
    ) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
        """`Ground` codes and class ids (0 outside objects) of a window.

        Args:
            window: the pixels to draw.
            objects: False leaves wanted objects out.
            ring: ignore what `LabelSpec.ring_um` says, as training does and no measure. Without objects the
                pixel in the middle of each one's box stays unannotated: on ignored ground nothing is
                matched.
        """
        ground = np.zeros((window.height, window.width), np.uint8)
        label = np.zeros_like(ground)
        for role, _, cache, ids in self._layers:
            if role == Role.OBJECT and not objects:
                continue
            runs = cache.covered(window)
            if isinstance(ids, np.ndarray):
                ids = ids[runs.objects]
            fill(runs, (ground, int(_GROUND[role])), (label, ids))
        if ring and self._ring is not None:
            outside = self._ring.outside(window, middles=not objects)
            ground[outside & (ground == Ground.UNANNOTATED)] = Ground.IGNORED
        return ground, label

    def instances(self, window: Window) -> Int32[np.ndarray, "h w"]:
        """0 outside the wanted objects, k + 1 inside object k of `objects()`; regions have no say."""
        return rasterize(self.objects(), window)

    def distance(self, window: Window) -> UInt8[np.ndarray, "h w"]:
        """How deep each pixel lies in its wanted object; see `depth.Depths.draw`."""
        return self._depths.draw(window)


def draw_targets(
    annotations: Annotations, window: Window, spec: LabelSpec, *, mpp: float, ring: bool = False
) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
    """The four kinds of ground of a window (METHOD: notation), and the classes.

    Drawn in this order, a later one over an earlier one: unannotated everywhere; exhaustively
    annotated regions are background; objects dropped inside them are unannotated; known background;
    wanted objects are annotated; ignored regions.

    Args:
        annotations: objects and regions in level-0 pixels.
        window: the pixels to draw.
        spec: what the classes mean.
        mpp: micrometres a level-0 pixel, for the radius of points.
        ring: of unannotated ground ignore what `spec.ring_um` says, as training does.

    Returns:
        `Ground` codes; class ids 1..C where annotated, 0 elsewhere.

    >>> square = [[1, 0], [3, 0], [3, 1], [1, 1]]
    >>> one = Annotations.from_polygons([[square]], "tumour")
    >>> window = Window(x_px=0, y_px=0, width=4, height=1)
    >>> draw_targets(one, window, LabelSpec(classes=("stroma", "tumour")), mpp=0.5)
    (array([[0, 1, 1, 0]], dtype=uint8), array([[0, 2, 2, 0]], dtype=uint8))
    """
    return TargetMaps(annotations, spec, mpp=mpp).draw(window, ring=ring)
