"""Long JSON is the same in pieces as it is at once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.json_pieces import PIECE, json_list, json_object


@pytest.mark.parametrize("count", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_a_list_is_the_same_in_pieces(count: int) -> None:
    texts = [f'{number}: "{chr(number % 5000 + 32)}' for number in range(count)]
    assert json.loads(json_list(count, texts.__getitem__)) == texts
    numbers = np.random.default_rng(1).random(count, np.float32)
    written = json.loads(json_list(count, lambda part: numbers[part].tolist()))
    assert written == numbers.tolist()


def test_a_field_is_added_to_an_object() -> None:
    assert json.loads(json_object({"a": 1, "b": "}"}, "c", b"[2,3]")) == {
        "a": 1,
        "b": "}",
        "c": [2, 3],
    }
