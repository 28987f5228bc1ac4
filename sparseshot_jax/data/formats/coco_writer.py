"""Annotations to COCO JSON, a piece at a time."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats import coco_rle
from sparseshot_jax.data.formats.coco_reader import IGNORED
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.whole_file import whole_file
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

CHUNK_OBJECTS = 4096  # objects that are turned into JSON at once


def write_coco(path: str | Path, annotations: Annotations, picture: Picture) -> None:
    """Write the objects of one image; see `write_coco_images`."""
    name = picture.name or Path(path).name.split(".")[0]
    write_coco_images(path, {name: (picture, annotations)})


def write_coco_images(path: str | Path, images: Mapping[str, tuple[Picture, Annotations]]) -> None:
    """Write the objects of several images, to 0.001 px; gzip where the path ends in `.gz`.

    Polygons of COCO hold no holes: an object with holes is written as a run-length mask, its outline then
    exact to whole pixels. The class "Ignore*" gets iscrowd = 1. Boxes get a bbox and no segmentation.

    Args:
        path: the file to write. Its folder must exist.
        images: by file name; a picture's size is needed where an object of it has holes.

    Raises:
        InputError: an object is a point, the size of a picture is missing, or the file cannot be written.
    """
    path = Path(path)
    for name, (_, annotations) in images.items():
        points = int(annotations.is_point.sum())
        if points:
            raise InputError(
                f"{path}: COCO has no points; {name} has {points} of them. Leave them out, or write GeoJSON, "
                "which holds everything, or a CSV of points."
            )
    names = dict.fromkeys(name for _, one in images.values() for name in one.class_names)
    categories = {name: number for number, name in enumerate(names, 1)}
    head = {
        "images": [
            {"id": number, "file_name": name, "width": picture.width or 0, "height": picture.height or 0}
            for number, (name, (picture, _)) in enumerate(images.items(), 1)
        ],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    with whole_file(path, packed=path.suffix == ".gz") as stream:
        stream.write(orjson.dumps(head)[:-1] + b',"annotations":[')
        count = 0
        for number, (name, (picture, annotations)) in enumerate(images.items(), 1):
            for rows in _chunks(path, name, picture, annotations, categories):
                for row in rows:
                    row.update(id=count + 1, image_id=number)
                    stream.write((b",\n" if count else b"\n") + orjson.dumps(row))
                    count += 1
        stream.write(b"\n]}\n")


def _chunks(
    path: Path, name: str, picture: Picture, annotations: Annotations, categories: dict[str, int]
) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(annotations), CHUNK_OBJECTS):
        part = annotations.take(np.arange(start, min(start + CHUNK_OBJECTS, len(annotations))))
        depth = part.nesting[0]
        holed = np.add.reduceat(depth % 2, part.object_offsets[:-1]) > 0
        if holed.any() and (picture.width is None or picture.height is None):
            raise InputError(
                f"{path}: {name} has objects with holes, which COCO holds as masks of the whole picture; the "
                "picture's width and height must be known. Give the image, or its size."
            )
        yield _rows(part, holed, picture, categories)


def _rows(
    part: Annotations, holed: np.ndarray, picture: Picture, categories: dict[str, int]
) -> list[dict[str, Any]]:
    numbers = part.xy_px.round(3).tolist()
    ring_at, object_at = part.ring_offsets.tolist(), part.object_offsets.tolist()
    bounds = part.bounds_px.round(3)  # first, else the far corner moves by both roundings
    boxes = np.concatenate([bounds[:, :2], bounds[:, 2:] - bounds[:, :2]], axis=1).round(3).tolist()
    areas = part.areas_px.round(3).tolist()
    rows = []
    for k, class_id in enumerate(part.class_ids.tolist()):
        name = part.class_names[class_id]
        row: dict[str, Any] = {"category_id": categories[name], "iscrowd": int(name == IGNORED)}
        row |= {"bbox": boxes[k], "area": areas[k]}
        if holed[k]:
            row["segmentation"] = _mask(part, k, picture)
        elif part.kind[k] == Kind.POLYGON:
            row["segmentation"] = [
                list(itertools.chain.from_iterable(numbers[ring_at[r] : ring_at[r + 1]]))
                for r in range(object_at[k], object_at[k + 1])
            ]
        rows.append(row)
    return rows


def _mask(part: Annotations, k: int, picture: Picture) -> dict[str, Any]:
    """The run-length mask of an object; only the pixels of its bounding box are drawn."""
    width, height = picture.width or 0, picture.height or 0
    x0, y0 = np.floor(part.bounds_px[k, :2]).clip(0, (width, height)).astype(int).tolist()
    x1, y1 = np.ceil(part.bounds_px[k, 2:]).clip(0, (width, height)).astype(int).tolist()
    counts = np.array([width * height])
    if x1 > x0 and y1 > y0:
        drawn = rasterize(part.take(np.array([k])), Window(x_px=x0, y_px=y0, width=x1 - x0, height=y1 - y0))
        counts = coco_rle.counts_of(drawn > 0, x0, y0, height, width)
    return {"size": [height, width], "counts": coco_rle.encode_counts(counts)}
