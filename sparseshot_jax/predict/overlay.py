"""Objects over a thumbnail of their slide: the first look at a prediction."""

import io
import math
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from sparseshot_jax.data import storage
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.types import Window

# Okabe and Ito's colours (2008), those first that stand out most from haematoxylin, eosin and glass.
COLOURS = ((240, 228, 66), (86, 180, 233), (0, 158, 115), (213, 94, 0), (230, 159, 0), (0, 114, 178))
_CASING = (20, 20, 30)
_STRIP_ROWS = 128  # of the thumbnail, read at once: the level it is read from may be 4 times as fine


def overlay_png(
    slide: Slide,
    objects: Annotations | epath.PathLike,
    path: epath.PathLike,
    *,
    class_names: Sequence[str] = (),
    max_px: int = 2048,
) -> None:
    """Draw outlines, boxes and points (as rings) over the slide, its longer side at most `max_px`.

    Every class has a colour, told apart by colour-blind readers.

    A small image is shown in full resolution, or doubled where that fits. The file appears only when
    complete.

    Args:
        slide: the image.
        objects: polygons, boxes and points in level-0 pixels, or a GeoJSON of them.
        path: the PNG to write.
        class_names: their order gives the colours, so that a class has one colour on every slide; other
            classes follow in the order of `objects`.
        max_px: pixels of the longer side.

    Raises:
        InputError: the slide is damaged, the GeoJSON broken, or the file cannot be written.
    """
    if not isinstance(objects, Annotations):
        objects = read_geojson(storage.fetch(objects))
    scale = max(slide.width, slide.height) / max_px
    scale = scale if scale > 1.0 else 1.0 if scale > 0.5 else 0.5
    picture = Image.fromarray(_thumbnail(slide, scale))
    names = tuple(dict.fromkeys((*class_names, *objects.class_names)))
    colours = [COLOURS[names.index(name) % len(COLOURS)] for name in objects.class_names]
    _draw(picture, objects, scale, colours)
    coded = io.BytesIO()
    picture.save(coded, format="PNG")
    storage.write_bytes(path, coded.getvalue())


def _thumbnail(slide: Slide, scale: float) -> UInt8[np.ndarray, "h w 3"]:
    width, height = (max(1, math.floor(n / scale)) for n in (slide.width, slide.height))
    rows = [(y, min(_STRIP_ROWS, height - y)) for y in range(0, height, _STRIP_ROWS)]
    strips = [
        slide.read(Window(x_px=0.0, y_px=y * scale, width=width, height=h, scale=scale)) for y, h in rows
    ]
    return np.concatenate(strips)


def _draw(
    picture: Image.Image, objects: Annotations, scale: float, colours: Sequence[tuple[int, int, int]]
) -> None:
    draw = ImageDraw.Draw(picture)
    line = 2 if scale <= 1.0 else 1
    # Pillow's coordinates are pixel centres.
    xy = objects.xy_px / scale - 0.5
    rings = [
        (xy[a:b], colours[objects.class_ids[k]])
        for k, first, last in zip(
            range(len(objects)), objects.object_offsets[:-1], objects.object_offsets[1:]
        )
        for a, b in zip(objects.ring_offsets[first:last], objects.ring_offsets[first + 1 : last + 1])
    ]
    for cased in (True, False) if line > 1 else (False,):
        for ring, colour in rings:
            fill, width = _CASING if cased else colour, line + 2 * cased
            if len(ring) == 1:
                # A ring leaves the nucleus to be seen; the casing reaches beyond it on both sides.
                draw.circle(tuple(ring[0]), 3 * line + cased, outline=fill, width=width)
                continue
            closed = [tuple(point) for point in (*ring, ring[0])]
            draw.line(closed, fill=fill, width=width, joint="curve")
