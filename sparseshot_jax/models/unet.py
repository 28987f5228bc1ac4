"""U-Net: Ronneberger, Fischer and Brox 2015, https://arxiv.org/abs/1505.04597.

Departures: convolutions are padded, so that the output has the size of the input, and normalised.
"""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Key

from sparseshot_jax.errors import InputError
from sparseshot_jax.models.layers import BLOCK, CONVOLUTION, DTYPES, FORMS, NORMS, Forms, forms, normals
from sparseshot_jax.types import Needs

_MEAN_DEPTH_LOGIT = -math.log(2.0)  # of 1/3, the mean over a disc of distance to the border / radius


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """A U-Net: its size, normalisation and start.

    >>> model = UNetSpec(base=8, depth=2).build(classes=1, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((1, 64, 64, 3))).shape
    (1, 64, 64, 1)
    """

    base: int = 16  # channels at full resolution, >= 1; doubled at every halving
    depth: int = 4  # halvings of the resolution, [1, 8]
    norm: str = "batch"  # batch, group or channel: see `layers`
    dtype: str = "float32"  # of the arithmetic, float32 or bfloat16; parameters and logits: float32
    # p of foreground at the start, (0, 1); below every threshold rho. Decides numbers and no program.
    prior: float = dataclasses.field(default=0.05, metadata={"traced": True})
    form: str = "auto"  # of the arithmetic: cpu, textbook, split, or as back end and mesh like it
    distance: bool = False  # a last channel: how deep in its object a pixel lies, to part touching objects
    # Of the last channel's loss beside that of the others, >= 0.
    distance_weight: float = dataclasses.field(default=5.0, metadata={"traced": True})

    def __post_init__(self):
        if self.base < 1:
            raise InputError(f"base must be at least 1; got {self.base}. Try 16.")
        if not 1 <= self.depth <= 8:
            raise InputError(f"depth must be between 1 and 8; got {self.depth}. Try 4.")
        if not 0.0 < self.prior < 1.0:
            raise InputError(f"prior must lie between 0 and 1, both excluded; got {self.prior}. Try 0.05.")
        if not 0.0 <= self.distance_weight < math.inf:
            raise InputError(f"distance_weight must be 0 or more; got {self.distance_weight}. Try 5.")
        for name, known in (("norm", NORMS), ("dtype", DTYPES), ("form", ("auto", *FORMS))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}.")

    @property
    def task(self) -> str:
        """What is learnt: see `Model`."""
        return "segmentation"

    @property
    def needs(self) -> Needs:
        """Beside the ground and the class of each pixel its depth, where the model learns it."""
        return Needs(distance=self.distance)

    @property
    def multiple(self) -> int:
        """Height and width of an image must be divisible by this, in pixels."""
        return 2**self.depth

    @property
    def receptive_radius_px(self) -> int:
        """An output pixel depends on no input pixel farther than this along a row or column.

        Attained exactly by some pixel. `norm="group"` adds statistics of the whole tile to this.
        """
        radius = 0
        for pixel in range(self.multiple):  # the radius differs with the place in the pooling grid
            first = last = pixel
            for _ in range(self.depth):  # two convolutions, then the up-convolution's source
                first, last = (first - 2) // 2, (last + 2) // 2
            first, last = first - 2, last + 2
            for _ in range(self.depth):  # both sources of the pooling, then two convolutions
                first, last = 2 * first - 2, 2 * last + 1 + 2
            radius = max(radius, pixel - first, last - pixel)
        return radius

    def build(self, *, classes: int, rngs: nnx.Rngs) -> "UNet":
        """A fresh model: 1 logit for one wanted class, C + 1 (0 = background) for C > 1.

        With `distance` one more comes last: see `split_distance`.
        """
        return UNet(self, classes=classes, rngs=rngs)


class _Convolutions(nnx.Module):
    """Twice: 3 x 3 convolution, normalisation, ReLU."""

    def __init__(self, kernels: Iterator[Array], outputs: int, *, norm: str):
        self.first = nnx.Param(next(kernels))
        self.second = nnx.Param(next(kernels))
        self.first_norm = NORMS[norm](outputs)
        self.second_norm = NORMS[norm](outputs)

    def __call__(
        self,
        *inputs: Float[Array, "b h w _"],
        ops: Forms,
        valid: Bool[Array, "b"] | None,
        train: bool,
    ) -> Float[Array, "b h w k"]:
        """One input, or two that are taken as concatenated along the channels."""
        dtype = inputs[0].dtype
        x = checkpoint_name(ops.convolve(*inputs, kernel=self.first[...].astype(dtype)), CONVOLUTION)
        x = jax.nn.relu(self.first_norm(x, valid=valid, train=train))
        x = checkpoint_name(ops.convolve(x, kernel=self.second[...].astype(dtype)), CONVOLUTION)
        return checkpoint_name(jax.nn.relu(self.second_norm(x, valid=valid, train=train)), BLOCK)


