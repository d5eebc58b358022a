"""The client's dataclasses name the fields of the service's JSON."""

from __future__ import annotations

from dataclasses import fields

import pytest

from service.client import responses
from service.http import schemas


@pytest.mark.parametrize(
    "name",
    ["Prediction", "Timing", "Classification", "Embedding", "Region", "Explanation", "Input"],
)
def test_a_response_has_the_same_fields_on_both_sides(name: str) -> None:
    sent, read = getattr(schemas, name), getattr(responses, name)
    assert [field.name for field in fields(read)] == list(sent.model_fields)


@pytest.mark.parametrize(
    ("name", "schema"),
    [("ModelInfo", "ModelDetails"), ("Models", "Models"), ("Weights", "Weights")],
)
def test_a_client_reads_some_of_what_is_sent(name: str, schema: str) -> None:
    sent = getattr(schemas, schema).model_fields
    assert {field.name for field in fields(getattr(responses, name))} <= sent.keys()
