"""Refusals as RFC 9457 problem documents: one table maps exceptions to statuses.

Under /v2 they have the form that its protocol prescribes.
"""

from __future__ import annotations

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
from starlette.routing import Match
from starlette.types import Scope

from service import errors
from service.config.wording import in_words
from service.errors import QUOTED
from service.http.record import record_of

CONTENT_TYPE = "application/problem+json"
V2 = "/v2"
MAX_DETAIL = 2000  # characters of a detail, which may quote the client
CLIENT_CLOSED_REQUEST = 499  # nginx's; only logs and metrics show it, as the client is gone

STATUSES: dict[type[errors.ServiceError], int] = {
    errors.UndecodableImage: HTTPStatus.BAD_REQUEST,
    errors.UnknownModel: HTTPStatus.NOT_FOUND,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.UnsupportedEncoding: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
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
    errors.DeadlineTooShort: HTTPStatus.TOO_MANY_REQUESTS,
    errors.UploadsFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyConnections: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.EngineFailed: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    errors.ClientDeadline: HTTPStatus.GATEWAY_TIMEOUT,
    errors.ClientLeft: CLIENT_CLOSED_REQUEST,
}


def problem(
    path: str, status: int, detail: str, reason: str, headers: dict[str, str] | None = None
) -> Response:
    """A problem document; `reason` is its type and its metrics label."""
    if len(detail) > MAX_DETAIL:
        detail = f"{detail[:MAX_DETAIL]}..."
    if path == V2 or path.startswith(f"{V2}/"):
        return Response(
            to_json({"error": detail}), status, headers=headers, media_type="application/json"
        )
    title = (
        "Client Closed Request" if status == CLIENT_CLOSED_REQUEST else HTTPStatus(status).phrase
    )
    # `schemas.Problem` as plain data: under overload it makes up most responses.
    document = {
        "type": f"urn:resnet-serve:problem:{reason}",
        "title": title,
        "status": int(status),
        "detail": detail,
    }
    return Response(to_json(document), status, headers=headers, media_type=CONTENT_TYPE)


def refusal_response(path: str, error: errors.ServiceError) -> Response:
    """The response to a refusal; `path` is the request's, as far as known."""
    headers = {}
    if isinstance(error, errors.Busy):
        headers["Retry-After"] = str(error.retry_seconds())
    elif isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, errors.UnsupportedEncoding):
        headers["Accept-Encoding"] = "gzip, deflate"  # RFC 9110, section 12.5.3
    return problem(path, STATUSES[type(error)], str(error), error.reason, headers)


def refuse(scope: Scope, error: errors.ServiceError) -> Response:
    """The response to a refused request, noted in its record."""
    if record_of(scope).short_deadline:
        error = errors.with_short_deadline(error)
    return _recorded(refusal_response(scope["path"], error), scope, error.reason, str(error))


def server_timing(timing_ms: Mapping[str, float]) -> dict[str, str]:
    """A request's phases as the header Server-Timing, which browsers show."""
    phases = [f"{phase};dur={ms}" for phase, ms in timing_ms.items()]
    return {"Server-Timing": ", ".join(phases)}


def validation_message(errors: Sequence[Any]) -> str:
    """pydantic's first error: which parameter is wrong, and what it must be."""
    first = errors[0]
    # FastAPI names the part of the request first.
    place = first["loc"][-1]
    said = f"{place} {in_words(first)}"
    return said if first["type"] == "missing" else f"{said}, not {str(first['input'])[:QUOTED]!r}"


def handle_unrouted(request: Request, error: Exception) -> Response:
    """The response to a request without a matching route."""
    assert isinstance(error, HTTPException)
    # Not `request.url`: a Host header can make it invalid.
    path = quote(request.scope["path"])[:QUOTED]
    known = error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
    wrong = f"{path} does not accept {request.method}" if known else f"there is no {path}"
    detail = f"{wrong}; /docs lists the endpoints"
    reason = HTTPStatus(error.status_code).name.lower()
    headers = dict(error.headers or {})
    if known and "router" in request.scope:  # Else a plain route, which has named its own.
        headers["Allow"] = ", ".join(methods_of(request))
    response = problem(request.scope["path"], error.status_code, detail, reason, headers)
    return _recorded(response, request.scope, reason, detail)


def methods_of(request: Request) -> list[str]:
    """The methods that the routes of a path accept: Starlette names those of the first only."""
    scope = request.scope
    accepted = [
        method
        for method in ("DELETE", "GET", "POST", "PUT")
        if any(
            route.matches({**scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]
    return [*accepted, "HEAD"] if "GET" in accepted else accepted


def install(app: FastAPI) -> None:
    """Turns every refusal of `app` into a problem document, for the middleware to count and log."""

    def handle_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.ServiceError)
        return refuse(request.scope, error)

    def handle_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refuse(request.scope, errors.BadParameter(validation_message(error.errors())))

    app.add_exception_handler(errors.ServiceError, handle_refusal)
    app.add_exception_handler(RequestValidationError, handle_invalid)
    app.add_exception_handler(HTTPException, handle_unrouted)


def _recorded(response: Response, scope: Scope, reason: str, detail: str) -> Response:
    """`response`, with the time so far; notes the refusal in the request's record."""
    record = record_of(scope)
    record.reason, record.detail = reason, detail  # The middleware logs them.
    total = (time.perf_counter() - record.started) * 1000
    response.headers.update(server_timing({"total": round(total, 3)}))
    return response
