"""What a check of annotations finds: facts and faults of one image, and of all together."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import Role
from sparseshot_jax.types import Ground

EXAMPLES = 6  # places that a finding names


class Severity(enum.IntEnum):
    """How much a finding matters."""

    NOTE = 0  # to know
    WARNING = 1  # training would run, and probably not on what was meant
    ERROR = 2  # training refuses it, or would learn what is wrong


ROLE_TITLES = {
    Role.OBJECT: "object",
    Role.BACKGROUND: "known background",
    Role.IGNORED: "ignored region",
    Role.EXHAUSTIVE: "exhaustive region",
    Role.DROPPED: "taken away",
    Role.UNUSED: "unused",
    Role.UNKNOWN: "UNKNOWN",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """One object that a finding points to."""

    index: int  # of the object in its file, the first is 0
    x_px: float  # its centre, level-0 pixels
    y_px: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that somebody should know of the annotations."""

    severity: Severity
    kind: str  # what was checked: "overlap", "duplicate", "offset" ...; the same for every image
    what: str  # a sentence, with counts
    remedy: str = ""  # what to try
    places: tuple[Place, ...] = ()  # at most `EXAMPLES`
    count: int = 0  # objects concerned


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCount:
    """The objects of one class and what training takes them for."""

    name: str  # as in the files; "" = unclassified
    role: Role
    polygons: int = 0
    points: int = 0
    boxes: int = 0

    @property
    def total(self) -> int:
        """Objects of any kind."""
        return self.polygons + self.points + self.boxes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything about one image."""

    name: str
    width: int  # level-0 pixels
    height: int
    mpp: float  # micrometres a level-0 pixel
    classes: tuple[ClassCount, ...]
    ground: Mapping[Ground, float]  # share of the image's area, adds up to 1
    findings: tuple[Finding, ...]  # the worst first

    @property
    def worst(self) -> Severity | None:
        """Of all findings; None where there is none."""
        return max((one.severity for one in self.findings), default=None)


def places(annotations: Annotations, which: np.ndarray) -> tuple[Place, ...]:
    """The first of some objects, by index."""
    xy = annotations.centroids_px[which[:EXAMPLES]]
    return tuple(Place(index=int(k), x_px=float(x), y_px=float(y)) for k, (x, y) in zip(which, xy))


def ordered(found: Sequence[Finding | None]) -> tuple[Finding, ...]:
    """Without the empty ones, the worst first."""
    return tuple(sorted((one for one in found if one is not None), key=lambda one: -one.severity))


def totals(found: Sequence[Findings]) -> Findings:
    """All images as one: counts added, shares of ground weighed by area in micrometres, no findings."""
    counts: dict[tuple[str, Role], ClassCount] = {}
    for row in (row for one in found for row in one.classes):
        old = counts.get((row.name, row.role), ClassCount(name=row.name, role=row.role))
        counts[row.name, row.role] = dataclasses.replace(
            old,
            polygons=old.polygons + row.polygons,
            points=old.points + row.points,
            boxes=old.boxes + row.boxes,
        )
    areas = [one.width * one.height * one.mpp**2 for one in found]
    ground = {
        kind: sum(area * one.ground[kind] for area, one in zip(areas, found)) / max(sum(areas), 1e-9)
        for kind in Ground
    }
    return Findings(
        name=f"{len(found)} images",
        width=max((one.width for one in found), default=0),
        height=max((one.height for one in found), default=0),
        mpp=float(np.median([one.mpp for one in found])) if found else 0.0,
        classes=tuple(counts.values()),
        ground=ground,
        findings=(),
    )
