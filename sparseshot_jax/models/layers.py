"""What networks are built of: 3 x 3 convolution, pooling, up-convolution, normalisation.

The same arithmetic is fast in one form on a CPU and in another on a TPU or GPU. `forms` alone
chooses between them; parameters have the same shapes in both, so one checkpoint serves all.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Key, UInt8

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # of the arithmetic
_NHWC = ("NHWC", "HWIO", "NHWC")

_STRIPS = 4
_LARGE = 2**22  # elements from which an array outgrows the cache of a CPU's core several times

# What `jax.checkpoint` may keep of a forward pass, by `checkpoint_name`: every convolution or matrix product
# before its normalisation; the output of every block, which is less, and more to compute again.
CONVOLUTION, BLOCK = "convolution", "block"


def scale_image(image: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
    """RGB bytes to what every model takes: float32 in [-1, 1].

    >>> print(scale_image(jnp.array([0, 255], jnp.uint8)))
    [-1.  1.]
    """
    return jnp.asarray(image, jnp.float32) / 127.5 - 1.0


# Convolution, pooling, up-convolution: their forms.


def convolve(*inputs: Float[Array, "b h w _"], kernel: Float[Array, "3 3 c k"]) -> Float[Array, "b h w k"]:
    """3 x 3 convolution of the inputs concatenated along the channels, padded to the same size."""
    x = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs, axis=-1)
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)


def convolve_summed(
    *inputs: Float[Array, "b h w _"], kernel: Float[Array, "3 3 c k"]
) -> Float[Array, "b h w k"]:
    """`convolve` without the copy of a concatenation: each input's convolution, summed."""
    ends = list(itertools.accumulate(x.shape[-1] for x in inputs))
    kernels = jnp.split(kernel, ends[:-1], axis=2)
    return functools.reduce(operator.add, (_convolve_cached(x, k) for x, k in zip(inputs, kernels)))


def _convolve_cached(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"]) -> Float[Array, "b h w k"]:
    """`convolve` in the form whose gradient is the fastest at this size: see docs/benchmarks.md."""
    if x.size >= _LARGE and kernel.shape[-1] > 16 and x.shape[2] % _STRIPS == 0:
        return convolve_in_strips(x, kernel)
    return convolve(x, kernel=kernel)


@jax.custom_vjp
def convolve_in_strips(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"]
) -> Float[Array, "b h w k"]:
    """`convolve` of a width divisible by 4, the kernel's gradient summed over 4 strips of columns.

    The gradient reads both of its inputs nine times: a strip stays in the cache. Columns, because the
    height may be split over devices.
    """
    return convolve(x, kernel=kernel)


def _strips_forward(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"]
) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel=kernel), (x, kernel)


def _strips_backward(inputs: tuple[Array, Array], g: Float[Array, "b h w k"]) -> tuple[Array, Array]:
    x, kernel = inputs
    # Transposed, for `jax.vjp` would convolve once more, for nothing.
    (dx,) = jax.linear_transpose(lambda x: convolve(x, kernel=kernel), x)(g)
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    step = g.shape[2] // _STRIPS
    parts = []
    for first in range(0, g.shape[2], step):
        strip = padded[:, :, first : first + step + 2]
        of_kernel = functools.partial(
            lax.conv_general_dilated,
            strip,
            window_strides=(1, 1),
            padding=((1, 1), (0, 0)),
            dimension_numbers=_NHWC,
        )
        parts += jax.linear_transpose(of_kernel, kernel)(g[:, :, first : first + step])
    return dx, functools.reduce(operator.add, parts)


convolve_in_strips.defvjp(_strips_forward, _strips_backward)


def pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Maximum over 2 x 2 windows. The gradient goes to the first maximum of a window."""
    # The start must be a constant: from a traced one JAX does not know that this has a gradient.
    lowest = np.array(-np.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def pool_strided(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """`pool` as the maximum of four strided slices. Equal maxima share the gradient."""
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def up_convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "2 2 c k"]) -> Float[Array, "b 2*h 2*w k"]:
    """2 x 2 transposed convolution: pixel (i, j) times kernel[a, b] is pixel (2i + a, 2j + b)."""
    return lax.conv_transpose(x, kernel[::-1, ::-1], (2, 2), "VALID", dimension_numbers=_NHWC)


def up_convolve_product(
    x: Float[Array, "b h w c"], kernel: Float[Array, "2 2 c k"]
) -> Float[Array, "b 2*h 2*w k"]:
    """`up_convolve` as matrix products: one for the even rows of the result, one for the odd."""
    b, h, w, _ = x.shape
    rows = [jnp.einsum("bhwc,xck->bhwxk", x, kernel[y]) for y in range(2)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forms:
    """One choice of form for every operation that has several."""

    convolve: Callable[..., Array]
    pool: Callable[..., Array]
    up_convolve: Callable[..., Array]


FORMS = {
    "cpu": Forms(convolve=convolve_summed, pool=pool_strided, up_convolve=up_convolve_product),
    "textbook": Forms(convolve=convolve, pool=pool, up_convolve=up_convolve),
    # For rows of a tile on several devices: the gradient of a transposed convolution would send whole maps.
    "split": Forms(convolve=convolve, pool=pool, up_convolve=up_convolve_product),
}


def forms(form: str = "auto") -> Forms:
    """The forms named, or those that suit JAX's default back end."""
    if form == "auto":
        form = "cpu" if jax.default_backend() == "cpu" else "textbook"
    return FORMS[form]


