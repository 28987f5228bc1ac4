"""Annotated boxes -> what each cell of a detector's grid is told: METHOD, "Detection".

Pure functions of fixed shapes, made to run inside the compiled step, after augmentation.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from sparseshot_jax.types import Ground, Objects, Scalar, Targets

_SURE = 2 / 3  # share of a cell's pixels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """The targets of the cells, and what found no cell."""

    targets: Targets  # ground and class of each cell and anchor [b, h, w, a]; F = matched
    boxes_yxyx_px: Float[Array, "b h w a 4"]  # of the matched object, 0 elsewhere
    background_weight: Float[Array, "b h w a"]  # of the terms on U: below 1 beside a centre ("centre" head)
    matched: Int[Array, "b"]  # objects that have a cell
    collisions: Int[Array, "b"]  # objects whose cell and anchor a nearer one took


def assign(
    objects: Objects,
    ground: UInt8[Array, "b h w"],
    predicted_yxyx_px: Float[Array, "b gh gw a 4"],
    anchors: Float[Array, "a 2"],
    *,
    stride: int,
    heat: bool,
    ignore_iou: Scalar,
) -> Assignment:
    """Targets of a batch.

    F: the cell that holds an object's centre, at the anchor whose shape fits best; of two centres the
    nearest to the cell's middle wins, the other is counted. Ignored: cells on ignored ground, and
    unmatched ones whose predicted box overlaps an annotated one by more than `ignore_iou`. An object whose
    centre lies outside the tile, or on ignored ground, is matched to nothing. A cell is ignored where most
    of its pixels are; known background where more than two thirds are (or ignored); else unannotated: a
    small object that was left unmarked in an exhaustive region must not turn into background.

    Args:
        objects: annotated boxes.
        ground: `Ground` codes of the pixels, without the objects.
        predicted_yxyx_px: the model's boxes; no gradient flows into them here.
        anchors: height and width, pixels.
        stride: pixels a side of a cell.
        heat: weight the background beside a centre by (1 - g)^4, g a Gaussian of a sixth of the box
            (Law and Deng 2018, https://arxiv.org/abs/1808.01244), in place of the rule by IoU.
        ignore_iou: [0, 1].
    """
    shape = predicted_yxyx_px.shape[:-1]
    inside = _inside(objects, ground)
    slot = jax.vmap(lambda boxes, counts: _slots(boxes, counts, anchors, shape[1:], stride))(
        objects.boxes_yxyx_px, inside
    )
    won = slot >= 0
    scatter = jax.vmap(lambda where, values: _scattered(where, values, shape[1:]))
    cells = jnp.repeat(_of_cells(ground, stride)[..., None], shape[-1], axis=-1)
    matched = scatter(slot, won.astype(jnp.uint8)) > 0
    predicted = jax.lax.stop_gradient(predicted_yxyx_px)
    if heat:
        weight = (1.0 - _heat(objects, shape[1:3], stride)[..., None]) ** 4
    else:
        weight = jnp.ones(shape)
        overlap = _best_iou(predicted, objects)
        cells = jnp.where(overlap > ignore_iou, Ground.IGNORED, cells)
    cells = jnp.where(matched, Ground.ANNOTATED, cells).astype(jnp.uint8)
    return Assignment(
        targets=Targets(ground=cells, label=scatter(slot, objects.label).astype(jnp.int32)),
        boxes_yxyx_px=scatter(slot, objects.boxes_yxyx_px),
        background_weight=jnp.where(cells == Ground.UNANNOTATED, weight, 1.0),
        matched=won.sum(axis=1, dtype=jnp.int32),
        collisions=(inside & ~won).sum(axis=1, dtype=jnp.int32),
    )


def iou(one: Float[Array, "*#b 4"], other: Float[Array, "*#b 4"]) -> Float[Array, "..."]:
    """Intersection over union of boxes yxyx, 0 where both are empty.

    >>> float(iou(jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([0.0, 1.0, 2.0, 2.0])))
    0.5
    """
    shared, union = shared_and_union(one, other)
    return shared / jnp.maximum(union, 1e-9)


def shared_and_union(
    one: Float[Array, "*#b 4"], other: Float[Array, "*#b 4"]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Areas of the intersection and of the union, pixels."""
    low = jnp.maximum(one[..., :2], other[..., :2])
    high = jnp.minimum(one[..., 2:], other[..., 2:])
    shared = jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)
    areas = [jnp.prod(jnp.maximum(box[..., 2:] - box[..., :2], 0.0), axis=-1) for box in (one, other)]
    return shared, areas[0] + areas[1] - shared


