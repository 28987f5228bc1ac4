"""Annotation files: one module a format, all reading into `Annotations`."""

import difflib
import zlib
from collections.abc import Iterable
from pathlib import Path

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.asap_xml import ASAP
from sparseshot_jax.data.formats.coco_json import COCO
from sparseshot_jax.data.formats.format import Format
from sparseshot_jax.data.formats.geojson import GEOJSON
from sparseshot_jax.data.formats.hovernet_mat import HOVERNET
from sparseshot_jax.data.formats.imagescope_xml import IMAGESCOPE
from sparseshot_jax.data.formats.label_map import LABEL_MAP
from sparseshot_jax.data.formats.points_csv import POINTS_CSV
from sparseshot_jax.data.formats.points_json import POINTS_JSON
from sparseshot_jax.data.formats.voc_xml import VOC
from sparseshot_jax.errors import InputError

# Where a suffix is shared, the first whose mark is near the head of the file; one without marks last.
FORMATS: dict[str, Format] = {
    "geojson": GEOJSON,
    "coco": COCO,
    "asap": ASAP,
    "imagescope": IMAGESCOPE,
    "voc": VOC,
    "hovernet": HOVERNET,
    "label_map": LABEL_MAP,
    "points_csv": POINTS_CSV,
    "points_json": POINTS_JSON,
}
HEAD_BYTES = 1 << 16  # of a file, where its marks are looked for


def format_of(path: str | Path) -> str:
    """The key in FORMATS for a file, by its name; where formats share a suffix, by what the file holds.

    >>> format_of("case 1/cells.geojson.gz")
    'geojson'

    Raises:
        InputError: no format has the suffix, or the file cannot be read or is of none that share it.
    """
    path = Path(path)
    names = formats_named(path)
    if len(names) == 1:
        return names[0]
    head = _head(path)
    for name in names:
        if any(mark in head for mark in FORMATS[name].marks):
            return name
    if "geojson" in names and head.lstrip()[:1] == b"[":  # an export without any object
        return "geojson"
    for name in names:
        if not FORMATS[name].marks:
            return name
    raise InputError(
        f"{path}: is of no known format among {_titles(names)}. Export it again, or name its format."
    )


def formats_named(path: str | Path) -> list[str]:
    """The keys in FORMATS whose suffix the file's name has; only the longest suffix that fits counts.

    >>> formats_named("a.points.json")
    ['points_json']

    Raises:
        InputError: no format has the suffix.
    """
    path = Path(path)
    lower = path.name.lower()
    fitting = {suffix for one in FORMATS.values() for suffix in one.suffixes if lower.endswith(suffix)}
    if not fitting:
        known = dict.fromkeys(suffix for one in FORMATS.values() for suffix in one.suffixes)
        raise InputError(
            f"{path}: is of no known annotation format. Known suffixes: {', '.join(known)}. Rename it, or "
            f"name its format: {', '.join(FORMATS)}."
        )
    longest = max(fitting, key=len)
    return [name for name, one in FORMATS.items() if longest in one.suffixes]


def known_format(name: str) -> str:
    """The name itself.

    Raises:
        InputError: FORMATS has no such key; the message offers what may have been meant.
    """
    if name in FORMATS:
        return name
    close = difflib.get_close_matches(name.lower().replace("-", "_"), FORMATS, 1, 0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(f"a format must be one of {', '.join(FORMATS)}; got {name!r}.{hint}")


def read_annotations(path: str | Path, format_name: str | None = None) -> Annotations:
    """Read the annotations of one image from a file of any known format.

    Args:
        path: the file.
        format_name: a key in FORMATS; None finds it out.

    Raises:
        InputError: the format is unknown, or its reader finds fault with the file.
    """
    name = format_of(path) if format_name is None else known_format(format_name)
    return FORMATS[name].read(Path(path))


def _titles(names: Iterable[str]) -> str:
    return ", ".join(f"{FORMATS[name].title} ({name})" for name in names)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
        except zlib.error as error:
            raise InputError(
                f"{path}: the gzip file is broken ({error}). Copy or export it again."
            ) from error
    # UTF-16, as some tools write XML: its marks with every second byte out.
    return head.replace(b"\0", b"") if head[:2] in (b"\xff\xfe", b"\xfe\xff") else head
