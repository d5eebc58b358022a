from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service import errors
from service.http import request_log
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
}


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise KeyError("a bug of ours")


def refuses(error: errors.ServiceError) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(scope, error)(scope, receive, send)

    return app


async def waits(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


def observed(app: Any, metrics: Metrics | None = None) -> ObservabilityMiddleware:
    pipeline: Any = SimpleNamespace(draining=False)
    return ObservabilityMiddleware(app, metrics or Metrics(), pipeline)


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
