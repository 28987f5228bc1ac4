"""Tables of points: x, y, and where given class and image, as text with a separator."""

import collections
import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.format import Format, Picture
from sparseshot_jax.data.formats.json_stream import read_document
from sparseshot_jax.data.formats.polygon_repair import MAX_COORDINATE
from sparseshot_jax.data.formats.whole_file import whole_file
from sparseshot_jax.errors import InputError

MAX_BYTES = 1 << 30  # a table, unpacked
SEPARATORS = ",;\t"

# Names of columns, in lower case and with _ for what is no letter or digit.
_PLACE = "(?:c|cent(?:er|re|roid)|coord(?:inate)?|loc(?:ation)?|point|pos(?:ition)?)"
_AXIS = rf"(?:{_PLACE}_?)?{{}}(?:_?{_PLACE})?(?:_(?:px|pixels?|level_?0))*"
COLUMNS = {
    "x": re.compile(_AXIS.format("x")),
    "y": re.compile(_AXIS.format("y")),
    "class": re.compile("class|class_name|classification|label|type|cell_type|category|name"),
    "image": re.compile("(?:image|slide|file)(?:_?name|_?id)?"),
}
_MICRONS = re.compile(r"(?:.*_)?[xy](?:_.*)?_(?:um|µm|μm|microns?|micrometres?|micrometers?|mm)")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,4})?")
_MISSING = ("", "nan", "na", "null", "none", "inf", "-inf", "+inf", "infinity", "-infinity")

REJECTED = "{} rows with coordinates that are missing, no number or beyond 1e12 were rejected."
EXAMPLE = "A table of points has a first line such as x,y,class or x,y,class,image, then a line a point"


def read_points_csv(path: str | Path, image: str | None = None, *, max_bytes: int = MAX_BYTES) -> Annotations:
    """Read the points of one image; coordinates are level-0 pixels as written, nothing is added.

    Separated by comma, semicolon or tab. Columns are found by their names in any usual spelling; without a
    first line of names they are x, y and, where there is a third, class.

    Args:
        path: the file, plain or gzip, UTF-8.
        image: an entry of its image column; None where the file has points of one image.
        max_bytes: limit on the file's size, unpacked.

    Raises:
        InputError: the file cannot be read, or a line holds no point; the message names the line.
    """
    images = read_points_csv_images(path, max_bytes=max_bytes)
    if image is None and len(images) > 1:
        raise InputError(
            f"{path}: must hold the points of one image; it holds those of {len(images)}: "
            f"{', '.join(list(images)[:8])}{', ...' if len(images) > 8 else ''}. Name one of them, or "
            "convert the file to one file an image: sparseshot data convert FILE FOLDER."
        )
    if image is not None and image not in images:
        raise InputError(f"{path}: holds no points of {image!r}; it holds those of {list(images)[:8]}.")
    return images[next(iter(images)) if image is None else image][1]


def read_points_csv_images(
    path: str | Path, *, max_bytes: int = MAX_BYTES
) -> dict[str, tuple[Picture, Annotations]]:
    """Read the points of every image, by the entry of the image column ("" where there is none).

    Raises:
        InputError: see `read_points_csv`.
    """
    path = Path(path)
    table = _Table(path, _text(path, max_bytes))
    points: dict[str, list[tuple[float, float]]] = {}
    classes: dict[str, list[str]] = {}
    rejected: collections.Counter[str] = collections.Counter()
    for x, y, name, image in table.rows():
        points.setdefault(image, [])
        if abs(x) <= MAX_COORDINATE and abs(y) <= MAX_COORDINATE:  # False for NaN
            points[image].append((x, y))
            classes.setdefault(image, []).append(name)
        else:
            rejected[image] += 1
    found = {}
    for image in points or {"": []}:
        notes = [REJECTED.format(rejected[image])] if rejected[image] else []
        if image not in classes:
            notes.append("The file holds no points.")
            one = Annotations.empty(source=str(path), notes=tuple(notes))
        else:
            # Also where all are of one class: a name for each point.
            one = Annotations.from_points(points[image], classes[image], source=str(path))
            one = Annotations.concatenate([Annotations.empty(notes=tuple(notes)), one])
        found[image] = (Picture(name=image), one)
    return found


def write_points_csv(path: str | Path, annotations: Annotations, picture: Picture) -> None:
    """Write x, y and class of every object, to 0.001 px; of a polygon or box its centroid."""
    del picture
    _write(Path(path), ("x", "y", "class"), _rows(annotations))


