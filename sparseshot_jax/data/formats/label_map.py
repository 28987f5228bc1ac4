"""Instance label maps (one whole number a pixel, 0 = background) to polygons and back."""

import math
import warnings
from pathlib import Path

import contourpy
import numpy as np
import scipy.ndimage
import tifffile
from jaxtyping import Float64, Int32, Integer
from PIL import Image

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.format import Format, Picture
from sparseshot_jax.data.formats.whole_file import whole_file
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

MAX_BYTES = 1 << 30  # pixels of a label map, as its file claims them; 16,000 x 16,000 of 4 bytes
MAX_16_BIT = 65_535  # objects
MAX_PAGES = 256  # of a TIFF; more than one where it is a pyramid

WHAT = (
    "A label map is one channel of whole numbers: 0 for background and k for every pixel of object k, "
    "best as 16-bit PNG or TIFF"
)


def read_label_map(
    path: str | Path, class_name: str = "object", *, max_bytes: int = MAX_BYTES
) -> Annotations:
    """Read an 8-, 16- or 32-bit label map (PNG, TIFF or .npy) as polygons, one object a label, ascending.

    Args:
        path: the file.
        class_name: class of all objects; a label map holds none.
        max_bytes: limit on the pixels that the file claims, in bytes; checked before any is read.

    Raises:
        InputError: the file cannot be read, claims too many pixels, or is a picture or a mask.
    """
    path = Path(path)
    read = {".tif": _read_tiff, ".tiff": _read_tiff, ".npy": _read_npy}.get(path.suffix.lower(), _read_image)
    array = read(path, max_bytes)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
        raise InputError(
            f"{path}: must be a label map; it is an image of shape {array.shape} and type "
            f"{array.dtype}. {WHAT}."
        )
    if array.min() < 0:
        raise InputError(f"{path}: labels must be 0 or more; the least is {array.min()}. {WHAT}.")
    if array.dtype == np.uint8 and np.array_equal(np.unique(array), [0, 255]):
        raise InputError(
            f"{path}: must be a label map; it is a mask of 0 and 255. {WHAT}; "
            "scipy.ndimage.label numbers the objects of a mask."
        )
    return label_map_to_annotations(array, class_name, source=str(path))


