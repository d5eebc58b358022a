"""OpenTelemetry: a server span per request, with a child span for each phase of each image.

    POST /v1/classify   ├──────────────────────────────────────┤
        accept             ├──┤
        decode                 ├───┤
        queue                      ├─────────┤
        inference                            ├─────────────┤

A request's span begins when its first bytes arrived. `accept`, which exists only where it took
long, is the phase of that name: from the last byte until the service began with the image. Before
`decode`, the image waits for a thread. This module is imported only if tracing is configured. Spans
reuse times that are measured anyway; a separate thread exports them. Probes and scrapes have no
spans, nor do refusals by `service.http.connection` and `service.http.gate`.
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
from service.inference.interfaces import Model
from service.inference.jobs import Job
from service.inference.ranking import Row
from service.inference.tasks import ImageInput
from service.logs import LogLimit, with_suppressed

log = logging.getLogger(__name__)
NAME = "resnet-serve"
UNTRACED = ("/health/", "/ping", "/metrics")
METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")
)
# W3C Trace Context; its `baggage` is not used.
TRACE_HEADERS = (b"traceparent", b"tracestate")
MAX_CHARACTERS = 500  # of a path, user agent or error
# A shorter wait for the event loop is not worth a span.
LEAST_ACCEPT_SECONDS = 0.001
QUIET_SECONDS = 60.0  # between two log lines about an unreachable collector
FLUSH_SECONDS = 2.0  # at shutdown, for spans not yet exported

Attributes = dict[str, AttributeValue]
_request: ContextVar[RequestSpan | None] = ContextVar("request", default=None)


class RequestSpan:
    """A request's span; `began` is its `start_time` by the jobs' clock."""

    __slots__ = ("began", "images", "span")

    def __init__(self, span: Span, began: float) -> None:
        self.span = span
        self.began = began
        self.images = 0

    def at(self, seconds: float) -> int:
        """Converts a `time.perf_counter` time to Unix nanoseconds; for recording spans only."""
        assert isinstance(self.span, ReadableSpan)
        return (self.span.start_time or 0) + round((seconds - self.began) * 1e9)


class Tracing:
    """Creates and exports spans; the standard OTEL_* variables apply where no setting does.

    Raises:
        ConfigError: an OTEL_* variable is invalid.
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
        """Starts a request's span, a child of the client's; a sampler decides if it records."""
        carrier: dict[str, list[str]] = {}
        method = scope["method"]
        attributes: Attributes = {
            "http.request.method": method if method in METHODS else "_OTHER",
            "url.scheme": scope["scheme"],
            "url.path": scope["path"][
                :MAX_CHARACTERS
            ],  # Without the query, which may contain secrets.
            "network.protocol.version": scope["http_version"],
        }
        if scope.get("server"):
            attributes["server.address"], port = scope["server"]
            if port is not None:  # A unix socket has none.
                attributes["server.port"] = port
        for name, value in scope["headers"]:
            if name in TRACE_HEADERS:
                carrier.setdefault(name.decode("ascii"), []).append(value.decode("latin-1"))
            elif name == b"user-agent":
                attributes["user_agent.original"] = value.decode("latin-1")[:MAX_CHARACTERS]
        record = record_of(scope)
        age = time.perf_counter() - record.started
        span = self._tracer.start_span(
            _span_name(method),
            self._propagator.extract(carrier, Context()),
            SpanKind.SERVER,
            attributes,
            start_time=time.time_ns() - round(age * 1e9),
        )
        context = span.get_span_context()
        # For the request's log line, whether or not its spans are sampled.
        record.trace = {
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
        }
        return RequestSpan(span, record.started)

    def end(self, request: RequestSpan, scope: Scope, status: int, request_id: str) -> None:
        """Ends a request's span; `status` 0: no response was sent."""
        span = request.span
        if not span.is_recording():
            return
        ended = request.at(time.perf_counter())
        route = getattr(scope.get("route"), "path", "")
        if route:
            span.update_name(f"{_span_name(scope['method'])} {route}")
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
        # By HTTP's semantic conventions, client errors are not errors of a server span.
        if status >= 500:
            span.set_attribute("error.type", record.reason or str(status))
            span.set_status(Status(StatusCode.ERROR, record.detail[:MAX_CHARACTERS]))
        if record.failure is not None:
            span.record_exception(record.failure, timestamp=ended)
        span.end(ended)

    def follow(
        self, model: Model, job: Job[ImageInput, Row], error: BaseException | None
    ) -> dict[str, str] | None:
        """Creates the spans of an image's phases; an `error` belongs to the last.

        Returns the exemplar for its times; None if the request's span does not record.
        """
        request = _request.get()
        if request is None or not request.span.is_recording():
            return None
        request.images += 1
        parent = set_span_in_context(request.span, Context())
        card = model.describe()
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
                    # The same for all images of a batch, across requests.
                    "resnet_serve.batch.id": f"{round(job.started * 1e9):x}",
                    "resnet_serve.batch.size": job.batch_size,
                    "resnet_serve.engine": str(card["engine"]),
                    "resnet_serve.precision": str(card["precision"]),
                    "resnet_serve.device": str(card["device"]),
                }
            if failed:
                attributes["error.type"] = _error_type(error)
            span = self._tracer.start_span(
                name, parent, attributes=attributes, start_time=request.at(began)
            )
            if failed:
                span.set_status(Status(StatusCode.ERROR, str(error)[:MAX_CHARACTERS]))
            span.end(request.at(ended))
        context = request.span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def close(self, timeout: float) -> None:
        """Exports the remaining spans, within `timeout` and FLUSH_SECONDS."""
        # The provider's shutdown has no timeout: it waits for the exporter's retries.
        shutdown = threading.Thread(target=self._provider.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(min(timeout, FLUSH_SECONDS))
        if shutdown.is_alive():
            log.warning("the last spans could not be exported in time")
            self._exporter.shutdown()  # type: ignore[no-untyped-call]


class TracingMiddleware:
    """Pure ASGI, outermost, so that a span has the status that is sent."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(UNTRACED):
            await self._app(scope, receive, send)
            return
        request = self._tracing.begin(scope)
        status, request_id = 0, ""

        async def send_observed(message: Message) -> None:
            nonlocal status, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in message["headers"]:
                    if name == b"x-request-id":
                        request_id = value.decode("ascii")
            await send(message)

        token = _request.set(request)
        try:
            await self._app(scope, receive, send_observed)
        finally:
            _request.reset(token)
            self._tracing.end(request, scope, status, request_id)


class RateLimitedHandler(logging.Handler):
    """Forwards OpenTelemetry's log, one line a minute: a dead collector must not flood the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._log_limit = LogLimit(QUIET_SECONDS)

    def emit(self, record: logging.LogRecord) -> None:
        suppressed = self._log_limit.suppressed("tracing")
        if suppressed is not None:
            log.log(record.levelno, "%s%s", record.getMessage(), with_suppressed(suppressed))


def _resource() -> Resource:
    service: Attributes = {
        "service.name": NAME,
        "service.version": version(NAME),
        "service.instance.id": str(uuid.uuid4()),
    }
    return Resource.create({**service, **OTELResourceDetector().detect().attributes})


def _span_name(method: str) -> str:
    return method if method in METHODS else "HTTP"


def _phases(job: Job[ImageInput, Row]) -> Iterator[tuple[str, float, float]]:
    """An image's phases so far, with start and end; the last may be incomplete."""
    now = time.perf_counter()
    if job.admitted - job.received > LEAST_ACCEPT_SECONDS:
        yield "accept", job.received, job.admitted
    if job.decoded != job.decoding or not job.decoded:  # Pixels need no decoding.
        yield "decode", job.decoding or job.admitted, job.decoded or now
    if job.decoded:
        yield "queue", job.decoded, job.started or now
    if job.started:
        yield "inference", job.started, job.finished or now


def _error_type(error: BaseException | None) -> str:
    return error.reason if isinstance(error, ServiceError) else type(error).__name__
