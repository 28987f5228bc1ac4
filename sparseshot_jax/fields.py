"""The fields of a config by their dotted names: which there are, and what to say of one that is not there.

A config is here what `config.to_json` makes of it: dictionaries of values, each kind with its name as "kind".
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Registries = Mapping[str, Mapping[str, type]]  # field -> name -> dataclass


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every field.

    >>> list(flat({"seed": 0, "train": {"mesh": {"data": 1}}}))
    [('seed', 0), ('train.mesh.data', 1)]
    """
    if isinstance(values, dict):
        for key, value in values.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, values


def listed(values: Mapping[str, Any]) -> list[str]:
    """The fields of each part of a config in a line, by their names within it.

    >>> listed({"name": "x", "loss": {"kind": "huber", "delta": 0.5}, "train": {"mesh": {"data": 1}}})
    ['loss (huber): delta', 'train: mesh.data']
    """
    lines = []
    for part, held in values.items():
        if isinstance(held, dict):
            kind = f" ({held['kind']})" if "kind" in held else ""
            names = [name for name, _ in flat(held) if name != "kind"]
            lines.append(f"{part}{kind}: {', '.join(names)}")
    return lines


def missing(values: Mapping[str, Any], field: str, registries: Registries) -> str:
    """What to say of a field that the config has not, or that holds fields and no value.

    Returns:
        The nearest name, the fields that are there, and the kinds that have the one asked for.
    """
    parts = dict(_parts(values))
    part, _, last = field.rpartition(".")
    if field and field in parts:
        held = ", ".join(f"{field}.{name}" for name in parts[field])
        return f"no field {field}: it holds {held}. Give one of these."
    if part not in parts:
        near = _nearest(part, list(parts))
        # Right but for the part's name, or wrong in both.
        if near and last in parts[near]:
            return f"no field {field}. Did you mean {near}.{last}?"
        hint = f" Did you mean {near}? " if near else " "
        return f"no field {field}: there is no {part}.{hint}{_holds(values, near, parts)}."
    if last == "kind" and part in registries:
        return f"no field {field}: another kind is given by {part}=NAME, {', '.join(registries[part])}."
    dotted = f"{part}.".lstrip(".")
    holders = [kind for kind, names in _kinds(registries, part).items() if last in names]
    if holders:
        return f"no field {field}: {_holds(values, part, parts)}; {_switch(part, holders)}"
    if near := _nearest(last, parts[part]):
        return f"no field {field}. Did you mean {dotted}{near}? {_holds(values, part, parts)}."
    others = {name: None for names in _kinds(registries, part).values() for name in names}
    if near := _nearest(last, list(others)):
        holders = [kind for kind, names in _kinds(registries, part).items() if near in names]
        return (
            f"no field {field}: {_holds(values, part, parts)}. Did you mean {dotted}{near}? "
            f"{_switch(part, holders)}"
        )
    places = [f"{name}.{last}" for name, held in parts.items() if name and last in held]
    hint = f" Did you mean {' or '.join(places)}?" if places else ""
    return f"no field {field}: {_holds(values, part, parts)}.{hint}"


def _parts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Dotted name of each part, "" of the whole, and the names in it."""
    yield prefix, [name for name in values if name != "kind"]
    for name, held in values.items():
        if isinstance(held, dict):
            yield from _parts(held, f"{prefix}.{name}".lstrip("."))


def _holds(values: Mapping[str, Any], part: str, parts: Mapping[str, Sequence[str]]) -> str:
    """Which fields a part has, in words."""
    held = values
    for name in filter(None, part.split(".")):
        held = held[name]
    names = ", ".join(parts[part])
    if "kind" in held:
        return f"{part} is {held['kind']}, which has {names}"
    return f"{part or 'CONFIG'} has {names}"


def _kinds(registries: Registries, part: str) -> dict[str, list[str]]:
    """Kind -> its fields, where the part is of several kinds."""
    return {
        kind: [field.name for field in dataclasses.fields(spec)]
        for kind, spec in registries.get(part, {}).items()
    }


def _switch(part: str, holders: Sequence[str]) -> str:
    has = "has it" if len(holders) == 1 else "have it"
    return f"{', '.join(holders)} {has}: add --set {part}={holders[0]}."


def _nearest(name: str, names: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")
