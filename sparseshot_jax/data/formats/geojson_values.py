"""The single values of a GeoJSON feature, checked one by one."""

from typing import Any

import numpy as np

BOX = "box"  # properties.metadata.kind of an object whose extent is known and not its outline
ELLIPSE_VERTICES = 96


class Fault(Exception):
    """What is wrong with one feature; the reader adds file, number and remedy."""


def class_name(properties: Any) -> str:
    """The class that a feature's properties name, "" where there is none.

    >>> class_name({"classification": {"name": "Tumor: Positive", "color": [200, 0, 0]}})
    'Tumor: Positive'
    >>> class_name({"classification": {"names": ["Tumor", "Positive"]}})  # QuPath 0.4 and later
    'Tumor: Positive'
    >>> class_name({"classification": {"name": "Positive", "parentClass": {"name": "Tumor"}}})  # before
    'Tumor: Positive'
    """
    if properties is None:
        return ""
    if type(properties) is not dict:
        raise Fault(f"properties must be a mapping; it is {shown(properties)}")
    given = properties.get("classification")
    if type(given) is not dict:
        return _text(given)
    names = given.get("names")
    if "name" not in given and type(names) is list:
        return ": ".join(map(_text, names))
    name = _text(given.get("name"))
    while type(given := given.get("parentClass")) is dict:
        name = f"{_text(given.get('name'))}: {name}"
    return name


def _text(name: Any) -> str:
    if name is None:
        return ""
    if type(name) is not str:
        raise Fault(f"the name of its classification must be text; it is {shown(name)}")
    return name


def child_features(properties: Any) -> list[Any]:
    """The features inside a feature, where QuPath exported the hierarchy of objects."""
    if type(properties) is not dict:
        return []
    children = properties.get("childObjects") or properties.get("children")
    if type(children) is not list:
        return []
    return [child for child in children if type(child) is dict and "geometry" in child]


def is_box(properties: Any, coordinates: list[Any]) -> bool:
    """True for a rectangle of which our writer noted that it is the extent of an object, no outline."""
    metadata = properties.get("metadata") if type(properties) is dict else None
    if type(metadata) is not dict or metadata.get("kind") != BOX or len(coordinates) != 1:
        return False
    # It may have been edited since: a box is closed, and its edges are upright and level in turn.
    try:
        (x0, y0), (x1, y1), (x2, y2), (x3, y3), last = map(vertex_xy, coordinates[0])
    except (Fault, TypeError, ValueError):
        return False
    upright_first = x0 == x1 and y1 == y2 and x2 == x3 and y3 == y0
    level_first = y0 == y1 and x1 == x2 and y2 == y3 and x3 == x0
    return last == (x0, y0) and (upright_first or level_first) and x0 != x2 and y0 != y2


def ellipse(coordinates: list[Any]) -> list[Any]:
    """The ellipse that QuPath marks with `isEllipse`: it fills the bounding box of the polygon.

    The polygon beside the mark is a coarse stand-in for programs that know no ellipses.

    Returns:
        One closed ring of ELLIPSE_VERTICES vertices with the area of the ellipse.
    """
    try:
        xy = np.array([vertex_xy(vertex) for vertex in coordinates[0]], np.float64)
    except (Fault, TypeError):
        return coordinates  # it is broken, and will be refused with its place
    if not len(xy) or not np.isfinite(xy).all():
        return coordinates
    low, high = xy.min(axis=0), xy.max(axis=0)
    turn = 2 * np.pi / ELLIPSE_VERTICES
    reach = np.sqrt(turn / np.sin(turn))  # else the polygon has less area than the ellipse
    angle = np.arange(ELLIPSE_VERTICES) * turn
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ring = ((low + high) / 2 + circle * (reach * (high - low) / 2)).tolist()
    return [[*ring, ring[0]]]


def vertex_xy(vertex: Any) -> tuple[float, float]:
    """x and y of one vertex; NaN where it is null."""
    if type(vertex) is not list or len(vertex) < 2:
        raise Fault(f"must be [x, y]; it is {shown(vertex)}")
    return _number(vertex[0]), _number(vertex[1])


def _number(value: Any) -> float:
    if value is None:  # how JavaScript writes NaN
        return np.nan
    if type(value) not in (int, float):
        raise Fault(f"must hold numbers; it holds {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return np.inf


def shown(value: Any) -> str:
    """A value cut to a length fit for a message."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