def _of_cells(ground: UInt8[Array, "b h w"], stride: int) -> UInt8[Array, "b gh gw"]:
    """The ground of each cell; where its pixels differ too much, nobody knows."""
    b, h, w = ground.shape
    pixels = ground.reshape(b, h // stride, stride, w // stride, stride)
    background, ignored = (
        jnp.mean(pixels == kind, axis=(2, 4), dtype=jnp.float32)
        for kind in (Ground.BACKGROUND, Ground.IGNORED)
    )
    cells = jnp.where(background + ignored > _SURE, Ground.BACKGROUND, Ground.UNANNOTATED)
    return jnp.where(ignored > 0.5, Ground.IGNORED, cells).astype(jnp.uint8)


def _inside(objects: Objects, ground: UInt8[Array, "b h w"]) -> Bool[Array, "b n"]:
    """Objects whose centre lies in the tile, and not on ignored ground."""
    size = jnp.array(ground.shape[1:])[None, None]
    centre = jnp.floor(_centres(objects.boxes_yxyx_px)).astype(jnp.int32)
    inside = ((centre >= 0) & (centre < size)).all(axis=-1)
    row, column = jnp.moveaxis(jnp.clip(centre, 0, size - 1), -1, 0)
    # By row and column, not by one number: a flattened tile whose rows lie on many devices is gathered.
    at = jax.vmap(lambda codes, y, x: codes[y, x])(ground, row, column)
    return objects.present & inside & (at != Ground.IGNORED)


def _centres(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 2"]:
    return 0.5 * (boxes[..., :2] + boxes[..., 2:])


def _slots(
    boxes: Float[Array, "n 4"],
    inside: Bool[Array, "n"],
    anchors: Float[Array, "a 2"],
    shape: tuple[int, ...],
    stride: int,
) -> Int[Array, "n"]:
    """Number of each object's cell and anchor in reading order; -1: none, or lost to a nearer object."""
    rows, columns, count = shape
    centre = _centres(boxes) / stride
    cell = jnp.floor(centre).astype(jnp.int32)
    row, column = cell[:, 0], cell[:, 1]
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    shared = jnp.prod(jnp.minimum(size, anchors[None]), axis=-1)
    shape_iou = shared / (jnp.prod(size, axis=-1) + jnp.prod(anchors, axis=-1)[None] - shared + 1e-9)
    slot = jnp.where(inside, (row * columns + column) * count + shape_iou.argmax(axis=1), 0)
    distance = jnp.where(inside, jnp.square(centre - cell - 0.5).sum(axis=1), jnp.inf)
    number = jnp.arange(len(slot))
    nearest = jnp.full(rows * columns * count, jnp.inf).at[slot].min(distance)
    tied = jnp.where(inside & (distance == nearest[slot]), number, len(slot))
    first = jnp.full(rows * columns * count, len(slot)).at[slot].min(tied)
    return jnp.where(inside & (first[slot] == number), slot, -1)


def _scattered(slot: Int[Array, "n"], values: Array, shape: tuple[int, ...]) -> Array:
    """The values at their slots of a grid of zeros."""
    flat = jnp.zeros((shape[0] * shape[1] * shape[2], *values.shape[1:]), values.dtype)
    where = jnp.where(slot >= 0, slot, len(flat))  # beyond the end: dropped
    return flat.at[where].set(values, mode="drop").reshape(*shape, *values.shape[1:])


def _best_iou(predicted: Float[Array, "b h w a 4"], objects: Objects) -> Float[Array, "b h w a"]:
    """The largest IoU of each predicted box with an annotated one."""
    # The table of all pairs never exists: the compiler reduces it as it is made.
    overlap = iou(predicted[..., None, :], objects.boxes_yxyx_px[:, None, None, None])
    return jnp.max(jnp.where(objects.present[:, None, None, None], overlap, 0.0), axis=-1)


def _heat(objects: Objects, shape: tuple[int, ...], stride: int) -> Float[Array, "b h w"]:
    """exp(-d^2 / 2) of the nearest centre: 1 in the cell that holds it.

    d counts from the middle of that cell, in standard deviations: a sixth of the box, a third of a cell
    at least.
    """
    boxes = objects.boxes_yxyx_px
    centre = (jnp.floor(_centres(boxes) / stride) + 0.5) * stride
    deviation = jnp.maximum((boxes[..., 2:] - boxes[..., :2]) / 6.0, stride / 3.0)
    middle = [(jnp.arange(n, dtype=jnp.float32) + 0.5) * stride for n in shape]
    dy, dx = (
        jnp.square((m[None, :, None] - centre[:, None, :, k]) / deviation[:, None, :, k])
        for k, m in enumerate(middle)
    )
    heat = jnp.exp(-0.5 * (dy[:, :, None] + dx[:, None]))
    return jnp.max(jnp.where(objects.present[:, None, None], heat, 0.0), axis=-1)
