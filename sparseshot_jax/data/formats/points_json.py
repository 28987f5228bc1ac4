"""Points in a plain JSON file: {class: [[x, y], ...]}."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.format import Format, Picture
from sparseshot_jax.data.formats.json_stream import MAX_BYTES, load_json, read_document
from sparseshot_jax.data.formats.polygon_repair import MAX_COORDINATE
from sparseshot_jax.data.formats.whole_file import whole_file
from sparseshot_jax.errors import InputError


def read_points_json(path: str | Path, key: str | None = None, *, max_bytes: int = MAX_BYTES) -> Annotations:
    """Read points whose coordinates count pixel centres from 0, as image software without sub-pixels does.

    Pixel centre (0, 0) of the file is level-0 point (0.5, 0.5).

    Args:
        path: the file; each of its keys names a class.
        key: read this class alone; None reads all of them.
        max_bytes: limit on the file's size, unpacked.

    Raises:
        InputError: the file cannot be read, lacks the key, or holds something that is no point.
    """
    path = Path(path)
    document = load_json(read_document(path, max_bytes), path)
    if not isinstance(document, dict):
        raise InputError(
            f"{path}: must map class names to points, {{name: [[x, y], ...]}}; it holds a "
            f"{type(document).__name__}."
        )
    if key is not None and key not in document:
        raise InputError(f"{path}: has no key {key!r}; its keys are {sorted(document)[:12]}.")
    chosen = document if key is None else {key: document[key]}
    points = {name: _points(path, name, values) for name, values in chosen.items()}
    ids = np.repeat(np.arange(len(points), dtype=np.int32), [len(p) for p in points.values()])
    xy = np.concatenate([*points.values(), np.zeros((0, 2))]) + 0.5
    return Annotations(
        xy_px=xy,
        ring_offsets=np.arange(len(xy) + 1),
        object_offsets=np.arange(len(xy) + 1),
        class_ids=ids,
        class_names=tuple(points),
        kind=np.full(len(xy), Kind.POINT, np.uint8),
        source=str(path),
        notes=() if len(xy) else ("The file holds no points.",),
    )


def _points(path: Path, name: str, values: Any) -> np.ndarray:
    if not isinstance(values, list):
        raise InputError(f"{path}: {name!r} must be a list of [x, y]; it is a {type(values).__name__}.")
    for k, point in enumerate(values):
        numbers = isinstance(point, list) and [type(v) in (int, float) for v in point] == [True, True]
        if not numbers or not all(abs(v) <= MAX_COORDINATE for v in point):
            raise InputError(
                f"{path}: point {k} of {name!r} (the first is 0) must be [x, y], two finite numbers; "
                f"it is {str(point)[:60]}. Correct or delete it."
            )
    return np.array(values, np.float64).reshape(-1, 2)


def write_points_json(path: str | Path, annotations: Annotations, picture: Picture) -> None:
    """Write the objects class by class, to 0.001 px; of a polygon or box its centroid.

    Coordinates count pixel centres from 0, as `read_points_json` takes them; gzip where the path ends in
    `.gz`.
    """
    del picture
    path = Path(path)
    xy = (annotations.centroids_px - 0.5).round(3)
    points = {name: xy[annotations.class_ids == k].tolist() for k, name in enumerate(annotations.class_names)}
    with whole_file(path, packed=path.suffix == ".gz") as stream:
        stream.write(orjson.dumps(points) + b"\n")


POINTS_JSON = Format(
    title="points JSON",
    suffixes=(".points.json", ".json", ".json.gz"),
    read=read_points_json,
    write=write_points_json,
    keeps=(
        "points, sorted by class; class names; coordinates to 0.001 px; polygons and boxes become their "
        "centroids"
    ),
    origin="centre of the top left pixel, in pixels: 0.5 is added when read",
)
