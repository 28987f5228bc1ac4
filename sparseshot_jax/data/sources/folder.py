"""A folder of images with one kind of annotation."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.formats import format_of, read_annotations
from sparseshot_jax.data.formats.label_map import read_label_map
from sparseshot_jax.data.formats.points_json import read_points_json
from sparseshot_jax.data.labels import LabelSpec, check_classes
from sparseshot_jax.data.point_lists import used_points
from sparseshot_jax.data.slides.slide import Slide, open_slide
from sparseshot_jax.data.sources.annotation_files import SUFFIXES
from sparseshot_jax.data.sources.overlap_check import check_disjoint
from sparseshot_jax.data.sources.placement import inside
from sparseshot_jax.data.sources.ranges import check_mpp, check_share
from sparseshot_jax.data.sources.sparse_case import sparse_case, unknown_note
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# folder -> suffixes of the annotations in it
ANNOTATION_FOLDERS = {
    "instances": (".png", ".tif", ".tiff"),
    "points": (".json",),
    "annotations": SUFFIXES,
    "Annotations": (".xml",),  # Pascal VOC
}
IMAGE_FOLDERS = ("images", "JPEGImages")  # the second is Pascal VOC's
_SMALL_PX = 1 << 24  # an image up to this size is decoded at each read, not held in memory
_SHOWN = 5  # names in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource:
    """root/images/NAME.{png,jpg,tif} with one of instances/NAME.png (16-bit label maps),
    points/NAME.json, or annotations/NAME.geojson, .xml, .csv ... (docs/formats.md). Or as Pascal VOC has
    it: root/JPEGImages/NAME.jpg, Annotations/NAME.xml, and split_file "ImageSets/Main".

    Training images get the sparse share `keep` of their objects; validation and test stay dense.
    """

    root: str = ""  # the folder that holds images/ or JPEGImages/
    train: tuple[str, ...] = ("*",)  # patterns (* and ?) on file stems
    validation: tuple[str, ...] = ()  # patterns, or names of a split file's lists
    test: tuple[str, ...] = ()
    split_file: str = ""  # JSON {list name: [stems]} under root, or a folder of NAME.txt with a stem a line;
    # train, validation and test then name its lists (patterns on them) in place of stems
    mpp: float = 0.25  # micrometres a pixel of the images
    keep: float = 1.0  # share of the training objects that stay annotated, (0, 1]
    points_key: str = "detection"  # the list of a points file that holds every object: used alone where
    # labels.classes is empty; where labels.unknown_class names it, its points take the class of the class
    # point within 1 px, and those without one stay of unknown class

    def __post_init__(self):
        check_mpp(self.mpp)
        check_share("keep", self.keep)

    def load(self, labels: LabelSpec, seed: int) -> Splits:
        """See `Source.load`."""
        root = on_disk(self.root)
        images = _files(image_folder(root), IMAGE_SUFFIXES, "images")
        annotations = _annotation_files(root, images)
        splits = self._split(images)
        cases: dict[str, list[Case]] = {name: [] for name in splits}
        notes: list[str] = []
        unpaired = 0
        for split, stems in splits.items():
            for stem in stems:
                case, found, added = self._case(stem, images[stem], annotations[stem], labels)
                notes += found
                unpaired += added
                if split == "train":
                    case = sparse_case(case, self.keep, seed=seed, image=case.name)
                cases[split].append(case)
        unused = len(images) - sum(map(len, splits.values()))
        if unused:
            notes.append(f"{unused} of {len(images)} images are in no split.")
        if unpaired:
            notes.append(
                f"{unpaired} class points without a point of {self.points_key!r} were added to these."
            )
        loaded = Splits(
            train=tuple(cases["train"]),
            validation=tuple(cases["validation"]),
            test=tuple(cases["test"]),
        )
        notes += unknown_note(loaded)
        return dataclasses.replace(loaded, notes=(*notes, *check_disjoint(loaded)))

    def _split(self, images: Mapping[str, Path]) -> dict[str, list[str]]:
        lists = _read_split(Path(self.root) / self.split_file, images) if self.split_file else None
        chosen: dict[str, list[str]] = {}
        owner: dict[str, str] = {}
        for split in ("train", "validation", "test"):
            names: dict[str, None] = {}
            for pattern in getattr(self, split):
                matched = _match(pattern, images, lists)
                if not matched:
                    raise InputError(_no_match(split, pattern, self.root, lists or images, lists))
                names.update(dict.fromkeys(matched))
            for stem in names:
                if stem in owner:
                    raise InputError(
                        f"{images[stem]}: an image must be in one split; it is in {owner[stem]} and in "
                        f"{split}. Narrow the patterns of data.{owner[stem]} or data.{split}."
                    )
                owner[stem] = split
            chosen[split] = sorted(names)
        if not chosen["train"]:
            raise InputError("data.train must name at least one image; it is empty. Try train=('*',).")
        return chosen

    def _case(
        self, stem: str, image: Path, annotation: Path, labels: LabelSpec
    ) -> tuple[Case, list[str], int]:
        slide = _open(image, self.mpp)
        dense, added = self._read(annotation, slide, image, labels)
        check_classes(dense, labels)
        notes = [f"{annotation.name}: {note}" for note in dense.notes]
        dense, outside = inside(dense, slide.width, slide.height, str(image))
        notes += [f"{annotation.name}: {note}" for note in outside]
        case = Case(
            name=stem,
            slide=slide,
            mpp=self.mpp,
            given=dense,
            truth=dense,
            held_out=None,
            labels=labels,
        )
        return case, notes, added

    def _read(self, path: Path, slide: Slide, image: Path, labels: LabelSpec) -> tuple[Annotations, int]:
        """The objects, and how many of them were added from class lists."""
        folder = path.parent.name
        if folder.lower() == "annotations" and format_of(path) != "label_map":
            return read_annotations(path), 0
        if folder == "points":
            return used_points(read_points_json(path), self.points_key, labels)
        if len(labels.classes) > 1:
            raise InputError(
                f"{path}: a label map names no classes, and labels.classes has {len(labels.classes)}. "
                "Leave labels.classes empty, or give the classes in GeoJSON (annotations/)."
            )
        _check_label_map_size(path, slide, image)
        return read_label_map(path, class_name=labels.names[0]), 0


def on_disk(root: str) -> Path:
    """The folder of a data set.

    Raises:
        InputError: it is a URL: images are opened in place, thousands of them, and not fetched.
    """
    if "://" in root:
        raise InputError(
            f"data.root must be a folder on a disk; got {root}. Mount the bucket (gcsfuse, mountpoint-s3) or "
            'copy it. Shards may be at a URL: "sparseshot data tile" writes them, train.shards names them.'
        )
    return Path(root)


def image_folder(root: Path) -> Path:
    """The folder of a data set that holds its images."""
    return next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root / IMAGE_FOLDERS[0])


class ImageFile:
    """A small plain image, decoded at every read: a folder of thousands needs no memory."""

    downsamples: tuple[float, ...] = (1.0,)

    def __init__(self, path: str, width: int, height: int, mpp: float | None):
        self.path, self.width, self.height, self.mpp = path, width, height, mpp

    def read(self, window: Window) -> UInt8[np.ndarray, "h w 3"]:
        """See `Slide.read`."""
        slide = open_slide(self.path, mpp=self.mpp)
        try:
            return slide.read(window)
        finally:
            slide.close()


def _open(path: Path, mpp: float) -> Slide:
    width, height = _size(path)
    if width * height <= _SMALL_PX:
        return ImageFile(str(path), width, height, mpp)
    return open_slide(path, mpp=mpp)


def _files(folder: Path, suffixes: Sequence[str], what: str) -> dict[str, Path]:
    """Stem -> file, sorted; two files with one stem are refused."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder. data.root must hold images/ with {', '.join(suffixes)} files "
            "and one of instances/, points/ or annotations/ beside it; or JPEGImages/ and Annotations/."
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in suffixes if path.name.lower().endswith(s)), None)
        if suffix is None or path.name.startswith("."):
            continue
        stem = path.name[: -len(suffix)]
        if stem in found:
            raise InputError(
                f"{path}: {found[stem].name} has the same name. Remove or rename one of the two."
            )
        found[stem] = path
    if not found:
        raise InputError(f"{folder}: no {what} in it. It must hold {', '.join(suffixes)} files.")
    return found


