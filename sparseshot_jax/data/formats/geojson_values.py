"""The single values of a GeoJSON feature, checked one by one."""

from typing import Any

import numpy as np


class Fault(Exception):
    """What is wrong with one feature; the reader adds file, number and remedy."""


def class_name(properties: Any) -> str:
    """The class that a feature's properties name, "" where there is none.

    >>> class_name({"classification": {"name": "Tumor: Positive", "color": [200, 0, 0]}})
    'Tumor: Positive'
    """
    if properties is None:
        return ""
    if type(properties) is not dict:
        raise Fault(f"properties must be a mapping; it is {shown(properties)}")
    given = properties.get("classification")
    if type(given) is dict:
        # QuPath 0.6 writes a derived class as names ["Tumor", "Positive"], shown as "Tumor: Positive".
        names = given.get("names")
        if "name" not in given and type(names) is list and all(type(n) is str for n in names):
            return ": ".join(names)
        given = given.get("name")
    if given is None:
        return ""
    if type(given) is not str:
        raise Fault(f"the name of its classification must be text; it is {shown(given)}")
    return given


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
