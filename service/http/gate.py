"""Refusing at the connection what the service cannot do in time, before anything else costs it.

A refusal takes a task, six layers and an exception through the application, which is a quarter of
what a small network's response takes. Here it takes the request's head and bytes that were built
before: so an overloaded service spends its time on those it lets in.
"""

from __future__ import annotations

import itertools
import re
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from pydantic_core import to_json
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
from service.http.platforms import prediction_paths
from service.http.refused_heads import RefusedHeads
from service.http.request_log import REQUEST_ID
from service.http.services import Services
from service.http.turns import LoopTurns
from service.inference.interfaces import Model
from service.inference.pace import Load

V1 = {
    path.encode() + slash: path
    for path in ("/v1/classify", "/v1/classify/batch", "/v1/embed", "/v1/explain")
    for slash in (b"", b"/")
}
V2_INFER = re.compile(rb"/v2/models/([^/]+)(?:/versions/1)?/infer/?")
V2_ROUTE = "/v2/models/{name}/infer"
# Turns of the loop that a request needs besides its own work: to begin, for its result, to respond.
TURNS = 2.0
# In a template, in the place of the detail; and headers that each response has of its own.
DETAIL = "what is in the place of the detail"
OF_ONE = frozenset((b"content-length", b"retry-after"))
# A browser needs headers that only the application knows; whoever expects a "continue", too.
# So do requests whose model a header names.
BY_APPLICATION = frozenset((b"origin", b"expect", b"x-amzn-sagemaker-target-model"))
Headers = list[tuple[bytes, bytes]]


class Entry:
    """A request that was let in for a model, and the seconds that its client allows.

    It counts as in the queue from when its body is complete until it has a slot there.
    """

    __slots__ = (
        "_ended", "_gate", "_route", "_waiting", "_wishes", "arrived", "model", "refusal", "within",
    )  # fmt: skip

    def __init__(
        self, gate: Gate, model: Model, route: str, wishes: Wishes, arrived: float
    ) -> None:
        self.model = model
        self.within = wishes.within
        self._gate = gate
        self._route = route
        self._wishes = wishes
        self.arrived = arrived
        self.refusal: ServiceError | None = None
        self._waiting = self._ended = False

    def complete(self, *, later: bool) -> None:
        """Its body has arrived, and perhaps `later` than its head: then others may have come
        before it, and there may be a `refusal`."""
        if self._ended:  # Its response came first.
            return
        if later and (refusal := self._gate.refusal(self)) is not None:
            self.refusal = refusal
            return
        self._waiting = True
        self.model.entering += 1

    def admitted(self) -> None:
        """The queue counts it from now on."""
        if self._waiting:
            self._waiting = False
            self.model.entering -= 1

    def ended(self) -> None:
        self._ended = True
        self.admitted()

    def late(self, keep_alive: bool) -> bytes | None:
        """The response that refuses it, if its deadline has passed before it could be started."""
        if time.perf_counter() < self.arrived + self.within:
            return None
        error = DeadlineExceeded.passed()
        return self._gate.refuse(self._route, self.model.name, error, self._wishes, keep_alive)


class Template(NamedTuple):
    """What the refusals of one kind have in common: their heads, without the headers that each has
    of its own, and their bodies, `before` and `after` the detail. `headers`: those of every
    response, of which one is the time, when it was made."""

    headers: Headers
    status: int
    head: bytes
    before: bytes
    after: bytes


class EarlyRefusal(NamedTuple):
    error: ServiceError
    detail: str
    model: str
    route: str
    method: bytes
    request_id: bytes


class Wishes(NamedTuple):
    """The method, the seconds that a client allows, and the ID that it gave its request, if any."""

    method: bytes
    within: float
    request_id: bytes