def _annotation_files(root: Path, images: Mapping[str, Path]) -> dict[str, Path]:
    there = {path.name for path in root.iterdir()}  # not is_dir: some file systems take one case for another
    present = {
        name: _files(root / name, suffixes, "annotations")
        for name, suffixes in ANNOTATION_FOLDERS.items()
        if name in there and any((root / name).iterdir())
    }
    if not present:
        raise InputError(
            f"{root}: no annotations. One of instances/*.png (16-bit label maps), points/*.json or "
            "annotations/*.geojson (.xml, .csv ...) must lie beside images/; or Annotations/*.xml."
        )
    if len(present) > 1:
        listed = ", ".join(f"{name}/ ({_some(files.values())})" for name, files in present.items())
        raise InputError(
            f"{root}: annotations must be of one kind; found {listed}. Move all but one folder away."
        )
    ((name, found),) = present.items()
    bare = [path for stem, path in images.items() if stem not in found]
    if bare:
        raise InputError(
            f"{image_folder(root)}: every image needs annotations in {name}/; without: {_some(bare)}. Add "
            "them (an image without objects needs an empty file), or move the images away."
        )
    lost = [path for stem, path in found.items() if stem not in images]
    if lost:
        raise InputError(
            f"{root / name}: every file needs an image of the same name in images/; without: "
            f"{_some(lost)}. Add the images, or move these files away."
        )
    return found


