"""Slides of one's own with sparse marks of several classes, cut into tiles: as the paper's TIL set."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.builders.dataset import UNKNOWN_CLASS, Dataset, Example, Facts, natural_key
from sparseshot_jax.data.builders.pictures import Encoded, dense_labels, png
from sparseshot_jax.data.cases import scale_at
from sparseshot_jax.data.formats import FORMATS, read_annotations
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.data.slides.slide import Slide, open_slide
from sparseshot_jax.data.sources.placement import inside
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

SLIDE_SUFFIXES = (
    ".svs",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".bif",
    ".svslide",
    ".vms",
    ".tif",
    ".tiff",
    ".png",
    ".jpg",
)
# A picture beside a slide is a slide; the other formats are told by their suffix and content.
MARK_SUFFIXES = tuple(
    dict.fromkeys(
        suffix for one in FORMATS.values() for suffix in one.suffixes if suffix not in SLIDE_SUFFIXES
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSettings:
    """What tiles.json may say."""

    tile_px: int = 512  # side of a tile in its own pixels, 16..4096
    mpp: float = 0.5  # micrometres a pixel of the tiles, > 0; a stored level within 2 % is taken as it is
    slide_mpp: float | None = None  # micrometres a level-0 pixel, for slides that do not say; > 0
    point_radius_um: float = 3.0  # micrometres: a marked point becomes a disc, > 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Marked:
    """An open slide and its marks, in the order in which they are drawn."""

    name: str
    slide: Slide
    mpp: float  # micrometres a level-0 pixel
    marks: Annotations  # outlines alone, large ones first
    path: Path  # of the marks


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """One item: a place on a slide where something is marked."""

    marked: Marked
    window: Window

    @property
    def image_id(self) -> str:
        """The slide's name and the tile's upper left corner in level-0 pixels."""
        return f"{self.marked.name}_{round(self.window.x_px)}_{round(self.window.y_px)}"


class Til(Dataset):
    """A folder of slides with sparse marks: every tile of a regular grid that shows at least one of them.

    The last tiles of a row or column are smaller where the slide ends. Marks are outlines, boxes or points,
    of any class; a mark without one is of unknown class. Small marks lie over large ones, so that regions
    ("Ignore*", "Exhaustive") go below the cells in them. A mark that several tiles show is an object of
    each, and its point is its centroid, moved to the nearest place in the tile. Splits go by slide.

    Layout of manual_dir:

        NAME.svs                    slides: .svs .ndpi .mrxs .scn .bif .svslide .vms .tif .png .jpg
        NAME.geojson                marks of the slide: GeoJSON, ASAP or ImageScope XML, COCO JSON, CSV ...
        split.json                  optional: {"train": [NAME, ...], "validation": [...], "test": [...]};
                                    without it every slide is in "train"
        tiles.json                  optional: {"tile_px": 512, "mpp": 0.5, "point_radius_um": 3.0}, and
                                    "slide_mpp" where the slides do not say how large a pixel is
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="TIL",
        description="Tiles of slides with sparse marks of several classes.",
        citation=(
            "@inproceedings{panteli2021sparse, title={Sparse-shot Learning with Exclusive Cross-Entropy for "
            "Extremely Many Localisations}, author={Panteli, Andreas and Teuwen, Jonas and Horlings, Hugo "
            "and Gavves, Efstratios}, booktitle={ICCV}, year={2021}}"
        ),
        licence="That of your slides.",
        homepage="https://arxiv.org/abs/2104.10425",
        class_names=(),  # those that the marks have, see `find`
        gives=("instances", "points"),
        published={},
    )
    _found: dict[str, list[Tile]] | None = None

    def find(self, root: Path) -> Mapping[str, Sequence[Tile]]:
        """Tiles by split. Reads all marks, and no pixel."""
        if self._found is not None:
            return self._found
        slides = self._slides(root)
        settings = _settings(root / "tiles.json")
        splits = _splits(root / "split.json", list(slides))
        found: dict[str, list[Tile]] = {}
        for split, names in splits.items():
            for name in names:
                marked, notes = _marked(name, slides[name], self._marks(root, name, slides[name]), settings)
                tiles, hidden = _tiles(marked, settings)
                found.setdefault(split, []).extend(tiles)
                for note in (*notes, *hidden):
                    self.note(f"{marked.path.name}: {note}")
        unused = len(slides) - sum(map(len, splits.values()))
        if unused:
            self.note(f"{unused} of {len(slides)} slides are in no list of split.json.")
        self._name_classes(found)
        self._found = {split: tiles for split, tiles in found.items() if tiles}
        if not self._found:
            raise InputError(f"{root}: the slides need at least one mark; their files hold none.")
        return self._found

    def example(self, item: Tile) -> Example:
        """One tile with its marks."""
        marked, window = item.marked, item.window
        labels, objects = dense_labels(rasterize(marked.marks, window))
        shown = marked.marks.take(objects.astype(np.int64) - 1)
        corner = np.array([window.x_px, window.y_px])
        points = (shown.centroids_px - corner) / window.scale
        names = self.FACTS.class_names
        ids = [names.index(name) if name in names else UNKNOWN_CLASS for name in shown.class_names]
        content = png(Image.fromarray(marked.slide.read(window)))
        return Example(
            image=Encoded(content=content, width=window.width, height=window.height),
            image_id=item.image_id,
            patient=marked.name,
            mpp=marked.mpp * window.scale,
            class_ids=np.array(ids, np.int32)[shown.class_ids],
            annotation=marked.path,
            instances=labels,
            points_xy_px=np.clip(points, 0.0, [window.width, window.height]),
        )

    def _name_classes(self, found: Mapping[str, Sequence[Tile]]) -> None:
        """Class names are what the marks say; they are kept with the data set."""
        marked = {id(tile.marked): tile.marked.marks for tiles in found.values() for tile in tiles}
        used = {m.class_names[i] for m in marked.values() for i in np.unique(m.class_ids)}
        names = tuple(sorted(used - {""}))
        self.FACTS = dataclasses.replace(type(self).FACTS, class_names=names)
        metadata: Any = self.info.metadata
        metadata["class_names"] = list(names)

    def _slides(self, root: Path) -> dict[str, Path]:
        slides: dict[str, Path] = {}
        for path in sorted(root.iterdir(), key=lambda path: natural_key(path.name)):
            if path.suffix.lower() in SLIDE_SUFFIXES and path.is_file() and path.name[0] != ".":
                other = slides.setdefault(path.stem, path)
                if other != path:
                    raise InputError(f"{path}: {other.name} has the same name. Rename one of the two.")
        if not slides:
            raise self.missing("every slide", root / "NAME.svs")
        return slides

    def _marks(self, root: Path, name: str, slide: Path) -> Path:
        there = [root / (name + suffix) for suffix in MARK_SUFFIXES if (root / (name + suffix)).is_file()]
        if not there:
            raise self.missing(f"the marks of {slide.name}", root / f"{name}.geojson")
        if len(there) > 1:
            raise InputError(
                f"{slide}: a slide must have one file of marks; it has {', '.join(p.name for p in there)}. "
                "Move all but one away."
            )
        return there[0]