# Normalisation: statistics, scale and shift in float32, result in the dtype of x.


def _moments(
    x: Float[Array, "..."], axes: tuple[int, ...], count: Float[Array, ""] | int
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Mean and variance over `axes` in one pass, reduced axes kept with length 1."""
    x = x.astype(jnp.float32)
    mean = jnp.sum(x, axes, keepdims=True) / count
    square = jnp.sum(jnp.square(x), axes, keepdims=True) / count
    return mean, jnp.maximum(square - jnp.square(mean), 0.0)


def _normalise(
    x: Float[Array, "..."],
    mean: Float[Array, "..."],
    variance: Float[Array, "..."],
    scale: Float[Array, "..."],
    shift: Float[Array, "..."],
) -> Float[Array, "..."]:
    """scale * (x - mean) / sqrt(variance + 1e-5) + shift, as one product and one sum."""
    scale = scale * lax.rsqrt(variance + 1e-5)
    return (x * scale + (shift - mean * scale)).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch statistics over the global batch in training, running statistics at inference.

    At inference the result at a pixel depends on that pixel alone, so a tile's extent does not
    matter. Tiles with `valid` False do not count; where no tile counts, the running statistics
    are used and stay as they are. Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """

    def __init__(self, channels: int, *, momentum: float = 0.9):
        self.momentum = momentum  # share of the running statistics that a step keeps, [0, 1)
        self.scale = nnx.Param(jnp.ones(channels))
        self.shift = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.variance = nnx.BatchStat(jnp.ones(channels))

    def __call__(
        self, x: Float[Array, "b h w c"], *, valid: Bool[Array, "b"] | None, train: bool
    ) -> Float[Array, "b h w c"]:
        """Normalise `x`; in training, also move the running statistics towards the batch's."""
        mean, variance = self.mean[...], self.variance[...]
        if train:
            seen = self._statistics(x, valid)
            self.mean[...] = mean + (1 - self.momentum) * (seen[0] - mean)
            self.variance[...] = variance + (1 - self.momentum) * (seen[1] - variance)
            mean, variance = seen
        scale, shift = self.scale[...], self.shift[...]
        return _normalise(x, *(v[None, None, None] for v in (mean, variance, scale, shift)))

    def _statistics(
        self, x: Float[Array, "b h w c"], valid: Bool[Array, "b"] | None
    ) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
        b, h, w, c = x.shape
        if valid is None:
            mean, variance = _moments(x, (0, 1, 2), b * h * w)
            return mean.reshape(c), variance.reshape(c)
        tiles = jnp.sum(valid, dtype=jnp.float32)
        x = jnp.where(valid[:, None, None, None], x, 0)
        mean, variance = _moments(x, (0, 1, 2), jnp.maximum(tiles, 1) * h * w)
        return (
            jnp.where(tiles > 0, mean.reshape(c), self.mean[...]),
            jnp.where(tiles > 0, variance.reshape(c), self.variance[...]),
        )


class GroupNorm(nnx.Module):
    """Statistics of each tile over groups of channels: the result depends on the tile's extent.

    Wu and He 2018, https://arxiv.org/abs/1803.08494.
    """

    def __init__(self, channels: int, *, groups: int = 8):
        self.groups = math.gcd(channels, groups)
        self.scale = nnx.Param(jnp.ones(channels))
        self.shift = nnx.Param(jnp.zeros(channels))

    def __call__(
        self, x: Float[Array, "b h w c"], *, valid: Bool[Array, "b"] | None, train: bool
    ) -> Float[Array, "b h w c"]:
        """Normalise `x`. Tiles do not mix, so `valid` and `train` change nothing."""
        b, h, w, c = x.shape
        grouped = x.reshape(b, h, w, self.groups, c // self.groups)
        mean, variance = _moments(grouped, (1, 2, 4), h * w * (c // self.groups))
        scale = self.scale[...].reshape(1, 1, 1, self.groups, -1)
        shift = self.shift[...].reshape(1, 1, 1, self.groups, -1)
        return _normalise(grouped, mean, variance, scale, shift).reshape(x.shape)


class ChannelNorm(nnx.Module):
    """Statistics of each pixel over its channels (layer normalisation).

    Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.shift = nnx.Param(jnp.zeros(channels))

    def __call__(
        self, x: Float[Array, "b h w c"], *, valid: Bool[Array, "b"] | None, train: bool
    ) -> Float[Array, "b h w c"]:
        """Normalise `x`. Pixels do not mix, so `valid` and `train` change nothing."""
        mean, variance = _moments(x, (3,), x.shape[-1])
        scale, shift = self.scale[...][None, None, None], self.shift[...][None, None, None]
        return _normalise(x, mean, variance, scale, shift)


NORMS = {"batch": BatchNorm, "group": GroupNorm, "channel": ChannelNorm}


# The start: kernels at the variance that a ReLU keeps. He et al. 2015, https://arxiv.org/abs/1502.01852.


@functools.partial(jax.jit, static_argnames=("shapes", "scales"))
def normals(
    key: Key[Array, ""], shapes: tuple[tuple[int, ...], ...], scales: tuple[float, ...]
) -> list[Array]:
    """Independent normal arrays, cut from one draw: a draw for each would compile for each shape."""
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    parts = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
    return [scale * part.reshape(shape) for scale, part, shape in zip(scales, parts, shapes)]
