from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.config import loading, setting_types
from service.config.settings import Settings
from service.errors import ConfigError
from service.http.record import KEY, RequestRecord, record_of
from service.http.tracing import Tracing, TracingMiddleware
from service.inference.jobs import Job
from tests.support.collector import collecting

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "GET",
    "path": "/",
    "scheme": "http",
    "http_version": "1.1",
    "query_string": b"",
    "headers": [],
}


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(
    tracing: Tracing, times: int, app: Any = answers, middleware: Any = TracingMiddleware
) -> None:
    async def nothing(_: Message) -> None:
        pass

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def many() -> None:
        traced = middleware(app, tracing)
        for _ in range(times):
            await traced(dict(SCOPE), receive, nothing)

    asyncio.run(many())


def test_a_share_is_traced_and_the_end_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        tracing = Tracing(Settings(tracing=True, trace_ratio=0.5))
        ask(tracing, 400)
        tracing.close(30)
    # Less likely to fail than once in 10^15.
    assert 120 < len(collector.spans) < 280
    assert {span.resource["service.name"] for span in collector.spans} == {"ours"}


@pytest.mark.parametrize(("sampler", "spans"), [("always_off", 0), ("always_on", 10)])
def test_without_a_share_the_standard_variable_counts(
    sampler: str, spans: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    with collecting() as collector:
        tracing = Tracing(Settings(otlp_endpoint=collector.url))
        ask(tracing, 10)
        tracing.close(30)
    assert len(collector.spans) == spans


def test_a_unix_socket_is_an_address_without_a_port(caplog: pytest.LogCaptureFixture) -> None:
    class OfUnix(TracingMiddleware):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await super().__call__({**scope, "server": ("/run/x.sock", None)}, receive, send)

    with collecting() as collector:
        tracing = Tracing(Settings(otlp_endpoint=collector.url))
        ask(tracing, 1, middleware=OfUnix)
        tracing.close(30)
    (span,) = collector.spans
    assert span.attributes["server.address"] == "/run/x.sock"
    assert "server.port" not in span.attributes
    assert not caplog.records


def test_a_request_begins_when_its_bytes_arrived() -> None:
    class Waiting(TracingMiddleware):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope[KEY] = RequestRecord(time.perf_counter() - 2.0)
            await super().__call__(scope, receive, send)

    before = time.time()
    with collecting() as collector:
        tracing = Tracing(Settings(otlp_endpoint=collector.url))
        ask(tracing, 1, middleware=Waiting)
        tracing.close(30)
    (span,) = collector.spans
    assert span.milliseconds >= 2000
    assert before - 2.5 < span.start / 1e9 <= time.time() - 2.0


@pytest.mark.parametrize(("seconds", "names"), [(0.3, {"accept"}), (0.0, set[str]())])
def test_an_image_that_waited_for_the_event_loop_has_a_span_for_it(
    seconds: float, names: set[str]
) -> None:
    model: Any = SimpleNamespace(
        name="m", describe=lambda: {"engine": "e", "precision": "p", "device": "d"}
    )

    async def computes(scope: Scope, receive: Receive, send: Send) -> None:
        received = record_of(scope).started + 0.1
        job: Job[Any, Any] = Job(received=received)
        job.admitted = received + seconds
        job.decoding, job.decoded = job.admitted + 0.1, job.admitted + 0.2
        job.started, job.finished = job.admitted + 0.3, job.admitted + 0.4
        time.sleep(0.5 + seconds)  # noqa: ASYNC251
        tracing.follow(model, job, None)
        await answers(scope, receive, send)

    with collecting() as collector:
        tracing = Tracing(Settings(otlp_endpoint=collector.url))
        ask(tracing, 1, computes)
        tracing.close(30)
    spans = {span.name: span for span in collector.spans}
    root = spans.pop("GET")
    assert spans.keys() == {"decode", "queue", "inference"} | names
    assert all(root.start <= s.start <= s.end <= root.end for s in spans.values())
    if names:
        assert spans["accept"].milliseconds == pytest.approx(1000 * seconds, abs=0.01)
        assert spans["accept"].start == pytest.approx(root.start + 1e8, abs=10_000)
        assert spans["decode"].start == pytest.approx(spans["accept"].end + 1e8, abs=10_000)


def test_what_goes_wrong_unforeseen_is_in_the_span() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.failure = KeyError("a bug of ours")
        record.reason, record.detail = "internal_error", "see the exception"
        await send({"type": "http.response.start", "status": 500, "headers": []})

    with collecting() as collector:
        tracing = Tracing(Settings(otlp_endpoint=collector.url))
        ask(tracing, 1, fails)
        tracing.close(30)
    (span,) = collector.spans
    assert (span.status, span.events) == (2, ["exception"])
    assert span.attributes["error.type"] == "internal_error"


@pytest.mark.parametrize("status", [400, 503])
def test_a_dead_collector_is_a_line_a_minute_and_delays_no_end(
    status: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    with collecting(status) as collector:
        tracing = Tracing(Settings(otlp_endpoint=collector.url))
        ask(tracing, 1)
        until = time.monotonic() + 60
        while not caplog.records:
            assert time.monotonic() < until
            time.sleep(0.01)
        ask(tracing, 100)
        tracing.close(0.2)
    ours = [record for record in caplog.records if "exported in time" not in record.message]
    assert len(ours) == 1
    assert ours[0].name == "service.http.tracing"


def test_a_slow_collector_keeps_nobody_waiting(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    with collecting() as collector:
        collector.open.clear()
        tracing = Tracing(Settings(otlp_endpoint=collector.url))
        ask(tracing, 200)
        assert not collector.spans
        collector.open.set()
        tracing.close(30)
    assert 20 <= len(collector.spans) <= 40
    assert [record.message for record in caplog.records] == ["Queue full, dropping Span."]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("otlp_endpoint", "localhost:4318", "must be a URL such as http://localhost:4318"),
        ("trace_ratio", "1.5", "--trace-ratio: must be at most 1"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loading.load({name: value}, environ={})


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting_types, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"^--tracing: .* pip install 'opentelemetry-api>="):
        loading.load({"tracing": True}, environ={})


def test_an_impossible_variable_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(ConfigError, match=r"OTEL_.*queue"):
        Tracing(Settings(tracing=True))
