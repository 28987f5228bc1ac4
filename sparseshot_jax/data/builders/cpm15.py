"""CPM15: the MICCAI 2015 competition on segmenting nuclei of brain tumours."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from sparseshot_jax.data.builders.competition import TEXT, label_file, unclassed
from sparseshot_jax.data.builders.dataset import Counts, Dataset, Example, Facts, descend, visible
from sparseshot_jax.data.builders.label_files import text_size
from sparseshot_jax.errors import InputError

MPP = {"20x": 0.5, "40x": 0.25}
LAST_AT_20X = 7  # images 1-7 were scanned at 20x, 8-15 at 40x: README_training.txt of the release


class Cpm15(Dataset):
    """CPM15: 15 H&E images of glioma, 400 x 400 to 1000 x 600, at 20x and 40x, 2,905 nuclei.

    Only the training set was published. Here images 4, 9, 14 validate, 5, 10, 15 test, and the other nine
    train: one image at 20x and two at 40x on either side. Patients were not published. A later copy counts
    the same images from 0 (image_00 is image01): ids and splits count from 1.

    Known defect: in circulating copies the masks of two images, 04 and 05, are exchanged. Two images whose
    label maps have each other's size, and not their own, get them exchanged back, with a note; of equal
    size nothing would tell. Any other difference in size is an error.

    Layout of manual_dir:

        image01.png ... image15.png
        image01_mask.txt ...     a line "width height", then a label a pixel, row by row
        image01_poly.png ...     not read

        or the later copy:

        cpm15/
            Images/image_00.png ... image_14.png
            Labels/image_00.mat ...     inst_map; or .txt or .csv as above
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="CPM15",
        description="Nuclei of glioblastoma and lower grade glioma in 15 H&E images at 20x and 40x.",
        citation="""@misc{cpm15,
  title={MICCAI 2015 Workshop and Challenges in Imaging and Digital Pathology: The Computational Brain Tumor
         Cluster of Event (CPM), Segmentation of Nuclei in Images}, year={2015}
}""",
        licence="not stated; made public for the competition",
        homepage="https://doi.org/10.3389/fbioe.2019.00053",
        class_names=("nucleus",),
        gives=("instances",),
        checks_edges=True,
        published={
            "train": Counts(images=9),
            "validation": Counts(images=3),
            "test": Counts(images=3),
            "all": Counts(images=15, objects=2905),
        },
    )

    def find(self, root: Path) -> Mapping[str, list[tuple[int, Path, Path, str]]]:
        """Images by number, with their label maps exchanged where sizes say so (and then why)."""
        root = descend(root, "cpm15", "CPM15", "Images")
        found = [path for path in visible(root, ".png") if not path.stem.endswith("_poly")]
        if not found:
            raise self.missing("every image .png", root)
        labels = {path: label_file(type(self), path) for path in found}
        whys = dict.fromkeys(found, "")
        wrong = [path for path in found if _image_size(path) != _label_size(labels[path])]
        if len(wrong) == 2 and all(
            _image_size(one) == _label_size(labels[other]) for one, other in (wrong, wrong[::-1])
        ):
            one, other = wrong
            labels[one], labels[other] = labels[other], labels[one]
            whys[one] = f"The label maps of {one.name} and {other.name} had each other's size: exchanged."
        splits: dict[str, list[tuple[int, Path, Path, str]]] = {"train": [], "validation": [], "test": []}
        for path in found:
            number = _number(path)
            split = {4: "validation", 0: "test"}.get(number % 5, "train")
            splits[split].append((number, path, labels[path], whys[path]))
        return {split: items for split, items in splits.items() if items}

    def example(self, item: tuple[int, Path, Path, str]) -> Example:
        """One image with its nuclei."""
        number, image, labels, why = item
        if why:
            self.note(why)
        mpp = MPP["20x" if number <= LAST_AT_20X else "40x"]
        return unclassed(image, labels, image_id=f"image{number:02d}", mpp=mpp)


def _number(path: Path) -> int:
    """Of image01.png 1, and of image_00.png, which counts from 0, likewise."""
    digits = path.stem.removeprefix("image")
    try:
        return int(digits[1:]) + 1 if digits[:1] == "_" else int(digits)
    except ValueError as error:
        raise InputError(
            f"{path}: must be named imageNN.png or image_NN.png. Take the published file."
        ) from error


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size
    except Exception as error:  # a broken file raises whatever its bytes lead Pillow to
        raise InputError(f"{path}: cannot be read as an image: {error}.") from error


def _label_size(path: Path) -> tuple[int, int]:
    if path.suffix in TEXT:
        return text_size(path)
    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
    except Exception as error:  # as above
        raise InputError(f"{path}: cannot be read as a MATLAB file: {error}.") from error
    if len(shapes.get("inst_map", ())) != 2:
        raise InputError(
            f"{path}: must hold inst_map, a label map; it holds {', '.join(shapes) or 'nothing'}."
        )
    height, width = shapes["inst_map"]
    return width, height
