from __future__ import annotations

import pytest
from grpc import StatusCode

from service import errors
from service.grpc.statuses import CODES, MAX_BYTES, Unsupported, refusal_of
from service.http.problems import STATUSES


def test_every_refusal_has_a_code() -> None:
    assert set(CODES) == set(errors.REFUSALS) == set(STATUSES)


@pytest.mark.parametrize("kind", errors.REFUSALS)
def test_what_may_be_retried_says_when(kind: type[errors.ServiceError]) -> None:
    busy = issubclass(kind, errors.Busy)
    refusal = refusal_of(kind("why", 2.5) if issubclass(kind, errors.Busy) else kind("why"))
    assert refusal.text == "why"
    assert refusal.trailers == ((("retry-after", "3"),) if busy else ())
    retried = refusal.code in (StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE)
    assert retried == busy
    assert refusal.status == STATUSES[kind]


def test_long_texts_are_cut_between_characters() -> None:
    refusal = refusal_of(errors.InvalidInput("é" * MAX_BYTES))
    assert refusal.text == "é" * (MAX_BYTES // 2)


def test_what_is_not_supported_is_unimplemented() -> None:
    assert refusal_of(Unsupported("no")).code is StatusCode.UNIMPLEMENTED
