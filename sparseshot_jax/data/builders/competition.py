"""What the two MICCAI competitions share: an image and a label map as text or MATLAB beside it."""

from pathlib import Path

import numpy as np
from jaxtyping import Int32

from sparseshot_jax.data.builders.dataset import Dataset, Example
from sparseshot_jax.data.builders.label_files import read_matlab, read_text_mask
from sparseshot_jax.data.builders.pictures import dense_labels, encoded_rgb

TEXT = (".txt", ".csv")


def label_file(builder: type[Dataset], image: Path) -> Path:
    """The label map of an image: NAME_mask.txt beside it, or NAME.mat, .txt or .csv in ../Labels.

    Raises:
        InputError: there is none.
    """
    labels = image.parent.parent / "Labels"
    wanted = [image.with_name(f"{image.stem}_mask.txt")]
    wanted += [labels / f"{image.stem}{suffix}" for suffix in (".mat", *TEXT)]
    for path in wanted:
        if path.exists():
            return path
    beside = image.parent.name == "Images"
    raise builder.missing(f"the label map of {image.name}", wanted[1] if beside else wanted[0])


def read_label_file(path: Path) -> Int32[np.ndarray, "h w"]:
    """The label map, renumbered 1..n.

    Raises:
        InputError: the file cannot be used.
    """
    return dense_labels(read_text_mask(path))[0] if path.suffix in TEXT else read_matlab(path)[0]


def unclassed(image: Path, labels: Path, *, image_id: str, mpp: float) -> Example:
    """An example of a data set with one class and no patients.

    Raises:
        InputError: a file cannot be used.
    """
    instances = read_label_file(labels)
    return Example(
        image=encoded_rgb(image),
        image_id=image_id,
        patient="",
        mpp=mpp,
        class_ids=np.zeros(int(instances.max(initial=0)), np.int32),
        annotation=labels,
        instances=instances,
    )
