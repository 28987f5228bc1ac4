"""YOLLO-style detector: a fully convolutional grid of cells, each with an objectness, a box and a class.

After YOLO (Redmon et al. 2016, https://arxiv.org/abs/1506.02640), for extremely many small objects: a fine
grid, no fully connected layer, no cap on objects. The paper's YOLLO is not published in detail; METHOD's
reading: b_xy = (sigmoid(t) + cell) * stride, b_wh = anchor * exp(t), the anchor the median training box.
The head "centre" reads the same output as a heat map of centres (Zhou et al. 2019,
https://arxiv.org/abs/1904.07850): `assign` and `decode` then treat the neighbours of a centre apart.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Float64, Key

from sparseshot_jax.errors import InputError
from sparseshot_jax.models.layers import BLOCK, CONVOLUTION, DTYPES, FORMS, NORMS, Forms, forms, normals
from sparseshot_jax.types import CellOutput, Needs

HEADS = ("anchor", "centre")
_LARGEST_RATIO = 3.0  # |t| of a box's side: exp(3) = 20 times the anchor, or a twentieth
_TRACED = {"traced": True}  # decides numbers and no program


@dataclasses.dataclass(frozen=True, kw_only=True)
class YolloSpec:
    """A YOLLO-style detector: its size, head and start.

    >>> model = YolloSpec(width=8, depth=1).build(classes=1, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((1, 64, 64, 3))).objectness.shape
    (1, 8, 8, 1)
    """

    width: int = 16  # channels at half resolution, >= 1; doubled at every halving
    depth: int = 3  # residual blocks at the resolution of the grid, >= 1: what a cell sees around it
    stride: int = 8  # pixels a side of a cell, 4, 8 or 16
    head: str = "anchor"  # "anchor", or "centre": a heat map of centres
    anchors: int = 1  # boxes a cell, sizes taken from the training set, >= 1; "centre" has one
    norm: str = "batch"  # batch, group or channel: see `layers`
    dtype: str = "float32"  # of the arithmetic, float32 or bfloat16; parameters and output: float32
    form: str = "auto"  # of the arithmetic: cpu, textbook, split, or as back end and mesh like it
    max_objects: int = 512  # of a training tile, >= 1; more are counted and not learnt
    prior: float = dataclasses.field(default=0.01, metadata=_TRACED)  # p of an object at the start, (0, 1)
    box_weight: float = dataclasses.field(default=3.0, metadata=_TRACED)  # of the box term, >= 0
    class_weight: float = dataclasses.field(default=1.0, metadata=_TRACED)  # of the class term, >= 0
    # IoU of a cell's box with an annotated one above which an unmatched cell is ignored, [0, 1]
    ignore_iou: float = dataclasses.field(default=0.6, metadata=_TRACED)

    def __post_init__(self):
        for name in ("width", "depth", "anchors", "max_objects"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.stride not in (4, 8, 16):
            raise InputError(f"stride must be 4, 8 or 16 pixels; got {self.stride}. Try 8.")
        if not 0.0 < self.prior < 1.0:
            raise InputError(f"prior must lie between 0 and 1, both excluded; got {self.prior}. Try 0.01.")
        if min(self.box_weight, self.class_weight) < 0.0 or not 0.0 <= self.ignore_iou <= 1.0:
            raise InputError(
                f"box_weight and class_weight must be at least 0 and ignore_iou in [0, 1]; got "
                f"{self.box_weight}, {self.class_weight} and {self.ignore_iou}. Try 3, 1 and 0.6."
            )
        if self.head == "centre" and self.anchors != 1:
            raise InputError(f"the head centre has one box a cell; got anchors={self.anchors}. Try 1.")
        named = (("head", HEADS), ("norm", NORMS), ("dtype", DTYPES), ("form", ("auto", *FORMS)))
        for name, known in named:
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}.")

    @property
    def task(self) -> str:
        """What is learnt: see `Model`."""
        return "detection"

    @property
    def needs(self) -> Needs:
        """The boxes of the objects."""
        return Needs(objects=self.max_objects)

    @property
    def multiple(self) -> int:
        """Height and width of an image must be divisible by this, in pixels."""
        return self.stride

    @property
    def receptive_radius_px(self) -> int:
        """A cell depends on no input pixel farther than this beyond its own border.

        `norm="group"` adds statistics of the whole tile to this.
        """
        first, last = -1, 1  # the head's convolution
        first, last = first - 2 * self.depth, last + 2 * self.depth
        for level in range(_halvings(self.stride) - 1):
            del level
            first, last = 2 * first - 2, 2 * last + 1 + 2  # the halving, then a block of two convolutions
        first, last = 2 * (first - 1), 2 * (last + 1) + 1  # the first convolution, on 2 x 2 pixels
        return max(-first, last - (self.stride - 1))

    def build(self, *, classes: int, rngs: nnx.Rngs) -> "Yollo":
        """A fresh model for C wanted classes; its anchors are 1.5 cells until `fit_anchors` sets them."""
        return Yollo(self, classes=classes, rngs=rngs)


class Anchor(nnx.Variable):
    """Height and width of each anchor, pixels: part of a checkpoint, and not trained."""


class _Block(nnx.Module):
    """Residual block: twice 3 x 3 convolution and normalisation, added to the input. He et al. 2016."""

    def __init__(self, kernels: Iterator[Array], width: int, *, norm: str):
        self.first = nnx.Param(next(kernels))
        self.second = nnx.Param(next(kernels))
        self.first_norm = NORMS[norm](width)
        self.second_norm = NORMS[norm](width)

    def __call__(
        self, x: Float[Array, "b h w c"], *, ops: Forms, valid: Bool[Array, "b"] | None, train: bool
    ) -> Float[Array, "b h w c"]:
        y = checkpoint_name(ops.convolve(x, kernel=self.first[...].astype(x.dtype)), CONVOLUTION)
        y = jax.nn.relu(self.first_norm(y, valid=valid, train=train))
        y = checkpoint_name(ops.convolve(y, kernel=self.second[...].astype(x.dtype)), CONVOLUTION)
        return checkpoint_name(jax.nn.relu(x + self.second_norm(y, valid=valid, train=train)), BLOCK)


class Yollo(nnx.Module):
    """What `YolloSpec.build` gives."""

    def __init__(self, spec: YolloSpec, *, classes: int, rngs: nnx.Rngs):
        if classes < 1:
            raise InputError(f"a model needs at least one wanted class; got {classes}.")
        self.spec = spec
        self.classes = classes
        widths = [spec.width * 2**level for level in range(_halvings(spec.stride))]
        blocks = [1] * (len(widths) - 1) + [spec.depth]
        kernels = _kernels(rngs.params(), widths, blocks, spec.anchors * self._outputs)
        self.stem = nnx.Param(next(kernels))
        self.stem_norm = NORMS[spec.norm](widths[0])
        self.halve = nnx.List(nnx.Param(next(kernels)) for _ in widths[1:])
        self.halve_norm = nnx.List(NORMS[spec.norm](width) for width in widths[1:])
        self.blocks = nnx.List(
            nnx.List(_Block(kernels, width, norm=spec.norm) for _ in range(count))
            for width, count in zip(widths, blocks)
        )
        self.neck = nnx.Param(next(kernels))
        self.neck_norm = NORMS[spec.norm](widths[-1])
        self.head = nnx.Param(next(kernels))
        odds = math.log(spec.prior) - math.log1p(-spec.prior)
        bias = jnp.zeros((spec.anchors, self._outputs)).at[:, 0].set(odds)
        self.bias = nnx.Param(bias.ravel())
        self.anchors = Anchor(jnp.full((spec.anchors, 2), 1.5 * spec.stride, jnp.float32))

    def fit_anchors(self, sizes_px: Float64[np.ndarray, "n 2"]) -> None:
        """Set the anchors to what `anchors_for` finds for the training set's boxes."""
        self.anchors[...] = jnp.asarray(anchors_for(sizes_px, self.spec.anchors), jnp.float32)

    @property
    def _outputs(self) -> int:
        """Numbers an anchor: objectness, box, and the classes where there are several."""
        return 5 + (self.classes if self.classes > 1 else 0)

    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        *,
        valid: Bool[Array, "b"] | None = None,
        train: bool = False,
    ) -> CellOutput:
        """Objectness, box and class logits of every cell.

        Args:
            image: RGB in [-1, 1] (`scale_image`).
            valid: False for a tile that only pads the batch: no part of the batch's statistics.
            train: Normalise with the batch's statistics, and move the running ones.

        Raises:
            InputError: height or width is not divisible by the stride.
        """
        self._check_size(image.shape[1], image.shape[2])
        ops = forms(self.spec.form)
        x = _fold(image.astype(DTYPES[self.spec.dtype]))
        x = checkpoint_name(ops.convolve(x, kernel=self.stem[...].astype(x.dtype)), CONVOLUTION)
        x = checkpoint_name(jax.nn.relu(self.stem_norm(x, valid=valid, train=train)), BLOCK)
        for level, blocks in enumerate(self.blocks):
            if level:
                x = jnp.einsum("bhwc,ck->bhwk", _fold(x), self.halve[level - 1][...].astype(x.dtype))
                x = checkpoint_name(x, CONVOLUTION)
                x = jax.nn.relu(self.halve_norm[level - 1](x, valid=valid, train=train))
                x = checkpoint_name(x, BLOCK)
            for block in blocks:
                x = block(x, ops=ops, valid=valid, train=train)
        x = checkpoint_name(ops.convolve(x, kernel=self.neck[...].astype(x.dtype)), CONVOLUTION)
        x = checkpoint_name(jax.nn.relu(self.neck_norm(x, valid=valid, train=train)), BLOCK)
        raw = jnp.einsum(
            "bhwc,ck->bhwk", x, self.head[...].astype(x.dtype), preferred_element_type=jnp.float32
        )
        raw = raw + self.bias[...][None, None, None]
        return self._output(raw.reshape(*raw.shape[:3], self.spec.anchors, self._outputs))

    def _output(self, raw: Float[Array, "b h w a k"]) -> CellOutput:
        shape = raw.shape[:-1]
        classes = raw[..., 5:] if self.classes > 1 else jnp.zeros((*shape, 1))
        return CellOutput(
            objectness=raw[..., 0],
            boxes_yxyx_px=decode_boxes(raw[..., 1:5], self.anchors[...], self.spec.stride),
            classes=classes,
            anchors_px=self.anchors[...],
        )

    def _check_size(self, height: int, width: int) -> None:
        stride = self.spec.stride
        for name, size in (("height", height), ("width", width)):
            if size % stride or size == 0:
                below, above = size // stride * stride, -(-size // stride) * stride
                near = f"{below} or {above}" if below else f"{stride}"
                raise InputError(
                    f"image {name} must be divisible by the stride {stride}; got {size}. Try {near}."
                )


