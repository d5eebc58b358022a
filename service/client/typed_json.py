"""Dataclasses from JSON, by the types of their fields, with the standard library alone."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

Reader = Callable[[Any], Any]
# A whole number is a float in JSON; True is no number.
WORDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("a string", (str,)),
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    dict: ("an object", (dict,)),
    types.NoneType: ("null", (types.NoneType,)),
}


class Mismatch(ValueError):
    """Of another type; `place` is where, from the outside in."""

    def __init__(self, problem: str, *place: str) -> None:
        super().__init__(f"{'.'.join(place)}: {problem}" if place else problem)
        self.problem, self.place = problem, place

    def within(self, name: str) -> Mismatch:
        return Mismatch(self.problem, name, *self.place)


def typed(kind: Any, value: Any) -> Any:
    """`value`, as `json.loads` made it, as a `kind`: a dataclass, or what its fields may be: str,
    bool, int, float, tuple, dict, a union of these, Any. Unknown fields are ignored.

    Raises:
        Mismatch: the value is of another type, or a field without a default is missing.
    """
    return _reader(kind)(value)


@cache
def _reader(kind: Any) -> Reader:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if is_dataclass(kind):
        return _of_fields(kind)
    if origin in (Union, types.UnionType):
        return _of_union(arguments)
    if origin is tuple:
        return _of_items(arguments)
    if origin is dict:
        return _of_values(arguments[1])
    return _of_word(kind)


def _of_word(kind: Any) -> Reader:
    word, accepted = WORDS[kind]

    def read(value: Any) -> Any:
        if type(value) not in accepted:
            raise Mismatch(f"must be {word}")
        return float(value) if kind is float else value

    return read


def _of_fields(kind: Any) -> Reader:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind)}
    required = {
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    }

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Mismatch("must be an object")
        given = {}
        for name, reader in readers.items():
            if name in value:
                try:
                    given[name] = reader(value[name])
                except Mismatch as error:
                    raise error.within(name) from None
            elif name in required:
                raise Mismatch("is missing", name)
        return kind(**given)

    return read


def _of_union(kinds: tuple[Any, ...]) -> Reader:
    readers = [_reader(kind) for kind in kinds]

    def read(value: Any) -> Any:
        problems = []
        for reader in readers:
            try:
                return reader(value)
            except Mismatch as error:
                problems.append(error)
        # The one that got furthest says most.
        raise max(problems, key=lambda error: len(error.place))

    return read


def _of_items(kinds: tuple[Any, ...]) -> Reader:
    """Of `tuple[X, ...]`, or of one type for each item."""
    count = None if kinds[1:] == (...,) else len(kinds)
    readers = [_reader(kind) for kind in kinds if kind is not ...]

    def read(value: Any) -> Any:
        if not isinstance(value, list) or count not in (None, len(value)):
            raise Mismatch("must be a list" if count is None else f"must be a list of {count}")
        items = []
        for at, item in enumerate(value):
            try:
                items.append(readers[at if count else 0](item))
            except Mismatch as error:
                raise error.within(str(at)) from None
        return tuple(items)

    return read


def _of_values(kind: Any) -> Reader:
    reader = _reader(kind)

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Mismatch("must be an object")
        found = {}
        for name, item in value.items():
            try:
                found[name] = reader(item)
            except Mismatch as error:
                raise error.within(name) from None
        return found

    return read
