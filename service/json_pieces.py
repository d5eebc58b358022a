"""Long JSON in pieces: writing one holds the GIL, and stops the event loop even from a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

# Numbers or small objects that are written in a millisecond or less.
PIECE = 1000


def json_list(count: int, elements: Callable[[slice], Sequence[Any]]) -> bytes:
    """The JSON of a list of `count` elements, of which `elements` returns those of a slice."""
    pieces = (
        to_json(elements(slice(start, min(start + PIECE, count))))[1:-1]
        for start in range(0, count, PIECE)
    )
    return b"[" + b",".join(pieces) + b"]"


def json_object(fields: Mapping[str, Any], name: str, value: bytes) -> bytes:
    """The JSON of an object with these `fields`, and last one called `name` whose JSON is there."""
    return b"".join([to_json(fields)[:-1], b',"', name.encode(), b'":', value, b"}"])
