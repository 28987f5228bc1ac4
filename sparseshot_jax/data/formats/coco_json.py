"""COCO JSON, as most tools for labelling write it: the reader and the writer under one name."""

from sparseshot_jax.data.formats.coco_reader import IGNORED, read_coco, read_coco_images
from sparseshot_jax.data.formats.coco_writer import write_coco, write_coco_images
from sparseshot_jax.data.formats.format import Format

__all__ = ["COCO", "IGNORED", "read_coco", "read_coco_images", "write_coco", "write_coco_images"]

COCO = Format(
    title="COCO JSON",
    suffixes=(".json", ".json.gz"),
    read=read_coco,
    write=write_coco,
    read_many=read_coco_images,
    write_many=write_coco_images,
    marks=(b'"annotations"', b'"images"', b'"categories"', b'"image_id"'),
    keeps=(
        "polygons with parts, boxes; class names; coordinates to 0.001 px; holes become masks, exact "
        "to whole pixels, and need the picture's size; points are refused"
    ),
    origin="top left corner of the top left pixel, in pixels",
)