def _some(paths) -> str:
    names = [Path(path).name for path in paths]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _read_split(path: Path, images: Mapping[str, Path]) -> dict[str, list[str]]:
    try:
        if path.is_dir():
            lists = {one.stem: one.read_text().split() for one in sorted(path.glob("*.txt"))}
        else:
            lists = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the split file must be JSON, or a folder of .txt: {error}.") from error
    if not isinstance(lists, dict) or not all(isinstance(v, list) for v in lists.values()):
        raise InputError(f"{path}: the split file must be {{list name: [image stems]}}.")
    lists = {key: [str(name) for name in names] for key, names in lists.items()}
    for key, names in lists.items():
        lost = [name for name in names if name not in images]
        if lost:
            raise InputError(f"{path}: list {key!r} names {_some(lost)}, and images/ has no such files.")
    return lists


def _match(pattern: str, images: Mapping[str, Path], lists: Mapping[str, list[str]] | None) -> list[str]:
    if lists is None:
        return [stem for stem in images if fnmatchcase(stem, pattern)]
    return [stem for key, stems in lists.items() if fnmatchcase(key, pattern) for stem in stems]


def _no_match(split: str, pattern: str, root: str, names, lists) -> str:
    what = "list of the split file" if lists is not None else "image in images/"
    return f"{root}: data.{split} pattern {pattern!r} matches no {what}. There are: {_some(names)}."


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, Image.DecompressionBombError):
        slide = open_slide(path)  # a pyramid that Pillow does not know; or one clear error
        return slide.width, slide.height


def _check_label_map_size(path: Path, slide: Slide, image: Path) -> None:
    width, height = _size(path)
    if (width, height) != (slide.width, slide.height):
        raise InputError(
            f"{path}: a label map must have its image's size; it is {width} x {height}, and "
            f"{image.name} is {slide.width} x {slide.height} (width x height). Export it again at full "
            "resolution, uncropped."
        )
