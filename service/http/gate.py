"""Refusing at the connection what the service cannot do in time, before anything else costs it.

A refusal takes a task, six layers and an exception through the application, which is a quarter of
what a small network's response takes. Here it takes the request's head and bytes that were built
before: so an overloaded service spends its time on those it lets in.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.errors import (
    RETRY_SECONDS,
    BadParameter,
    Busy,
    DeadlineExceeded,
    NotReady,
    QueueFull,
    ServiceError,
    with_short_deadline,
)
from service.http import problems
from service.http.admission import TIMEOUT, parse_timeout
from service.http.middleware import REQUEST_ID
from service.http.services import Services
from service.http.turns import LoopTurns
from service.inference.interfaces import Model
from service.inference.pace import Load

V1 = {
    path.encode(): path
    for path in ("/v1/classify", "/v1/classify/batch", "/v1/embed", "/v1/explain")
}
V2_MODELS, V2_INFER = b"/v2/models/", b"/infer"
V2_ROUTE = "/v2/models/{name}/infer"
# Turns of the loop that a request needs besides its own work: to begin, for its result, to respond.
TURNS = 2.0
# The loop works for those it let in at least in this share of its time.
LEAST_SHARE = 0.1
# How long a refusal's text, which has figures, is sent to others as well.
REUSE_SECONDS = 0.02
# A browser needs headers that only the application knows; whoever expects a "continue", too.
BY_APPLICATION = frozenset((b"origin", b"expect"))
Headers = list[tuple[bytes, bytes]]


class Entry:
    """A request that was let in, for a model and within so many seconds.

    It counts as in the queue from when its body is complete until it has a slot there, and as on
    the loop until it has its response.
    """

    __slots__ = ("_counted", "_gate", "_waiting", "model", "within")

    def __init__(self, gate: Gate, model: Model, within: float) -> None:
        self.model = model
        self.within = within
        self._gate = gate
        self._counted = self._waiting = False

    def complete(self) -> None:
        """Its body has arrived."""
        self._counted = self._waiting = True
        self.model.entering += 1
        self._gate.serving += 1

    def admitted(self) -> None:
        """The queue counts it from now on."""
        if self._waiting:
            self._waiting = False
            self.model.entering -= 1

    def ended(self) -> None:
        self.admitted()
        if self._counted:
            self._counted = False
            self._gate.serving -= 1


class Template(NamedTuple):
    """A refusal's bytes, but for the time to retry and the request's ID; valid `until`."""

    until: float
    status: int
    head: bytes
    tail: bytes


class Wishes(NamedTuple):
    """The seconds that a client allows, and the ID that it gave its request, if any."""

    within: float
    request_id: bytes


class Gate:
    """Lets requests for predictions in, or refuses them; everything else passes.

    `headers` are those of every response; `report` is told each refusal, its model and its status.
    `serving`: requests that were let in, with complete bodies, and have no response yet.
    """

    def __init__(
        self,
        services: Services,
        turns: LoopTurns,
        headers: Callable[[], Headers],
        report: Callable[[ServiceError, str, str, int, bytes], None],
    ) -> None:
        self.turns = turns
        self.serving = 0
        self._pipeline = services.pipeline
        self._keys = services.keys
        self._timeout = services.settings.request_timeout_ms / 1000
        self._headers = headers
        self._report = report
        self._templates: dict[tuple[str, str, str], Template] = {}
        self._prefix, self._count = uuid.uuid4().hex[:20].encode(), itertools.count()

    def check(
        self, url: bytes, headers: Headers, age: float, keep_alive: bool
    ) -> Entry | bytes | None:
        """What becomes of a POST request that arrived `age` seconds ago: its entry, the response
        that refuses it, or None if that is for the application to decide."""
        path, _, query = url.partition(b"?")
        if (route := V1.get(path)) is not None:
            name = _model_in(query)
        elif path.startswith(V2_MODELS) and path.endswith(V2_INFER):
            route = V2_ROUTE
            name = unquote_to_bytes(path[len(V2_MODELS) :].partition(b"/")[0]).decode("latin-1")
        else:
            return None
        models = self._pipeline.models
        model = models.get(name) if name else next(iter(models.values()))
        wishes = self._wishes(headers)
        if model is None or wishes is None or self._pipeline.draining:
            return None
        try:
            self._check(model, wishes.within, age)
        except (QueueFull, NotReady, DeadlineExceeded) as refusal:
            self.turns.refused()
            short = wishes.within < self._timeout
            error = with_short_deadline(refusal) if short else refusal
            request_id = wishes.request_id or b"%s%012x" % (self._prefix, next(self._count))
            return self._refusal(route, model.name, error, request_id, keep_alive)
        return Entry(self, model, wishes.within)

    def _wishes(self, headers: Headers) -> Wishes | None:
        """What the headers ask for; None if they have what only the application knows about."""
        within, request_id = self._timeout, b""
        for header, value in headers:
            if header == TIMEOUT:
                try:
                    within = parse_timeout(value) / 1000
                except BadParameter:
                    return None
            elif header == b"x-request-id" and REQUEST_ID.fullmatch(value):
                request_id = value
            elif header in BY_APPLICATION:
                return None
        if self._keys.required and not self._keys.known(headers):
            return None
        return Wishes(within, request_id)

    def _check(self, model: Model, within: float, age: float) -> None:
        if not model.ready:
            raise NotReady(f"{model.name} is not ready: {model.reason}", RETRY_SECONDS)
        if age >= within:
            raise DeadlineExceeded.passed()
        turns = self.turns
        # What the loop has let in it also has to read, decode and answer, beside refusing others.
        on_loop = self.serving * turns.request / max(LEAST_SHARE, 1 - turns.reading)
        model.check(Load(within, age + TURNS * turns.delay, model.entering, on_loop))

    def _refusal(
        self, route: str, model: str, error: ServiceError, request_id: bytes, keep_alive: bool
    ) -> bytes:
        now = time.perf_counter()
        key = (route, model, error.reason)
        template = self._templates.get(key)
        if template is None or template.until < now:
            template = self._templates[key] = self._template(route, error, now)
        self._report(error, model, route, template.status, request_id)
        retry = b"retry-after: %d\r\n" % error.retry_after if isinstance(error, Busy) else b""
        close = b"" if keep_alive else b"connection: close\r\n"
        return b"%b%bx-request-id: %b\r\n%b%b" % (
            template.head, retry, request_id, close, template.tail,
        )  # fmt: skip

    def _template(self, route: str, error: ServiceError, now: float) -> Template:
        response = problems.refusal_response(route, error)
        headers = [
            *self._headers(),
            *(header for header in response.raw_headers if header[0] != b"retry-after"),
            (b"cache-control", b"no-store"),
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        head = b"".join([STATUS_LINE[response.status_code], *lines])
        tail = b"\r\n" + bytes(response.body)
        return Template(now + REUSE_SECONDS, response.status_code, head, tail)


def _model_in(query: bytes) -> str:
    """The model that a query asks for; empty: the default one."""
    return dict(parse_qsl(query.decode("latin-1"))).get("model", "") if query else ""
