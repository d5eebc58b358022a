from __future__ import annotations

import json

import pytest

from service import errors
from service.http.problems import MAX_DETAIL, STATUSES, refusal_response


def test_every_refusal_has_a_status_and_is_counted_from_zero() -> None:
    assert set(STATUSES) == set(errors.REFUSALS)


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/models/a/infer"])
def test_under_v2_a_refusal_has_the_form_of_its_protocol(path: str) -> None:
    response = refusal_response(path, errors.QueueFull.of(3, 1.5))
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    assert response.headers["content-type"] == "application/json"
    assert list(json.loads(bytes(response.body))) == ["error"]


@pytest.mark.parametrize("path", ["", "/", "/v1/classify", "/v23"])
def test_elsewhere_a_refusal_is_a_problem(path: str) -> None:
    response = refusal_response(path, errors.QueueFull.of(3, 1.5))
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(bytes(response.body))["status"] == 429


def test_a_refusal_quotes_only_so_much() -> None:
    for path in ("/v1/classify", "/v2/models/a/infer"):
        response = refusal_response(path, errors.BadParameter("x" * 60_000))
        assert len(response.body) < MAX_DETAIL + 300
        assert b"xxx..." in response.body
