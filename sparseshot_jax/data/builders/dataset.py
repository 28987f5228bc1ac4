'''What the builders of all data sets share. TensorFlow is never imported.

How a builder is written: one file, one subclass of `Dataset` named as the data set (`Tnbc` -> "tnbc"), one
line in `registry.BUILDERS`, one test.

    class Blood(Dataset):
        """Blood smears: what they are, from where, and which defects are dealt with how.

        Layout of manual_dir:

            Blood/
                Images/NAME.png     RGB, 1000 x 1000
                Boxes/NAME.xml      Pascal VOC
        """

        VERSION = tfds.core.Version("1.0.0")
        FACTS = Facts(
            title="Blood", class_names=("red",), gives=("boxes",), published={"train": Counts(images=9)}, ...
        )

        def find(self, root):                  # quick: looks for files, reads no image
            folder = descend(root, "Blood")
            names = [...]
            self.require(folder / "Boxes")     # InputError with the layout where something is missing
            return {"train": [(image, boxes) for ...]}     # split -> items, one an example, of any type

        def example(self, item):               # reads one example
            return Example(image=encoded_rgb(image), image_id=..., boxes_xyxy_px=..., class_ids=..., ...)

The base encodes, checks that lengths and sizes agree, counts, compares with the published counts, and
keeps what is worth telling as `builder.notes`, also when the data set is opened again.
'''

import dataclasses
import hashlib
import inspect
import io
import logging
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int32, Integer

from sparseshot_jax.data.builders.alignment import TOLERANCE_PX, Alignment
from sparseshot_jax.data.builders.pictures import Encoded, EncodedImage, check_labels, encoded_labels
from sparseshot_jax.errors import InputError

LOG = logging.getLogger(__name__)
UNKNOWN_CLASS = -1  # in class_ids: the object is there, its class was not told
_LAYOUT_TITLE = "Layout of manual_dir:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What was published of a split. None = not published."""

    images: int | None = None
    objects: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a data set before any file of it is there."""

    title: str
    description: str  # one sentence
    citation: str  # BibTeX
    licence: str
    homepage: str
    class_names: tuple[str, ...]  # class_ids index them
    gives: tuple[str, ...]  # some of "instances", "points", "boxes"
    published: Mapping[str, Counts]  # by split; "all" = of all splits together
    checks_edges: bool = False  # note a shift of the instances against the edges in the images


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One image with its objects. Object k is label k + 1, point k or box k, and of class class_ids[k]."""

    image: Encoded
    image_id: str  # unique in the data set
    patient: str  # or slide, where that is all that is known; "" = unknown
    mpp: float  # micrometres a pixel; NaN = unknown
    class_ids: Int32[np.ndarray, "n"]  # into class_names; -1 = unknown
    annotation: Path  # the file, for messages
    instances: Integer[np.ndarray, "h w"] | None = None  # 0 = none, labels 1..n without a gap
    points_xy_px: Float[np.ndarray, "n 2"] | None = None  # pixel (0, 0) covers [0, 1] x [0, 1]
    boxes_xyxy_px: Float[np.ndarray, "n 4"] | None = None  # x0, y0, x1, y1, likewise


