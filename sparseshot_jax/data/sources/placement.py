"""Do annotations lie on their image? Wrong units and wrong files show here first."""

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.errors import InputError


def inside(annotations: Annotations, width: int, height: int, image: str) -> tuple[Annotations, list[str]]:
    """The objects that touch the image, and a note where there were others.

    Args:
        annotations: objects in level-0 pixels.
        width: of the image, level-0 pixels.
        height: of the image, level-0 pixels.
        image: its path, for the message.

    Raises:
        InputError: none lies on the image.
    """
    if not len(annotations):
        return annotations, []
    x0, y0, x1, y1 = annotations.bounds_px.T
    outside = (x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height)
    if not outside.any():
        return annotations, []
    if outside.all():
        raise InputError(
            f"{annotations.source or 'annotations'}: objects must lie on their image; all "
            f"{len(annotations)} lie outside {image}, which is {width} x {height} pixels: x "
            f"{x0.min():.0f}..{x1.max():.0f}, y {y0.min():.0f}..{y1.max():.0f}. Coordinates must be "
            "full-resolution pixels from the upper left corner: check that the file belongs to this "
            "image, and that it was not exported in micrometres or with an offset."
        )
    note = f"{int(outside.sum())} of {len(annotations)} objects lie outside the image and are unused."
    return annotations.take(~outside), [note]
