"""Predictions of any kind -> a GeoJSON that QuPath opens."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.geojson import GeoJsonWriter


@runtime_checkable
class Part(Protocol):
    """Some of a slide's objects: `Prediction`, `DetectionPart`."""

    @property
    def objects(self) -> Annotations:
        """In level-0 pixels."""
        ...

    @property
    def measurements(self) -> dict[str, np.ndarray]:
        """What the file says of each object beside its class, name -> [n]."""
        ...


def write_predictions(
    path: str | Path, predictions: Iterable[Part], *, object_type: str = "detection"
) -> int:
    """Stream predictions into a GeoJSON for QuPath; gives the number of objects.

    Each has its class and measurements: "probability" and "area um^2" of a segmentation; "score" and,
    where there are several classes, "p CLASS" of each of a detector. The file appears only when complete.

    Raises:
        InputError: the file cannot be written.
    """
    count = 0
    with GeoJsonWriter(path) as writer:
        for part in predictions:
            writer.write(part.objects, object_type=object_type, measurements=part.measurements)
            count += len(part.objects)
    return count