class UNet(nnx.Module):
    """What `UNetSpec.build` gives."""

    def __init__(self, spec: UNetSpec, *, classes: int, rngs: nnx.Rngs):
        if classes < 1:
            raise InputError(f"a model needs at least one wanted class; got {classes}.")
        self.spec = spec
        logits = (1 if classes == 1 else classes + 1) + spec.distance
        widths = [spec.base * 2**level for level in range(spec.depth + 1)]
        kernels = _kernels(rngs.params(), tuple(widths), logits)
        self.down = nnx.List(_Convolutions(kernels, width, norm=spec.norm) for width in widths)
        self.up = nnx.List(nnx.Param(next(kernels)) for _ in widths[:-1])
        self.merge = nnx.List(_Convolutions(kernels, width, norm=spec.norm) for width in widths[:-1])
        self.head = nnx.Param(next(kernels))
        bias = _prior_bias(spec.prior, classes)
        self.bias = nnx.Param(jnp.append(bias, _MEAN_DEPTH_LOGIT) if spec.distance else bias)

    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        *,
        valid: Bool[Array, "b"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w k"]:
        """Float32 logits of every pixel.

        Args:
            image: RGB in [-1, 1] (`scale_image`).
            valid: False for a tile that only pads the batch: no part of the batch's statistics.
            train: Normalise with the batch's statistics, and move the running ones.

        Raises:
            InputError: height or width is not divisible by `spec.multiple`.
        """
        self._check_size(image.shape[1], image.shape[2])
        ops = forms(self.spec.form)
        x = image.astype(DTYPES[self.spec.dtype])
        skips = []
        for convolutions in self.down:
            if skips:
                x = checkpoint_name(ops.pool(x), BLOCK)
            x = convolutions(x, ops=ops, valid=valid, train=train)
            skips.append(x)
        skips.pop()
        for level in reversed(range(self.spec.depth)):
            x = checkpoint_name(ops.up_convolve(x, self.up[level][...].astype(x.dtype)), CONVOLUTION)
            x = self.merge[level](x, skips[level], ops=ops, valid=valid, train=train)
        logits = jnp.einsum(
            "bhwc,ck->bhwk", x, self.head[...].astype(x.dtype), preferred_element_type=jnp.float32
        )
        return logits + self.bias[...][None, None, None]

    def _check_size(self, height: int, width: int) -> None:
        multiple = self.spec.multiple
        for name, size in (("height", height), ("width", width)):
            if size % multiple or size == 0:
                below, above = size // multiple * multiple, -(-size // multiple) * multiple
                near = f"{below} or {above}" if below else f"{multiple}"
                raise InputError(
                    f"image {name} must be divisible by {multiple} (depth {self.spec.depth}); "
                    f"got {size}. Try {near}."
                )


def split_distance(logits: Float[Array, "*b k"]) -> tuple[Float[Array, "*b _"], Float[Array, "*b"]]:
    """The output of a model with `distance`: the logits of the classes, and that of the depth.

    sigmoid(depth) is the pixel's distance to its object's border over the largest in that object.

    >>> classes, depth = split_distance(jnp.zeros((1, 8, 8, 2)))
    >>> classes.shape, depth.shape
    ((1, 8, 8, 1), (1, 8, 8))

    Raises:
        InputError: one logit alone.
    """
    if logits.shape[-1] < 2:
        raise InputError(
            f"a model with distance gives a logit a class and one for the depth, 2 or more; got "
            f"{logits.shape[-1]}. Try UNetSpec(distance=True)."
        )
    return logits[..., :-1], logits[..., -1]


def _kernels(key: Key[Array, ""], widths: tuple[int, ...], logits: int) -> Iterator[Array]:
    """All kernels in the order in which `UNet` takes them, at the variance that a ReLU keeps.

    He et al. 2015. The head is as small as RetinaNet's: every pixel starts at the prior, and the gradient
    still flows.
    """
    blocks = list(zip((3, *widths), widths))
    shapes = [shape for i, o in blocks for shape in ((3, 3, i, o), (3, 3, o, o))]
    shapes += [(2, 2, 2 * o, o) for o in widths[:-1]]
    shapes += [shape for o in widths[:-1] for shape in ((3, 3, 2 * o, o), (3, 3, o, o))]
    # Each output of an up-convolution sums over one pixel's channels.
    scales = [math.sqrt(2 / (shape[2] * (9 if shape[0] == 3 else 1))) for shape in shapes]
    return iter(normals(key, (*shapes, (widths[0], logits)), (*scales, 0.01)))


def _prior_bias(prior: float, classes: int) -> Float[Array, "k"]:
    """Biases at which 1 - p_background is `prior`, the wanted classes sharing it evenly."""
    odds = math.log(prior) - math.log1p(-prior)
    if classes == 1:
        return jnp.array([odds])
    return jnp.array([0.0] + classes * [odds - math.log(classes)])
