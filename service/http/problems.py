"""Refusals as RFC 9457 problem documents: one table from exceptions to statuses.

Under /v2 they have the form that its protocol's clients read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import Scope

from service import errors
from service.http.record import record_of

CONTENT_TYPE = "application/problem+json"
V2 = "/v2"
CALLER_LEFT = 499  # nginx's; nobody receives it, logs and metrics show it

STATUSES: dict[type[errors.ServiceError], int] = {
    errors.UndecodableImage: HTTPStatus.BAD_REQUEST,
    errors.UnknownModel: HTTPStatus.NOT_FOUND,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.BadParameter: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.InvalidInput: HTTPStatus.BAD_REQUEST,
    errors.MalformedRequest: HTTPStatus.BAD_REQUEST,
    errors.HeadersTooLarge: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.RequestTooSlow: HTTPStatus.REQUEST_TIMEOUT,
    errors.Unauthorized: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.LoadFailed: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.UploadsFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyConnections: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.EngineFailed: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    errors.ClientLeft: CALLER_LEFT,
}


def problem(
    path: str, status: int, detail: str, reason: str, headers: dict[str, str] | None = None
) -> Response:
    """A problem document; `reason` is its type, and is what the metrics count it as."""
    if path == V2 or path.startswith(f"{V2}/"):
        return Response(
            to_json({"error": detail}), status, headers=headers, media_type="application/json"
        )
    title = "Client Closed Request" if status == CALLER_LEFT else HTTPStatus(status).phrase
    # What `schemas.Problem` describes, as plain data: under overload it is most answers.
    document = {
        "type": f"urn:resnet-serve:problem:{reason}",
        "title": title,
        "status": int(status),
        "detail": detail,
    }
    return Response(to_json(document), status, headers=headers, media_type=CONTENT_TYPE)


def answer(path: str, error: errors.ServiceError) -> Response:
    """The answer to what the service refuses; `path` is what was asked for, as far as known."""
    headers = {}
    if isinstance(error, errors.Busy):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    elif isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(path, STATUSES[type(error)], str(error), error.reason, headers)


def refused(scope: Scope, error: errors.ServiceError) -> Response:
    """The answer to a request that the service refuses."""
    return _counted(answer(scope["path"], error), scope, error.reason, str(error))


def timed(timing_ms: Mapping[str, float]) -> dict[str, str]:
    """The phases of a request as the header in which browsers look for them."""
    phases = [f"{phase};dur={ms}" for phase, ms in timing_ms.items()]
    return {"Server-Timing": ", ".join(phases)}


def invalid(place: str, problems: Sequence[Any]) -> str:
    """What pydantic finds first, and where."""
    first = problems[0]
    return f"{' '.join(map(str, (place, *first['loc']))).strip()}: {first['msg']}"


def unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Not `request.url`: a Host header may make it no URL.
    path = quote(request.scope["path"])
    detail = f"{request.method} {path}: {error.detail}; /docs lists the endpoints"
    reason = HTTPStatus(error.status_code).name.lower()
    return _answer(request.scope, error.status_code, detail, reason, dict(error.headers or {}))


def install(app: FastAPI) -> None:
    """Makes every refusal of `app` a problem document, counted and logged by the middleware."""

    def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.ServiceError)
        return refused(request.scope, error)

    def unvalidated(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refused(request.scope, errors.BadParameter(invalid("", error.errors())))

    app.add_exception_handler(errors.ServiceError, ours)
    app.add_exception_handler(RequestValidationError, unvalidated)
    app.add_exception_handler(HTTPException, unrouted)


def _answer(
    scope: Scope, status: int, detail: str, reason: str, headers: dict[str, str]
) -> Response:
    response = problem(scope["path"], status, detail, reason, headers)
    return _counted(response, scope, reason, detail)


def _counted(response: Response, scope: Scope, reason: str, detail: str) -> Response:
    """`response`, with the request's time so far."""
    record = record_of(scope)
    record.reason, record.detail = reason, detail  # The middleware logs them.
    total = (time.perf_counter() - record.started) * 1000
    response.headers.update(timed({"total": round(total, 3)}))
    return response
