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

`service.http.problems` maps them to HTTP statuses. `reason` is their label in the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from models.suggestions import LISTED, nearest

QUOTED = 200  # characters of the client's input that a refusal quotes


class ServiceError(Exception):
    reason = "internal_error"


class RequestError(ServiceError):
    pass


class UndecodableImage(RequestError):
    reason = "undecodable_image"


class UnknownModel(RequestError):
    reason = "unknown_model"

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


class UnsupportedMediaType(RequestError):
    reason = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    reason = "unsupported_encoding"


class BadParameter(RequestError):
    reason = "bad_parameter"


class InvalidInput(RequestError):
    reason = "invalid_input"


class MalformedRequest(RequestError):
    reason = "malformed_request"


class HeadersTooLarge(RequestError):
    reason = "headers_too_large"


class RequestTooSlow(RequestError):
    reason = "request_too_slow"


class Unauthorized(RequestError):
    reason = "unauthorized"


class Forbidden(RequestError):
    reason = "forbidden"


class LoadFailed(RequestError):
    reason = "load_failed"


class Conflict(RequestError):
    reason = "conflict"


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


class UploadsFull(Busy):
    reason = "uploads_full"


class TooManyConnections(Busy):
    reason = "too_many_connections"


class NotReady(Busy):
    reason = "not_ready"


class EngineFailed(Busy):
    reason = "engine_failed"


class DeadlineExceeded(ServiceError):
    reason = "deadline_exceeded"

    @classmethod
    def passed(cls) -> DeadlineExceeded:
        return cls(
            "the deadline passed before the response was computed; "
            "allow more time with X-Request-Timeout-Ms, or retry when the service is less busy"
        )


class ClientDeadline(DeadlineExceeded):
    reason = "client_deadline"


class ClientLeft(ServiceError):
    reason = "caller_left"


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
