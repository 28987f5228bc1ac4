"""MoNuSeg 2018: Kumar's 30 images to train on, and 14 to test."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from sparseshot_jax.data.builders.aperio import OutlinedDataset, folder, pairs, release
from sparseshot_jax.data.builders.dataset import Counts, Facts, descend
from sparseshot_jax.data.builders.tcga import MONUSEG_SPLITS


class Monuseg(OutlinedDataset):
    """MoNuSeg: the challenge's 30 training and 14 test images, H&E from TCGA, 1000 x 1000 at 40x.

    Split "train" are Kumar's 30 images (`tcga.SAME_IMAGES`). The training archive of today holds seven
    images more, which were not part of the challenge: they are left out. The paper counts 21,623 nuclei in
    "train"; the annotations as released hold 16,958 that own a pixel, and that number is checked here.

    Layout of manual_dir:

        MoNuSeg 2018 Training Data/Tissue Images/TCGA-XX-XXXX-....tif    30 images
        MoNuSeg 2018 Training Data/Annotations/TCGA-XX-XXXX-....xml      Aperio ImageScope outlines
        MoNuSegTestData/TCGA-XX-XXXX-....tif                             14 images
        MoNuSegTestData/TCGA-XX-XXXX-....xml
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="MoNuSeg",
        description="Nuclei of nine organs in 44 H&E images from TCGA, outlined; the MICCAI 2018 challenge.",
        citation="""@article{kumar2020,
  title={A Multi-Organ Nucleus Segmentation Challenge},
  author={Kumar, Neeraj and Verma, Ruchika and Anand, Deepak and Zhou, Yanning and Onder, Omer Fahri and
          others},
  journal={IEEE Transactions on Medical Imaging}, volume={39}, number={5}, pages={1380--1391}, year={2020},
  doi={10.1109/TMI.2019.2947628}
}""",
        licence="CC BY-NC-SA 4.0",
        homepage="https://monuseg.grand-challenge.org/Data/",
        class_names=("nucleus",),
        gives=("instances",),
        checks_edges=True,
        published={"train": Counts(images=30, objects=16958), "test": Counts(images=14)},
    )

    def find(self, root: Path) -> Mapping[str, list[tuple[Path, Path]]]:
        """The 44 images by their names."""
        this = type(self)
        train, test = release(root), descend(root, "MoNuSeg", "MoNuSegTestData")
        if train in (root, test):
            raise self.missing("folder 'MoNuSeg 2018 Training Data'", root)
        if not test.name.startswith("MoNuSegTestData"):
            raise self.missing("folder 'MoNuSegTestData'", root)
        return {
            "train": pairs(
                this,
                folder(this, train, "Tissue Images"),
                folder(this, train, "Annotations"),
                MONUSEG_SPLITS["train"],
            ),
            "test": pairs(this, test, test, MONUSEG_SPLITS["test"]),
        }
