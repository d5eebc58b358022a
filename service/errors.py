"""Everything the service refuses, as exceptions whose message tells the caller what to do.

    ServiceError
    ├── CallerError               the request cannot be served as it is
    │   ├── UndecodableImage      bytes that no decoder reads, truncated images
    │   ├── UnknownModel          no such model
    │   ├── TooLarge              body or pixel count over the limit
    │   ├── UnsupportedMediaType  a content type that is no image
    │   └── BadParameter          a parameter out of range
    ├── Busy                      the same request may succeed later
    │   ├── QueueFull             no place in the model's queue
    │   ├── NotReady              loading, draining, or the engine is down
    │   └── EngineFailed          the engine failed while computing this request
    ├── DeadlineExceeded          the request's deadline passed
    └── CallerLeft                the connection closed before the answer

    ConfigError                   the configuration is impossible: one line, before the start

HTTP statuses are the concern of `service.problems`. `reason` is the metrics' label.
"""

from __future__ import annotations


class ServiceError(Exception):
    reason = "internal_error"


class CallerError(ServiceError):
    pass


class UndecodableImage(CallerError):
    reason = "undecodable_image"


class UnknownModel(CallerError):
    reason = "unknown_model"


class TooLarge(CallerError):
    reason = "too_large"


class UnsupportedMediaType(CallerError):
    reason = "unsupported_media_type"


class BadParameter(CallerError):
    reason = "bad_parameter"


class Busy(ServiceError):
    """`retry_after` is the number of seconds until a retry is expected to succeed."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Busy):
    reason = "queue_full"


class NotReady(Busy):
    reason = "not_ready"


class EngineFailed(Busy):
    reason = "engine_failed"


class DeadlineExceeded(ServiceError):
    reason = "deadline_exceeded"


class CallerLeft(ServiceError):
    reason = "caller_left"


REFUSALS: tuple[type[ServiceError], ...] = (
    UndecodableImage,
    UnknownModel,
    TooLarge,
    UnsupportedMediaType,
    BadParameter,
    QueueFull,
    NotReady,
    EngineFailed,
    DeadlineExceeded,
    CallerLeft,
)


class ConfigError(ValueError):
    pass
