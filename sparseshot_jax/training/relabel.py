"""Pseudo labels (METHOD: pseudo_label): which finds become marks, and how many of them are right."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int64

from sparseshot_jax import metrics
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, whole_window
from sparseshot_jax.data.geometry import geometries, rings_of
from sparseshot_jax.data.labels import Role, TargetMaps, discs, roles, wanted
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.data.tile_objects import object_boxes_px
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground, Window

_HAIR_PX = 0.002  # level-0 pixels
_STRIP_PX = 1 << 22  # compared at once
_LARGEST_PX = 500_000_000  # of an image, above which its pixels are not compared with the truth


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelabelSpec:
    """Train, take what is found on unannotated ground as annotated, train again from fresh parameters.

    The paper's weak supervision. Every round begins from the marks: what the model of the round before found
    takes the place of what earlier ones did.
    """

    rounds: int = 0  # trainings after the first one, each of train.steps; 0: the marks alone
    threshold: float = 0.75  # tau: what is found with p above it becomes a pseudo label, (0, 1)

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise InputError(f"relabel.rounds must be at least 0; got {self.rounds}. Try 1.")
        if not 0.0 < self.threshold < 1.0:
            raise InputError(f"relabel.threshold must be in (0, 1); got {self.threshold}. Try 0.75 or 0.5.")


def free_parts(
    found: Annotations, case: Case, *, min_area_um2: float
) -> tuple[Annotations, Int64[np.ndarray, "m"]]:
    """The parts of outlines that a model found which lie on unannotated ground: METHOD's U with p > tau.

    Outlines are cut where they meet a mark, known background or ignored ground. One of which less than half
    is left is not used at all: it is the mark itself, and the rest of it the rim that the model adds.

    Args:
        found: polygons, level-0 pixels.
        case: with what training sees of it.
        min_area_um2: smaller parts are left out.

    Returns:
        The parts, and the number of the outline that each is of.
    """
    shapes, taken = geometries(found), _known(case)
    which, by = shapely.STRtree(taken).query(shapes, "intersects")
    untouched = np.setdiff1d(np.arange(len(found)), which)
    rings, source = [], []
    for k in np.unique(which).tolist():
        # A hair wider than it is: what is written is rounded to 0.001 px.
        known = shapely.buffer(shapely.union_all(taken[by[which == k]]), _HAIR_PX, join_style="mitre")
        rest = shapely.difference(shapes[k], known)
        if shapely.area(rest) < shapely.area(shapes[k]) / 2:
            continue
        for part in shapely.get_parts(rest):
            if part.area * case.mpp**2 >= min_area_um2 and (outline := rings_of(part)):
                rings.append(outline)
                source.append(k)
    which = np.concatenate([untouched, np.array(source, np.int64)])
    cut = Annotations.from_polygons(rings)
    ids = found.class_ids[which[len(untouched) :]]
    cut = dataclasses.replace(cut, class_ids=ids, class_names=found.class_names)
    return Annotations.concatenate([found.take(untouched), cut]), which


def _known(case: Case) -> np.ndarray:
    """Geometries of all ground that is not unannotated."""
    marks = discs(case.given, case.labels, mpp=case.mpp)
    role = roles(marks, case.labels)
    whole = geometries(marks.take(np.isin(role, (Role.OBJECT, Role.BACKGROUND, Role.IGNORED))))
    regions = geometries(marks.take(role == Role.EXHAUSTIVE))
    dropped = geometries(marks.take(role == Role.DROPPED))
    if len(dropped):  # nobody marked them: inside a region they are no background
        regions = shapely.difference(regions, shapely.union_all(dropped))
    return np.concatenate([whole, regions])


def free_detections(found: Annotations, case: Case, *, mpp: float) -> Bool[np.ndarray, "n"]:
    """Which of a detector's objects may become pseudo labels.

    Those whose middle lies on unannotated ground, where no mark's box holds that middle, nor their own box
    the middle of a mark: boxes of neighbours do overlap.

    Args:
        found: boxes, or points that stand for the square round the disc of their class. Level-0 pixels.
        case: with what training sees of it.
        mpp: micrometres a pixel of the model's input.
    """
    boxes = object_boxes_px(found, case.labels, mpp=case.mpp)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    free = ~_meets_a_mark(boxes, middles, case)
    marks = discs(case.given, case.labels, mpp=case.mpp)
    others = marks.take(roles(marks, case.labels) != Role.OBJECT)
    near = shapely.STRtree(shapely.box(*others.bounds_px.T)).query(np.asarray(shapely.points(middles)))[0]
    ground, scale = TargetMaps(case.given, case.labels, mpp=case.mpp), whole_window(case, mpp).scale
    for k in np.unique(near).tolist():
        x_px, y_px = (np.floor(middles[k] / scale) * scale).tolist()
        pixel = Window(x_px=x_px, y_px=y_px, width=1, height=1, scale=scale)
        free[k] &= ground.draw(pixel, objects=False)[0][0, 0] == Ground.UNANNOTATED
    return free


def _meets_a_mark(
    boxes: Float64[np.ndarray, "n 4"], middles: Float64[np.ndarray, "n 2"], case: Case
) -> Bool[np.ndarray, "n"]:
    objects = case.given.take(wanted(case.given, case.labels))
    marked = object_boxes_px(objects, case.labels, mpp=case.mpp)
    places = np.asarray(shapely.points((marked[:, :2] + marked[:, 2:]) / 2))
    in_mark = shapely.STRtree(shapely.box(*marked.T)).query(np.asarray(shapely.points(middles)), "intersects")
    holds_mark = shapely.STRtree(places).query(shapely.box(*boxes.T), "intersects")
    meets = np.zeros(len(boxes), bool)
    meets[in_mark[0]] = meets[holds_mark[0]] = True
    return meets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Pseudo labels beside the objects of the dense truth that are not annotated: counts that add up."""

    added: int = 0  # pseudo labels
    unmarked: int = 0  # true objects that are not annotated
    found: int = 0  # one-to-one matches of these, by the distance of centres
    pixels: int = 0  # of pseudo labels of a segmentation, at the model's resolution
    true_pixels: int = 0  # of these, in true objects
    unmarked_pixels: int = 0  # unannotated ones of true objects

    @classmethod
    def total(cls, parts: Iterable["Agreement"]) -> "Agreement":
        """All counts added up."""
        rows = [dataclasses.astuple(part) for part in parts]
        return cls(**{f.name: sum(c) for f, c in zip(dataclasses.fields(cls), zip(*rows))}) if rows else cls()

    def measures(self) -> dict[str, float | None]:
        """Precision and recall of objects, and where pixels were compared of these; None where 0 of 0."""
        objects = {"precision": _share(self.found, self.added), "recall": _share(self.found, self.unmarked)}
        if not self.unmarked_pixels:
            return objects
        return objects | {
            "pixel_precision": _share(self.true_pixels, self.pixels),
            "pixel_recall": _share(self.true_pixels, self.unmarked_pixels),
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def agreement(
    pseudo: Annotations, case: Case, *, mpp: float, distance_um: float, pixels: bool
) -> Agreement | None:
    """How well pseudo labels agree with the dense truth, to be looked at; None where there is none.

    Args:
        pseudo: the labels, level-0 pixels.
        case: the marks and the truth.
        mpp: micrometres a pixel of the model's input.
        distance_um: a pair may match up to this distance of centres.
        pixels: compare pixels too.
    """
    if case.truth is None:
        return None
    marks, truth = (one.take(wanted(one, case.labels)) for one in (case.given, case.truth))
    marked = metrics.match_points(_um(truth, case), _um(marks, case), gate=distance_um).truth
    unmarked = truth.take(np.setdiff1d(np.arange(len(truth)), marked))
    pairs = metrics.match_points(_um(unmarked, case), _um(pseudo, case), gate=distance_um)
    counts = Agreement(added=len(pseudo), unmarked=len(unmarked), found=len(pairs))
    whole = whole_window(case, mpp)
    if not pixels or whole.width * whole.height > _LARGEST_PX:
        return counts
    return dataclasses.replace(counts, **_pixel_counts(pseudo, case, case.truth, whole))


def _um(objects: Annotations, case: Case) -> Float64[np.ndarray, "n 2"]:
    return objects.centroids_px * case.mpp


def _pixel_counts(pseudo: Annotations, case: Case, truth: Annotations, whole: Window) -> dict[str, int]:
    given, dense = (TargetMaps(one, case.labels, mpp=case.mpp) for one in (case.given, truth))
    added = true = unmarked = 0
    rows = max(1, _STRIP_PX // whole.width)
    for top in range(0, whole.height, rows):
        height = min(rows, whole.height - top)
        strip = dataclasses.replace(whole, y_px=top * whole.scale, height=height)
        there = dense.draw(strip)[0]
        labelled = (rasterize(pseudo, strip) > 0) & (there != Ground.IGNORED)
        is_object = there == Ground.ANNOTATED
        added += int(labelled.sum())
        true += int((labelled & is_object).sum())
        unmarked += int((is_object & (given.draw(strip)[0] == Ground.UNANNOTATED)).sum())
    return {"pixels": added, "true_pixels": true, "unmarked_pixels": unmarked}
