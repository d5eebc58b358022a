from __future__ import annotations

import asyncio
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service import errors
from service.http import middleware
from service.http.middleware import ObservabilityMiddleware
from service.http.problems import refuse
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


@pytest.mark.parametrize("reason", sorted(middleware.LOAD_REASONS))
def test_what_load_brings_about_is_a_line_a_second(
    reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    kind = next(each for each in errors.REFUSALS if each.reason == reason)
    error = kind("busy", 1.0) if issubclass(kind, errors.Busy) else kind("busy")
    metrics = Metrics()
    observe = observed(refuses(error), metrics)

    async def many() -> None:
        for _ in range(5):
            await answer(observe)
        now = time.monotonic()
        monkeypatch.setattr("service.http.middleware.time.monotonic", lambda: now + 1.5)
        await answer(observe)

    asyncio.run(many())
    first, second = caplog.records
    assert "unlogged" not in fields(first)
    assert fields(second)["unlogged"] == 4
    assert "(and 4 more since the last such line)" in second.getMessage()
    assert f'{{model="",reason="{reason}"}} 6.0' in metrics.render().decode()


def test_other_refusals_are_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    observe = observed(refuses(errors.UndecodableImage("x" * 10_000)))

    async def many() -> None:
        for _ in range(3):
            await answer(observe)

    asyncio.run(many())
    assert len(caplog.records) == 3
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)


def test_the_end_of_patience_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    start, _ = asyncio.run(answer(observed(waits), cancel=True))
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    (record,) = caplog.records
    assert not record.exc_info
    assert fields(record)["reason"] == "not_ready"
