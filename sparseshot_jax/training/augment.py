"""Random changes of a batch, on the device and inside the compiled step; labels move with pixels."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Shaped

from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Batch, Objects

# Optical densities of haematoxylin, eosin and DAB, the residual (Ruifrok & Johnston 2001), of length 1.
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """How strongly a batch is varied. All zero and `dihedral=False`: not at all."""

    dihedral: bool = True  # one of the 8 flips and rotations, an image
    stain: float = 0.15  # +- share by which haematoxylin and eosin densities vary, [0, 1)
    brightness: float = 0.10  # +- shift of the intensity, in units of its full range, [0, 1)
    contrast: float = 0.15  # +- share by which deviations from the image's mean vary, [0, 1)

    def __post_init__(self) -> None:
        for name in ("stain", "brightness", "contrast"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"augment.{name} must be in [0, 1); got {getattr(self, name)}.")


def augment(
    key: Key[Array, ""],
    batch: Batch,
    spec: AugmentSpec,
    *,
    spread: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[Float[Array, "b h w 3"], Batch]:
    """A varied float image in [-1, 1] and the batch whose ground, label, objects and maps moved with it.

    One key gives one result, whatever the devices. Tiles must be square for the rotations. `spread` puts a
    batch back on the devices where it lay before it was turned, while a pixel is still three bytes.
    """
    geometry, colour = jax.random.split(key)
    if spec.dihedral:
        batch = spread(_dihedral(geometry, batch))
    image = batch.image.astype(jnp.float32) / 255.0
    if spec.stain or spec.brightness or spec.contrast:
        image = _colour(colour, image, spec)
    return image * 2.0 - 1.0, batch


def put_back(
    key: Key[Array, ""], maps: Float[Array, "b m h w"], spec: AugmentSpec
) -> Float[Array, "b m h w"]:
    """Maps of what `augment` gave for this key and spec, as the tiles lay before it turned them."""
    if not spec.dihedral:
        return maps
    geometry, _ = jax.random.split(key)
    rows, columns, swap = _bits(geometry, len(maps))[..., None, None, None]
    maps = jnp.where(swap, jnp.swapaxes(maps, 2, 3), maps)
    maps = jnp.where(columns, maps[..., ::-1], maps)
    return jnp.where(rows, maps[..., ::-1, :], maps)


def _bits(key: Key[Array, ""], tiles: int) -> Bool[Array, "3 b"]:
    """Whether each tile's rows are turned round, then its columns, then the two exchanged."""
    return jax.random.bernoulli(key, shape=(3, tiles))


def _dihedral(key: Key[Array, ""], batch: Batch) -> Batch:
    bits = _bits(key, batch.valid.shape[0])

    def move(x: Shaped[Array, "b h w *c"]) -> Shaped[Array, "b h w *c"]:
        rows, columns, swap = (bit.reshape(bit.shape + (1,) * (x.ndim - 1)) for bit in bits)
        x = jnp.where(rows, x[:, ::-1], x)
        x = jnp.where(columns, x[:, :, ::-1], x)
        return jnp.where(swap, jnp.swapaxes(x, 1, 2), x)

    return dataclasses.replace(
        batch,
        image=move(batch.image),
        ground=move(batch.ground),
        label=move(batch.label),
        objects=None if batch.objects is None else _moved(batch.objects, bits, batch.image.shape[1]),
        distance=None if batch.distance is None else move(batch.distance),
        average=None if batch.average is None else jax.vmap(move, 1, 1)(batch.average),
    )


def _moved(objects: Objects, bits: Bool[Array, "3 b"], side: int) -> Objects:
    """The boxes after the flips, then the swap of axes, of square tiles of this side."""
    rows, columns, swap = bits[:, :, None]
    top, left, bottom, right = jnp.moveaxis(objects.boxes_yxyx_px, -1, 0)
    top, bottom = jnp.where(rows, side - bottom, top), jnp.where(rows, side - top, bottom)
    left, right = jnp.where(columns, side - right, left), jnp.where(columns, side - left, right)
    boxes = jnp.where(
        swap[..., None],
        jnp.stack([left, top, right, bottom], axis=-1),
        jnp.stack([top, left, bottom, right], axis=-1),
    )
    boxes = jnp.where(objects.present[..., None], boxes, 0.0)
    return dataclasses.replace(objects, boxes_yxyx_px=boxes)


def _colour(
    key: Key[Array, ""], image: Float[Array, "b h w 3"], spec: AugmentSpec
) -> Float[Array, "b h w 3"]:
    stain_key, brightness_key, contrast_key = jax.random.split(key, 3)
    n = image.shape[0]

    def uniform(key: Key[Array, ""], shape: tuple[int, ...], width: float) -> Array:
        return jax.random.uniform(key, shape, minval=-width, maxval=width)

    # Beer-Lambert: intensity = exp(-density). Scaling the stains is one 3 x 3 matrix an image.
    scale = 1.0 + uniform(stain_key, (n, 3), spec.stain) * jnp.array([[1.0, 1.0, 0.0]])
    mix = jnp.einsum("ij,bj,jk->bik", np.linalg.inv(_STAINS), scale, _STAINS)
    density = -jnp.log(jnp.maximum(image, 1.0 / 255.0))
    image = jnp.exp(-jnp.einsum("bhwi,bik->bhwk", density, mix))

    gain = 1.0 + uniform(contrast_key, (n, 1, 1, 1), spec.contrast)
    shift = uniform(brightness_key, (n, 1, 1, 1), spec.brightness)
    mean = image.mean(axis=(1, 2, 3), keepdims=True)
    return jnp.clip((image - mean) * gain + mean + shift, 0.0, 1.0)
