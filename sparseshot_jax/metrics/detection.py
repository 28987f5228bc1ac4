"""The objects of an image, and what is counted of predicted ones against true ones.

Objects of all images lie in one array each (`ObjectPool`), with the pairs that may match found once:
a threshold, a class or a resample then only selects among them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics.matching import Pairs, box_pairs, join_pairs, one_to_one, point_pairs


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageObjects:
    """True or predicted objects of one image, in micrometres from its upper left corner.

    Where only points are known, boxes may be squares round them. What is measured by IoU is measured all
    the same, and then says how far apart centres are and nothing of extents: read it by distance.

    Raises:
        InputError: arrays of different lengths, values that are not finite, a box turned inside out.
    """

    xy_um: Float[np.ndarray, "n 2"]  # centre
    boxes_um: Float[np.ndarray, "n 4"]  # x0, y0, x1, y1
    label: Integer[np.ndarray, " n"]  # class 1..C; 0 = a true object of unknown class
    score: Float[np.ndarray, " n"]  # p of an object, [0, 1]; ones for truth

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in vars(self).items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"Every array must hold one row an object; got {lengths}.")
        for name in ("xy_um", "boxes_um", "score"):
            bad = np.argwhere(~np.isfinite(getattr(self, name)))
            if len(bad):
                raise InputError(f"{name} must be finite; object {bad[0, 0]} (of {len(self)}) is not.")
        bad = np.flatnonzero((self.boxes_um[:, 2:] < self.boxes_um[:, :2]).any(-1))
        if len(bad):
            raise InputError(
                f"boxes_um are x0, y0, x1, y1 with x0 <= x1 and y0 <= y1; box {bad[0]} is "
                f"{self.boxes_um[bad[0]].tolist()}."
            )

    def __len__(self) -> int:
        return len(self.label)

    def take(self, chosen: Bool[np.ndarray, " n"] | Int64[np.ndarray, " m"]) -> "ImageObjects":
        """The chosen objects, by a mask or by indices."""
        return ImageObjects(**{name: value[chosen] for name, value in vars(self).items()})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ObjectPool:
    """The objects of all images, and the pairs that may match by either gate."""

    images: int
    truth_image: Int64[np.ndarray, " m"]  # number of the image
    truth_label: Int64[np.ndarray, " m"]  # 0 = unknown
    predicted_image: Int64[np.ndarray, " n"]
    predicted_label: Int64[np.ndarray, " n"]
    score: Float64[np.ndarray, " n"]
    candidates: dict[str, Pairs]  # "distance" and "iou"; pairs of one image only

    def above(self, threshold: float) -> Bool[np.ndarray, " n"]:
        """Predictions with score > threshold, compared as float32 whatever the type they came in."""
        return self.score.astype(np.float32) > np.float32(threshold)

    def match(
        self, gate: str, truth: Bool[np.ndarray, " m"] | None, predicted: Bool[np.ndarray, " n"]
    ) -> Pairs:
        """One-to-one matches among the chosen objects (None: all true ones)."""
        pairs = self.candidates[gate]
        chosen = (
            predicted[pairs.predicted] if truth is None else predicted[pairs.predicted] & truth[pairs.truth]
        )
        pairs = pairs.take(chosen)
        return pairs.take(one_to_one(pairs.truth, pairs.predicted, pairs.gain))

    def confusion(self, gate: str, predicted: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, "images 3"]:
        """TP, FP, FN of every image, whatever the class."""
        found = self._an_image(self.truth_image[self.match(gate, None, predicted).truth])
        said, there = self.counts(predicted).T[::-1]
        return np.stack([found, said - found, there - found], axis=-1)

    def class_confusion(
        self, gate: str, predicted: Bool[np.ndarray, " n"], label: int
    ) -> Int64[np.ndarray, "images 3"]:
        """TP, FP, FN of one class, matched on its own.

        A prediction left over that hits a true object of unknown class is no false alarm.
        """
        truth, predicted = self.truth_label == label, predicted & (self.predicted_label == label)
        hits = self.match(gate, truth, predicted)
        left = predicted.copy()
        left[hits.predicted] = False
        left[self.match(gate, self.truth_label == 0, left).predicted] = False
        found = self._an_image(self.truth_image[hits.truth])
        missed = self._an_image(self.truth_image[truth]) - found
        return np.stack([found, self._an_image(self.predicted_image[left]), missed], axis=-1)

    def exclusive_counts(
        self, gate: str, predicted: Bool[np.ndarray, " n"], label: int
    ) -> Int64[np.ndarray, "images 4"]:
        """Objects of a class hit by its predictions, all of them; of the other classes hit, all.

        Two separate one-to-one matchings at the same gate; unknown classes are left out.
        """
        predicted = predicted & (self.predicted_label == label)
        columns = []
        for truth in (self.truth_label == label, (self.truth_label != label) & (self.truth_label > 0)):
            hits = self.match(gate, truth, predicted)
            columns += [self.truth_image[hits.truth], self.truth_image[truth]]
        return np.stack([self._an_image(images) for images in columns], axis=-1)

    def confusion_matrix(
        self, gate: str, predicted: Bool[np.ndarray, " n"], classes: int
    ) -> Int64[np.ndarray, "c1 c1"]:
        """True class by predicted class of objects matched whatever their class.

        The last row holds the false alarms, the last column the missed; pairs whose true class is
        unknown, and missed objects of unknown class, are left out.
        """
        hits = self.match(gate, None, predicted)
        missed, false = np.ones(len(self.truth_label), bool), predicted.copy()
        missed[hits.truth] = False
        false[hits.predicted] = False
        table = np.zeros((classes + 1, classes + 1), np.int64)
        # An unknown true class, 0 - 1, is the last row, which the false alarms then replace.
        np.add.at(table, (self.truth_label[hits.truth] - 1, self.predicted_label[hits.predicted] - 1), 1)
        np.add.at(table[:, -1], self.truth_label[missed] - 1, 1)
        table[-1] = 0
        np.add.at(table[-1], self.predicted_label[false] - 1, 1)
        return table

    def counts(self, predicted: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, "images 2"]:
        """True objects and predictions of every image."""
        images = (self.truth_image, self.predicted_image[predicted])
        return np.stack([self._an_image(image) for image in images], axis=-1)

    def _an_image(self, image: np.ndarray) -> Int64[np.ndarray, " images"]:
        return np.bincount(image, minlength=self.images).astype(np.int64)


def pool_objects(
    truths: Sequence[ImageObjects], predictions: Sequence[ImageObjects], *, distance_um: float, iou: float
) -> ObjectPool:
    """The objects of all images, with their candidate pairs.

    Raises:
        InputError: no image, lists of different lengths, a gate out of range.
    """
    if not len(truths) or len(truths) != len(predictions):
        raise InputError(
            f"Detections are measured on at least one image, truth and predictions of each; got "
            f"{len(truths)} of truth and {len(predictions)} of predictions."
        )
    sizes = [(len(t), len(p)) for t, p in zip(truths, predictions)]
    by_distance = [point_pairs(t.xy_um, p.xy_um, gate=distance_um) for t, p in zip(truths, predictions)]
    by_iou = [box_pairs(t.boxes_um, p.boxes_um, iou=iou) for t, p in zip(truths, predictions)]
    image = np.arange(len(truths))
    return ObjectPool(
        images=len(truths),
        truth_image=np.repeat(image, [m for m, _ in sizes]),
        truth_label=np.concatenate([t.label for t in truths]).astype(np.int64),
        predicted_image=np.repeat(image, [n for _, n in sizes]),
        predicted_label=np.concatenate([p.label for p in predictions]).astype(np.int64),
        score=np.concatenate([p.score for p in predictions]).astype(np.float64),
        candidates={"distance": join_pairs(by_distance, sizes), "iou": join_pairs(by_iou, sizes)},
    )
