"""What every call goes through: its ID, keys, limits, metrics, log line, and its status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from grpc import StatusCode

from service import errors
from service.grpc.receiving import Receiving
from service.grpc.statuses import UNEXPECTED, CallRefusal, refusal_of
from service.grpc.unread import Unread
from service.http.admission import MAX_TIMEOUT_MS, timeout_of
from service.http.record import RequestRecord
from service.http.request_log import RequestLog
from service.http.services import Services

LEFT = "the client cancelled the call before the response"


@dataclass(slots=True)
class Call:
    """One call, or one request of a stream. `headers`: the client's metadata."""

    context: Any
    services: Services
    receiving: Receiving
    method: str
    headers: list[tuple[bytes, bytes]]
    request_id: bytes
    record: RequestRecord

    def within(self) -> tuple[float, bool]:
        """Seconds from the start that the call may take, and whether the client chose them: gRPC's
        own deadline, or the metadata x-request-timeout-ms, as over HTTP; else the default.

        Raises:
            BadParameter: the metadata is no number of milliseconds.
        """
        default = self.services.settings.request_timeout_ms / 1000
        chosen = timeout_of(self.headers, 0.0)
        left: float | None = self.context.time_remaining()
        if left is not None and left < MAX_TIMEOUT_MS / 1000:
            since = time.perf_counter() - self.record.started
            chosen = min(chosen or left + since, left + since)
        self.record.short_deadline = 0 < chosen < default
        return (chosen, True) if chosen else (default, False)


# Answers a call with a message's bytes.
Answer = Callable[[Call], Awaitable[bytes]]


class Calls:
    """The calls of one process, of which `most` may be in progress."""

    def __init__(self, services: Services, receiving: Receiving, unread: Unread, most: int) -> None:
        self.services = services
        self.receiving = receiving
        self.unread = unread
        self.stopping = False
        self._most = most
        self.open = 0
        self._request_log = RequestLog(services.metrics, access=services.settings.access_log)

    def begin(self, context: Any, method: str) -> Call:
        headers = [
            (name.encode(), value.encode() if isinstance(value, str) else bytes(value))
            for name, value in context.invocation_metadata() or ()
        ]
        return self._call(context, method, headers)

    def next_of(self, stream: Call) -> Call:
        """One request of a stream that has begun."""
        return self._call(stream.context, "ModelInfer", stream.headers)

    def _call(self, context: Any, method: str, headers: list[tuple[bytes, bytes]]) -> Call:
        record = RequestRecord(time.perf_counter(), client=client_of(context))
        name = self._request_log.id_of(headers)
        return Call(context, self.services, self.receiving, method, headers, name, record)

    async def unary(self, context: Any, method: str, answer: Answer) -> bytes:
        """A handler's response; a refusal ends the call with its status."""
        call = self.begin(context, method)
        outcome = await self.outcome(call, answer)
        trailers = (("x-request-id", call.request_id.decode("ascii")),)
        if isinstance(outcome, CallRefusal):
            await context.abort(outcome.code, outcome.text, (*trailers, *outcome.trailers))
        assert isinstance(outcome, bytes)
        context.set_trailing_metadata(trailers)
        self.unread.until_done(context)
        return outcome

    async def outcome(self, call: Call, answer: Answer) -> bytes | CallRefusal:
        """The response to a call or its refusal, which is counted and logged."""
        metrics, record = self.services.metrics, call.record
        refusal: CallRefusal | None = None
        response = b""
        metrics.in_flight.inc()
        self.open += 1
        try:
            if self.open > self._most:
                raise errors.TooManyConnections(  # noqa: TRY301
                    f"the limit of {self._most} calls in progress is reached; "
                    "retry after the given time",
                    errors.RETRY_SECONDS,
                )
            response = await answer(call)
        except errors.ServiceError as error:
            refusal = self._refused(call, error)
        except asyncio.CancelledError:
            refusal = self._refused(call, self._why_cancelled(call))
            raise
        except Exception as error:  # noqa: BLE001
            record.failure = error
            record.reason, record.detail = errors.ServiceError.reason, "see the exception"
            text = errors.unexpected(call.request_id.decode("ascii"))
            refusal = CallRefusal(StatusCode.INTERNAL, text, UNEXPECTED)
        finally:
            self.open -= 1
            metrics.in_flight.dec()
            status = refusal.status if refusal else 200
            route = f"grpc {call.method}"
            self._request_log.end(record, "gRPC", call.method, route, status, call.request_id)
        return response if refusal is None else refusal

    def _refused(self, call: Call, error: errors.ServiceError) -> CallRefusal:
        record = call.record
        if record.short_deadline:
            error = errors.with_short_deadline(error)
        record.reason, record.detail = error.reason, str(error)
        return refusal_of(error)

    def _why_cancelled(self, call: Call) -> errors.ServiceError:
        """gRPC cancels what runs if the client left, if its deadline passed, or at the end."""
        if call.context.time_remaining() == 0:
            return errors.DeadlineExceeded.passed()
        if self.stopping:
            return errors.NotReady("the service shut down before the response", 1.0)
        return errors.ClientLeft(LEFT)


def client_of(context: Any) -> str:
    """The address of a call's client, ADDRESS:PORT; "" if it has none, as over a unix socket.

    gRPC has it as ipv4:ADDRESS:PORT or ipv6:[ADDRESS]:PORT, escaped like a URL.
    """
    family, _, address = context.peer().partition(":")
    return unquote(address) if family in ("ipv4", "ipv6") else ""
