"""Sends requests when they are due, from one thread and with little Python per request.

This module only records times; `service.cli.load.report` interprets them.
"""

from __future__ import annotations

import errno
import math
import random
import re
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from service.cli.load.http_response import HttpResponse, read_response
from service.cli.load.target import Target

RECEIVE = 4_096
TICK = 0.1  # seconds between checks for requests that have timed out
PAUSE = 0.01  # seconds until a closed loop retries after a broken connection
EVENTS = 64  # read at a time, so that what is due is sent between them
WAITED = 0.001  # seconds for a connection, after which a client tells a shorter deadline
DEADLINE = re.compile(rb"(?:[^\r]+\r\n)+?X-Request-Timeout-Ms: ([0-9.]+)", re.IGNORECASE)
BROKEN, TIMED_OUT, NO_CONNECTION, NOT_NOTICED = 0, -1, -2, -3
NO_RESPONSE = HttpResponse(BROKEN, True, b"")
TOO_LATE = HttpResponse(TIMED_OUT, True, b"")
UNSENT = HttpResponse(NO_CONNECTION, True, b"")
UNNOTICED = HttpResponse(NOT_NOTICED, True, b"")


@dataclass(frozen=True, slots=True)
class Samples:
    """N requests: when each was due and when its response arrived, float64 [N], in seconds of
    `time.perf_counter`; its status, int16 [N]; its Server-Timing [N]. Without a response the status
    is BROKEN, TIMED_OUT, NO_CONNECTION, or NOT_NOTICED in time, as the generator was too busy.
    `cpu` is the generator thread's CPU time in seconds."""

    intended: NDArray[np.float64]
    done: NDArray[np.float64]
    status: NDArray[np.int16]
    timing: list[bytes]
    cpu: float


@dataclass(frozen=True, slots=True)
class Clients:
    """How the clients behave; times in seconds.

    At most `connections` requests are under way. One that finds no free connection waits for it,
    and is dropped unsent after `patience`: a client that waited so long has left. Which of those
    that wait gets a connection is chance, as each is another client. One that has waited, and tells
    the service its deadline, tells it what is left of it. A request times out `timeout` after it
    was due. `new_connections` is the share of requests that open a connection of their own and
    close it. The generator looks for events every `grain` at most: that saves CPU where events come
    more often, and adds up to twice as much to each latency.
    """

    connections: int
    timeout: float
    patience: float = math.inf
    new_connections: float = 0.0
    grain: float = 0.0


def _at_deadline(request: bytes) -> tuple[bytes, tuple[bytes, bytes]]:
    """A request, and what is around the deadline that it tells; empty if it tells none."""
    found = DEADLINE.match(request)
    return request, (request[: found.start(1)], request[found.end(1) :]) if found else (b"", b"")