class Gate:
    """Lets requests for predictions in, or refuses them; everything else passes.

    `headers` are those of every response; `report` is told each refusal: see
    `service.http.limits.ConnectionLimits.refused`.
    """

    def __init__(
        self,
        services: Services,
        turns: LoopTurns,
        headers: Callable[[], Headers],
        report: Callable[[ServiceError, str, bytes, str, int, bytes], None],
    ) -> None:
        self.turns = turns
        self._pipeline = services.pipeline
        self._keys = services.keys
        self._timeout = services.settings.request_timeout_ms / 1000
        self._headers = headers
        self._report = report
        of_platforms = prediction_paths(services.settings)
        self._paths = V1 | of_platforms.default
        self._patterns = [(V2_INFER, V2_ROUTE), *of_platforms.named]
        self._latest: EarlyRefusal
        self._age = 0.0  # of the request that was checked last
        self._heads: RefusedHeads[EarlyRefusal] = RefusedHeads(turns)
        self._templates: dict[tuple[str, type[ServiceError]], Template] = {}
        self._prefix, self._count = uuid.uuid4().hex[:20].encode(), itertools.count()

    def check(
        self,
        method: bytes,
        url: bytes,
        headers: Headers,
        arrival: Callable[..., float],
        keep_alive: bool,
    ) -> Entry | bytes | None:
        """What becomes of a POST or PUT request: its entry, the response that refuses it,
        or None if that is for the application to decide.

        `arrival` tells when it arrived, by `time.perf_counter`, or with `exact=False` the latest
        that this can have been, which costs less.
        """
        asked = self._prediction(url)
        if asked is None:
            return None
        route, name = asked
        models = self._pipeline.models
        model = next(iter(models.values())) if name is None else models.get(name)
        wishes = self._wishes(method, headers)
        if model is None or wishes is None or self._pipeline.draining:
            return None
        try:
            self._check(model, wishes.within, arrival(exact=False))
            arrived = arrival()
            self._check(model, wishes.within, arrived)
        except (QueueFull, NotReady, DeadlineExceeded) as error:
            return self.refuse(route, model.name, error, wishes, keep_alive)
        return Entry(self, model, route, wishes, arrived)

    def _wishes(self, method: bytes, headers: Headers) -> Wishes | None:
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
        return Wishes(method, within, request_id)

    def refusal(self, entry: Entry) -> ServiceError | None:
        """Why a request that was let in cannot be computed in time after all, if so."""
        try:
            self._check(entry.model, entry.within, entry.arrived)
        except (QueueFull, NotReady, DeadlineExceeded) as error:
            return error
        return None

    def _check(self, model: Model, within: float, arrived: float) -> None:
        if not model.ready:
            raise NotReady(f"{model.name} is not ready: {model.reason}", RETRY_SECONDS)
        self._age = age = time.perf_counter() - arrived
        if age >= within:
            raise DeadlineExceeded.passed()
        turns = self.turns
        model.check(Load(within, age + TURNS * turns.delay, model.entering, turns.wait))

    def _prediction(self, url: bytes) -> tuple[str, str | None] | None:
        """The route and the model of a request for a prediction, without a model for the default
        one; None if it is another request, or one that the application refuses."""
        path, _, query = url.partition(b"?")
        if (route := self._paths.get(path)) is not None:
            if not query:
                return route, None
            parameters = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
            return route, parameters.get("model")
        for pattern, route in self._patterns:
            if (found := pattern.fullmatch(path)) is not None:
                return route, unquote_to_bytes(found[1]).decode("latin-1")
        return None

    def refuse(
        self, route: str, model: str, refusal: ServiceError, wishes: Wishes, keep_alive: bool
    ) -> bytes:
        """The response that refuses a request, which is counted."""
        self.turns.refused()
        short = wishes.within < self._timeout
        error = with_short_deadline(refusal) if short else refusal
        self._latest = EarlyRefusal(
            error, str(error), model, route, wishes.method, wishes.request_id
        )
        return self._response(self._latest, keep_alive)

    def _response(self, refusal: EarlyRefusal, keep_alive: bool) -> bytes:
        error, detail, model, route, method, request_id = refusal
        template = self._templates.get((route, type(error)))
        if template is None or template.headers is not self._headers():
            template = self._templates[route, type(error)] = self._template(route, type(error))
        content = b"%b%b%b" % (template.before, to_json(detail), template.after)
        request_id = request_id or b"%s%012x" % (self._prefix, next(self._count))
        self._report(error, model, method, route, template.status, request_id)
        retry = b"retry-after: %d\r\n" % error.retry_seconds() if isinstance(error, Busy) else b""
        close = b"" if keep_alive else b"connection: close\r\n"
        return b"%bcontent-length: %d\r\n%bx-request-id: %b\r\n%b\r\n%b" % (
            template.head, len(content), retry, request_id, close, content,
        )  # fmt: skip

    def remember(self, data: bytes) -> None:
        """Takes note of what was just refused, if it was one whole request."""
        self._heads.remember(data, self._age, self._latest)

    def again(self, data: bytes, age: float) -> bytes | None:
        """The refusal of a request like one that was refused in this turn and not older, where it
        arrived at least `age` seconds ago; None: it is another, or younger."""
        known = self._heads.find(data, age)
        return None if known is None else self._response(known, keep_alive=True)

    def _template(self, route: str, kind: type[ServiceError]) -> Template:
        error = kind(DETAIL, 0.0) if issubclass(kind, Busy) else kind(DETAIL)
        response = problems.refusal_response(route, error)
        own = [pair for pair in response.raw_headers if pair[0] not in OF_ONE]
        common = self._headers()
        headers = [*common, *own, (b"cache-control", b"no-store")]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        before, _, after = bytes(response.body).partition(to_json(DETAIL))
        head = b"".join([STATUS_LINE[response.status_code], *lines])
        return Template(common, response.status_code, head, before, after)
