"""CPM17: the MICCAI 2017 competition on segmenting nuclei of four cancers."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from sparseshot_jax.data.builders.competition import label_file, unclassed
from sparseshot_jax.data.builders.dataset import Counts, Dataset, Example, Facts, descend, visible

MPP = 0.25  # 40x, nominal: see the class


class Cpm17(Dataset):
    """CPM17: 64 H&E images of four cancers, 500 x 500 to 600 x 600, 7,570 nuclei, official split.

    The images were scanned at 40x and at 20x, and which is which was not published: `mpp` is that of 40x
    for all of them. Patients were not published.

    Layout of manual_dir:

        cpm17/
            train/Images/image_00.png ... image_31.png
            train/Labels/image_00.mat ...     inst_map; or .txt or .csv, a line "width height", then a
                                              label a pixel
            train/Overlay/                    not read
            test/Images/, test/Labels/        likewise
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="CPM17",
        description="Nuclei of four cancers (glioblastoma, lower grade glioma, head and neck, lung) in 64 "
        "H&E images; magnifications of 20x and 40x are mixed, and mpp is that of 40x.",
        citation="""@article{vu2019,
  title={Methods for Segmentation and Classification of Digital Microscopy Tissue Images},
  author={Vu, Quoc Dang and Graham, Simon and Kurc, Tahsin and others},
  journal={Frontiers in Bioengineering and Biotechnology}, volume={7}, pages={53}, year={2019},
  doi={10.3389/fbioe.2019.00053}
}""",
        licence="not stated; made public for the competition",
        homepage="https://doi.org/10.3389/fbioe.2019.00053",
        class_names=("nucleus",),
        gives=("instances",),
        checks_edges=True,
        published={
            "train": Counts(images=32),
            "test": Counts(images=32),
            "all": Counts(images=64, objects=7570),
        },
    )

    def find(self, root: Path) -> Mapping[str, list[tuple[str, Path, Path]]]:
        """Images by number; the names repeat, so that the split is part of the id."""
        root = descend(root, "cpm17", "CPM17")
        splits = {}
        for split in ("train", "test"):
            images = self.require(root / split / "Images")
            self.require(root / split / "Labels")
            found = visible(images, ".png")
            if not found:
                raise self.missing("every image .png", images)
            splits[split] = [(f"{split}_{path.stem}", path, label_file(type(self), path)) for path in found]
        return splits

    def example(self, item: tuple[str, Path, Path]) -> Example:
        """One image with its nuclei."""
        image_id, image, labels = item
        return unclassed(image, labels, image_id=image_id, mpp=MPP)