class HttpConnection:
    """`intended`: when its request was due; 0.0 while it is idle. `once`: it takes no other."""

    __slots__ = ("fd", "intended", "once", "received", "socket", "unsent")

    def __init__(self, target: Target, *, once: bool) -> None:
        self.once = once
        self.socket = socket.socket(target.family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        if target.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = self.socket.fileno()
        self.intended = 0.0
        self.received = b""
        self.unsent: memoryview | None = None


class Generator:
    """Runs once. A request that is due takes a free connection, opens one while fewer requests
    are under way than the clients have connections, or else waits.

    `due`: ascending times of `time.perf_counter`. Until `again_until`, a connection sends its next
    request as soon as it has a response; after that it becomes free. `on_tick` is called about ten
    times a second.
    """

    def __init__(
        self,
        target: Target,
        due: Iterable[float],
        clients: Clients,
        *,
        again_until: float = 0.0,
        on_tick: Callable[[], object] | None = None,
    ) -> None:
        self._target = target
        self._requests = cycle(target.requests)
        self._last_requests = cycle(target.last_requests)
        self._due = deque(due)
        self._waiting: deque[float] = deque()
        self._chance = random.Random(0)  # noqa: S311 - a run can be repeated
        self._deadlines = dict(map(_at_deadline, (*target.requests, *target.last_requests)))
        self._clients = clients
        self._again_until = again_until
        self._on_tick = on_tick
        self._tick_at = 0.0
        self._looked = 0.0
        # Not an EpollSelector, which creates an object for each event and rounds timeouts up to a
        # millisecond; an open loop would attribute that to the server.
        self._epoll = select.epoll()
        self._connections: dict[int, HttpConnection] = {}
        self._free: list[HttpConnection] = []
        self._in_flight = 0
        self._owed = 0.0  # requests that have yet to open a connection of their own
        self._intended, self._done = array("d"), array("d")
        self._status = array("h")
        self._timing: list[bytes] = []

    def run(self) -> Samples:
        """Returns when every request has its response, was dropped or has timed out."""
        started = time.thread_time()
        try:
            self._loop()
        finally:
            for connection in self._connections.values():
                connection.socket.close()
            self._epoll.close()
        return Samples(
            np.asarray(self._intended),
            np.asarray(self._done),
            np.asarray(self._status),
            self._timing,
            time.thread_time() - started,
        )

    def _loop(self) -> None:
        due, connections = self._due, self._connections
        while True:
            now = time.perf_counter()
            while due and due[0] <= now:
                if due[0] < now - self._clients.patience:
                    self._record(due.popleft(), now, UNNOTICED)
                else:
                    self._waiting.append(due.popleft())
            if self._waiting:
                self._send_waiting(now)
            if now >= self._tick_at:
                self._tick(now)
            if not self._in_flight and not due and not self._waiting:
                return
            for fd, events in self._wait():
                connection = connections.get(fd)
                if connection is None:
                    continue  # Just closed.
                if events & ~select.EPOLLOUT:
                    self._read(connection)
                if connection.unsent is not None and events & select.EPOLLOUT:
                    self._write(connection)

    def _send_waiting(self, now: float) -> None:
        """Sends what waits while there are connections for it."""
        waiting, free, clients = self._waiting, self._free, self._clients
        too_old = now - clients.patience
        while waiting and self._in_flight < clients.connections:
            if len(waiting) > 1 and clients.patience < math.inf:
                waiting.rotate(self._chance.randrange(len(waiting)))
            intended = waiting.popleft()
            if intended < too_old:
                self._record(intended, now, UNSENT)
                continue
            once = self._owed >= 1.0
            self._owed += clients.new_connections - once
            request = next(self._last_requests if once else self._requests)
            if now - intended > WAITED:
                request = self._hurried(request, intended + clients.patience - now)
            if free and not once:
                self._begin(free.pop(), intended, request)
            else:
                self._open(intended, request, once=once)

    def _hurried(self, request: bytes, left: float) -> bytes:
        """The request with so many seconds as its deadline, if it tells one."""
        before, after = self._deadlines[request]
        return b"%b%.3f%b" % (before, max(left * 1000, 0.001), after) if after else request

    def _drop_expired(self, now: float) -> None:
        too_old = now - self._clients.patience
        expired = [intended for intended in self._waiting if intended < too_old]
        for intended in expired:
            self._record(intended, now, UNSENT)
        if expired:
            self._waiting = deque(each for each in self._waiting if each >= too_old)

    def _wait(self) -> list[tuple[int, int]]:
        rest = self._looked + self._clients.grain - time.perf_counter()
        if rest > 0:
            time.sleep(rest)
        if self._due:
            wait = min(self._due[0], self._tick_at) - time.perf_counter()
            if wait > 0:
                # select() has a resolution of microseconds, epoll_wait() of milliseconds.
                select.select((self._epoll,), (), (), wait)
            events = self._epoll.poll(0, EVENTS)
        else:
            wait = max(0.0, self._tick_at - time.perf_counter())
            events = self._epoll.poll(wait, EVENTS)
        # Where more is ready, it is read without a rest.
        self._looked = time.perf_counter() if len(events) < EVENTS else 0.0
        return events

    def _open(self, intended: float, request: bytes, *, once: bool) -> None:
        connection = HttpConnection(self._target, once=once)
        self._connections[connection.fd] = connection
        error = connection.socket.connect_ex(self._target.address)
        if error == 0:
            self._epoll.register(connection.fd, select.EPOLLIN)
            self._begin(connection, intended, request)
        else:
            self._epoll.register(connection.fd, select.EPOLLIN | select.EPOLLOUT)
            connection.intended = intended
            self._in_flight += 1
            connection.unsent = memoryview(request)
            if error != errno.EINPROGRESS:
                self._end(connection, NO_RESPONSE)

    def _begin(self, connection: HttpConnection, intended: float, request: bytes) -> None:
        connection.intended = intended
        self._in_flight += 1
        try:
            sent = connection.socket.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(connection, NO_RESPONSE)
            return
        if sent != len(request):
            connection.unsent = memoryview(request)[sent:]
            self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def _write(self, connection: HttpConnection) -> None:
        assert connection.unsent is not None
        try:
            rest = connection.unsent[connection.socket.send(connection.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._end(connection, NO_RESPONSE)
            return
        connection.unsent = rest if len(rest) else None
        if connection.unsent is None:
            self._epoll.modify(connection.fd, select.EPOLLIN)

    def _read(self, connection: HttpConnection) -> None:
        try:
            data = connection.socket.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not connection.intended:
            self._free.remove(connection)
            self._drop(connection)  # It was idle, so the server closed it.
            return
        received = connection.received + data if connection.received else data
        try:
            response = read_response(received, ended=not data)
        except ValueError:
            response = NO_RESPONSE
        if response is not None:
            self._end(connection, response)
        elif data:
            connection.received = received
        else:
            self._end(connection, NO_RESPONSE)

    def _end(self, connection: HttpConnection, response: HttpResponse) -> None:
        """The connection's request has its response or has timed out."""
        now = time.perf_counter()
        self._record(connection.intended, now, response)
        self._in_flight -= 1
        # A response that precedes the end of its request leaves the connection unusable.
        if response.closes or connection.once or connection.unsent is not None:
            self._drop(connection)
        else:
            connection.intended = 0.0
            connection.received = b""
            self._free.append(connection)
        if now < self._again_until:
            if response.status > 0:
                self._waiting.append(now)
            elif now + PAUSE < self._again_until:
                self._due.append(now + PAUSE)
        # After a failure the loop does it: one that fails at once would call itself for ever.
        if self._waiting and response.status > 0:
            self._send_waiting(now)

    def _record(self, intended: float, now: float, response: HttpResponse) -> None:
        self._intended.append(intended)
        self._done.append(now)
        self._status.append(response.status)
        self._timing.append(response.timing)

    def _drop(self, connection: HttpConnection) -> None:
        connection.unsent = None
        del self._connections[connection.fd]
        connection.socket.close()  # This also removes it from the epoll object.

    def _tick(self, now: float) -> None:
        self._tick_at = now + TICK
        overdue = now - self._clients.timeout
        if self._clients.patience < math.inf:
            self._drop_expired(now)
        while self._waiting and self._waiting[0] < overdue:
            self._record(self._waiting.popleft(), now, TOO_LATE)
        for connection in list(self._connections.values()):
            if 0.0 < connection.intended < overdue:
                self._end(connection, TOO_LATE)
        if self._on_tick:
            self._on_tick()
