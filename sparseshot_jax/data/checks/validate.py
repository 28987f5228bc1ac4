"""What the program makes of annotations, and what is suspicious about them."""

import dataclasses
import difflib
import math
from collections.abc import Sequence

import numpy as np

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.cases import Splits
from sparseshot_jax.data.checks.findings import (
    ClassCount,
    Finding,
    Findings,
    Severity,
    ordered,
    places,
)
from sparseshot_jax.data.checks.placement import placement_findings
from sparseshot_jax.data.checks.shapes import overlap_findings
from sparseshot_jax.data.labels import LabelSpec, Role, TargetMaps, point_radii_um, role_of, roles
from sparseshot_jax.data.slides.slide import FileSlide, Slide
from sparseshot_jax.data.sources.overlap_check import pixel_digest
from sparseshot_jax.types import Ground, Window

GROUND_SIDE_PX = 2048  # longer side of the map in which ground is counted and shown
_STRIP_ROWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """An image with its annotations as they were read, before anything was refused or left out."""

    name: str  # SPLIT/NAME, or the name alone
    slide: Slide
    mpp: float  # micrometres a level-0 pixel
    annotations: Annotations
    labels: LabelSpec
    bounds_px: tuple[float, float] = (0.0, 0.0)  # x, y of the upper left corner of what was scanned, where
    # the slide says so: tried as the reason of shifted objects


def validate_case(case: Subject) -> Findings:
    """Count, measure and suspect.

    Raises:
        InputError: the slide cannot be read.
    """
    marks, spec, slide = case.annotations, case.labels, case.slide
    role = roles(marks, spec)
    cells = (role == Role.OBJECT) | (role == Role.BACKGROUND)
    found = [
        _unknown(marks, role, spec),
        _empty(marks, role),
        *overlap_findings(marks, cells),
        *_notes(marks),
    ]
    if len(marks):
        found += placement_findings(
            slide,
            marks,
            role == Role.OBJECT,
            mpp=case.mpp,
            radius_px=point_radii_um(marks, spec) / case.mpp,
            bounds_px=case.bounds_px,
        )
    return Findings(
        name=case.name,
        width=slide.width,
        height=slide.height,
        mpp=case.mpp,
        classes=_classes(marks, spec),
        ground=ground_shares(case),
        findings=ordered(found),
    )


def validate_splits(splits: Splits, labels: LabelSpec) -> list[Findings]:
    """Every image of a data set once, as `subjects_of` and `validate_subjects` do."""
    return validate_subjects(subjects_of(splits, labels))


def subjects_of(splits: Splits, labels: LabelSpec) -> list[Subject]:
    """Each image once, as PART/NAME, with its dense annotations where it has any, else the given ones.

    A slide that trains on its marks and is measured on those held out is one image.
    """
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    subjects: dict[str, Subject] = {}
    for part, case in ((part, case) for part, cases in parts.items() for case in cases):
        name = f"{part}/{case.name}"
        subject = Subject(
            name=name,
            slide=case.slide,
            mpp=case.mpp,
            annotations=case.given if case.truth is None else case.truth,
            labels=labels,
            bounds_px=_scanned_corner(case.slide),
        )
        subjects.setdefault(case.slide.path or name, subject)
    return list(subjects.values())


def validate_subjects(subjects: Sequence[Subject]) -> list[Findings]:
    """Each image, and what is wrong between them: the part of the name before "/" is its split.

    Raises:
        InputError: a slide cannot be read.
    """
    return _with_copies([validate_case(one) for one in subjects], [one.slide for one in subjects])


def ground_shares(case: Subject) -> dict[Ground, float]:
    """Share of the image's area under each kind of ground, as training draws it."""
    counts = np.bincount(ground_map(case, GROUND_SIDE_PX)[0].ravel(), minlength=len(Ground))
    return {kind: float(counts[kind] / counts.sum()) for kind in Ground}


