"""Outlines and tints over an image, in colours that colour-blind readers tell apart."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from PIL import Image
from scipy import ndimage

Colour = tuple[int, int, int]

# Okabe and Ito's palette (2008), as far as it stands out on H&E.
COLOURS: dict[str, Colour] = {
    "truth": (0, 158, 115),
    "found": (86, 180, 233),
    "false": (213, 94, 0),
    "missed": (240, 228, 66),
    "background": (0, 114, 178),
    "ignored": (90, 90, 90),
}
CASING = 0.35  # brightness left beside a line, so that it shows on any ground


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """What is drawn in one colour."""

    labels: Shaped[np.ndarray, "h w"]  # a mask, or a label map, whose touching objects stay apart
    colour: Colour
    fill: float = 0.0  # opacity of the tint inside, [0, 1]
    line_px: int = 2  # width of the outline; 0 draws none


def overlay(image: UInt8[np.ndarray, "h w 3"], layers: Sequence[Layer]) -> UInt8[np.ndarray, "h w 3"]:
    """Draw layers over an image, later ones on top; each outline has a dark casing.

    >>> mask = np.zeros((9, 9), bool)
    >>> mask[2:7, 2:7] = True
    >>> white = np.full((9, 9, 3), 255, np.uint8)
    >>> picture = overlay(white, [Layer(labels=mask, colour=(213, 94, 0), line_px=1)])
    >>> picture[2, 2].tolist(), picture[1, 2].tolist(), picture[4, 4].tolist()
    ([213, 94, 0], [89, 89, 89], [255, 255, 255])
    """
    picture = image.astype(np.float32)
    for layer in layers:
        colour = np.array(layer.colour, np.float32)
        if layer.fill:
            inside = layer.labels > 0
            picture[inside] += layer.fill * (colour - picture[inside])
        if layer.line_px:
            line = outlines(layer.labels)
            if layer.line_px > 1:
                line = np.asarray(ndimage.binary_dilation(line, iterations=layer.line_px - 1), bool)
            picture[np.asarray(ndimage.binary_dilation(line), bool)] *= CASING
            picture[line] = colour
    return picture.round().astype(np.uint8)


def outlines(labels: Shaped[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of an object with a neighbour by an edge that is not of it; the image's rim is no edge."""
    rim = np.pad(labels, 1, mode="edge")
    neighbours = (rim[:-2, 1:-1], rim[2:, 1:-1], rim[1:-1, :-2], rim[1:-1, 2:])
    differs = np.zeros(labels.shape, bool)
    for neighbour in neighbours:
        differs |= neighbour != labels
    return differs & (labels > 0)


def resized(
    image: UInt8[np.ndarray, "h w 3"],
    label_maps: Sequence[Integer[np.ndarray, "h w"]],
    side_px: int,
) -> tuple[UInt8[np.ndarray, "a b 3"], list[Integer[np.ndarray, "a b"]]]:
    """Scale an image, and label maps by the nearest pixel, so that the longer side is `side_px`."""
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    rows = np.minimum(((np.arange(size[1]) + 0.5) * height / size[1]).astype(int), height - 1)
    columns = np.minimum(((np.arange(size[0]) + 0.5) * width / size[0]).astype(int), width - 1)
    return picture, [labels[np.ix_(rows, columns)] for labels in label_maps]
