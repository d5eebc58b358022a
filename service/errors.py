"""Every refusal, as an exception whose message tells the client what to do.

    ServiceError
    ├── RequestError               the request cannot be served as it is
    │   ├── UndecodableImage      undecodable or truncated image
    │   ├── UnknownModel          no model of that name
    │   ├── TooLarge              body or pixel count above the limit
    │   ├── UnsupportedMediaType  unsupported content type
    │   │   └── UnsupportedEncoding  a compression other than gzip and deflate
    │   ├── BadParameter          parameter out of range
    │   ├── InvalidInput          malformed tensors, or tensors the model does not accept
    │   ├── MalformedRequest      not a valid HTTP/1.1 request
    │   ├── HeadersTooLarge       request line and headers above the limit
    │   ├── RequestTooSlow        headers or body arrived too slowly
    │   ├── Unauthorized          missing or unknown key
    │   ├── Forbidden             the key is not an admin key
    │   ├── LoadFailed            the model cannot be loaded
    │   └── Conflict              the change is not allowed now
    ├── Busy                      the same request may succeed later
    │   ├── QueueFull             no free slot in the model's queue, or none soon enough
    │   │   └── DeadlineTooShort  none within the client's own, shorter deadline
    │   ├── UploadsFull           too many bytes are already being received
    │   ├── TooManyConnections    connection limit reached
    │   ├── NotReady              loading, shutting down, or the engine is down
    │   └── EngineFailed          the engine failed while computing this request
    ├── DeadlineExceeded          the request's deadline passed
    │   └── ClientDeadline        the client chose a shorter one than the service's, or sent slowly
    └── ClientLeft                the client disconnected before the response

    ConfigError                   invalid configuration: one line, before startup

`service.http.problems` maps them to HTTP statuses. `reason` is their label in the metrics, and
`remedy` what docs/troubleshooting.md says about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from models.suggestions import LISTED, nearest

QUOTED = 200  # characters of the client's input that a refusal quotes


class ServiceError(Exception):
    reason = "internal_error"
    remedy = "a bug; the log has the details under the request's ID: please report them"


class RequestError(ServiceError):
    pass


class UndecodableImage(RequestError):
    reason = "undecodable_image"
    remedy = (
        "send the whole image in one of the formats that the text names; compare its "
        "size with the file's"
    )


class UnknownModel(RequestError):
    reason = "unknown_model"
    remedy = "use a name that `GET /v1/models` lists"

    @classmethod
    def called(cls, name: str, known: Collection[str]) -> UnknownModel:
        if near := nearest(name, known):
            hint = f"did you mean {' or '.join(near)}?"
        elif len(known) <= LISTED:
            hint = f"the models are {', '.join(known)}"
        else:
            hint = "GET /v1/models lists the models"
        return cls(f"no model is called {name[:QUOTED]!r}; {hint}")


class TooLarge(RequestError):
    reason = "too_large"
    remedy = (
        "scale or recompress the image, or raise `max_body_bytes`, "
        "`max_batch_body_bytes` or `max_pixels`"
    )


class UnsupportedMediaType(RequestError):
    reason = "unsupported_media_type"
    remedy = "send the header `Content-Type: image/jpeg`, or the type that the text names"


class UnsupportedEncoding(UnsupportedMediaType):
    reason = "unsupported_encoding"
    remedy = "send the body without Content-Encoding, or with gzip or deflate"


class BadParameter(RequestError):
    reason = "bad_parameter"
    remedy = "correct the parameter that the text names; parameters are listed on `/docs`"


class InvalidInput(RequestError):
    reason = "invalid_input"
    remedy = "send tensors as the model's metadata describes them: `GET /v2/models/NAME`"


class MalformedRequest(RequestError):
    reason = "malformed_request"
    remedy = "use an HTTP client's own encoding; a request that a proxy rewrote may be cut"


class HeadersTooLarge(RequestError):
    reason = "headers_too_large"
    remedy = "send fewer or shorter headers and cookies, or raise `max_header_bytes`"


class RequestTooSlow(RequestError):
    reason = "request_too_slow"
    remedy = (
        "send the body faster, or raise `upload_timeout_s`, `header_timeout_s` or lower "
        "`min_upload_bytes_per_s`"
    )


class Unauthorized(RequestError):
    reason = "unauthorized"
    remedy = "send `Authorization: Bearer KEY` with one of `api_keys`"


class Forbidden(RequestError):
    reason = "forbidden"
    remedy = "send one of `admin_keys`; without any, changes over HTTP are disabled"


class LoadFailed(RequestError):
    reason = "load_failed"
    remedy = "correct the SPEC or its settings as the text says; nothing has changed"


class Conflict(RequestError):
    reason = "conflict"
    remedy = "wait until the other change ends, or restart with the model in the configuration"


# Before a retry, if the required time is unknown.
RETRY_SECONDS = 1.0


class Busy(ServiceError):
    """`retry_after` is the number of seconds until a retry is expected to succeed; `spread` gives
    each client that is refused so some more, so that not all come back at once."""

    def __init__(
        self, message: str, retry_after: float, spread: Callable[[], float] | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.spread = spread

    def retry_seconds(self) -> int:
        """What one client is told, in whole seconds."""
        more = self.spread() if self.spread is not None else 0.0
        return max(1, math.ceil(self.retry_after + more))


class QueueFull(Busy):
    """`late`: a slot is free, but too late for the request's deadline."""

    reason = "queue_full"
    remedy = (
        "wait for `Retry-After`, as the client does by itself; if it is usual, add "
        "capacity: [scale](scale.md)"
    )
    late = False

    @classmethod
    def of(
        cls, waiting: int, retry_after: float, spread: Callable[[], float] | None = None
    ) -> QueueFull:
        """`waiting` images are already queued."""
        message = f"the queue is full ({waiting} images waiting); retry after the given time"
        return cls(message, retry_after, spread)

    @classmethod
    def too_late(
        cls,
        wait: float,
        within: float,
        retry_after: float,
        spread: Callable[[], float] | None = None,
    ) -> QueueFull:
        """The queue takes `wait` seconds, and the client allows `within` seconds."""
        error = cls(
            f"the queue may need {wait * 1000:.0f} ms, longer than the {within * 1000:.0f} ms "
            "that X-Request-Timeout-Ms or the default allows; retry after the given time",
            retry_after,
            spread,
        )
        error.late = True
        return error


