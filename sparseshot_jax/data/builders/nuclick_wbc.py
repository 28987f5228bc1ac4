"""NuClick's white blood cells: outlines of the white cells in blood smears."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from sparseshot_jax.data.builders.dataset import Counts, Dataset, Example, Facts, descend, visible
from sparseshot_jax.data.builders.label_files import read_mask_or_labels
from sparseshot_jax.data.builders.pictures import dense_labels, encoded_rgb

_FOLDERS = {"train": "Train", "validation": "Validation"}


class NuclickWbc(Dataset):
    """Blood smears with the outlines of their white cells, made with NuClick; splits as released.

    A mask is a label map, one number a cell; in one with a single number every connected part is a cell.
    There is no test part: measure on the validation part, or cut one from the other (TFDS's "train[:80%]").
    The size of a pixel and the patients are not told. The layout is known from code of others who read the
    set, and not from its publication.

    Layout of manual_dir:

        Hemato_Data/
            Train/images/NAME.png                       "img (1).png" ...
            Train/masks/NAME_mask.png
            Validation/images/NAME.png
            Validation/masks/NAME_mask.png
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="NuClick WBC",
        description="White blood cells in blood smears, as instance masks.",
        citation=(
            "@article{koohbanani2020nuclick, title={NuClick: A deep learning framework for interactive "
            "segmentation of microscopic images}, author={Koohbanani, Navid Alemi and Jahanifar, Mostafa and "
            "Tajadin, Neda Zamani and Rajpoot, Nasir}, journal={Medical Image Analysis}, volume={65}, "
            "pages={101771}, year={2020}}"
        ),
        licence="Not stated with the files; the authors ask to be cited.",
        homepage="https://warwick.ac.uk/fac/cross_fac/tia/data/nuclick",
        class_names=("white blood cell",),
        gives=("instances",),
        published={"train": Counts(images=1213), "validation": Counts(images=250)},
    )

    def find(self, root: Path) -> Mapping[str, Sequence[Path]]:
        """Images by split; each has its mask in masks/."""
        root = descend(root, "Hemato_Data")
        found: dict[str, list[Path]] = {}
        for split, name in _FOLDERS.items():
            images, masks = self.require(root / name / "images"), self.require(root / name / "masks")
            found[split] = visible(images, ".png")
            if not found[split]:
                raise self.missing("every image", images / "img (1).png")
            for image in found[split]:
                self.require(masks / f"{image.stem}_mask.png")
        return found

    def example(self, item: Path) -> Example:
        """One image with its cells."""
        part = item.parent.parent
        path = part / "masks" / f"{item.stem}_mask.png"
        labels, found = dense_labels(read_mask_or_labels(path))
        return Example(
            image=encoded_rgb(item),
            image_id=f"{part.name} {item.stem}",  # both parts count from 1
            patient="",
            mpp=float("nan"),
            class_ids=np.zeros(len(found), np.int32),
            annotation=path,
            instances=labels,
        )
