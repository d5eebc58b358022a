"""OpenTelemetry: a server span for each request, and in it one for each phase of each image.

    POST /v1/classify   ├──────────────────────────────────────┤
        decode               ├────┤
        queue                     ├─────────┤
        inference                           ├──────────────┤

What is before `decode` is the body's arrival and the wait for a thread. Imported only where
tracing is configured: without it nothing of this runs. Spans are made of times that are taken
anyway, and are sent by a thread of their own. Probes and scrapes have no spans, nor has what
`service.http.connection` refuses before there is a request.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.config.settings import Settings
from service.errors import ConfigError, ServiceError
from service.http.record import record_of
from service.inference.batcher import Job
from service.inference.interfaces import Model
from service.inference.ranking import Row
from service.inference.tasks import Pixels
from service.logs import Quiet, and_more

log = logging.getLogger(__name__)
NAME = "resnet-serve"
UNTRACED = ("/health/", "/metrics")
METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")
)
# The W3C's names of what a caller says of its trace. Its `baggage` is none of ours.
CARRIED = (b"traceparent", b"tracestate")
LONGEST = 500  # characters of a path or of a caller's name for itself
QUIET_SECONDS = 60.0  # between two lines about a collector that cannot be reached
FLUSH_SECONDS = 2.0  # at the end, for spans that were not yet sent

Attributes = dict[str, AttributeValue]
_request: ContextVar[RequestSpan | None] = ContextVar("request", default=None)


class RequestSpan:
    """A request's span; `began` is the moment of its `start_time` on the clock of jobs."""

    __slots__ = ("began", "images", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.began = time.perf_counter()
        self.images = 0

    def at(self, seconds: float) -> int:
        """Nanoseconds since 1970 of a time of `time.perf_counter`; for spans that record."""
        assert isinstance(self.span, ReadableSpan)
        return (self.span.start_time or 0) + round((seconds - self.began) * 1e9)


class Tracing:
    """Makes spans and sends them; the standard OTEL_* variables hold where no setting does.

    Raises:
        ConfigError: one of those variables is impossible.
    """

    def __init__(self, settings: Settings) -> None:
        base, ratio = settings.otlp_endpoint, settings.trace_ratio
        try:
            self._exporter = OTLPSpanExporter(f"{base.rstrip('/')}/v1/traces" if base else None)
            self._provider = TracerProvider(
                None if ratio is None else ParentBased(TraceIdRatioBased(ratio)),
                _resource(),
                shutdown_on_exit=False,
            )
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        except ValueError as error:
            raise ConfigError(f"tracing: an OTEL_* variable: {error}") from None
        self._tracer = self._provider.get_tracer(NAME, version(NAME))
        self._propagator = TraceContextTextMapPropagator()
        library = logging.getLogger("opentelemetry")
        library.handlers, library.propagate = [RateLimitedHandler()], False

    def begin(self, scope: Scope) -> RequestSpan:
        """The span of a request, a child of its caller's; whether it records, a sampler decides."""
        carrier: dict[str, list[str]] = {}
        method = scope["method"]
        attributes: Attributes = {
            "http.request.method": method if method in METHODS else "_OTHER",
            "url.scheme": scope["scheme"],
            "url.path": scope["path"][:LONGEST],  # Without the query, which may hold secrets.
            "network.protocol.version": scope["http_version"],
        }
        if scope.get("server"):
            attributes["server.address"], attributes["server.port"] = scope["server"]
        for name, value in scope["headers"]:
            if name in CARRIED:
                carrier.setdefault(name.decode("ascii"), []).append(value.decode("latin-1"))
            elif name == b"user-agent":
                attributes["user_agent.original"] = value.decode("latin-1")[:LONGEST]
        span = self._tracer.start_span(
            _name(method),
            self._propagator.extract(carrier, Context()),
            SpanKind.SERVER,
            attributes,
        )
        context = span.get_span_context()
        # For the request's line in the log, whether or not its spans are kept.
        record_of(scope).trace = {
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
        }
        return RequestSpan(span)

    def end(self, request: RequestSpan, scope: Scope, status: int, request_id: str) -> None:
        """Ends the span of a request; `status` 0: nothing was answered."""
        span = request.span
        if not span.is_recording():
            return
        ended = request.at(time.perf_counter())
        route = getattr(scope.get("route"), "path", "")
        if route:
            span.update_name(f"{_name(scope['method'])} {route}")
            span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        if request_id:
            span.set_attribute("http.response.header.x-request-id", [request_id])
        record = record_of(scope)
        if record.reason:
            span.set_attribute("resnet_serve.refusal", record.reason)
        if record.model:
            span.set_attribute("resnet_serve.model", record.model)
        # By HTTP's semantic conventions, what a caller did wrong is no error of a server's span.
        if status >= 500:
            span.set_attribute("error.type", record.reason or str(status))
            span.set_status(Status(StatusCode.ERROR, record.detail[:LONGEST]))
        if record.failure is not None:
            span.record_exception(record.failure, timestamp=ended)
        span.end(ended)

    def follow(
        self, model: Model, job: Job[Pixels, Row], error: BaseException | None
    ) -> dict[str, str] | None:
        """Makes the spans of an image's phases, the last of which failed where there is an error.

        The exemplar for its times: None where the request does not record.
        """
        request = _request.get()
        if request is None or not request.span.is_recording():
            return None
        request.images += 1
        parent = set_span_in_context(request.span, Context())
        served = model.describe()
        image: Attributes = {
            "resnet_serve.model": model.name,
            "resnet_serve.image": request.images,
        }
        phases = list(_phases(job))
        for index, (name, began, ended) in enumerate(phases):
            failed = error is not None and index == len(phases) - 1
            attributes = dict(image)
            if name == "inference":
                attributes |= {
                    # Images of one batch, whatever requests they came with, have the same.
                    "resnet_serve.batch.id": f"{round(job.started * 1e9):x}",
                    "resnet_serve.batch.size": job.batch_size,
                    "resnet_serve.engine": str(served["engine"]),
                    "resnet_serve.precision": str(served["precision"]),
                    "resnet_serve.device": str(served["device"]),
                }
            if failed:
                attributes["error.type"] = _type_of(error)
            span = self._tracer.start_span(
                name, parent, attributes=attributes, start_time=request.at(began)
            )
            if failed:
                span.set_status(Status(StatusCode.ERROR, str(error)[:LONGEST]))
            span.end(request.at(ended))
        context = request.span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def close(self, timeout: float) -> None:
        """Sends what is left, for at most `timeout` seconds, and no longer than makes sense."""
        # Its own shutdown waits as long as the exporter tries, which nobody can tell it.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(min(timeout, FLUSH_SECONDS))
        if ending.is_alive():
            log.warning("the last spans could not be sent in time")
            self._exporter.shutdown()  # type: ignore[no-untyped-call]


class TracingMiddleware:
    """Pure ASGI, around everything else, so that a span has the status that is sent."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(UNTRACED):
            await self._app(scope, receive, send)
            return
        request = self._tracing.begin(scope)
        status, request_id = 0, ""

        async def send_seen(message: Message) -> None:
            nonlocal status, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in message["headers"]:
                    if name == b"x-request-id":
                        request_id = value.decode("ascii")
            await send(message)

        token = _request.set(request)
        try:
            await self._app(scope, receive, send_seen)
        finally:
            _request.reset(token)
            self._tracing.end(request, scope, status, request_id)


class RateLimitedHandler(logging.Handler):
    """Passes on what OpenTelemetry logs, a line a minute: a dead collector is no flood."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._quiet = Quiet(QUIET_SECONDS)

    def emit(self, record: logging.LogRecord) -> None:
        unlogged = self._quiet.unlogged("tracing")
        if unlogged >= 0:
            log.log(record.levelno, "%s%s", record.getMessage(), and_more(unlogged))


def _resource() -> Resource:
    ours: Attributes = {
        "service.name": NAME,
        "service.version": version(NAME),
        "service.instance.id": str(uuid.uuid4()),
    }
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _name(method: str) -> str:
    return method if method in METHODS else "HTTP"


def _phases(job: Job[Pixels, Row]) -> Iterator[tuple[str, float, float]]:
    """What an image has gone through, from when to when; the last may have been cut short."""
    now = time.perf_counter()
    if job.decoded != job.decoding or not job.decoded:  # Pixels need no decoding.
        yield "decode", job.decoding or job.admitted, job.decoded or now
    if job.decoded:
        yield "queue", job.decoded, job.started or now
    if job.started:
        yield "inference", job.started, job.finished or now


def _type_of(error: BaseException | None) -> str:
    return error.reason if isinstance(error, ServiceError) else type(error).__name__
