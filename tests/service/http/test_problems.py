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


@pytest.mark.parametrize(
    "path",
    ["/v1/models/a:predict", "/v1/models/{name}:predict", "/v1/models/a/versions/1:predict",
     "/v1/models/a/metadata", "/v1/models/a/versions/2"],
)  # fmt: skip
def test_to_clients_of_kserve_and_tensorflow_an_error_is_a_text(path: str) -> None:
    response = refusal_response(path, errors.QueueFull.of(3, 1.5))
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    assert response.headers["content-type"] == "application/json"
    assert list(json.loads(bytes(response.body))) == ["error"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.UnknownModel("no"), "ModelNotFoundException"),
        (errors.UndecodableImage("no"), "BadRequestException"),
        (errors.Unauthorized("no"), "InvalidKeyException"),
        (errors.QueueFull("no", 1.5), "ServiceUnavailableException"),
        (errors.NotReady("no", 1.5), "ServiceUnavailableException"),
    ],
)
@pytest.mark.parametrize("path", ["/predictions/a", "/predictions/{name}", "/models", "/ping"])
def test_to_clients_of_torchserve_an_error_has_its_types(
    path: str, error: errors.ServiceError, kind: str
) -> None:
    response = refusal_response(path, error)
    document = {"code": STATUSES[type(error)], "type": kind, "message": "no"}
    assert json.loads(bytes(response.body)) == document
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1/classify", "/v23", "/v1/models/a", "/v1/models", "/invocations", "/pinging"],
)
def test_elsewhere_a_refusal_is_a_problem(path: str) -> None:
    response = refusal_response(path, errors.QueueFull.of(3, 1.5))
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(bytes(response.body))["status"] == 429


def test_a_refusal_quotes_only_so_much() -> None:
    for path in ("/v1/classify", "/v2/models/a/infer"):
        response = refusal_response(path, errors.BadParameter("x" * 60_000))
        assert len(response.body) < MAX_DETAIL + 300
        assert b"xxx..." in response.body
