"""TNBC (Naylor and others): nuclei of triple negative breast cancer."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from sparseshot_jax.data.builders.dataset import Counts, Dataset, Example, Facts, descend, visible
from sparseshot_jax.data.builders.label_files import read_mask_or_labels
from sparseshot_jax.data.builders.pictures import dense_labels, encoded_rgb

MPP = 0.25  # 40x

PATIENTS = {"train": (1, 2, 3, 4), "validation": (5, 6), "test": (7, 8, 9, 10, 11)}


class Tnbc(Dataset):
    """TNBC: 50 H&E images of 11 patients, 512 x 512 at 40x, every nucleus segmented.

    There is no official split. Here patients 1-4 train, 5-6 validate, 7-11 test: recipe, checkpoint and
    threshold are chosen on "train" and "validation" alone. A patient that is not there is passed over, and
    the counts say so. Slides 12 and up of the later release are brain and are left out.

    Known defects: some images are JPEG data under .png names (told by content, and kept as they are). The
    ground truth is a mask of 0 and one value, and nuclei are its connected pixels, corners included; a
    label map in its place is taken as it is.

    Layout of manual_dir:

        TNBC_NucleiSegmentation/
            Slide_01/01_1.png, 01_2.png, ...    images of patient 1
            GT_01/01_1.png, 01_2.png, ...       their nuclei
            ...
            Slide_11/, GT_11/
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="TNBC",
        description="Nuclei of triple negative breast cancer in 50 H&E images of 11 patients.",
        citation="""@article{naylor2018,
  title={Segmentation of Nuclei in Histopathology Images by Deep Regression of the Distance Map},
  author={Naylor, Peter and La{\\'e}, Marick and Reyal, Fabien and Walter, Thomas},
  journal={IEEE Transactions on Medical Imaging}, volume={38}, number={2}, pages={448--459}, year={2019},
  doi={10.1109/TMI.2018.2865709}
}""",
        licence="CC BY 4.0",
        homepage="https://doi.org/10.5281/zenodo.1175282",
        class_names=("nucleus",),
        gives=("instances",),
        checks_edges=True,
        published={
            "train": Counts(images=23),
            "validation": Counts(images=7),
            "test": Counts(images=20),
            "all": Counts(images=50, objects=4022),
        },
    )

    def find(self, root: Path) -> Mapping[str, list[tuple[Path, Path]]]:
        """Images of the patients that are there, by patient and number."""
        root = descend(root, "TNBC_NucleiSegmentation", "TNBC_and_Brain_dataset")
        splits = {
            split: [pair for patient in patients for pair in self._pairs(root, patient)]
            for split, patients in PATIENTS.items()
        }
        if not any(splits.values()):
            raise self.missing("every folder Slide_XX", root)
        return {split: pairs for split, pairs in splits.items() if pairs}

    def _pairs(self, root: Path, patient: int) -> list[tuple[Path, Path]]:
        slide, truth = root / f"Slide_{patient:02d}", root / f"GT_{patient:02d}"
        if not slide.is_dir():
            return []
        self.require(truth)
        return [(image, self.require(truth / image.name)) for image in visible(slide, ".png")]

    def example(self, item: tuple[Path, Path]) -> Example:
        """One image with its nuclei."""
        image, truth = item
        instances, labels = dense_labels(read_mask_or_labels(truth))
        return Example(
            image=encoded_rgb(image),
            image_id=image.stem,
            patient=image.parent.name.removeprefix("Slide_"),
            mpp=MPP,
            class_ids=np.zeros(len(labels), np.int32),
            annotation=truth,
            instances=instances,
        )
