"""Frozen dataclasses to JSON values and back, strictly: a wrong value is refused, never bent."""

import dataclasses
import difflib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from sparseshot_jax.errors import InputError
from sparseshot_jax.fields import Registries


def make_converter(registries: Registries) -> cattrs.Converter:
    """A converter that writes what a registry offers with its name as "kind", and reads it by that."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    # cattrs alone takes bool("False") = True, int(2.5) = 2 and tuple("abc") = ("a", "b", "c").
    strict: dict[type, Callable[[Any], Any]] = {
        bool: lambda value: value if isinstance(value, bool) else None,
        str: lambda value: value if isinstance(value, str) else None,
        int: lambda value: int(value) if _is_number(value) and value == int(value) else None,
        float: lambda value: float(value) if _is_number(value) else None,
    }
    for wanted, read in strict.items():
        converter.register_structure_hook(wanted, _refusing(read))
    names = _refusing(lambda value: tuple(value) if _is_names(value) else None)
    converter.register_structure_hook_func(lambda wanted: wanted == tuple[str, ...], names)
    for field, registry in registries.items():
        _tag(converter, field, registry)
    return converter


def check_kind(field: str, kind: Any, registry: Mapping[str, type]) -> str:
    """The name, if the field's registry has it.

    Raises:
        InputError: it has not; with the nearest name.
    """
    if kind not in registry:
        near = difflib.get_close_matches(str(kind), registry, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(registry)}."
        raise InputError(f"no {field} of kind {kind!r}. {hint}")
    return kind


def reasons(error: Exception, values: Any) -> str:
    """What was wrong, and where, of an error that a converter raised over these values.

    Each field with the value that came, and what it may hold.
    """
    own = list(_own_errors(error))
    return " ".join(own) if own else "; ".join(_faults(error, values)) + "."


def _own_errors(error: BaseException) -> Iterator[str]:
    if isinstance(error, InputError):
        yield str(error)
    for part in getattr(error, "exceptions", ()):
        yield from _own_errors(part)


def _faults(error: BaseException, value: Any, place: str = "", wanted: Any = None) -> Iterator[str]:
    """A sentence for each field of a value that could not be read."""
    where = place or "the config"
    if isinstance(error, cattrs.ClassValidationError):
        noted, bare = error.group_exceptions()
        for one, note in noted:
            held = value.get(note.name) if isinstance(value, dict) else None
            yield from _faults(one, held, f"{place}.{note.name}".lstrip("."), note.type)
        for one in bare:
            yield from _faults(one, value, place)
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        names = [field.name for field in dataclasses.fields(error.cl)]
        yield f"{where} has no field {', '.join(sorted(error.extra_fields))}; it has {', '.join(names)}"
    elif isinstance(error, KeyError):
        yield f"{where} is missing"
    elif wanted is None:
        yield f"{where} must be a JSON object of fields; got {value!r}"
    else:
        yield f"{where} must be {allowed(wanted)}; got {value!r}"


_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "None"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts"}


def allowed(wanted: Any) -> str:
    """The values that a type stands for, in words.

    >>> allowed(float | None), allowed(tuple[float, float]), allowed(tuple[str, ...])
    ('a number or None', 'a list of 2 numbers', 'a list of texts')
    """
    if wanted in _NAMES:
        return _NAMES[wanted]
    parts = get_args(wanted)
    if get_origin(wanted) is Literal:
        return " or ".join(map(str, parts))
    if get_origin(wanted) is tuple:
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"a list of {count}{_MANY.get(parts[0], 'values')}"
    if get_origin(wanted) in (Union, types.UnionType) and not any(map(dataclasses.is_dataclass, parts)):
        return " or ".join(map(allowed, parts))
    return "a JSON object of fields"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _refusing(read: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        found = read(value)
        if found is None:
            raise ValueError(value)
        return found

    return structure


def _tag(converter: cattrs.Converter, field: str, registry: Mapping[str, type]) -> None:
    readers = {}
    for name, cls in registry.items():
        write = make_dict_unstructure_fn(cls, converter)
        converter.register_unstructure_hook(
            cls, lambda spec, write=write, name=name: {"kind": name, **write(spec)}
        )
        readers[name] = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)

    def structure(values: Any, _: Any) -> Any:
        kind = check_kind(field, dict(values).get("kind"), registry)
        return readers[kind]({k: v for k, v in values.items() if k != "kind"}, registry[kind])

    union = Union[tuple(registry.values())]  # noqa: UP007
    converter.register_structure_hook_func(lambda wanted: wanted == union, structure)