def ground_map(case: Subject, side_px: int) -> tuple[np.ndarray, float]:
    """`Ground` codes of the whole image, its longer side at most `side_px`, and level-0 pixels a pixel."""
    slide = case.slide
    scale = max(1.0, max(slide.width, slide.height) / side_px)
    width, height = (max(1, math.floor(n / scale + 1e-6)) for n in (slide.width, slide.height))
    maps = TargetMaps(case.annotations, case.labels, mpp=case.mpp)
    strips = []
    for y in range(0, height, _STRIP_ROWS):
        rows = min(_STRIP_ROWS, height - y)
        window = Window(x_px=0.0, y_px=y * scale, width=width, height=rows, scale=scale)
        strips.append(maps.draw(window, ring=True)[0])
    return np.concatenate(strips), scale


def _classes(marks: Annotations, spec: LabelSpec) -> tuple[ClassCount, ...]:
    rows = []
    for k, name in enumerate(marks.class_names):
        kinds = np.bincount(marks.kind[marks.class_ids == k], minlength=len(Kind))
        rows.append(
            ClassCount(
                name=name,
                role=role_of(name, spec),
                polygons=int(kinds[Kind.POLYGON]),
                points=int(kinds[Kind.POINT]),
                boxes=int(kinds[Kind.BOX]),
            )
        )
    return tuple(row for row in rows if row.total)


def _unknown(marks: Annotations, role: np.ndarray, spec: LabelSpec) -> Finding | None:
    unknown = np.flatnonzero(role == Role.UNKNOWN)
    if not len(unknown):
        return None
    known = [
        *spec.classes,
        *spec.unknown_class,
        *spec.known_background,
        *spec.ignored_regions,
        *spec.exhaustive_regions,
    ]
    lower = {name.lower(): name for name in known}
    listed = []
    for k in np.unique(marks.class_ids[unknown]):
        name, count = marks.class_names[k], int((marks.class_ids == k).sum())
        near = difflib.get_close_matches(name.lower(), list(lower), n=1)
        guess = f"; did you mean {lower[near[0]]}?" if near else ""
        listed.append(f"{name or '(unclassified)'} ({count} object{'s' if count > 1 else ''}{guess})")
    return Finding(
        severity=Severity.ERROR,
        kind="unknown-class",
        what=f"Classes that the config does not name: {', '.join(listed)}.",
        remedy="Add each to labels.classes (to be found), labels.known_background (marked, not wanted), "
        'labels.ignored_regions (outside the loss) or labels.unused (passed over; "" stands for '
        "unclassified objects).",
        places=places(marks, unknown),
        count=len(unknown),
    )


def _empty(marks: Annotations, role: np.ndarray) -> Finding | None:
    if (role == Role.OBJECT).any():
        return None
    others = f" {len(marks)} others are." if len(marks) else ""
    return Finding(
        severity=Severity.WARNING,
        kind="empty",
        what=f"No object that training is to find is marked here.{others}",
        remedy="An image without marks trains as unannotated ground alone. Leave it out, or check "
        "labels.classes.",
    )


def _notes(marks: Annotations) -> list[Finding]:
    return [Finding(severity=Severity.NOTE, kind="reader", what=note) for note in marks.notes]


def _with_copies(found: list[Findings], slides: Sequence[Slide]) -> list[Findings]:
    """Images with the same pixels, named on both sides."""
    groups: dict[str, list[int]] = {}
    for k, slide in enumerate(slides):
        if digest := pixel_digest(slide):
            groups.setdefault(digest, []).append(k)
    for group in (group for group in groups.values() if len(group) > 1):
        across = len({found[k].name.partition("/")[0] for k in group}) > 1
        for k in group:
            others = ", ".join(found[j].name for j in group if j != k)
            copy = Finding(
                severity=Severity.ERROR if across else Severity.WARNING,
                kind="same-image",
                what=f"Has the same pixels as {others}.",
                remedy="Scores on an image that trained are worth nothing: take it out of one split."
                if across
                else "It counts twice: leave one of them out.",
            )
            found[k] = dataclasses.replace(found[k], findings=ordered([copy, *found[k].findings]))
    return found


def _scanned_corner(slide: Slide) -> tuple[float, float]:
    if not isinstance(slide, FileSlide) or slide.bounds is None:
        return 0.0, 0.0
    return float(slide.bounds[0]), float(slide.bounds[1])
