"""CoNSeP (Graham and others): nuclei of colorectal adenocarcinoma in seven classes."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from sparseshot_jax.data.builders.dataset import Counts, Dataset, Example, Facts, descend, visible
from sparseshot_jax.data.builders.label_files import read_matlab
from sparseshot_jax.data.builders.pictures import encoded_rgb
from sparseshot_jax.errors import InputError

# The scanner, an Omnyx VL120, gives 0.55 um at 20x (Sirinukunwattana and others 2016, same hospital).
MPP = 0.275

CLASSES = (
    "other",
    "inflammatory",
    "healthy epithelial",
    "malignant epithelial",
    "fibroblast",
    "muscle",
    "endothelial",
)

# The paper and HoVer-Net train on four classes; give these to `labels` to do the same.
MERGED = {
    "other": "miscellaneous",
    "inflammatory": "inflammatory",
    "healthy epithelial": "epithelial",
    "malignant epithelial": "epithelial",
    "fibroblast": "spindle-shaped",
    "muscle": "spindle-shaped",
    "endothelial": "spindle-shaped",
}


class Consep(Dataset):
    """CoNSeP: 41 H&E images, 1000 x 1000 at 40x, 24,319 nuclei in seven classes, official split.

    All seven classes are kept; `MERGED` is the paper's merge into four. The images come from 16 patients,
    and which from whom was not published: `patient` is empty. A nucleus of type 0 has no class (-1). The
    images have an alpha channel in some copies: it is dropped.

    Layout of manual_dir:

        CoNSeP/
            Train/Images/train_1.png ... train_27.png
            Train/Labels/train_1.mat ...     inst_map, type_map, inst_type, inst_centroid
            Test/Images/test_1.png ... test_14.png
            Test/Labels/test_1.mat ...
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS = Facts(
        title="CoNSeP",
        description="Nuclei of colorectal adenocarcinoma in 41 H&E images of 16 patients, seven classes.",
        citation="""@article{graham2019,
  title={HoVer-Net: Simultaneous segmentation and classification of nuclei in multi-tissue histology images},
  author={Graham, Simon and Vu, Quoc Dang and Raza, Shan E Ahmed and Azam, Ayesha and Tsang, Yee Wah and
          Kwak, Jin Tae and Rajpoot, Nasir},
  journal={Medical Image Analysis}, volume={58}, pages={101563}, year={2019},
  doi={10.1016/j.media.2019.101563}
}""",
        licence="for research; see the homepage",
        homepage="https://warwick.ac.uk/fac/cross_fac/tia/data/hovernet/",
        class_names=CLASSES,
        gives=("instances",),
        checks_edges=True,
        published={
            "train": Counts(images=27),
            "test": Counts(images=14),
            "all": Counts(images=41, objects=24319),
        },
    )

    def find(self, root: Path) -> Mapping[str, list[tuple[Path, Path]]]:
        """Images by number."""
        root = descend(root, "CoNSeP", "consep")
        splits = {}
        for split in ("train", "test"):
            images = self.require(root / split.capitalize() / "Images")
            labels = self.require(root / split.capitalize() / "Labels")
            found = visible(images, ".png")
            if not found:
                raise self.missing("every image .png", images)
            splits[split] = [(image, self.require(labels / f"{image.stem}.mat")) for image in found]
        return splits

    def example(self, item: tuple[Path, Path]) -> Example:
        """One image with its nuclei."""
        image, truth = item
        instances, types = read_matlab(truth)
        if types is None:
            raise InputError(
                f"{truth}: must have inst_type or type_map, the classes of the nuclei; it has neither. "
                "Unpack the published archive again."
            )
        return Example(
            image=encoded_rgb(image),
            image_id=image.stem,
            patient="",
            mpp=MPP,
            class_ids=types - 1,  # types count from 1; 0 = none becomes -1 = unknown
            annotation=truth,
            instances=instances,
        )
