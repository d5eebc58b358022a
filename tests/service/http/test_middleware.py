from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from service import errors
from service.cli.trial import InstantModels
from service.config.settings import Settings
from service.http import request_log
from service.http.app import create_app
from service.http.middleware import ObservabilityMiddleware
from service.http.problems import STATUSES, refuse
from service.http.record import record_of
from service.metrics import Metrics

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/v1/a\nforged",
    "query_string": b"key=hidden",
    "headers": [(b"x-request-id", b"r-1"), (b"authorization", b"hidden")],
    "client": ("::1", 50_000),
}


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise KeyError("a bug of ours")


def refuses(error: errors.ServiceError) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(scope, error)(scope, receive, send)

    return app


async def waits(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def serves(scope: Scope, receive: Receive, send: Send) -> None:
    record_of(scope).model = "resnet20"
    await PlainTextResponse("done")(scope, receive, send)


def observed(
    app: Any, metrics: Metrics | None = None, *, access_log: bool = False
) -> ObservabilityMiddleware:
    pipeline: Any = SimpleNamespace(draining=False)
    return ObservabilityMiddleware(app, metrics or Metrics(), pipeline, access_log=access_log)


async def answer(observe: ObservabilityMiddleware, *, cancel: bool = False) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(dict(message))

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    asking = asyncio.ensure_future(observe(dict(SCOPE), receive, send))
    await asyncio.sleep(0)
    if cancel:
        asking.cancel()
    await asking
    return sent


def fields(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = record.fields  # type: ignore[attr-defined]
    return found


def test_a_bug_is_one_line_with_the_id_the_caller_got(caplog: pytest.LogCaptureFixture) -> None:
    start, body = asyncio.run(answer(observed(fails)))
    assert start["status"] == 500
    assert (b"x-request-id", b"r-1") in start["headers"]
    assert b"r-1" in body["body"]
    assert b"a bug of ours" not in body["body"]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info
    assert fields(record)["request_id"] == "r-1"
    assert fields(record)["path"] == "/v1/a%0Aforged"
    assert "hidden" not in caplog.text


@pytest.mark.parametrize("kind", errors.REFUSALS, ids=lambda kind: kind.reason)
def test_a_reason_is_at_most_ten_lines_a_second(
    kind: type[errors.ServiceError],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    text = "x" * 10_000
    error = kind(text, 1.0) if issubclass(kind, errors.Busy) else kind(text)
    metrics = Metrics()
    observe = observed(refuses(error), metrics)

    async def many() -> None:
        now = time.monotonic()
        monkeypatch.setattr("service.logs.time.monotonic", lambda: now)
        for _ in range(50):
            await answer(observe)
        monkeypatch.setattr("service.logs.time.monotonic", lambda: now + 1.5)
        await answer(observe)

    asyncio.run(many())
    *first, last = caplog.records
    assert len(first) == request_log.LINES_PER_SECOND
    assert not any("unlogged" in fields(record) for record in first)
    assert fields(last)["unlogged"] == 50 - request_log.LINES_PER_SECOND
    assert "(and 40 more since the last such line)" in last.getMessage()
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)
    assert f'{{model="",reason="{kind.reason}"}} 51.0' in metrics.render().decode()


def test_a_flood_of_one_bug_hides_no_other(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("service.logs.time.monotonic", lambda: now)

    async def alternates(scope: Scope, receive: Receive, send: Send) -> None:
        if next(count) < 50:
            await fails(scope, receive, send)
        raise KeyError("another bug")

    count, observe = itertools.count(), observed(alternates)

    async def many() -> None:
        for _ in range(51):
            await answer(observe)

    asyncio.run(many())
    assert len(caplog.records) == request_log.LINES_PER_SECOND + 1
    assert all(record.exc_info for record in caplog.records)
    assert "another bug" in caplog.text


@pytest.mark.parametrize(
    ("error", "short", "reason"),
    [
        (errors.DeadlineExceeded.passed(), False, "deadline_exceeded"),
        (errors.DeadlineExceeded.passed(), True, "client_deadline"),
        (errors.QueueFull.too_late(1.0, 0.1, 1.0), False, "queue_full"),
        (errors.QueueFull.too_late(1.0, 0.1, 1.0), True, "deadline_too_short"),
        (errors.QueueFull.of(1, 1.0), True, "queue_full"),
        (errors.EngineFailed("down", 1.0), True, "engine_failed"),
    ],
)
def test_what_follows_from_a_short_deadline_has_its_own_reason(
    error: errors.ServiceError, short: bool, reason: str
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record_of(scope).short_deadline = short
        await refuse(scope, error)(scope, receive, send)

    metrics = Metrics()
    start, body = asyncio.run(answer(observed(app, metrics)))
    assert start["status"] == STATUSES[type(error)]
    assert json.loads(body["body"])["type"] == f"urn:resnet-serve:problem:{reason}"
    assert f'{{model="",reason="{reason}"}} 1.0' in metrics.render().decode()


def test_the_end_of_patience_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    start, _ = asyncio.run(answer(observed(waits), cancel=True))
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    (record,) = caplog.records
    assert not record.exc_info
    assert fields(record)["reason"] == "not_ready"


def test_the_access_log_has_a_line_for_each_request_and_nothing_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    asyncio.run(answer(observed(serves)))
    assert not caplog.records, "without the setting, only at the level debug"
    asyncio.run(answer(observed(serves, access_log=True)))
    (record,) = caplog.records
    found = fields(record)
    assert found.pop("duration_ms") >= 0
    assert found == {
        "message": "completed",
        "request_id": "r-1",
        "method": "POST",
        "path": "/v1/a%0Aforged",
        "status": 200,
        "model": "resnet20",
        "client": "[::1]:50000",
    }
    line = record.getMessage()
    assert line.startswith("r-1 POST /v1/a%0Aforged 200 in ")
    assert line.endswith(" ms by resnet20 for [::1]:50000")
    assert "hidden" not in f"{line}{found}"


def test_only_the_access_log_has_the_addresses_of_clients(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    asyncio.run(answer(observed(serves)))
    (record,) = [record for record in caplog.records if record.name == request_log.__name__]
    assert "client" not in fields(record)
    assert "50000" not in record.getMessage()


KEY = "k" * 32
FLOODS = {
    "not_found": ("POST", "/nowhere"),
    "method_not_allowed": ("POST", "/"),
    "unauthorized": ("POST", "/v1/classify?key=wrong"),
    "unsupported_encoding": ("POST", "/v1/classify"),
}


@pytest.mark.parametrize("access_log", [False, True])
@pytest.mark.parametrize("reason", FLOODS)
def test_a_flood_of_wrong_requests_does_not_fill_the_disk(
    reason: str,
    access_log: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    now = time.monotonic()
    monkeypatch.setattr("service.logs.time.monotonic", lambda: now)
    settings = Settings.model_validate({"api_keys": [KEY], "access_log": access_log})
    app = create_app(settings, Metrics(), InstantModels())
    method, path = FLOODS[reason]
    headers = {"content-encoding": "compress"}
    if reason != "unauthorized":
        headers["x-api-key"] = KEY

    async def many() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            for _ in range(30):
                assert (await client.request(method, path, headers=headers)).status_code >= 400

    asyncio.run(many())
    lines = [record for record in caplog.records if record.name == request_log.__name__]
    assert len(lines) == request_log.LINES_PER_SECOND
    assert {fields(line)["reason"] for line in lines} == {reason}