class DeadlineTooShort(QueueFull):
    reason = "deadline_too_short"
    remedy = "allow more time with `X-Request-Timeout-Ms`, or wait for `Retry-After`"


class UploadsFull(Busy):
    reason = "uploads_full"
    remedy = "wait for `Retry-After`, or raise `max_upload_bytes`, as far as memory allows"


class TooManyConnections(Busy):
    reason = "too_many_connections"
    remedy = "share connections among requests, or raise `max_connections`"


class NotReady(Busy):
    reason = "not_ready"
    remedy = "wait for `Retry-After`; `GET /health/ready` says what it waits for"


class EngineFailed(Busy):
    reason = "engine_failed"
    remedy = "send it again; if it happens again, the log of the service has the reason"


class DeadlineExceeded(ServiceError):
    reason = "deadline_exceeded"
    remedy = "raise `X-Request-Timeout-Ms` or `request_timeout_ms`, or reduce the load"

    @classmethod
    def passed(cls) -> DeadlineExceeded:
        return cls(
            "the deadline passed before the response was computed; "
            "allow more time with X-Request-Timeout-Ms, or retry when the service is less busy"
        )


class ClientDeadline(DeadlineExceeded):
    reason = "client_deadline"
    remedy = "allow more time with `X-Request-Timeout-Ms`, and send the body without pauses"


class ClientLeft(ServiceError):
    reason = "caller_left"
    remedy = "nobody sees it; in metrics, many mean that clients give up before their answer"


REFUSALS: tuple[type[ServiceError], ...] = (
    UndecodableImage,
    UnknownModel,
    TooLarge,
    UnsupportedMediaType,
    UnsupportedEncoding,
    BadParameter,
    InvalidInput,
    MalformedRequest,
    HeadersTooLarge,
    RequestTooSlow,
    Unauthorized,
    Forbidden,
    LoadFailed,
    Conflict,
    QueueFull,
    DeadlineTooShort,
    UploadsFull,
    TooManyConnections,
    NotReady,
    EngineFailed,
    DeadlineExceeded,
    ClientDeadline,
    ClientLeft,
)


KINDS = {kind.reason: kind for kind in REFUSALS}


class ConfigError(ValueError):
    pass


def with_short_deadline(error: ServiceError) -> ServiceError:
    """`error` for a client that set a shorter deadline than the service's: what follows from that
    is no failure of the service, and has reasons of its own."""
    if isinstance(error, DeadlineExceeded):
        return ClientDeadline(str(error))
    if isinstance(error, QueueFull) and error.late:
        return DeadlineTooShort(str(error), error.retry_after, error.spread)
    return error


def unexpected(request_id: str) -> str:
    """What a client is told of a bug."""
    return f"unexpected error; the log has the details under request ID {request_id}"


def refusal_of(error: BaseException) -> list[Any]:
    """A refusal as a JSON value."""
    reason = error.reason if isinstance(error, ServiceError) else ServiceError.reason
    return [reason, str(error), error.retry_after if isinstance(error, Busy) else None]


def error_of(refusal: list[Any]) -> ServiceError:
    """The inverse of `refusal_of`."""
    reason, detail, retry_after = refusal
    kind = KINDS.get(reason, ServiceError)
    return kind(detail, retry_after) if issubclass(kind, Busy) else kind(detail)
