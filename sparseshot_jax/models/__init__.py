"""Networks, by name, and what their logits mean."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64

from sparseshot_jax.models.decode import DecodeSpec, detect
from sparseshot_jax.models.layers import scale_image
from sparseshot_jax.models.unet import UNet, UNetSpec, split_distance
from sparseshot_jax.models.yollo import Yollo, YolloSpec
from sparseshot_jax.types import Needs


@runtime_checkable
class Model(Protocol):
    """What the framework asks of a model's spec. A frozen dataclass with these will do."""

    @property
    def task(self) -> str:
        """What is learnt: "segmentation" (a class for each pixel) or "detection" (boxes)."""
        ...

    @property
    def needs(self) -> Needs:
        """What it is trained on beside the ground and the class of each pixel."""
        ...

    @property
    def multiple(self) -> int:
        """Height and width of an image must be divisible by this, in pixels."""
        ...

    @property
    def receptive_radius_px(self) -> int:
        """An output pixel depends on no input pixel farther than this along a row or column."""
        ...

    def build(self, *, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        """A fresh model: image [b, h, w, 3] -> logits [b, h, w, k], k = 1 for one class, else C + 1."""
        ...


@runtime_checkable
class HasAnchors(Protocol):
    """A built model that starts from the sizes of the training set's objects."""

    def fit_anchors(self, sizes_px: Float64[np.ndarray, "n 2"]) -> None:
        """Set what depends on them: height and width, pixels at the model's resolution."""
        ...


MODELS: dict[str, type[Model]] = {"unet": UNetSpec, "yollo": YolloSpec}


def foreground(logits: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """Probability that a pixel belongs to any wanted class: sigmoid(z), or 1 - p_0 of a softmax.

    >>> print(foreground(jnp.zeros((2, 1))), foreground(jnp.zeros((2, 4))).round(4))
    [0.5 0.5] [0.75 0.75]
    """
    z = logits.astype(jnp.float32)
    if z.shape[-1] == 1:
        return jax.nn.sigmoid(z[..., 0])
    return jax.nn.sigmoid(jax.nn.logsumexp(z[..., 1:], axis=-1) - z[..., 0])


def class_probabilities(logits: Float[Array, "*b k"]) -> Float[Array, "*b c"]:
    """Probability of each wanted class: of the one, or of the C beside background.

    >>> print(class_probabilities(jnp.zeros((2, 1))).shape, class_probabilities(jnp.zeros(4)))
    (2, 1) [0.25 0.25 0.25]
    """
    z = logits.astype(jnp.float32)
    if z.shape[-1] == 1:
        return jax.nn.sigmoid(z)
    return jax.nn.softmax(z, axis=-1)[..., 1:]


__all__ = [
    "MODELS",
    "DecodeSpec",
    "HasAnchors",
    "Model",
    "UNet",
    "UNetSpec",
    "Yollo",
    "YolloSpec",
    "class_probabilities",
    "detect",
    "foreground",
    "scale_image",
    "split_distance",
]
