"""One image of the report: what was shown, what was marked, what was predicted, what is true."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from sparseshot_jax.metrics import components, match_by_iou
from sparseshot_jax.report.overlay import COLOURS, Colour, Layer, overlay, resized
from sparseshot_jax.types import Ground

SIDE_PX = 480  # longer side of a picture in the report


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """A row of pictures: image, given labels, one prediction for each method, truth."""

    title: str
    image: UInt8[np.ndarray, "h w 3"]
    predictions: Mapping[str, Float[np.ndarray, "h w"]]  # column title -> p of the foreground
    threshold: float | Mapping[str, float] = 0.5  # foreground is p above it; one for all, or for each
    given: UInt8[np.ndarray, "h w"] | None = None  # `Ground` codes, None where nothing was given
    truth: Shaped[np.ndarray, "h w"] | None = None  # a mask or a label map, None where unknown

    def threshold_of(self, method: str) -> float:
        """The threshold at which a method's prediction is drawn."""
        return self.threshold[method] if isinstance(self.threshold, Mapping) else self.threshold

    def legend(self) -> list[tuple[Colour, str]]:
        """What each colour says."""
        used = PLAIN_LEGEND if self.truth is None else LEGEND
        return [(COLOURS[key], text) for key, text in used.items()]

    def pictures(self) -> dict[str, UInt8[np.ndarray, "a b 3"]]:
        """Column title -> picture; the truth beside a single prediction, before several."""
        columns: dict[str, list[Layer]] = {"Image": []}
        if self.given is not None:
            columns["Given labels"] = given_layers(self.given)
        predicted = {
            method: prediction_layers(p > self.threshold_of(method), self.truth)
            for method, p in self.predictions.items()
        }
        truth: dict[str, list[Layer]] = {}
        if self.truth is not None:
            truth["Truth"] = [Layer(labels=_labels(self.truth), colour=COLOURS["truth"], fill=0.15)]
        columns |= predicted | truth if len(predicted) == 1 else truth | predicted
        return {title: _drawn(self.image, layers) for title, layers in columns.items()}


LEGEND = {  # colour -> what it says
    "truth": "marked or true object",
    "background": "known background",
    "ignored": "ignored",
    "found": "predicted, matches a true object (IoU ≥ 0.5)",
    "false": "predicted, matches none",
    "missed": "true object that no prediction matches",
}
PLAIN_LEGEND = {"found": "predicted"}  # where no truth is known


def given_layers(ground: UInt8[np.ndarray, "h w"]) -> list[Layer]:
    """Marked objects outlined, known background tinted, ignored ground greyed, the rest as it is."""
    objects = Layer(labels=_of(ground, Ground.ANNOTATED), colour=COLOURS["truth"], fill=0.35)
    return [*ground_layers(ground), objects]


def ground_layers(ground: UInt8[np.ndarray, "h w"]) -> list[Layer]:
    """Known background tinted, ignored ground greyed."""
    return [
        Layer(labels=_of(ground, Ground.IGNORED), colour=COLOURS["ignored"], fill=0.7, line_px=0),
        Layer(labels=_of(ground, Ground.BACKGROUND), colour=COLOURS["background"], fill=0.3, line_px=0),
    ]


def prediction_layers(
    mask: Shaped[np.ndarray, "h w"], truth: Shaped[np.ndarray, "h w"] | None
) -> list[Layer]:
    """Predicted components, and where the truth is known the matched, the false and the missed."""
    predicted = components(mask)
    if truth is None:
        return [Layer(labels=predicted, colour=COLOURS["found"], fill=0.15)]
    true = _labels(truth)
    matches = match_by_iou(true, predicted)
    matched = np.isin(predicted, matches.predicted_ids)
    return [
        Layer(labels=np.where(np.isin(true, matches.truth_ids), 0, true), colour=COLOURS["missed"]),
        Layer(labels=np.where(matched, 0, predicted), colour=COLOURS["false"], fill=0.15),
        Layer(labels=np.where(matched, predicted, 0), colour=COLOURS["found"], fill=0.15),
    ]


def _drawn(image: np.ndarray, layers: list[Layer]) -> np.ndarray:
    picture, maps = resized(image, [layer.labels for layer in layers], SIDE_PX)
    return overlay(picture, [dataclasses.replace(a, labels=b) for a, b in zip(layers, maps)])


def _labels(truth: np.ndarray) -> np.ndarray:
    return components(truth) if truth.dtype == bool else truth


def _of(ground: np.ndarray, kind: Ground) -> np.ndarray:
    return (ground == kind).astype(np.uint8)
