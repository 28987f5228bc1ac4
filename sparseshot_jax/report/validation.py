"""The check of a data set as one page and a picture an image."""

import html
import importlib.resources
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sparseshot_jax.data.checks.findings import ROLE_TITLES, Finding, Findings, Severity, totals
from sparseshot_jax.data.checks.validate import Subject
from sparseshot_jax.data.formats.whole_file import whole_file
from sparseshot_jax.data.labels import Role
from sparseshot_jax.errors import InputError
from sparseshot_jax.report import page, parts
from sparseshot_jax.report.tables import Cell, Table
from sparseshot_jax.report.validation_pictures import sheet
from sparseshot_jax.types import Ground

_LISTED = 8  # images of a finding that are shown unfolded
_ORDER = (Role.UNKNOWN, Role.OBJECT, *(r for r in reversed(Role) if r not in (Role.UNKNOWN, Role.OBJECT)))
_GROUND_TITLES = {
    Ground.ANNOTATED: "annotated",
    Ground.BACKGROUND: "known background",
    Ground.UNANNOTATED: "unannotated",
    Ground.IGNORED: "ignored",
}


def write_validation(
    folder: str | os.PathLike[str],
    checked: Sequence[tuple[Subject, Findings]],
    *,
    title: str,
    mpp: float | None = None,
    pictures: int = 24,
    versions: Mapping[str, str],
) -> Path:
    """Write NAME.png for the worst images and index.html, which holds them all.

    Args:
        folder: made where it does not exist; files of the same names in it are replaced.
        checked: each image with what was found.
        title: heading of the page.
        mpp: micrometres a pixel of the tiles, for the crops; None = each image's own.
        pictures: how many images are drawn; those with the worst findings first.
        versions: package -> version.

    Returns:
        The page.

    Raises:
        InputError: a slide cannot be read, or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be made: {error.strerror}. Name another.") from error
    by_fault = sorted(checked, key=lambda pair: -(-1 if pair[1].worst is None else pair[1].worst))
    sheets = []
    for case, found in by_fault[:pictures]:
        picture = sheet(case, found, mpp=mpp)
        with whole_file(folder / f"{_file_name(found.name)}.png") as stream:
            stream.write(picture)
        sheets.append(_figure(found, picture))
    left = len(checked) - len(sheets)
    if left > 0:
        sheets.append(f"<p class='muted'>{left} more image{'s are' if left > 1 else ' is'} not drawn.</p>")
    every = [found for _, found in checked]
    style = (
        importlib.resources.files("sparseshot_jax.report").joinpath("validation_page.css").read_text("utf-8")
    )
    body = [
        _summary(every),
        parts.section("Findings", _findings(every)),
        parts.section("Classes", class_table(every).html()),
        parts.section("Ground", ground_table(every).html()),
        parts.section("Images", "".join(sheets)),
    ]
    target = folder / "index.html"
    page.write_page(target, title, "".join(body), versions, style)
    return target


def class_table(found: Sequence[Findings]) -> Table:
    """Objects a class over all images, and what training takes them for."""
    rows = [
        [
            Cell(text=row.name or "(unclassified)"),
            Cell(text=ROLE_TITLES[row.role]),
            Cell(text=str(row.total)),
            Cell(text=str(sum(any(c.name == row.name for c in one.classes) for one in found))),
            Cell(text=", ".join(kind for kind, n in _kinds(row).items() if n)),
        ]
        for row in sorted(totals(found).classes, key=lambda row: (_ORDER.index(row.role), -row.total))
    ]
    header = ("Class", "Treated as", "Objects", "Images", "Marked as")
    return Table(header=[Cell(text=one) for one in header], rows=rows)


def ground_table(found: Sequence[Findings]) -> Table:
    """Share of each image's area under each kind of ground."""
    whole = [("All images", "", totals(found))] if len(found) > 1 else []
    each = [(one.name, f"{one.width} x {one.height}", one) for one in found]
    rows = [
        [
            Cell(text=name),
            Cell(text=size),
            *(Cell(text=f"{100 * one.ground[k]:.2f} %") for k in _GROUND_TITLES),
        ]
        for name, size, one in [*whole, *each]
    ]
    header = ("Image", "Pixels", *_GROUND_TITLES.values())
    caption = (
        "Of the image's area, as training treats it. Unannotated: object or background, nobody looked. "
        "Ignored: outside the loss."
    )
    return Table(header=[Cell(text=one) for one in header], rows=rows, caption=caption)


