"""Refusals travel between processes."""

from __future__ import annotations

import json

import pytest

from service.errors import (
    BadParameter,
    NotReady,
    QueueFull,
    ServiceError,
    UnknownModel,
    error_of,
    refusal_of,
)


@pytest.mark.parametrize(
    "error", [QueueFull("full", 3.0), BadParameter("k"), UnknownModel("x"), NotReady("soon", 1.0)]
)
def test_a_refusal_arrives_as_it_was_raised(error: ServiceError) -> None:
    found = error_of(json.loads(json.dumps(refusal_of(error))))
    assert (type(found), str(found)) == (type(error), str(error))
    assert getattr(found, "retry_after", None) == getattr(error, "retry_after", None)
