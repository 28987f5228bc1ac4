"""Boxes and circles over an image, smooth lines with a dark casing."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from sparseshot_jax.report.overlay import CASING, Colour

_FINE = 3  # sub-pixels a pixel: Pillow draws no smooth lines


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shapes:
    """Objects drawn in one colour."""

    boxes_yxyx_px: Float[np.ndarray, "n 4"]  # pixels of the image; may reach beyond it
    colour: Colour
    dashed: bool = False


def draw_shapes(
    image: UInt8[np.ndarray, "h w 3"],
    layers: Sequence[Shapes],
    *,
    circles: bool = False,
    side_px: int,
    line_px: float = 2.0,
) -> UInt8[np.ndarray, "a b 3"]:
    """Scale an image so that its longer side is `side_px`, and draw outlines over it, later ones on top.

    Args:
        image: RGB.
        layers: in pixels of `image`.
        circles: draw an ellipse in each box in place of the box.
        side_px: longer side of the picture.
        line_px: width of a line in it; the casing adds a pixel on either side.
    """
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), np.float32)
    for layer in layers:
        if not len(layer.boxes_yxyx_px):
            continue
        casing = _mask(size, layer, scale, circles, line_px + 2.0)
        line = _mask(size, layer, scale, circles, line_px)
        picture *= 1.0 - (1.0 - CASING) * casing
        picture += line * (np.array(layer.colour, np.float32) - picture)
    return picture.round().clip(0, 255).astype(np.uint8)


def _mask(size: tuple[int, int], layer: Shapes, scale: float, circles: bool, line_px: float) -> np.ndarray:
    """How much of each pixel [a, b, 1] a line covers, [0, 1]."""
    canvas = Image.new("L", (size[0] * _FINE, size[1] * _FINE))
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(line_px * _FINE))
    # A line lies centred on the border; Pillow draws it inside its box, whose last sub-pixel it includes.
    for y0, x0, y1, x1 in layer.boxes_yxyx_px.astype(float) * scale * _FINE:
        low, high = width / 2, width / 2 - 1
        corners = [x0 - low, y0 - low, max(x1, x0) + high, max(y1, y0) + high]
        for part in _parts(corners, circles, layer.dashed, width):
            part(draw)
    covered = canvas.resize(size, Image.Resampling.BOX)
    return np.asarray(covered, np.float32)[..., None] / 255.0


def _parts(corners: list[float], circles: bool, dashed: bool, width: int):
    """What is drawn of one outline, each as a function of the canvas."""
    if circles:
        arcs = range(0, 360, 45) if dashed else [0]
        step = 26 if dashed else 360
        return [lambda d, a=a: d.arc(corners, a, a + step, fill=255, width=width) for a in arcs]
    if not dashed:
        return [lambda d: d.rectangle(corners, outline=255, width=width)]
    x0, y0, x1, y1 = corners
    return [
        lambda d, r=r: d.rectangle(r, fill=255)
        for a, b in _dashes(x0, x1, width)
        for r in ([a, y0, b, y0 + width - 1], [a, y1 - width + 1, b, y1])
    ] + [
        lambda d, r=r: d.rectangle(r, fill=255)
        for a, b in _dashes(y0, y1, width)
        for r in ([x0, a, x0 + width - 1, b], [x1 - width + 1, a, x1, b])
    ]


def _dashes(first: float, last: float, width: int) -> list[tuple[float, float]]:
    """Begin and end of dashes over a side, one at either end of it."""
    gaps = max(1, int((last - first) / (5 * width)))
    edges = np.linspace(first, last, 2 * gaps + 2)
    return [(float(a), float(b)) for a, b in zip(edges[::2], edges[1::2])]
