"""Frozen dataclasses to JSON values and back, strictly: a wrong value is refused, never bent."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Union

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from sparseshot_jax.errors import InputError

Registries = Mapping[str, Mapping[str, type]]  # field -> name -> dataclass


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


def reasons(error: Exception) -> str:
    """What was wrong, and where, of an error that a converter raised."""
    own = list(_own_errors(error))
    return " ".join(own) if own else "; ".join(cattrs.transform_error(error, "config")) + "."


def _own_errors(error: BaseException) -> Iterator[str]:
    if isinstance(error, InputError):
        yield str(error)
    for part in getattr(error, "exceptions", ()):
        yield from _own_errors(part)


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
