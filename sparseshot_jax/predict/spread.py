"""A batch of images over all devices of this process."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from sparseshot_jax.training.sharding import Layout, MeshSpec, make_layout


class Spread:
    """A model's variables, and programs of (variables, images) run on as many devices as the images fill.

    Every device has its own images, so that no result crosses devices: it equals that of one device but for
    rounding, where a back end computes batches of other sizes in another order (1e-6 in p, float32).
    """

    def __init__(self, variables: Any) -> None:
        """`variables`: whole, on one device of this process."""
        self._variables = {1: variables}  # devices -> the variables, whole on each
        self._layouts: dict[int, Layout] = {}

    def __call__(
        self, program: Callable[..., Any], images: UInt8[np.ndarray, "b h w 3"], *options: Any
    ) -> Any:
        """program(variables, images, *options) with one row for each image.

        On one device, or with one image, that is the call itself: nothing is copied. Else the images are
        split over the least number of devices that does not give one more of them; white ones fill up.
        """
        used, missing = devices_for(len(images), jax.local_device_count())
        if used == 1:
            return program(self._variables[1], images, *options)
        variables = self._on(used)
        white = np.full((missing, *images.shape[1:]), 255, images.dtype)
        filled = np.concatenate([images, white]) if missing else images
        output = program(variables, jax.device_put(filled, self._layouts[used].tiles), *options)
        if not missing:
            return output
        shapes = jax.eval_shape(program, variables, images, *options)
        return jax.tree.map(lambda leaf, shape: leaf[: shape.shape[0]], output, shapes)

    def _on(self, used: int) -> Any:
        if used not in self._variables:
            layout = make_layout(MeshSpec(), jax.local_devices()[:used])
            self._layouts[used] = layout
            self._variables[used] = jax.device_put(self._variables[1], layout.replicated)
        return self._variables[used]


def devices_for(images: int, devices: int) -> tuple[int, int]:
    """Devices to use, and images to add, so that each has equally many and none more than it must.

    >>> devices_for(4, 8), devices_for(8, 8), devices_for(10, 8), devices_for(9, 8), devices_for(3, 1)
    ((4, 0), (8, 0), (5, 0), (5, 1), (1, 0))
    """
    each = -(-images // devices)
    used = -(-images // each)
    return used, used * each - images
