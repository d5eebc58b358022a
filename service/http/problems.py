"""Refusals as RFC 9457 problem documents: one table maps exceptions to statuses.

On the routes of other protocols they have the form that those prescribe; another table says which.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
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
JSON = "application/json"
NOT_FOUND = HTTPStatus.NOT_FOUND.name.lower()
MAX_DETAIL = 2000  # characters of a detail, which may quote the client
UPLOADED = (
    ". `curl -T FILE URL` adds the file's name to a URL that ends with a slash: leave out the slash"
)
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


# TorchServe's names of errors, by the reason of ours, else by status.
TORCHSERVE_REASONS = {errors.UnknownModel.reason: "ModelNotFoundException"}
TORCHSERVE_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "InvalidKeyException",
    HTTPStatus.FORBIDDEN: "InvalidKeyException",
    HTTPStatus.NOT_FOUND: "ResourceNotFoundException",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowedException",
    HTTPStatus.TOO_MANY_REQUESTS: "ServiceUnavailableException",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableException",
    HTTPStatus.GATEWAY_TIMEOUT: "ServiceUnavailableException",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalServerException",
}
BAD_REQUEST = "BadRequestException"


def torchserve_error(status: int, detail: str, reason: str) -> dict[str, Any]:
    kind = TORCHSERVE_REASONS.get(reason) or TORCHSERVE_TYPES.get(status, BAD_REQUEST)
    return {"code": int(status), "type": kind, "message": detail}


def error_alone(_status: int, detail: str, _reason: str) -> dict[str, Any]:
    """As the Open Inference Protocol, KServe V1 and TensorFlow Serving have it."""
    return {"error": detail}


def problem_document(status: int, detail: str, reason: str) -> dict[str, Any]:
    """`schemas.Problem` as plain data: under overload it makes up most responses."""
    title = (
        "Client Closed Request" if status == CLIENT_CLOSED_REQUEST else HTTPStatus(status).phrase
    )
    return {
        "type": f"urn:resnet-serve:problem:{reason}",
        "title": title,
        "status": int(status),
        "detail": detail,
    }


Form = Callable[[int, str, str], dict[str, Any]]
# The forms of errors by path, or by a route's template. All others are problem documents, also of
# SageMaker and Vertex AI, which prescribe none.
FORMS: tuple[tuple[re.Pattern[str], Form], ...] = (
    (re.compile(r"/v2(/|$)"), error_alone),
    (re.compile(r"/v1/models/[^/]*(:|/(versions|metadata|labels)(/|$))"), error_alone),
    (re.compile(r"/(predictions|models|ping)(/|$)"), torchserve_error),
)


def form_of(path: str) -> tuple[Form, str]:
    """How errors on a path are written, and their media type."""
    for pattern, form in FORMS:
        if pattern.match(path):
            return form, JSON
    return problem_document, CONTENT_TYPE


def problem(
    path: str, status: int, detail: str, reason: str, headers: dict[str, str] | None = None
) -> Response:
    """An error in the form of its path; `reason` is its type and its metrics label."""
    if len(detail) > MAX_DETAIL:
        detail = f"{detail[:MAX_DETAIL]}..."
    form, media_type = form_of(path)
    content = to_json(form(status, detail, reason))
    return Response(content, status, headers=headers, media_type=media_type)


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
    if not known and request.method == "PUT":
        detail += UPLOADED
    reason = HTTPStatus(error.status_code).name.lower()
    headers = dict(error.headers or {})
    if known and "router" in request.scope:  # Else a plain route, which has named its own.
        headers["Allow"] = ", ".join(methods_of(request))
    response = problem(request.scope["path"], error.status_code, detail, reason, headers)
    return _recorded(response, request.scope, reason, detail)


def plain_refusal(scope: Scope, detail: str) -> Response:
    """The response, with status 404, to a request whose path has no route to answer it."""
    return _recorded(problem(scope["path"], 404, detail, NOT_FOUND), scope, NOT_FOUND, detail)


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
