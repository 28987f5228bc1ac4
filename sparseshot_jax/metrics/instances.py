"""Objects against objects: one-to-one matches at an IoU, object F1, panoptic quality, AJI.

All of it comes from one sparse table of the pairs that share a pixel, so the cost follows the
number of pixels and of touching pairs, never objects x objects.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Integer
from scipy import ndimage

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics.matching import one_to_one


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Overlaps:
    """Areas of the objects of two label maps, and the pairs that share pixels."""

    truth_ids: Int64[np.ndarray, " t"]  # label of every true object, ascending
    truth_px: Int64[np.ndarray, " t"]  # its area
    predicted_ids: Int64[np.ndarray, " p"]
    predicted_px: Int64[np.ndarray, " p"]
    truth_index: Int64[np.ndarray, " k"]  # of each pair: position in truth_ids
    predicted_index: Int64[np.ndarray, " k"]  # and in predicted_ids
    shared_px: Int64[np.ndarray, " k"]  # > 0

    @property
    def union_px(self) -> Int64[np.ndarray, " k"]:
        """Area of the union of each pair."""
        truth, predicted = self.truth_px[self.truth_index], self.predicted_px[self.predicted_index]
        return truth + predicted - self.shared_px

    @property
    def iou(self) -> Float64[np.ndarray, " k"]:
        """Intersection over union of each pair, (0, 1]."""
        return self.shared_px / self.union_px


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Matched pairs, and how many objects of either side are left over."""

    truth_ids: Int64[np.ndarray, " m"]  # label in the true map
    predicted_ids: Int64[np.ndarray, " m"]  # label in the predicted map
    iou: Float64[np.ndarray, " m"]
    confusion: Int64[np.ndarray, "3"]  # TP, FP, FN; `dice_of(confusion)` is the object F1

    @property
    def tp(self) -> int:
        """Matched pairs."""
        return int(self.confusion[0])

    @property
    def fp(self) -> int:
        """Predictions that match nothing."""
        return int(self.confusion[1])

    @property
    def fn(self) -> int:
        """True objects that nothing matches."""
        return int(self.confusion[2])


def components(mask: Bool[np.ndarray, "h w"], neighbours: int = 4) -> Int32[np.ndarray, "h w"]:
    """Label the connected regions of a mask 1, 2, ...; pixels touch by an edge (4) or a corner (8).

    Raises:
        InputError: `neighbours` is neither 4 nor 8.
    """
    if neighbours not in (4, 8):
        raise InputError(f"neighbours must be 4 or 8; got {neighbours}.")
    structure = ndimage.generate_binary_structure(2, 1 if neighbours == 4 else 2)
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, structure, output=labels)
    return labels


def overlaps(
    truth_labels: Integer[np.ndarray, "h w"], predicted_labels: Integer[np.ndarray, "h w"]
) -> Overlaps:
    """Areas and pairs of two label maps of the same place; 0 is background, ids need no order."""
    truth_ids, truth_px = _areas(truth_labels)
    predicted_ids, predicted_px = _areas(predicted_labels)
    both = (truth_labels > 0) & (predicted_labels > 0)
    i = np.searchsorted(truth_ids, truth_labels[both])
    j = np.searchsorted(predicted_ids, predicted_labels[both])
    pairs, shared = np.unique(i * max(len(predicted_ids), 1) + j, return_counts=True)
    i, j = np.divmod(pairs, max(len(predicted_ids), 1))
    return Overlaps(
        truth_ids=truth_ids,
        truth_px=truth_px,
        predicted_ids=predicted_ids,
        predicted_px=predicted_px,
        truth_index=i,
        predicted_index=j,
        shared_px=shared.astype(np.int64),
    )


def match_by_iou(
    truth_labels: Integer[np.ndarray, "h w"],
    predicted_labels: Integer[np.ndarray, "h w"],
    iou: float = 0.5,
) -> Matches:
    """One-to-one matches with IoU >= `iou`: as many as possible, then the largest sum of IoU.

    A pair above 0.5 can have no rival. Rivals exist at exactly 0.5 and below it; each group of them
    is settled by the Hungarian method with the gate inside the cost.

    >>> truth = np.array([[1, 1, 0, 2, 2]])
    >>> match_by_iou(truth, np.array([[5, 5, 0, 0, 0]])).confusion.tolist()
    [1, 0, 1]

    Raises:
        InputError: `iou` is outside (0, 1].
    """
    if not 0 < iou <= 1:
        raise InputError(f"iou must lie in (0, 1]; got {iou}. Try 0.5.")
    table = overlaps(truth_labels, predicted_labels)
    passes = np.flatnonzero(table.iou >= iou)
    kept = passes[one_to_one(table.truth_index[passes], table.predicted_index[passes], table.iou[passes])]
    found = len(kept)
    left = (found, len(table.predicted_ids) - found, len(table.truth_ids) - found)
    return Matches(
        truth_ids=table.truth_ids[table.truth_index[kept]],
        predicted_ids=table.predicted_ids[table.predicted_index[kept]],
        iou=table.iou[kept],
        confusion=np.array(left, np.int64),
    )


def panoptic_quality(
    truth_labels: Integer[np.ndarray, "h w"], predicted_labels: Integer[np.ndarray, "h w"]
) -> float:
    """Sum of the IoU of pairs above 0.5 / (TP + FP / 2 + FN / 2); 1 where both maps are empty.

    Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019, for one class.
    """
    table = overlaps(truth_labels, predicted_labels)
    objects = len(table.truth_ids) + len(table.predicted_ids)  # twice the denominator
    return float(2 * table.iou[table.iou > 0.5].sum() / objects) if objects else 1.0


def aji(truth_labels: Integer[np.ndarray, "h w"], predicted_labels: Integer[np.ndarray, "h w"]) -> float:
    """Aggregated Jaccard index; 1 where both maps are empty.

    Every true object takes the prediction of highest IoU (the lower label of two equals), which may
    serve several; shared pixels over united ones, plus true objects that nothing touches and
    predictions that none took. Source: Kumar et al., IEEE TMI 2017, algorithm 1.
    """
    table = overlaps(truth_labels, predicted_labels)
    order = np.lexsort((table.predicted_index, -table.iou, table.truth_index))
    truths, first = np.unique(table.truth_index[order], return_index=True)
    best = order[first]
    shared = table.shared_px[best].sum()
    united = table.union_px[best].sum()
    united += np.delete(table.truth_px, truths).sum()
    united += np.delete(table.predicted_px, np.unique(table.predicted_index[best])).sum()
    return float(shared / united) if united else 1.0


def _areas(labels: np.ndarray) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    ids, areas = np.unique(labels[labels > 0], return_counts=True)
    return ids.astype(np.int64), areas.astype(np.int64)
