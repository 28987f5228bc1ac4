"""One image of a detection report: what was marked, what was found, missed, and taken for an object."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from sparseshot_jax.metrics import match_points
from sparseshot_jax.report.overlay import COLOURS, Colour, overlay
from sparseshot_jax.report.panels import ground_layers
from sparseshot_jax.report.shapes import Shapes, draw_shapes

_SIDE_PX = 640  # longer side of a picture; outlines of small objects need room
_LINE_PX = 3.5

LEGEND = {  # colour -> what it says
    "truth": "marked or true object",
    "background": "known background",
    "ignored": "ignored",
    "found": "hit: predicted, centre within {distance_um:g} µm of a true object's, one to one",
    "false": "false alarm: predicted, matches none",
    "missed": "miss (dashed): true object that no prediction matches",
}
PLAIN_LEGEND = {"truth": "marked object", "found": "predicted"}  # where no truth is known


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """What a detector found in an image, down to a low score."""

    boxes_yxyx_px: Float[np.ndarray, "n 4"]
    score: Float[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DetectionPanel:
    """A row of pictures: image, given labels, one prediction for each method, truth."""

    title: str
    image: UInt8[np.ndarray, "h w 3"]
    mpp: float  # micrometres a pixel of the image
    predictions: Mapping[str, Predicted]  # column title -> objects
    threshold: float | Mapping[str, float] = 0.5  # objects with a score above it; one, or for each
    given: Float[np.ndarray, "g 4"] | None = None  # boxes of marked objects, None where nothing was given
    ground: UInt8[np.ndarray, "h w"] | None = None  # `Ground` codes under them, without the objects
    truth: Float[np.ndarray, "t 4"] | None = None  # boxes, yxyx pixels; None where unknown
    distance_um: float = 3.0  # a prediction hits up to this distance of centres
    circles: bool = False  # for objects of which only the centre is known

    def threshold_of(self, method: str) -> float:
        """The threshold at which a method's prediction is drawn."""
        return self.threshold[method] if isinstance(self.threshold, Mapping) else self.threshold

    def legend(self) -> list[tuple[Colour, str]]:
        """What each colour says."""
        used = PLAIN_LEGEND if self.truth is None else LEGEND
        return [(COLOURS[key], text.format(distance_um=self.distance_um)) for key, text in used.items()]

    def pictures(self) -> dict[str, UInt8[np.ndarray, "a b 3"]]:
        """Column title -> picture; the truth beside a single prediction, before several."""
        columns: dict[str, list[Shapes]] = {"Image": []}
        if self.given is not None:
            columns["Given labels"] = [Shapes(boxes_yxyx_px=self.given, colour=COLOURS["truth"])]
        predicted = {method: self.prediction_layers(method) for method in self.predictions}
        truth: dict[str, list[Shapes]] = {}
        if self.truth is not None:
            truth["Truth"] = [Shapes(boxes_yxyx_px=self.truth, colour=COLOURS["truth"])]
        columns |= predicted | truth if len(predicted) == 1 else truth | predicted
        return {title: self._drawn(title, layers) for title, layers in columns.items()}

    def prediction_layers(self, method: str) -> list[Shapes]:
        """Predicted objects, and where the truth is known the missed, the false alarms and the hits."""
        found = self.predictions[method]
        boxes = found.boxes_yxyx_px[found.score > self.threshold_of(method)]
        if self.truth is None:
            return [Shapes(boxes_yxyx_px=boxes, colour=COLOURS["found"])]
        pairs = match_points(_centres(self.truth), _centres(boxes), gate=self.distance_um / self.mpp)
        missed = np.ones(len(self.truth), bool)
        missed[pairs.truth] = False
        hit = np.zeros(len(boxes), bool)
        hit[pairs.predicted] = True
        return [
            Shapes(boxes_yxyx_px=self.truth[missed], colour=COLOURS["missed"], dashed=True),
            Shapes(boxes_yxyx_px=boxes[~hit], colour=COLOURS["false"]),
            Shapes(boxes_yxyx_px=boxes[hit], colour=COLOURS["found"]),
        ]

    def _drawn(self, title: str, layers: list[Shapes]) -> np.ndarray:
        image = self.image
        if title == "Given labels" and self.ground is not None:
            image = overlay(image, ground_layers(self.ground))
        return draw_shapes(image, layers, circles=self.circles, side_px=_SIDE_PX, line_px=_LINE_PX)


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
