"""Kumar's and MoNuSeg's way of storing an image: a .tif, and its nuclei as outlines of Aperio ImageScope."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparseshot_jax.data.builders.dataset import Dataset, Example, descend
from sparseshot_jax.data.builders.pictures import dense_labels, encoded_rgb
from sparseshot_jax.data.builders.tcga import patient_of
from sparseshot_jax.data.formats.imagescope_xml import read_imagescope
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.types import Window

MPP = 0.25  # 40x


class OutlinedDataset(Dataset, skip_registration=True):
    """A data set of TCGA images with outlined nuclei; items are (image, outlines) files."""

    def example(self, item: tuple[Path, Path]) -> Example:
        """The outlines drawn in the order of the file, a later one over an earlier one."""
        image_path, outline_path = item
        image = encoded_rgb(image_path)
        nuclei = read_imagescope(outline_path)
        window = Window(x_px=0.0, y_px=0.0, width=image.width, height=image.height)
        instances, drawn = dense_labels(rasterize(nuclei, window))
        self.report(image_path.stem, nuclei.notes, hidden=len(nuclei) - len(drawn))
        return Example(
            image=image,
            image_id=image_path.stem,
            patient=patient_of(image_path.stem),
            mpp=MPP,
            class_ids=np.zeros(len(drawn), np.int32),
            annotation=outline_path,
            instances=instances,
        )

    def report(self, image_id: str, notes: Sequence[str], *, hidden: int) -> None:
        """Keep what the reader said, and how many outlines cover no pixel that is theirs alone."""
        for note in notes:
            self.note(f"{image_id}: {note}")
        if hidden:
            self.note(f"{image_id}: {hidden} outlines hold no pixel centre or lie under later ones.")


def pairs(
    builder: type[Dataset], images: Path, outlines: Path, image_ids: Sequence[str]
) -> list[tuple[Path, Path]]:
    """The two files of every image.

    Raises:
        InputError: one is missing.
    """
    return [
        (
            builder.require(images / f"{image_id}.tif", f"image {image_id}"),
            builder.require(outlines / f"{image_id}.xml", f"annotation {image_id}"),
        )
        for image_id in image_ids
    ]


def folder(builder: type[Dataset], root: Path, name: str) -> Path:
    """A folder of `root` whatever the case of its name: the two releases differ in that.

    Raises:
        InputError: there is none.
    """
    found = [path for path in root.iterdir() if path.is_dir() and path.name.lower() == name.lower()]
    return found[0] if found else builder.require(root / name, f"folder {name!r}")


def release(root: Path) -> Path:
    """The folder of the 30 images in either release."""
    return descend(root, "MoNuSeg", "MoNuSeg 2018 Training Data")
