"""CRCHistoPhenotypes (Sirinukunwattana and others): nuclei of colorectal adenocarcinoma, as points."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from jaxtyping import Float64

from sparseshot_jax.data.builders.dataset import UNKNOWN_CLASS, Counts, Dataset, Example, Facts, descend
from sparseshot_jax.data.builders.pictures import encoded_rgb
from sparseshot_jax.data.point_lists import JoinedPoints, join_lists
from sparseshot_jax.errors import InputError

CLASSES = ("epithelial", "fibroblast", "inflammatory", "others")
IMAGES = 100
DETECTIONS = 29756  # as published
_MPP = 0.55  # micrometres a pixel, as published (20x)


class Crchisto(Dataset):
    """100 images, 500 x 500 pixels at 20x, of ten slides of nine patients; whose is whose is not told.

    Objects are the detections. The class lists were made apart: a detection without a class point within
    1 pixel has no known class, and class points without a detection are added and counted. Coordinates are
    1-based in the files. Splits by image number, since none is official: divisible by 5 test, by 4 (and not
    by 5) validation, else train.

    Layout of manual_dir:

        CRCHistoPhenotypes_2016_04_28/
            Detection/imgN/imgN.bmp                     N = 1..100
            Detection/imgN/imgN_detection.mat           "detection": x, y of every nucleus
            Classification/imgN/imgN_epithelial.mat     "detection": x, y of the nuclei of the class
            Classification/imgN/imgN_fibroblast.mat
            Classification/imgN/imgN_inflammatory.mat
            Classification/imgN/imgN_others.mat
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="CRCHistoPhenotypes",
        description="Nuclei of colorectal adenocarcinoma in H&E, as points; most have one of four classes.",
        citation=(
            "@article{sirinukunwattana2016, title={Locality sensitive deep learning for detection and "
            "classification of nuclei in routine colon cancer histology images}, author={Sirinukunwattana, "
            "Korsuk and Raza, Shan E Ahmed and Tsang, Yee-Wah and Snead, David R J and Cree, Ian A and "
            "Rajpoot, Nasir M}, journal={IEEE Transactions on Medical Imaging}, volume={35}, number={5}, "
            "pages={1196--1206}, year={2016}}"
        ),
        licence="For research use only.",
        homepage="https://warwick.ac.uk/fac/cross_fac/tia/data/crchistolabelednucleihe",
        class_names=CLASSES,
        gives=("points",),
        published={
            "train": Counts(images=60),
            "validation": Counts(images=20),
            "test": Counts(images=20),
        },
    )

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._detections: dict[str, int] = {}  # by split, as they are stored

    def find(self, root: Path) -> Mapping[str, Sequence[Path]]:
        """Folders Detection/imgN by split; the class lists are looked for beside them."""
        root = descend(root, "CRCHistoPhenotypes_2016_04_28")
        detection, classes = self.require(root / "Detection"), self.require(root / "Classification")
        found: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
        for number in range(1, IMAGES + 1):
            name = f"img{number}"
            if not (detection / name).is_dir():
                continue  # counted when the split is complete
            self.require(detection / name / f"{name}.bmp")
            self.require(detection / name / f"{name}_detection.mat")
            for each in CLASSES:
                self.require(classes / name / f"{name}_{each}.mat")
            found[split_of(number)].append(detection / name)
        if not any(found.values()):
            raise self.missing("every image", detection / "img1")
        return {split: folders for split, folders in found.items() if folders}

    def example(self, item: Path) -> Example:
        """One image with its points."""
        nuclei = read_nuclei(item)
        return Example(
            image=encoded_rgb(item / f"{item.name}.bmp"),
            image_id=item.name,
            patient="",
            mpp=_MPP,
            class_ids=nuclei.class_ids,
            annotation=item / f"{item.name}_detection.mat",
            points_xy_px=nuclei.xy_px,
        )

    def _generate_examples(self, split: str, items: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from super()._generate_examples(split, items)
        every = [read_nuclei(folder) for folder in items]
        added = sum(nuclei.added for nuclei in every)
        unknown = sum(int((nuclei.class_ids == UNKNOWN_CLASS).sum()) for nuclei in every)
        total = sum(len(nuclei.class_ids) for nuclei in every)
        self.note(
            f"Split {split!r}: {total - added} detections, {unknown} of them without a class; {added} class "
            "points without a detection were added."
        )
        self._detections[split] = total - added
        every_image = sum(self._detections.values())
        if len(self._detections) == len(self.FACTS.published) and every_image != DETECTIONS:
            self.note(f"{DETECTIONS} detections were published; found {every_image}.")


def split_of(number: int) -> str:
    """The split of image imgN, by its number.

    >>> [split_of(n) for n in (1, 4, 5, 20)]
    ['train', 'validation', 'test', 'test']
    """
    if number % 5 == 0:
        return "test"
    return "validation" if number % 4 == 0 else "train"


def read_nuclei(folder: Path) -> JoinedPoints:
    """The nuclei of Detection/imgN, with the class lists of Classification/imgN beside it.

    A file's (1, 1) is the centre of the upper left pixel, which is (0.5, 0.5) here.

    Raises:
        InputError: a file cannot be read or holds no list of points.
    """
    name = folder.name
    classes = folder.parent.parent / "Classification" / name
    return join_lists(
        read_points(folder / f"{name}_detection.mat") - 0.5,
        [read_points(classes / f"{name}_{each}.mat") - 0.5 for each in CLASSES],
    )


def read_points(path: Path) -> Float64[np.ndarray, "n 2"]:
    """The list "detection" of a .mat file, as it is.

    Raises:
        InputError: the file cannot be read or holds no list of points.
    """
    try:
        points = np.asarray(scipy.io.loadmat(path)["detection"], np.float64)
    except Exception as error:  # a broken .mat raises whatever its bytes lead to
        raise InputError(
            f'{path}: must be a MATLAB file with a list "detection": {type(error).__name__}: {error}. '
            "Unpack the published archive again."
        ) from error
    if points.size == 0:
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise InputError(
            f'{path}: "detection" must be a list of finite x, y; it is of shape {points.shape}. Unpack the '
            "published archive again."
        )
    return points
