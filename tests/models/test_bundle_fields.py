"""A field of the wrong type is refused by its name, before anything depends on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.bundle import BundleError
from tests.support import tiny

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": {"size": 32}}, "input must be an InputSpec, not {'size': 32}"),
    ({"input": None}, "input must be an InputSpec, not None"),
    ({"provenance": "me"}, "provenance must be a dict, not 'me'"),
    ({"metrics": [0.9]}, "metrics must be a dict, not [0.9]"),
    ({"calibration": None}, "calibration must be a dict, not None"),
    ({"temperature": True}, "temperature must be a number from 1e-06 to 1e+06, not True"),
]


@pytest.mark.parametrize(("field", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_field_of_another_type_is_named(field: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError) as caught:
        tiny.made_bundle(**field)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "unordered",
    [
        set("abcdefghij"),
        dict.fromkeys("abcdefghij", 0),
        dict.fromkeys("abcdefghij").keys(),
        (letter for letter in "abcdefghij"),
        None,
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_labels_without_an_order_of_the_classes_are_refused(unordered: Any) -> None:
    with pytest.raises(BundleError, match=r"\Alabels must be a list of texts, in the order of the"):
        tiny.made_bundle(labels=unordered)


def test_texts_and_numbers_of_numpy_become_pythons() -> None:
    made = tiny.made_bundle(labels=[*np.array([*"abcdefghij"])], temperature=np.float32(1.5))
    assert {type(label) for label in made.labels} == {str}
    assert (made.temperature, type(made.temperature)) == (1.5, float)
