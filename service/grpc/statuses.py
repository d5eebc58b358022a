"""Refusals as gRPC statuses: one table maps exceptions to codes; texts are those of HTTP."""

from __future__ import annotations

from typing import NamedTuple

from grpc import StatusCode

from service import errors
from service.http import problems

MAX_BYTES = 2000  # of a text, which may quote the client; trailers have a limit of 8 KiB

# What a client may retry is RESOURCE_EXHAUSTED or UNAVAILABLE, with `retry-after`; nothing else is.
CODES: dict[type[errors.ServiceError], StatusCode] = {
    errors.UndecodableImage: StatusCode.INVALID_ARGUMENT,
    errors.UnknownModel: StatusCode.NOT_FOUND,
    errors.TooLarge: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedMediaType: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedEncoding: StatusCode.INVALID_ARGUMENT,
    errors.BadParameter: StatusCode.INVALID_ARGUMENT,
    errors.InvalidInput: StatusCode.INVALID_ARGUMENT,
    errors.MalformedRequest: StatusCode.INVALID_ARGUMENT,
    errors.HeadersTooLarge: StatusCode.INVALID_ARGUMENT,
    errors.RequestTooSlow: StatusCode.DEADLINE_EXCEEDED,
    errors.Unauthorized: StatusCode.UNAUTHENTICATED,
    errors.Forbidden: StatusCode.PERMISSION_DENIED,
    errors.LoadFailed: StatusCode.FAILED_PRECONDITION,
    errors.Conflict: StatusCode.FAILED_PRECONDITION,
    errors.QueueFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineTooShort: StatusCode.RESOURCE_EXHAUSTED,
    errors.UploadsFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyConnections: StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReady: StatusCode.UNAVAILABLE,
    errors.EngineFailed: StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.ClientDeadline: StatusCode.DEADLINE_EXCEEDED,
    errors.ClientLeft: StatusCode.CANCELLED,
}
UNEXPECTED = 500  # the HTTP status that stands for INTERNAL


class Unsupported(errors.RequestError):
    """The method is part of the protocol, and not of this service."""

    reason = errors.InvalidInput.reason


class CallRefusal(NamedTuple):
    """What a client is told; `status`: that of HTTP, for metrics and the log."""

    code: StatusCode
    text: str
    status: int
    trailers: tuple[tuple[str, str], ...] = ()


def refusal_of(error: errors.ServiceError) -> CallRefusal:
    if isinstance(error, Unsupported):
        return CallRefusal(StatusCode.UNIMPLEMENTED, str(error), 501)
    text = str(error).encode()[:MAX_BYTES].decode(errors="ignore")
    trailers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, errors.Busy):
        trailers = (("retry-after", str(error.retry_seconds())),)
    return CallRefusal(CODES[type(error)], text, int(problems.STATUSES[type(error)]), trailers)