def write_label_map(path: str | Path, annotations: Annotations, picture: Picture) -> None:
    """Write a label map: object k (the first is 0) gets label k + 1, a later object hides an earlier one.

    16 bit, or 32 bit (TIFF and .npy) where there are more than 65,535 objects. `hidden` counts what is
    lost where objects overlap.

    Args:
        path: PNG, TIFF or .npy, by its suffix.
        annotations: polygons and boxes.
        picture: its width and height are needed.

    Raises:
        InputError: an object is a point, the size is missing, or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".tif", ".tiff", ".npy"):
        raise InputError(f"{path}: a label map must end in .png, .tif, .tiff or .npy.")
    if suffix == ".png" and len(annotations) > MAX_16_BIT:
        raise InputError(
            f"{path}: a PNG has room for {MAX_16_BIT:,} objects; got {len(annotations):,}. Write .tif "
            "or .npy."
        )
    array = drawn_labels(path, annotations, picture)
    array = array.astype(np.uint16 if len(annotations) <= MAX_16_BIT else np.uint32)
    with whole_file(path) as stream:
        if suffix == ".npy":
            np.save(stream, array, allow_pickle=False)
        elif suffix == ".png":
            Image.fromarray(array).save(stream, format="PNG")
        else:
            tifffile.imwrite(stream, array, compression="zlib")


def drawn_labels(path: Path, annotations: Annotations, picture: Picture) -> Int32[np.ndarray, "h w"]:
    """The whole picture with label k + 1 where object k is; `path` is what messages name.

    Raises:
        InputError: an object is a point, or the size of the picture is missing or too large.
    """
    points = int(annotations.is_point.sum())
    if points:
        raise InputError(
            f"{path}: a label map has no points; got {points} of them. Leave them out, or write GeoJSON, "
            "which holds everything, or a CSV of points."
        )
    width, height = picture.width, picture.height
    if width is None or height is None:
        raise InputError(
            f"{path}: the picture's width and height must be known to draw a label map. Give the image, "
            "or its size."
        )
    if min(width, height) < 1 or width * height * 4 > MAX_BYTES:
        raise InputError(
            f"{path}: a label map must have 1 to {MAX_BYTES // 4:,} pixels; the picture is {width} x "
            f"{height}. Write GeoJSON, which draws nothing."
        )
    return rasterize(annotations, Window(x_px=0, y_px=0, width=width, height=height))


def hidden(annotations: Annotations, picture: Picture) -> int:
    """How many objects lose pixels to a later one in a label map of this picture."""
    width, height = picture.width or 0, picture.height or 0
    solid = annotations.take(~annotations.is_point)
    drawn = rasterize(solid, Window(x_px=0, y_px=0, width=width, height=height))
    seen = np.bincount(drawn.reshape(-1), minlength=len(solid) + 1)[1:].tolist()
    frame = np.array([width, height, width, height])
    bounds = solid.bounds_px.clip(0, frame)
    low, high = np.floor(bounds[:, :2]).astype(int), np.ceil(bounds[:, 2:]).astype(int)
    count = 0
    for k, ((x0, y0), (x1, y1)) in enumerate(zip(low.tolist(), high.tolist())):
        window = Window(x_px=x0, y_px=y0, width=x1 - x0, height=y1 - y0)
        count += int((rasterize(solid.take(np.array([k])), window) > 0).sum()) > seen[k]
    return count


def label_map_to_annotations(
    array: Integer[np.ndarray, "h w"], class_name: str = "object", *, source: str = ""
) -> Annotations:
    """Outlines of every label, half way between its pixels' centres and their neighbours'.

    Pixel (row i, column j) is centred on (j + 0.5, i + 0.5). Rasterising the result gives the label map
    back, its labels renumbered 1, 2, ... in their order.

    >>> label_map_to_annotations(np.array([[0, 7], [7, 7]])).xy_px.tolist()
    [[1.5, 0.0], [2.0, 0.5], [2.0, 1.5], [1.5, 2.0], [0.5, 2.0], [0.0, 1.5]]
    """
    dense = _dense(array)
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


def _dense(array: Integer[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """The labels renumbered 1, 2, ... in their order, 0 left as it is."""
    highest = int(array.max()) if array.size else 0
    if highest < 1 << 24:  # a table; sorting a whole slide's pixels would take several times its memory
        present = np.zeros(highest + 1, bool)
        present[array.reshape(-1)] = True
        present[0] = False
        return np.where(present, np.cumsum(present), 0).astype(np.int32)[array]
    labels, inverse = np.unique(array, return_inverse=True)
    return inverse.reshape(array.shape).astype(np.int32) + (labels[0] != 0)


def _read_tiff(path: Path, max_bytes: int) -> np.ndarray:
    try:
        with tifffile.TiffFile(path) as file:
            _check_pages(file)
            series = file.series[0]
            _check_claim(path, series.shape, np.dtype(series.dtype).itemsize, max_bytes)
            return np.squeeze(series.asarray())
    except InputError:
        raise
    except Exception as error:  # a broken TIFF raises whatever the byte at hand leads to
        raise _unreadable(path, error) from error


def _check_pages(file: tifffile.TiffFile) -> None:
    try:
        file.pages[MAX_PAGES]
    except IndexError:
        return
    # The pages of a broken file may lead back to the first one, and tifffile would follow them for ever.
    raise ValueError(f"it has more than {MAX_PAGES} pages")


def _read_image(path: Path, max_bytes: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # A label map of a whole slide is large and no attack; the claim is checked here instead.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_claim(path, (image.height, image.width), 4, max_bytes)
                return np.asarray(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, before any pixel is read
        raise InputError(
            f"{path}: claims more pixels than can be read from such a file: {error} Cut it into parts, "
            "or save it as TIFF or .npy."
        ) from error
    except Exception as error:  # likewise for Pillow's decoders
        raise _unreadable(path, error) from error


def _read_npy(path: Path, max_bytes: int) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            # Version 3 differs by the names of structured types alone, which no label map has.
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, _, dtype = header[version](stream)
            if dtype.hasobject:
                raise ValueError("it holds Python objects")
            _check_claim(path, shape, dtype.itemsize, max_bytes)
            held = path.stat().st_size - stream.tell()
            if math.prod(shape) * dtype.itemsize > held:
                raise ValueError(f"it is cut off: shape {shape} of {dtype} needs more than its {held} bytes")
            stream.seek(0)
            return np.load(stream, allow_pickle=False)
    except InputError:
        raise
    except Exception as error:  # numpy evaluates the header's text, and raises what that leads to
        raise _unreadable(path, error) from error


def _check_claim(path: Path, shape: tuple[int, ...], item_bytes: int, max_bytes: int) -> None:
    claimed = math.prod(shape) * item_bytes
    if claimed > max_bytes:
        raise InputError(
            f"{path}: must be at most {max_bytes:,} bytes once unpacked; its shape {tuple(shape)} needs "
            f"{claimed:,}. Cut it into parts, or read it with a larger max_bytes."
        )


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read as an image: {error or type(error).__name__}. Check the path, or export it "
        f"again. {WHAT}."
    )


LABEL_MAP = Format(
    title="label map",
    suffixes=(".png", ".tif", ".tiff", ".npy"),
    read=read_label_map,
    write=write_label_map,
    keeps=(
        "polygons with holes and parts; no class names; exact to whole pixels; of objects that overlap the "
        "later one hides the other; boxes become polygons; points are refused"
    ),
    origin="pixel by pixel: the first of the array is the top left one",
)