def findings_table(found: Sequence[Findings]) -> Table:
    """Every finding, a row each, the worst first: for a terminal."""
    rows = sorted(
        ((one.severity, k, f.name, one) for k, f in enumerate(found) for one in f.findings),
        key=lambda row: (-row[0], row[1]),
    )
    return Table(
        header=[Cell(text=one) for one in ("Image", "Finding", "What", "Remedy")],
        rows=[
            [
                Cell(text=name),
                Cell(text=f"{severity.name.lower()}: {one.kind}"),
                Cell(text=one.what, detail=_where(one)),
                Cell(text=one.remedy),
            ]
            for severity, _, name, one in rows
        ],
    )


def _kinds(row) -> dict[str, int]:
    return {"polygons": row.polygons, "points": row.points, "boxes": row.boxes}


def _summary(found: Sequence[Findings]) -> str:
    faults = [one.severity for f in found for one in f.findings]
    objects = sum(row.total for row in totals(found).classes)
    values = {"Images": len(found), "Annotations": objects} | {
        f"{kind.name.capitalize()}s": faults.count(kind) for kind in reversed(Severity)
    }
    tiles = "".join(f"<div class='tile'><span>{name}</span><b>{n:,}</b></div>" for name, n in values.items())
    return f"<div class='tiles'>{tiles}</div>"


def _findings(found: Sequence[Findings]) -> str:
    """A block for each kind of finding, the worst first, with its images."""
    blocks: dict[tuple[Severity, str], list[tuple[str, Finding]]] = {}
    for image in found:
        for one in image.findings:
            blocks.setdefault((one.severity, one.kind), []).append((image.name, one))
    if not blocks:
        return "<p>Nothing is wrong, as far as can be told.</p>"
    ranked = sorted(blocks.items(), key=lambda block: -block[0][0])
    return "".join(_block(severity, kind, rows, len(found)) for (severity, kind), rows in ranked)


def _block(severity: Severity, kind: str, rows: Sequence[tuple[str, Finding]], images: int) -> str:
    lines = [
        f"<li><b>{html.escape(name)}</b>: {html.escape(one.what)}"
        + (f"<small>{html.escape(_where(one))}</small>" if one.places else "")
        + "</li>"
        for name, one in rows
    ]
    listed = f"<ul>{''.join(lines[:_LISTED])}</ul>"
    if len(lines) > _LISTED:
        more = f"{len(lines) - _LISTED} more images"
        listed += f"<details><summary>{more}</summary><ul>{''.join(lines[_LISTED:])}</ul></details>"
    remedies = dict.fromkeys(one.remedy for _, one in rows if one.remedy)
    remedy = "".join(f"<p>{html.escape(text)}</p>" for text in remedies)
    named = len({name for name, _ in rows})
    count = f" in {named} of {images} images" if images > 1 else ""
    heading = f"<h3><span>{severity.name.lower()}</span>: {html.escape(kind)}{count}</h3>"
    return f"<div class='finding {severity.name.lower()}'>{heading}{listed}{remedy}</div>"


def _where(one: Finding) -> str:
    """The objects that a finding names."""
    if not one.places:
        return ""
    named = "; ".join(f"{place.index} at ({place.x_px:.0f}, {place.y_px:.0f})" for place in one.places)
    more = " and more" if one.count > len(one.places) else ""
    return f"Objects by number in the file, from 0, at x, y: {named}{more}."


def _figure(found: Findings, picture: bytes) -> str:
    # A photograph as PNG takes five times the room.
    with Image.open(io.BytesIO(picture)) as image:
        source = parts.jpeg_data(np.asarray(image.convert("RGB")))
    name = html.escape(found.name, quote=True)
    return f"<div class='panel sheet'><figure><img alt='{name}' src='{source}'></figure></div>"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
