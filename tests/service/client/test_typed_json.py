from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from service.client.typed_json import Mismatch, typed


@dataclass(frozen=True)
class Inner:
    share: float


@dataclass(frozen=True)
class Outer:
    name: str
    sides: int | tuple[int, int]
    rows: tuple[tuple[float, ...], ...]
    inner: Inner
    note: str | None = None
    by_name: dict[str, Any] = field(default_factory=dict)


GOOD: dict[str, Any] = {"name": "a", "sides": 2, "rows": [[1, 2.5], []], "inner": {"share": 1}}


def test_fields_are_read_by_their_types() -> None:
    read = typed(Outer, GOOD | {"unknown": 1})
    assert read == Outer("a", 2, ((1.0, 2.5), ()), Inner(1.0))
    assert isinstance(read.inner.share, float)
    assert typed(Outer, GOOD | {"sides": [2, 3], "note": None}).sides == (2, 3)
    assert typed(Outer, GOOD | {"by_name": {"x": [1]}}).by_name == {"x": [1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 1}, "name: must be a string"),
        ({"sides": True}, "sides: must be a whole number"),
        ({"sides": [1, "b"]}, "sides.1: must be a whole number"),
        ({"sides": [1]}, "sides: must be"),
        ({"rows": [[1], [2, "3"]]}, "rows.1.1: must be a number"),
        ({"rows": {}}, "rows: must be a list"),
        ({"inner": {}}, "inner.share: is missing"),
        ({"inner": None}, "inner: must be an object"),
        ({"note": 3}, "note: must be"),
        ({"by_name": []}, "by_name: must be an object"),
    ],
)
def test_another_type_is_named_with_its_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Mismatch, match=rf"\A{words}"):
        typed(Outer, GOOD | change)
    with pytest.raises(Mismatch, match="must be an object"):
        typed(Outer, [])
