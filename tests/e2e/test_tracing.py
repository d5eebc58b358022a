"""Traces as a collector receives them from the real service."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Service, client, encoded, started
from tests.support.collector import Collector, Span, collecting

SERVER, ERROR = 2, 2  # as the protocol numbers them
PHASES = {"decode", "queue", "inference"}
SOON: dict[str, Any] = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
PARENT = "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(1, id="one process", marks=pytest.mark.slow),
        pytest.param(2, id="several"),
    ],
)
def workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def traced(workers: int, collector: Collector) -> Iterator[Service]:
    environment: dict[str, Any] = {
        "RESNET_SERVE_OTLP_ENDPOINT": collector.url,
        "RESNET_SERVE_LOG_FORMAT": "json",
        "RESNET_SERVE_LOG_LEVEL": "debug",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    with started("--workers", str(workers), ready=True, **environment, **SOON) as running:
        yield running


def ask(service: Service, path: str = "/v1/classify", **more: Any) -> tuple[str, httpx.Response]:
    """The trace that a request is part of, and its answer."""
    trace = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace}-{PARENT}-01", **more.pop("headers", {})}
    method = more.pop("method", "POST")
    answer = client.request(method, f"{service.url}{path}", headers=headers, **more)
    return trace, answer


def root_and_phases(spans: list[Span]) -> tuple[Span, dict[str, Span]]:
    (root,) = [span for span in spans if span.kind == SERVER]
    phases = {span.name: span for span in spans if span is not root}
    assert all(span.parent == root.span_id for span in phases.values())
    assert all(root.start <= s.start <= s.end <= root.end for s in phases.values())
    return root, phases


def test_a_request_is_a_span_and_each_phase_is_one_in_it(
    traced: Service, collector: Collector
) -> None:
    headers = {"tracestate": "congo=t61rcWkgMzE", "baggage": "user=alice", "user-agent": "tests/1"}
    trace, answer = ask(traced, "/v1/classify?top_k=3", content=encoded(), headers=headers)
    root, phases = root_and_phases(collector.trace(trace, 4))
    assert (root.name, root.parent) == ("POST /v1/classify", PARENT)
    assert root.tracestate == "congo=t61rcWkgMzE"
    assert root.status == 0
    assert (
        root.attributes
        | {
            "http.request.method": "POST",
            "http.route": "/v1/classify",
            "url.path": "/v1/classify",
            "url.scheme": "http",
            "http.response.status_code": 200,
            "network.protocol.version": "1.1",
            "server.address": "127.0.0.1",
            "server.port": traced.port,
            "user_agent.original": "tests/1",
            "resnet_serve.model": answer.json()["model"],
        }
        == root.attributes
    )
    assert root.attributes["http.response.header.x-request-id"] == [answer.headers["x-request-id"]]
    assert "alice" not in repr(root)
    assert root.resource["service.name"] == "resnet-serve"
    assert root.resource["deployment.environment.name"] == "test"

    assert phases.keys() == PHASES
    timing = answer.json()["timing_ms"]
    assert phases["decode"].milliseconds == pytest.approx(timing["decode"], abs=0.002)
    assert phases["inference"].milliseconds == pytest.approx(timing["inference"], abs=0.002)
    assert phases["queue"].milliseconds <= timing["queue"] + 0.002
    assert phases["decode"].end <= phases["queue"].start + 1000
    assert phases["queue"].end == phases["inference"].start
    assert root.milliseconds >= timing["total"]
    inference = phases["inference"].attributes
    assert inference["resnet_serve.batch.size"] == answer.json()["batch_size"]
    engine = client.get(f"{traced.url}/v1/models").json()["models"][0]
    for name in ("engine", "precision", "device"):
        assert inference[f"resnet_serve.{name}"] == engine[name]


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/explain"])
def test_whatever_is_computed_has_its_phases(
    traced: Service, collector: Collector, path: str
) -> None:
    trace, answer = ask(traced, path, content=encoded())
    assert answer.status_code == 200
    root, phases = root_and_phases(collector.trace(trace, 4))
    assert root.name == f"POST {path}"
    assert phases.keys() == PHASES


def test_the_time_of_a_span_is_that_of_day(traced: Service, collector: Collector) -> None:
    trace, _ = ask(traced, content=encoded())
    root, _ = root_and_phases(collector.trace(trace, 4))
    assert abs(root.end / 1e9 - time.time()) < 3600


def test_images_of_one_batch_name_it(traced: Service, collector: Collector) -> None:
    files = [("image", (f"{i}.png", encoded())) for i in range(4)]
    trace, answer = ask(traced, "/v1/classify/batch", files=files)
    assert answer.status_code == 200
    spans = collector.trace(trace, 1 + 4 * len(PHASES))
    found = [span.attributes for span in spans if span.name == "inference"]
    sizes: dict[str, list[int]] = {}
    for each in found:
        sizes.setdefault(each["resnet_serve.batch.id"], []).append(each["resnet_serve.batch.size"])
    assert all(size == [len(size)] * len(size) for size in sizes.values()), sizes
    assert {each["resnet_serve.image"] for each in found} == {1, 2, 3, 4}


def test_a_refusal_is_no_error_of_the_service(traced: Service, collector: Collector) -> None:
    trace, answer = ask(traced, content=b"no image")
    assert answer.status_code == 400
    root, phases = root_and_phases(collector.trace(trace, 2))
    assert root.status == 0
    assert root.attributes["http.response.status_code"] == 400
    assert root.attributes["resnet_serve.refusal"] == "undecodable_image"
    assert "error.type" not in root.attributes
    assert phases["decode"].status == ERROR
    assert phases["decode"].attributes["error.type"] == "undecodable_image"


def test_a_deadline_that_passed_is_one(traced: Service, collector: Collector) -> None:
    big = encoded("JPEG", (3000, 3000))
    trace, answer = ask(traced, content=big, headers={"x-request-timeout-ms": "1"})
    assert answer.status_code == 504
    until = time.monotonic() + 60
    while not (found := [s for s in collector.spans if s.trace_id == trace and s.kind == SERVER]):
        assert time.monotonic() < until
        time.sleep(0.02)
    (root,) = found
    assert root.status == ERROR
    assert root.attributes["error.type"] == "client_deadline"
    assert "deadline" in root.message


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/v1/models", "GET /v1/models"),
        ("GET", "/v1/models/unknown", "GET /v1/models/{name}"),
        ("GET", "/nowhere?key=secret", "GET"),
        ("PROPFIND", "/v1/classify", "HTTP /v1/classify"),
    ],
)
def test_a_span_is_called_as_the_conventions_say(
    traced: Service, collector: Collector, method: str, path: str, name: str
) -> None:
    trace, _ = ask(traced, path, method=method)
    (root,) = collector.trace(trace, 1)
    assert root.name == name
    assert "secret" not in repr(root)
    assert root.attributes["http.request.method"] == ("_OTHER" if method == "PROPFIND" else method)


def test_the_log_names_the_trace(traced: Service) -> None:
    trace, _ = ask(traced, content=encoded())
    until = time.monotonic() + 60
    while not (found := [line for line in traced.log if trace in line]):
        assert time.monotonic() < until
        time.sleep(0.02)
    line = json.loads(found[0])
    assert line["trace_id"] == trace
    assert re.fullmatch("[0-9a-f]{16}", line["span_id"])
    assert line["span_id"] != PARENT


def test_who_is_not_sampled_by_its_caller_has_no_spans(
    traced: Service, collector: Collector
) -> None:
    trace = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace}-{PARENT}-00"}
    client.post(f"{traced.url}/v1/classify", content=encoded(), headers=headers)
    client.get(f"{traced.url}/health/live", headers={"traceparent": f"00-{trace}-{PARENT}-01"})
    later, _ = ask(traced, content=encoded())
    collector.trace(later, 4)
    assert trace not in {span.trace_id for span in collector.spans}


@pytest.mark.parametrize(
    "parent", ["", "00", "ff-" + "0" * 32, f"00-{'0' * 32}-{PARENT}-01", "\xff" * 55, "x" * 5000]
)
def test_a_broken_traceparent_begins_a_trace_of_its_own(
    traced: Service, collector: Collector, parent: str
) -> None:
    name = secrets.token_hex(8)
    headers = {
        b"traceparent": parent.encode("latin-1"),
        b"tracestate": b"=,=;\xff",
        b"x-request-id": name.encode(),
    }
    answer = client.post(f"{traced.url}/v1/classify", content=encoded(), headers=headers)
    assert answer.status_code == 200
    until = time.monotonic() + 60
    key = "http.response.header.x-request-id"
    while not (found := [s for s in collector.spans if s.attributes.get(key) == [name]]):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert found[0].parent == ""
    assert len(collector.trace(found[0].trace_id, 4)) == 4


def test_exemplars_lead_from_a_bucket_to_a_trace(traced: Service, workers: int) -> None:
    trace, _ = ask(traced, content=encoded())
    accept = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    answer = client.get(f"{traced.url}/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    exemplars = set(
        re.findall(r' # \{span_id="[0-9a-f]{16}",trace_id="([0-9a-f]{32})"\} ', answer.text)
    )
    if workers == 1:  # What several processes share has no place for them.
        assert {trace} <= exemplars
    else:
        assert not exemplars
    assert not re.search(r" # \{", client.get(f"{traced.url}/metrics").text)


@pytest.mark.slow
def test_a_collector_that_is_dead_costs_a_line() -> None:
    with collecting() as gone:
        pass
    settings: dict[str, Any] = {
        "RESNET_SERVE_OTLP_ENDPOINT": gone.url,
        "OTEL_BSP_SCHEDULE_DELAY": "10",
    }
    with started(
        ready=True, **settings, OTEL_BSP_MAX_QUEUE_SIZE="64", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="32"
    ) as s:
        for _ in range(60):
            assert client.post(f"{s.url}/v1/classify", content=encoded()).status_code == 200
        until = time.monotonic() + 60
        while not any("service.http.tracing" in line for line in s.log):
            assert time.monotonic() < until, s.log
            time.sleep(0.02)
        before = time.monotonic()
        assert s.end() == 0
        assert time.monotonic() - before < 20
    lines = [line for line in s.log if "WARNING" in line or "ERROR" in line]
    assert len([line for line in lines if "service.http.tracing" in line]) <= 2
    assert not any("Traceback" in line for line in s.log)
