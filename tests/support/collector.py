"""An OpenTelemetry collector for tests: it reads OTLP over HTTP, and keeps what it is sent."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

PATIENCE = 60  # seconds, on however busy a machine


@dataclass(frozen=True)
class Span:
    """One span as it arrived; identifiers in hexadecimal, times in nanoseconds since 1970."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent: str
    tracestate: str
    start: int
    end: int
    status: int
    message: str
    attributes: dict[str, Any]
    events: list[str]
    resource: dict[str, Any] = field(repr=False)

    @property
    def milliseconds(self) -> float:
        return (self.end - self.start) / 1e6


class Collector:
    """`spans` grows as they arrive; each request is answered with `status`, once `open` is set."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.spans: list[Span] = []
        self.requests = 0
        self.open = threading.Event()
        self.open.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests += 1
                collector.open.wait(PATIENCE)
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if collector.status == 200:
                    collector.spans += read(body)
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def trace(self, trace_id: str, spans: int) -> list[Span]:
        """The spans of a trace, once there are so many, without `accept`, which only a request
        that had to wait has."""

        def of_trace() -> list[Span]:
            spans = list(self.spans)
            return [s for s in spans if s.trace_id == trace_id and s.name != "accept"]

        until = time.monotonic() + PATIENCE
        while len(found := of_trace()) < spans:
            assert time.monotonic() < until, found
            time.sleep(0.02)
        assert len(found) == spans
        return found


@contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    collector = Collector(status)
    collector.server.daemon_threads = True
    serving = threading.Thread(target=collector.server.serve_forever, daemon=True)
    serving.start()
    try:
        yield collector
    finally:
        collector.open.set()
        collector.server.shutdown()
        collector.server.server_close()


def read(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        of = dictionary(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    kind=span.kind,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    tracestate=span.trace_state,
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    status=span.status.code,
                    message=span.status.message,
                    attributes=dictionary(span.attributes),
                    events=[event.name for event in span.events],
                    resource=of,
                )


def dictionary(attributes: Any) -> dict[str, Any]:
    return {each.key: value_of(each.value) for each in attributes}


def value_of(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in value.array_value.values]
    return getattr(value, kind or "string_value")
