from __future__ import annotations

import json
import logging

import pytest

from service.config.settings import Settings
from service.errors import MalformedRequest, QueueFull, TooManyConnections
from service.http.limits import ConnectionLimits
from service.metrics import REASONS, Metrics


def limits(**settings: int) -> ConnectionLimits:
    return ConnectionLimits(Settings.model_validate(settings), Metrics())


def test_each_process_has_its_part_of_the_connections_rounded_up() -> None:
    assert limits(max_connections=10).max_connections == 10
    assert limits(max_connections=10, workers=3).max_connections == 4


def test_those_over_the_limit_are_told_so_but_not_without_end() -> None:
    shared = limits(max_connections=3)
    assert [shared.admits(count) for count in (0, 3, 5)] == [True] * 3
    refused = shared._metrics.refusals.labels("", TooManyConnections.reason)
    assert refused._value.get() == 0
    assert not shared.admits(6)
    assert refused._value.get() == 1


def test_a_refusal_is_a_whole_response_that_closes() -> None:
    shared = limits()
    head, _, body = shared.refuse(MalformedRequest("nonsense"), "/v1/classify").partition(
        b"\r\n\r\n"
    )
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 400 Bad Request"
    headers = dict(line.split(b": ", 1) for line in lines[1:])
    assert headers[b"connection"] == b"close"
    assert headers[b"content-length"] == b"%d" % len(body)
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert len(headers[b"x-request-id"]) == 32
    assert json.loads(body)["detail"] == "nonsense"
    assert shared._metrics.requests.labels("other", 400)._value.get() == 1


def test_a_flood_of_one_reason_is_a_line_and_hides_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    shared = limits()
    for _ in range(100):
        shared.refused(QueueFull("full", 1.0), "first", b"PUT", "/v1/classify", 429, b"an-id")
    shared.refused(QueueFull.too_late(1, 1, 1), "first", b"POST", "/v1/classify", 429, b"an-id")
    shared.count(MalformedRequest("nonsense"))
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2
    assert lines[0] == "an-id PUT /v1/classify 429 queue_full: full"
    assert "malformed_request: nonsense" in lines[1]
    assert shared._metrics.refusals.labels("first", "queue_full")._value.get() == 101
    assert shared._metrics.requests.labels("/v1/classify", 429)._value.get() == 101


def test_every_reason_begins_at_zero() -> None:
    shared = limits()
    text = shared._metrics.render().decode()
    for reason in REASONS:
        assert f'resnet_serve_refusals_total{{model="",reason="{reason}"}} 0.0' in text


def test_a_refusal_at_the_connection_has_its_facts_as_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    shared = limits()
    shared.refused(QueueFull.of(7, 1.0), "resnet20", b"POST", "/v1/classify", 429, b"r-1")
    shared.count(MalformedRequest("nonsense"))
    by_gate, of_connection = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert by_gate == {
        "message": str(QueueFull.of(7, 1.0)),
        "request_id": "r-1",
        "method": "POST",
        "path": "/v1/classify",
        "status": 429,
        "reason": "queue_full",
        "model": "resnet20",
    }
    assert of_connection == {
        "message": "nonsense",
        "status": 400,
        "reason": MalformedRequest.reason,
    }
