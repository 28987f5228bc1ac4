"""Predictions of any kind -> a GeoJSON that QuPath opens."""

from collections.abc import Iterable

from etils import epath

from sparseshot_jax.data import storage
from sparseshot_jax.data.formats.geojson import GeoJsonWriter
from sparseshot_jax.predict.bands import Part


def write_predictions(
    path: epath.PathLike, predictions: Iterable[Part], *, object_type: str = "detection"
) -> int:
    """Stream predictions into a GeoJSON for QuPath; gives the number of objects.

    Each has its class and measurements: "probability" and "area um^2" of a segmentation; "score" and,
    where there are several classes, "p CLASS" of each of a detector. The file appears only when complete.

    Raises:
        InputError: the file cannot be written.
    """
    count = 0
    with storage.writable(path) as place, GeoJsonWriter(place) as writer:
        for part in predictions:
            writer.write(part.objects, object_type=object_type, measurements=part.measurements)
            count += len(part.objects)
    return count
