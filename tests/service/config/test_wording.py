"""pydantic's errors in our words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from service.config.wording import in_words


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, "x", "must be a whole number"),
        (bool, "maybe", "must be true or false"),
        (str, 5, "must be text"),
        (Annotated[float, Field(gt=0)], 0, "must be above 0"),
        (Annotated[float, Field(ge=0.5)], 0, "must be at least 0.5"),
        (Annotated[int, Field(le=9)], 10, "must be at most 9"),
        (Annotated[float, Field(lt=1)], 1, "must be below 1"),
        (Annotated[str, Field(max_length=2)], "abc", "must have at most 2 characters"),
        (Annotated[list[int], Field(max_length=1)], [1, 2], "must have at most 1 item"),
        (Literal["npy", "f32"], "csv", "must be 'npy' or 'f32'"),
        (Annotated[list[int], Field(min_length=1)], [], "must have at least 1 item"),
        (set[int], 3, "must be a list"),
        (bytes, 3, "has a value that cannot be used"),
    ],
)
def test_a_wrong_value_is_told_what_it_must_be(kind: Any, value: Any, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    assert in_words(caught.value.errors()[0]) == words
