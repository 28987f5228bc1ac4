"""GeoJSON, as QuPath and others write it: the reader and the writer under one name."""

from pathlib import Path

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.formats.format import Format, Picture
from sparseshot_jax.data.formats.geojson_reader import read_geojson
from sparseshot_jax.data.formats.geojson_writer import GeoJsonWriter, write_geojson

__all__ = ["GEOJSON", "GeoJsonWriter", "read_geojson", "write_geojson"]


def _write(path: Path, annotations: Annotations, picture: Picture) -> None:
    """What people marked: annotations in QuPath. GeoJSON names no picture."""
    del picture
    write_geojson(path, annotations, object_type="annotation")


GEOJSON = Format(
    title="QuPath GeoJSON",
    suffixes=(".geojson", ".geojson.gz", ".json", ".json.gz"),
    read=read_geojson,
    write=_write,
    marks=(b'"Feature', b'"geometry"', b'"coordinates"'),
    keeps="polygons with holes and parts, points, boxes; class names; coordinates to 0.001 px",
    origin="top left corner of the top left pixel, level 0, in pixels",
)