def write_points_csv_images(path: str | Path, images: Mapping[str, tuple[Picture, Annotations]]) -> None:
    """Write the objects of several images, with the image's name in a fourth column."""
    rows = ((*row, name) for name, (_, annotations) in images.items() for row in _rows(annotations))
    _write(Path(path), ("x", "y", "class", "image"), rows)


def _rows(annotations: Annotations) -> Iterator[tuple[str, ...]]:
    names = annotations.class_names
    for (x, y), class_id in zip(annotations.centroids_px.tolist(), annotations.class_ids.tolist()):
        yield f"{x:.3f}", f"{y:.3f}", names[class_id]


def _write(path: Path, header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    with whole_file(path, packed=path.suffix == ".gz") as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        text.flush()
        text.detach()  # closing is for the one who opened


def _text(path: Path, max_bytes: int) -> str:
    document = read_document(path, max_bytes)
    try:
        return document.decode()
    except UnicodeDecodeError as error:
        line = document.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}: must be UTF-8 text; line {line}, byte {error.start} is not. Save it again as UTF-8 "
            "(in a spreadsheet: CSV UTF-8)."
        ) from None


class _Table:
    """The lines of a table, with the places of the columns that matter."""

    def __init__(self, path: Path, text: str):
        self.path = path
        first = next((line for line in io.StringIO(text) if line.strip()), "")
        # The separator is the most frequent one of the first line: names and numbers seldom hold another.
        self.separator = max(SEPARATORS, key=first.count)
        self.decimal_comma = self.separator != ","
        self.lines = csv.reader(io.StringIO(text, newline=""), delimiter=self.separator)
        self.columns: dict[str, int] = {}

    def rows(self) -> Iterator[tuple[float, float, str, str]]:
        """x, y, class and image of every line."""
        for row in self._filled():
            if not self.columns:
                self.columns = self._found(row)
                if not self._is_bare(row):
                    continue
            if len(row) <= max(self.columns["x"], self.columns["y"]):
                raise self._broken(f"has {len(row)} columns, and x and y are not both among them")
            cells = [self._cell(row, name) for name in ("x", "y", "class", "image")]
            yield self._number(cells[0]), self._number(cells[1]), cells[2], cells[3]

    def _filled(self) -> Iterator[list[str]]:
        try:
            for row in self.lines:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield cells
        except csv.Error as error:
            raise self._broken(f"cannot be read as a table: {error}") from error

    def _found(self, row: list[str]) -> dict[str, int]:
        if self._is_bare(row):
            if len(row) > 3:
                raise self._broken(
                    f"has {len(row)} columns and no line of names is above it; only x, y and class need none"
                )
            return dict(zip(("x", "y", "class"), range(len(row))))
        names = [re.sub(r"[\W_]+", "_", name.lower()).strip("_") for name in row]
        found = {}
        for column, spelling in COLUMNS.items():
            places = [k for k, name in enumerate(names) if spelling.fullmatch(name)]
            if places:  # the shortest of several: the same for x and y
                found[column] = min(places, key=lambda k: len(names[k]))
        if {"x", "y"} <= set(found):
            return found
        microns = [given for given, name in zip(row, names) if _MICRONS.fullmatch(name)]
        if microns:
            raise self._broken(
                f"names coordinates in micrometres, {microns}; they must be level-0 pixels. Divide them by "
                "the pixel size and name the columns x and y"
            )
        raise self._broken(f"must name the columns x and y; it holds {str(row)[:120]}")

    def _is_bare(self, row: list[str]) -> bool:
        """True for a line of numbers, where one of names is looked for."""
        return len(row) > 1 and all(self._matched(cell) for cell in row[:2])

    def _cell(self, row: list[str], name: str) -> str:
        place = self.columns.get(name, len(row))
        return row[place] if place < len(row) else ""

    def _matched(self, cell: str) -> str:
        text = cell.replace(",", ".") if self.decimal_comma else cell
        return text if _NUMBER.fullmatch(text) else ""

    def _number(self, cell: str) -> float:
        if text := self._matched(cell):
            return float(text)
        if cell.lower() in _MISSING:
            return math.nan
        raise self._broken(f"must hold numbers for x and y; it holds {cell[:60]!r}")

    def _broken(self, what: str) -> InputError:
        return InputError(f"{self.path}: line {self.lines.line_num} {what}. {EXAMPLE}.")


POINTS_CSV = Format(
    title="CSV of points",
    suffixes=(".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    read=read_points_csv,
    write=write_points_csv,
    read_many=read_points_csv_images,
    write_many=write_points_csv_images,
    keeps="points; class names; coordinates to 0.001 px; polygons and boxes become their centroids",
    origin="top left corner of the top left pixel, level 0, in pixels: numbers are taken as written",
)
