"""Instance label maps (one whole number a pixel, 0 = background) to polygons."""

import warnings
from pathlib import Path

import contourpy
import numpy as np
import scipy.ndimage
import tifffile
from jaxtyping import Float64, Integer
from PIL import Image

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.errors import InputError

WHAT = (
    "A label map is one channel of whole numbers: 0 for background and k for every pixel of object k, "
    "best as 16-bit PNG or TIFF"
)


def read_label_map(path: str | Path, class_name: str = "object") -> Annotations:
    """Read an 8-, 16- or 32-bit label map (PNG or TIFF) as polygons, one object a label, ascending.

    Raises:
        InputError: the file cannot be read, or is a picture or a mask and no label map.
    """
    path = Path(path)
    array = _read_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _read_image(path)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise InputError(
            f"{path}: must be a label map; it is an image of shape {array.shape} and type "
            f"{array.dtype}. {WHAT}."
        )
    if array.size and array.min() < 0:
        raise InputError(f"{path}: labels must be 0 or more; the least is {array.min()}. {WHAT}.")
    if array.dtype == np.uint8 and set(np.unique(array).tolist()) == {0, 255}:
        raise InputError(
            f"{path}: must be a label map; it is a mask of 0 and 255. {WHAT}; "
            "scipy.ndimage.label numbers the objects of a mask."
        )
    return label_map_to_annotations(array, class_name, source=str(path))


def label_map_to_annotations(
    array: Integer[np.ndarray, "h w"], class_name: str = "object", *, source: str = ""
) -> Annotations:
    """Outlines of every label, half way between its pixels' centres and their neighbours'.

    Pixel (row i, column j) is centred on (j + 0.5, i + 0.5). Rasterising the result gives the label map
    back, its labels renumbered 1, 2, ... in their order.

    >>> label_map_to_annotations(np.array([[0, 7], [7, 7]])).xy_px.tolist()
    [[1.5, 0.0], [2.0, 0.5], [2.0, 1.5], [1.5, 2.0], [0.5, 2.0], [0.0, 1.5]]
    """
    labels, inverse = np.unique(array, return_inverse=True)
    dense = inverse.reshape(array.shape).astype(np.int32)
    if not len(labels) or labels[0] != 0:  # no background in the picture at all
        dense += 1
    outlines: list[np.ndarray] = []
    ring_counts: list[int] = []
    for k, box in enumerate(scipy.ndimage.find_objects(dense), 1):
        rows, columns = box
        # A frame of zeros closes the outlines of objects that touch the image's border.
        mask = np.pad(dense[box] == k, 1).astype(np.float64)
        lines = contourpy.contour_generator(z=mask, line_type="Separate").lines(0.5)
        # Contour coordinates count pixel centres of the padded crop: -1 for the frame, +0.5 to the centre.
        corner = np.array([columns.start - 0.5, rows.start - 0.5])
        outlines += [_corners(np.asarray(line)[:-1]) + corner for line in lines]
        ring_counts.append(len(lines))
    if not ring_counts:
        return Annotations.empty((class_name,), source=source, notes=("The file holds no object.",))
    return Annotations(
        xy_px=np.concatenate(outlines),
        ring_offsets=rings.offsets_of(np.array([len(line) for line in outlines])),
        object_offsets=rings.offsets_of(np.array(ring_counts)),
        class_ids=np.zeros(len(ring_counts), np.int32),
        class_names=(class_name,),
        kind=np.full(len(ring_counts), Kind.POLYGON, np.uint8),
        source=source,
    )


def _corners(ring: Float64[np.ndarray, "v 2"]) -> Float64[np.ndarray, "w 2"]:
    """The ring without vertices on straight runs; exact, since all lie on half pixels."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _read_tiff(path: Path) -> np.ndarray:
    try:
        return np.squeeze(tifffile.imread(path))
    except Exception as error:  # a broken TIFF raises whatever the byte at hand leads to
        raise _unreadable(path, error) from error


def _read_image(path: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # A label map of a whole slide is large and no attack; beyond twice that size Pillow refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return np.asarray(image)
    except Exception as error:  # likewise for Pillow's decoders
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read as an image: {error}. Check the path, or export it again. {WHAT}."
    )
