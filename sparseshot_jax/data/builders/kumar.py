"""Kumar and others, 2017: 30 images of seven organs, every nucleus outlined."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from sparseshot_jax.data.builders.aperio import OutlinedDataset, folder, pairs, release
from sparseshot_jax.data.builders.dataset import Counts, Facts
from sparseshot_jax.data.builders.tcga import KUMAR_SPLITS


class Kumar(OutlinedDataset):
    """Kumar: 30 H&E images from TCGA, 1000 x 1000 at 40x, nuclei outlined, in the splits of the field.

    The paper counts 21,623 nuclei; the annotations as released hold 16,958 that own a pixel, and those
    numbers are checked here. Not every visible nucleus is outlined. These are MoNuSeg's 30 training
    images: train on one and never measure on the other (`tcga.SAME_IMAGES`).

    Known defect: circulating label maps were drawn from these outlines as if whole coordinates were the
    centres of pixels, or counting from 1, and lie up to a pixel too far right and down. Here a pixel belongs
    to a nucleus iff its centre, (0.5, 0.5) for the first, is inside the outline; and a shift against the
    edges in the images, should there be one, is noted and left as it is.

    Layout of manual_dir:

        Tissue Images/TCGA-XX-XXXX-....tif    30 images, as in split "train" of MoNuSeg 2018
        Annotations/TCGA-XX-XXXX-....xml      Aperio ImageScope outlines, one file an image

        or the folder "MoNuSeg 2018 Training Data" that holds these two.
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="Kumar",
        description="Nuclei of seven organs in 30 H&E images from TCGA, outlined.",
        citation="""@article{kumar2017,
  title={A Dataset and a Technique for Generalized Nuclear Segmentation for Computational Pathology},
  author={Kumar, Neeraj and Verma, Ruchika and Sharma, Sanuj and Bhargava, Surabhi and Vahadane, Abhishek
          and Sethi, Amit},
  journal={IEEE Transactions on Medical Imaging}, volume={36}, number={7}, pages={1550--1560}, year={2017},
  doi={10.1109/TMI.2017.2677499}
}""",
        licence="CC BY-NC-SA 4.0",
        homepage="https://monuseg.grand-challenge.org/Data/",
        class_names=("nucleus",),
        gives=("instances",),
        checks_edges=True,
        published={
            "train": Counts(images=12, objects=6842),
            "validation": Counts(images=4, objects=3065),
            "test_same_organ": Counts(images=8, objects=3026),
            "test_other_organ": Counts(images=6, objects=4025),
        },
    )

    def find(self, root: Path) -> Mapping[str, list[tuple[Path, Path]]]:
        """The 30 images by their names."""
        root = release(root)
        images, outlines = folder(type(self), root, "Tissue Images"), folder(type(self), root, "Annotations")
        return {split: pairs(type(self), images, outlines, ids) for split, ids in KUMAR_SPLITS.items()}