def decode_boxes(
    t: Float[Array, "b h w a 4"], anchors: Float[Array, "a 2"], stride: int
) -> Float[Array, "b h w a 4"]:
    """b_yx = (sigmoid(t_yx) + cell) * stride, b_hw = anchor * exp(t_hw), as corners yxyx in pixels.

    >>> decode_boxes(jnp.zeros((1, 1, 2, 1, 4)), jnp.array([[4.0, 8.0]]), 8)[0, 0, 1, 0].tolist()
    [2.0, 8.0, 6.0, 16.0]
    """
    rows, columns = jnp.arange(t.shape[1], dtype=jnp.float32), jnp.arange(t.shape[2], dtype=jnp.float32)
    cell = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)[None, :, :, None]
    centre = (jax.nn.sigmoid(t[..., :2]) + cell) * stride
    half = 0.5 * anchors[None, None, None] * jnp.exp(jnp.clip(t[..., 2:], -_LARGEST_RATIO, _LARGEST_RATIO))
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def anchors_for(sizes_px: Float64[np.ndarray, "n 2"], count: int) -> Float64[np.ndarray, "count 2"]:
    """Anchors for boxes of these heights and widths: the median, or `count` medians of their groups.

    Groups are quantiles of the area, then refined: each box goes to the anchor of highest IoU (both
    centred), each anchor to the median of its boxes, until nothing moves. Boxes without area do not count.

    Raises:
        InputError: fewer sizes than anchors.
    """
    sizes_px = sizes_px[sizes_px.prod(axis=1) > 0]
    different = len(np.unique(sizes_px, axis=0))
    if different < count:
        raise InputError(
            f"model.anchors is {count}, and the marked objects have {different} different sizes. Mark "
            "objects in the training images, check labels.classes, or lower model.anchors: points have one "
            "size."
        )
    order = np.argsort(sizes_px.prod(axis=1), kind="stable")
    groups = np.empty(len(order), int)
    groups[order] = np.arange(len(order)) * count // len(order)
    anchors = np.zeros((count, 2))
    for _ in range(100):
        anchors = np.stack(
            [
                np.median(sizes_px[groups == k], axis=0) if (groups == k).any() else anchors[k]
                for k in range(count)
            ]
        )
        shared = np.minimum(sizes_px[:, None], anchors).prod(axis=-1)
        iou = shared / (sizes_px.prod(axis=-1)[:, None] + anchors.prod(axis=-1) - shared)
        nearest = iou.argmax(axis=1)
        if (nearest == groups).all():
            break
        groups = nearest
    return anchors


def _halvings(stride: int) -> int:
    return stride.bit_length() - 1


def _fold(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 4*c"]:
    """2 x 2 pixels become the channels of one."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(b, h // 2, w // 2, 4 * c)


def _kernels(key: Key[Array, ""], widths: list[int], blocks: list[int], outputs: int) -> Iterator[Array]:
    """All kernels in the order in which `Yollo` takes them.

    The last is as small as RetinaNet's: every cell starts at the prior, and the gradient still flows.
    """
    shapes = [(3, 3, 12, widths[0])]
    shapes += [(4 * i, o) for i, o in itertools.pairwise(widths)]
    shapes += [(3, 3, w, w) for w, count in zip(widths, blocks) for _ in range(2 * count)]
    shapes += [(3, 3, widths[-1], widths[-1])]
    scales = [math.sqrt(2 / math.prod(shape[:-1])) for shape in shapes]
    return iter(normals(key, (*shapes, (widths[-1], outputs)), (*scales, 0.01)))