def _marked(name: str, path: Path, marks: Path, settings: TileSettings) -> tuple[Marked, list[str]]:
    slide = open_slide(path, mpp=settings.slide_mpp)
    if slide.mpp is None:
        raise InputError(
            f"{path}: the file does not say how large a pixel is. Set slide_mpp in tiles.json to the "
            "micrometres a full-resolution pixel (0.25 is usual at 40x, 0.5 at 20x)."
        )
    read = read_annotations(marks)
    kept, outside = inside(read, slide.width, slide.height, str(path))
    kept = kept.discs(settings.point_radius_um / slide.mpp)
    kept = kept.take(np.argsort(-kept.areas_px, kind="stable"))
    marked = Marked(name=name, slide=slide, mpp=slide.mpp, marks=kept, path=marks)
    return marked, [*read.notes, *outside]


def _tiles(marked: Marked, settings: TileSettings) -> tuple[list[Tile], list[str]]:
    """The tiles of the grid that show a mark, row by row, and a note of marks that no tile shows."""
    slide, side = marked.slide, settings.tile_px
    scale = scale_at(slide, marked.mpp, settings.mpp)
    width, height = int(slide.width / scale + 1e-6), int(slide.height / scale + 1e-6)
    shown = np.zeros(len(marked.marks) + 1, bool)
    tiles = []
    grid = (-(-width // side), -(-height // side))
    for x, y in _places(marked.marks, scale * side, grid):
        # The last tiles of a row and of a column are moved inwards: a sliver of one could train nothing.
        window = Window(
            x_px=min(x * side, max(0, width - side)) * scale,
            y_px=min(y * side, max(0, height - side)) * scale,
            width=min(side, width),
            height=min(side, height),
            scale=scale,
        )
        labels = np.unique(rasterize(marked.marks, window))
        shown[labels] = True
        if labels[-1] > 0:
            tiles.append(Tile(marked=marked, window=window))
    hidden = len(marked.marks) - int(shown[1:].sum())
    note = (
        f"{hidden} marks are smaller than a pixel of the tiles or lie behind smaller marks, and are unused."
    )
    return tiles, [note] if hidden else []


def _places(marks: Annotations, side_px: float, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Columns and rows of the grid, row by row, that the bounding boxes of the marks meet."""
    corners = np.floor(marks.bounds_px / side_px).reshape(-1, 2, 2)
    # A box may reach beyond the slide, and far: a stray vertex must not make a million tiles.
    first, last = np.clip(corners, 0, np.array(grid) - 1).astype(np.int64).swapaxes(0, 1)
    places = {
        (int(y), int(x))
        for (x0, y0), (x1, y1) in zip(first, last)
        for y in range(y0, y1 + 1)
        for x in range(x0, x1 + 1)
    }
    return [(x, y) for y, x in sorted(places)]


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: must be JSON: {error}.") from error


def _settings(path: Path) -> TileSettings:
    if not path.is_file():
        return TileSettings()
    given = _document(path)
    known = [field.name for field in dataclasses.fields(TileSettings)]
    if not isinstance(given, dict) or not set(given) <= set(known):
        raise InputError(
            f"{path}: must be {{name: number}} with names among {', '.join(known)}; got {given}."
        )
    for name, value in given.items():
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise InputError(f"{path}: {name} must be a number above 0; got {value!r}.")
    side = given.get("tile_px", TileSettings.tile_px)
    if type(side) is not int or not 16 <= side <= 4096:
        raise InputError(f"{path}: tile_px must be a whole number of 16 to 4096 pixels; got {side}.")
    return TileSettings(**given)


def _splits(path: Path, slides: Sequence[str]) -> dict[str, list[str]]:
    if not path.is_file():
        return {"train": list(slides)}
    lists = _document(path)
    if not isinstance(lists, dict) or not all(isinstance(names, list) for names in lists.values()):
        raise InputError(f"{path}: must be {{split: [slide names]}}, slide names without suffix.")
    owner: dict[str, str] = {}
    for split, names in lists.items():
        if not split.isidentifier():
            raise InputError(f"{path}: a split's name must be letters, digits and _; got {split!r}.")
        for name in names:
            if name not in slides:
                raise InputError(
                    f"{path}: list {split!r} names {name!r}; the slides are {', '.join(slides[:5])}."
                )
            if owner.setdefault(name, split) != split:
                raise InputError(
                    f"{path}: a slide must be in one list; {name!r} is in {owner[name]} and {split}."
                )
    return {split: list(dict.fromkeys(names)) for split, names in lists.items()}
