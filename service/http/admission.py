"""Admission: refuses requests, where possible, before reading their bodies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

from service.errors import QUOTED, BadParameter
from service.http.body import Body
from service.http.content import BYTES, FORM, IMAGE, declared_kind, text_limit
from service.http.record import RequestRecord, record_of
from service.http.services import Services, services_of
from service.inference.interfaces import Model
from service.inference.pace import Load
from service.inference.pipeline import check_classes

MAX_TIMEOUT_MS = 3_600_000
TIMEOUT = b"x-request-timeout-ms"


@dataclass(slots=True)
class Admission:
    """An admitted request: its model, the number of predictions `k`, and its deadline in the event
    loop's time, which counts from the arrival of its first byte."""

    services: Services
    model: Model
    k: int
    deadline: float


def admit(
    scope: Scope, name: str | None, top_k: int | None, *, classifies: bool = False
) -> Admission:
    """Admits a request for the model called `name`; None: the default model. `classifies`: the
    model needs classes.

    Raises:
        UnknownModel, BadParameter, NotReady, QueueFull: see `service.inference.pipeline.Pipeline`.
    """
    services = services_of(scope)
    pipeline, record = services.pipeline, record_of(scope)
    default = services.settings.request_timeout_ms / 1000
    age = time.perf_counter() - record.started
    model = pipeline.find(name)
    record.model = model.name
    if classifies:
        check_classes(model)
    entry = record.entry
    if entry is not None and entry.model is model:  # The gate has checked its queue.
        within, load = entry.within, None
    else:
        within = timeout_of(scope["headers"], default)
        load = Load(within, age, model.entering)
    record.short_deadline = within < default
    k = pipeline.check(model, top_k, load)
    return Admission(services, model, k, asyncio.get_running_loop().time() + within - age)


def admit_call(services: Services, record: RequestRecord, name: str, within: float) -> Admission:
    """Admits a request that did not come over HTTP and may take `within` seconds; raises as `admit`
    does."""
    model = services.pipeline.find(name)
    record.model = model.name
    record.short_deadline = within < services.settings.request_timeout_ms / 1000
    age = time.perf_counter() - record.started
    k = services.pipeline.check(model, None, Load(within, age, model.entering))
    return Admission(services, model, k, asyncio.get_running_loop().time() + within - age)


def timeout_of(headers: Iterable[tuple[bytes, bytes]], default: float) -> float:
    """Seconds that a request with these headers may take."""
    within = default
    for header, value in headers:
        if header == TIMEOUT:
            within = parse_timeout(value) / 1000
    return within


def parse_timeout(value: bytes) -> float:
    """Milliseconds in the header X-Request-Timeout-Ms."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number <= MAX_TIMEOUT_MS:
        raise BadParameter(
            f"X-Request-Timeout-Ms must be above 0 and up to {MAX_TIMEOUT_MS}, "
            f"not {value[:QUOTED].decode('latin-1')!r}"
        )
    return number


def open_body(request: Request, max_bytes: int, deadline: float) -> Body:
    """The request's unread body; refused if its headers already break a limit."""
    services = services_of(request.scope)
    return Body(request, services.budget, services.lane, max_bytes, deadline)


def open_images(request: Request, max_bytes: int, deadline: float, most_json: int = 0) -> Body:
    """`open_body` for images, of `max_bytes`; where they come as text, that may be longer, and
    where it may be JSON with several, up to `most_json`."""
    declared, _ = declared_kind(request)
    services = services_of(request.scope)
    most = max_bytes
    if declared not in (IMAGE, BYTES):
        most = max(text_limit(max_bytes), 0 if declared is FORM else most_json)
    return Body(request, services.budget, services.lane, max_bytes, deadline, most)
