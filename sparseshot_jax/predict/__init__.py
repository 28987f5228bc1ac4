"""Image or slide -> probability tiles -> objects, streamed: no seam, none cut, none doubled."""

from sparseshot_jax.predict.objects import Prediction, predict, write_predictions
from sparseshot_jax.predict.overlay import overlay_png
from sparseshot_jax.predict.stream import Grid, probability_map

__all__ = [
    "Grid",
    "Prediction",
    "overlay_png",
    "predict",
    "probability_map",
    "write_predictions",
]
