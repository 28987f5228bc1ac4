"""Image or slide -> tiles -> objects, streamed: no seam, none cut, none doubled."""

from sparseshot_jax.predict.bands import WHOLE, Band, Work
from sparseshot_jax.predict.candidates import Candidates, Cells
from sparseshot_jax.predict.detections import DetectionPart, predict_detections
from sparseshot_jax.predict.instances import predict_instances
from sparseshot_jax.predict.merge import Suppression
from sparseshot_jax.predict.objects import Prediction, predict
from sparseshot_jax.predict.overlay import overlay_png
from sparseshot_jax.predict.shared import write_shared
from sparseshot_jax.predict.spread import Spread
from sparseshot_jax.predict.stream import Grid, probability_map
from sparseshot_jax.predict.watershed import SplitSpec
from sparseshot_jax.predict.write import write_predictions

__all__ = [
    "WHOLE",
    "Band",
    "Candidates",
    "Cells",
    "DetectionPart",
    "Grid",
    "Prediction",
    "SplitSpec",
    "Spread",
    "Suppression",
    "Work",
    "overlay_png",
    "predict",
    "predict_detections",
    "predict_instances",
    "probability_map",
    "write_predictions",
    "write_shared",
]
