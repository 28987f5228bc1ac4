"""Annotation files: one module a format, all reading into `Annotations`."""

from collections.abc import Callable
from pathlib import Path

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.formats.label_map import read_label_map
from sparseshot_jax.data.formats.points_json import read_points_json
from sparseshot_jax.errors import InputError

FORMATS: dict[str, Callable[..., Annotations]] = {
    "geojson": read_geojson,
    "label_map": read_label_map,
    "points_json": read_points_json,
}
SUFFIXES = {
    ".geojson": "geojson",
    ".geojson.gz": "geojson",
    ".json.gz": "geojson",
    ".points.json": "points_json",
    ".png": "label_map",
    ".tif": "label_map",
    ".tiff": "label_map",
}


def format_of(path: str | Path) -> str:
    """The key in FORMATS for a file, by its name; a plain `.json` by what it holds.

    >>> format_of("case 1/cells.geojson.gz")
    'geojson'
    """
    path = Path(path)
    name = path.name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return SUFFIXES[suffix]
    if name.endswith(".json"):
        try:
            with path.open("rb") as stream:
                head = stream.read(1 << 16)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
        marks = (b'"Feature', b'"geometry"', b'"coordinates"')
        geojson = head.lstrip()[:1] == b"[" or any(mark in head for mark in marks)
        return "geojson" if geojson else "points_json"
    raise InputError(
        f"{path}: is of no known annotation format. Known suffixes: {', '.join(SUFFIXES)}, .json."
    )


def read_annotations(path: str | Path) -> Annotations:
    """Read an annotation file of any known format.

    Raises:
        InputError: the format is unknown, or its reader finds fault with the file.
    """
    return FORMATS[format_of(path)](path)
