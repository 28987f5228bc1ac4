"""GeoJSON, as QuPath and others write it: the reader and the writer under one name."""

from sparseshot_jax.data.formats.geojson_reader import read_geojson
from sparseshot_jax.data.formats.geojson_writer import GeoJsonWriter, write_geojson

__all__ = ["GeoJsonWriter", "read_geojson", "write_geojson"]