def files_digest(folder: Path) -> str:
    """Tells whether a folder holds other files than before: names and sizes, not contents."""
    files = sorted(
        (str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file()
    )
    return hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Nothing: TFDS would look for the data set in a bucket, and leave an empty temporary folder."""


class Dataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders: see the top of the file. Split names, items and examples are the subclass's."""

    FACTS: Facts

    # Where TFDS looks for checksums of downloads; there are none, and looking needs a package
    # (importlib_resources) that TFDS 4.9 does not ask for.
    code_path = None

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "FACTS" in vars(cls):  # not so in a class between this one and the builders
            cls.MANUAL_DOWNLOAD_INSTRUCTIONS = f"Get it from {cls.FACTS.homepage}\n{cls.layout()}"

    def __init__(self, *, file_format: Any = "array_record", **options: Any):
        super().__init__(file_format=file_format, **options)  # TFDS's own default needs TensorFlow

    def find(self, root: Path) -> Mapping[str, Sequence[Any]]:
        """Split name -> items, one an example, in the order in which they are stored.

        Raises:
            InputError: a file or folder of the layout is missing.
        """
        raise NotImplementedError

    def example(self, item: Any) -> Example:
        """Read one item.

        Raises:
            InputError: a file of it cannot be used.
        """
        raise NotImplementedError

    @classmethod
    def layout(cls) -> str:
        """The original layout, as the class docstring gives it."""
        _, _, block = inspect.cleandoc(cls.__doc__ or "").partition(_LAYOUT_TITLE + "\n")
        lines = block.splitlines()
        end = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
        return f"{_LAYOUT_TITLE}\n\n" + textwrap.indent(
            textwrap.dedent("\n".join(lines[:end]).strip("\n")), "    "
        )

    @classmethod
    def missing(cls, what: str, where: Path) -> InputError:
        """The error for something that the layout has and `where` has not."""
        return InputError(
            f"{cls.FACTS.title}: {what} is missing; looked for {where}. manual_dir must hold the files as "
            f"they were published ({cls.FACTS.homepage}). {cls.layout()}"
        )

    @classmethod
    def require(cls, path: Path, what: str = "") -> Path:
        """`path`, which must exist.

        Raises:
            InputError: it does not; with the layout.
        """
        if not path.exists():
            raise cls.missing(what or path.name, path)
        return path

    @property
    def notes(self) -> list[str]:
        """What the reader repaired, left out or found to differ from the publication, a sentence each."""
        metadata: Any = self.info.metadata
        return metadata["notes"]

    def note(self, sentence: str, level: int = logging.INFO) -> None:
        """Log a sentence, and keep it with the data set."""
        LOG.log(level, "%s: %s", self.FACTS.title, sentence)
        self.notes.append(sentence)

    def _info(self) -> tfds.core.DatasetInfo:
        facts = self.FACTS
        features: dict[str, Any] = {
            "image": EncodedImage(shape=(None, None, 3)),
            "image_id": tfds.features.Text(),
            "patient": tfds.features.Text(),
            "mpp": tfds.features.Scalar(dtype=np.float32),
            "class_ids": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        }
        if "instances" in facts.gives:
            features["instances"] = EncodedImage(
                shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
            )
        if "points" in facts.gives:
            features["points_xy_px"] = tfds.features.Tensor(shape=(None, 2), dtype=np.float32)
        if "boxes" in facts.gives:
            features["boxes_xyxy_px"] = tfds.features.Tensor(shape=(None, 4), dtype=np.float32)
        return _Info(
            builder=self,
            description=f"{facts.title}. {facts.description}",
            features=tfds.features.FeaturesDict(features),
            homepage=facts.homepage,
            citation=facts.citation,
            license=facts.licence,
            disable_shuffling=True,  # the stored order is that of `find`
            metadata=tfds.core.MetadataDict(notes=[], class_names=list(facts.class_names)),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        found = self.find(Path(dl_manager.manual_dir))
        metadata: Any = self.info.metadata
        metadata["files"] = files_digest(Path(dl_manager.manual_dir))
        self._left, self._total = set(found), (0, 0)  # splits still to be counted; images and objects so far
        return {split: self._generate_examples(split, items) for split, items in found.items()}

    def _generate_examples(self, split: str, items: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        objects, alignment = 0, Alignment()
        for place, item in enumerate(items):
            example = self.example(item)
            objects += len(example.class_ids)
            yield place, _record(example, self.FACTS)
            if self.FACTS.checks_edges and example.instances is not None:
                alignment.add(example.image.content, example.instances)
        self._count(split, images=len(items), objects=objects)
        self._note_offset(split, alignment)

    def _note_offset(self, split: str, alignment: Alignment) -> None:
        offset = alignment.offset_px()
        if offset is not None and np.abs(offset).max() >= TOLERANCE_PX:
            x, y = offset
            self.note(
                f"The instances of split {split!r} lie {x:+.1f} px in x and {y:+.1f} px in y from the edges "
                "in the images (right and down are +). They are stored as they are.",
                logging.WARNING,
            )

    def _count(self, split: str, *, images: int, objects: int) -> None:
        self._compare(f"Split {split!r}", split, images, objects)
        self._total = (self._total[0] + images, self._total[1] + objects)
        self._left.discard(split)
        if not self._left:
            self._compare("The whole data set", "all", *self._total)

    def _compare(self, what: str, key: str, images: int, objects: int) -> None:
        expected = self.FACTS.published.get(key, Counts())
        for unit, wanted, got in (
            ("images", expected.images, images),
            ("objects", expected.objects, objects),
        ):
            if wanted is not None and wanted != got:
                self.note(f"{what} was published with {wanted} {unit}; found {got}.", logging.WARNING)


def descend(root: Path, *names: str) -> Path:
    """The folder that `names` lead to, each taken as often as it is there.

    An archive unpacks to NAME/ or NAME/NAME/, and people point at any of them.
    """
    for name in names:
        while (root / name).is_dir():
            root = root / name
    return root


def visible(folder: Path, suffix: str) -> list[Path]:
    """Files of a suffix in numeric order of their names, without the hidden ones that archives carry."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() == suffix and path.name[0] != "."]
    return sorted(paths, key=lambda path: natural_key(path.stem))


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2 before 10.

    >>> sorted(["train_10", "train_2"], key=natural_key)
    ['train_2', 'train_10']
    """
    pieces: list[str] = []
    for character in name:
        if pieces and pieces[-1][-1].isdigit() == character.isdigit():
            pieces[-1] += character
        else:
            pieces.append(character)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _record(example: Example, facts: Facts) -> dict[str, Any]:
    """What TFDS stores of an example, checked."""
    count = len(example.class_ids)
    _check_classes(example, facts)
    record: dict[str, Any] = {
        "image": io.BytesIO(example.image.content),
        "image_id": example.image_id,
        "patient": example.patient,
        "mpp": np.float32(example.mpp),
        "class_ids": example.class_ids,
    }
    if "instances" in facts.gives:
        labels = example.instances
        assert labels is not None
        check_labels(labels, example.image, example.annotation)
        assert np.array_equal(np.unique(labels[labels > 0]), np.arange(1, count + 1)), "labels must be 1..n"
        record["instances"] = io.BytesIO(encoded_labels(labels))
    for name, values in (("points", example.points_xy_px), ("boxes", example.boxes_xyxy_px)):
        if name in facts.gives:
            assert values is not None
            assert len(values) == count, f"{name} and class_ids must describe the same objects"
            record[f"{name}_{'xy' if name == 'points' else 'xyxy'}_px"] = values.astype(np.float32)
    return record


def _check_classes(example: Example, facts: Facts) -> None:
    ids = example.class_ids
    if len(ids) and not (ids.min() >= UNKNOWN_CLASS and ids.max() < len(facts.class_names)):
        raise InputError(
            f"{example.annotation}: classes must be among the {len(facts.class_names)} of {facts.title}, "
            f"{', '.join(facts.class_names)}; class ids run from {ids.min()} to {ids.max()} (0 = the first)."
        )
    assert math.isnan(example.mpp) or example.mpp > 0
