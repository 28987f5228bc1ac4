"""The objects of a tile as boxes in a fixed number of places: what a detector is told."""

import numpy as np
from jaxtyping import Float64

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.box_index import BoxIndex
from sparseshot_jax.data.labels import LabelSpec, label_ids, point_radii_um, wanted
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

OBJECT_KEYS = ("boxes_yxyx_px", "object_label", "object_present", "left_out")


class TileObjects:
    """The wanted objects of one case, to be looked up for many tiles.

    A polygon stands for its bounding box, a point for the square round the disc of its class
    (`LabelSpec.point_radius_um`, `class_radius_um`), a box for itself.

    Args:
        annotations: objects and regions in level-0 pixels.
        spec: what their classes mean.
        mpp: micrometres a level-0 pixel.
    """

    def __init__(self, annotations: Annotations, spec: LabelSpec, *, mpp: float):
        objects = annotations.take(wanted(annotations, spec))
        self._boxes = object_boxes_px(objects, spec, mpp=mpp)
        self._label = label_ids(objects, spec).astype(np.uint8)
        self._index = BoxIndex(self._boxes)

    def __len__(self) -> int:
        return len(self._label)

    @property
    def nbytes(self) -> int:
        """Bytes held, about: the boxes, their order in the index, the classes."""
        return 2 * self._boxes.nbytes + self._label.nbytes

    def objects_in(self, window: Window, n: int) -> dict[str, np.ndarray]:
        """The objects of a tile, in `n` places.

        Those whose centre lies in the tile come first, in the order of the file; then, where there is
        place, those that only reach into it.

        Args:
            window: the tile.
            n: places, at least 1.

        Returns:
            boxes_yxyx_px float32 [n, 4]: top, left, bottom, right in tile pixels, not clipped;
            object_label uint8 [n]: class 1..C, 0 = unknown or no object; object_present bool [n];
            left_out int32 scalar: objects with their centre in the tile that found no place.

        Raises:
            InputError: n is below 1.
        """
        if n < 1:
            raise InputError(f"a tile needs at least 1 place for objects; got {n}.")
        near = self._index.touching(window)
        x0, y0, x1, y1 = ((self._boxes[near] - _corner(window)) / window.scale).T
        y, x = (y0 + y1) / 2, (x0 + x1) / 2
        inside = (y >= 0) & (y < window.height) & (x >= 0) & (x < window.width)
        # The index counts an edge that is shared with the tile, too; such a box has no pixel in it.
        reaching = ~inside & (y1 > 0) & (y0 < window.height) & (x1 > 0) & (x0 < window.width)
        chosen = np.concatenate([np.flatnonzero(inside), np.flatnonzero(reaching)])[:n]
        tile = empty_objects(n)
        tile["boxes_yxyx_px"][: len(chosen)] = np.stack([y0, x0, y1, x1], axis=1)[chosen]
        tile["object_label"][: len(chosen)] = self._label[near[chosen]]
        tile["object_present"][: len(chosen)] = True
        tile["left_out"][...] = max(0, int(inside.sum()) - n)
        return tile


def object_boxes_px(objects: Annotations, spec: LabelSpec, *, mpp: float) -> Float64[np.ndarray, "n 4"]:
    """The box x0, y0, x1, y1 of each object, level-0 pixels; a point's is the square round its disc.

    >>> one = Annotations.from_points([[10.0, 20.0]], "cell")
    >>> object_boxes_px(one, LabelSpec(point_radius_um=3.0), mpp=0.5).tolist()
    [[4.0, 14.0, 16.0, 26.0]]
    """
    reach = np.where(objects.is_point, point_radii_um(objects, spec) / mpp, 0.0)
    return objects.bounds_px + reach[:, None] * np.array([-1.0, -1.0, 1.0, 1.0])


def empty_objects(n: int) -> dict[str, np.ndarray]:
    """`n` places without an object, as `TileObjects.objects_in` gives them."""
    return {
        "boxes_yxyx_px": np.zeros((n, 4), np.float32),
        "object_label": np.zeros(n, np.uint8),
        "object_present": np.zeros(n, bool),
        "left_out": np.zeros((), np.int32),
    }


def _corner(window: Window) -> Float64[np.ndarray, "4"]:
    return np.array([window.x_px, window.y_px, window.x_px, window.y_px], np.float64)
