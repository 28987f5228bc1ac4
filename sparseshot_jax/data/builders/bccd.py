"""BCCD: red cells, white cells and platelets in blood smears, as boxes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from sparseshot_jax.data.builders.dataset import Counts, Dataset, Example, Facts, descend, visible
from sparseshot_jax.data.builders.pictures import encoded_rgb
from sparseshot_jax.data.formats.voc_xml import read_voc
from sparseshot_jax.errors import InputError

CLASSES = ("RBC", "WBC", "Platelets")
_LISTS = {"train": "train", "validation": "val", "test": "test"}  # split -> name of its list


class Bccd(Dataset):
    """364 blood smears, 640 x 480 pixels; the size of a pixel and the patients are not told.

    Splits are the lists of the release; where they are absent, by the image's number: divisible by 5 test,
    by 4 (and not by 5) validation, else train. Two boxes of the release have no area (images 338 and 343):
    they are left out and counted.

    Layout of manual_dir:

        BCCD_Dataset/BCCD/
            JPEGImages/BloodImage_NNNNN.jpg
            Annotations/BloodImage_NNNNN.xml            Pascal VOC boxes: RBC, WBC, Platelets
            ImageSets/Main/{train,val,test}.txt         image names; may be absent
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="BCCD",
        description="Red blood cells, white blood cells and platelets in blood smears, as boxes.",
        citation=(
            "@misc{bccd, title={BCCD Dataset}, author={Shenggan and Cosmicad and Akshaylamba}, "
            "howpublished={https://github.com/Shenggan/BCCD_Dataset}, year={2017}}"
        ),
        licence="MIT",
        homepage="https://github.com/Shenggan/BCCD_Dataset",
        class_names=CLASSES,
        gives=("boxes",),
        # of the files as released, without the two boxes that have no area
        published={
            "train": Counts(images=205, objects=2804),
            "validation": Counts(images=87, objects=1137),
            "test": Counts(images=72, objects=945),
        },
    )

    def find(self, root: Path) -> Mapping[str, Sequence[Path]]:
        """Images by split; each has its boxes under the same name in Annotations/."""
        root = descend(root, "BCCD_Dataset-master", "BCCD_Dataset", "BCCD")
        images = self.require(root / "JPEGImages")
        self.require(root / "Annotations")
        lists = root / "ImageSets" / "Main"
        if lists.is_dir():
            named = {split: _names(self.require(lists / f"{file}.txt")) for split, file in _LISTS.items()}
        else:
            named = _by_number([path.stem for path in visible(images, ".jpg")])
        found: dict[str, list[Path]] = {}
        for split, names in named.items():
            for name in names:
                self.require(root / "Annotations" / f"{name}.xml")
                found.setdefault(split, []).append(self.require(images / f"{name}.jpg"))
        if not found:
            raise self.missing("every image", images / "BloodImage_00000.jpg")
        return found

    def example(self, item: Path) -> Example:
        """One image with its boxes."""
        path = item.parent.parent / "Annotations" / f"{item.stem}.xml"
        read = read_voc(path)
        for note in read.notes:
            self.note(f"{path.name}: {note}")
        place = {name: k for k, name in enumerate(CLASSES)}
        unknown = sorted({name for name in read.class_names if name not in place})
        if unknown:
            raise InputError(
                f"{path}: classes must be among {', '.join(CLASSES)}; got {', '.join(unknown)}. Correct "
                "the file, or use the folder source for a data set of your own."
            )
        ids = np.array([place[name] for name in read.class_names], np.int32)[read.class_ids]
        return Example(
            image=encoded_rgb(item),
            image_id=item.stem,
            patient="",
            mpp=float("nan"),
            class_ids=ids.astype(np.int32),
            annotation=path,
            boxes_xyxy_px=read.bounds_px,
        )


def _names(path: Path) -> list[str]:
    """Image names of a list; VOC allows a second column, which says no more than that the image is there."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: must be a text file of image names, one a line: {error}.") from error
    return [line.split()[0] for line in lines if line.strip()]


def _by_number(names: Sequence[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in names:
        digits = "".join(filter(str.isdigit, name))
        number = int(digits) if digits else 1
        split = "test" if number % 5 == 0 else "validation" if number % 4 == 0 else "train"
        splits[split].append(name)
    return {split: members for split, members in splits.items() if members}
