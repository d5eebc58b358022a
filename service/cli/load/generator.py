"""Sends requests when they are due, from one thread and with little Python per request.

This module only records times; `service.cli.load.report` interprets them.
"""

from __future__ import annotations

import errno
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

RECEIVE = 16_384
TICK = 0.1  # seconds between checks for requests that have timed out
PAUSE = 0.01  # seconds until a closed loop retries after a broken connection
BROKEN, TIMED_OUT = 0, -1
NO_RESPONSE = HttpResponse(BROKEN, True, b"")
TOO_LATE = HttpResponse(TIMED_OUT, True, b"")


@dataclass(frozen=True, slots=True)
class Samples:
    """N requests: when each was due and when its response arrived, float64 [N], in seconds of
    `time.perf_counter`; its status, int16 [N], BROKEN or TIMED_OUT without a response; its
    Server-Timing [N]. `cpu` is the generator thread's CPU time in seconds."""

    intended: NDArray[np.float64]
    done: NDArray[np.float64]
    status: NDArray[np.int16]
    timing: list[bytes]
    cpu: float


class HttpConnection:
    """`intended`: when its request was due; 0.0 while it is idle."""

    __slots__ = ("fd", "intended", "received", "socket", "unsent")

    def __init__(self, target: Target) -> None:
        self.socket = socket.socket(target.family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = self.socket.fileno()
        self.intended = 0.0
        self.received = b""
        self.unsent: memoryview | None = None


class Generator:
    """Runs once. A request that is due takes a free connection, opens one while there are fewer
    than `connections`, or else waits. It times out `timeout` seconds after it was due.

    `due`: ascending times of `time.perf_counter`. Until `again_until`, a connection sends its next
    request as soon as it has a response; after that it becomes free. `on_tick` is called about ten
    times a second.
    """

    def __init__(
        self,
        target: Target,
        due: Iterable[float],
        *,
        connections: int,
        timeout: float,
        again_until: float = 0.0,
        on_tick: Callable[[], None] | None = None,
    ) -> None:
        self._target = target
        self._requests = cycle(target.requests)
        self._due = deque(due)
        self._waiting: deque[float] = deque()
        self._limit = connections
        self._timeout = timeout
        self._again_until = again_until
        self._on_tick = on_tick
        self._tick_at = 0.0
        # Not an EpollSelector, which creates an object for each event and rounds timeouts up to a
        # millisecond; an open loop would attribute that to the server.
        self._epoll = select.epoll()
        self._connections: dict[int, HttpConnection] = {}
        self._free: list[HttpConnection] = []
        self._in_flight = 0
        self._intended, self._done = array("d"), array("d")
        self._status = array("h")
        self._timing: list[bytes] = []

    def run(self) -> Samples:
        """Returns when every request has its response or has timed out."""
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
        due, waiting, free = self._due, self._waiting, self._free
        while True:
            now = time.perf_counter()
            while due and due[0] <= now:
                waiting.append(due.popleft())
            while waiting:
                if free:
                    self._begin(free.pop(), waiting.popleft())
                elif len(self._connections) < self._limit:
                    self._open(waiting.popleft())
                else:
                    break
            if now >= self._tick_at:
                self._tick(now)
            if not self._in_flight and not due and not waiting:
                return
            for fd, events in self._wait():
                connection = self._connections.get(fd)
                if connection is None:
                    continue  # Just closed.
                if events & ~select.EPOLLOUT:
                    self._read(connection)
                if connection.unsent is not None and events & select.EPOLLOUT:
                    self._write(connection)

    def _wait(self) -> list[tuple[int, int]]:
        if not self._due:
            wait = max(0.0, self._tick_at - time.perf_counter())
            return self._epoll.poll(wait, self._limit)
        wait = min(self._due[0], self._tick_at) - time.perf_counter()
        if wait > 0:
            # select() has a resolution of microseconds, epoll_wait() of milliseconds.
            select.select((self._epoll,), (), (), wait)
        return self._epoll.poll(0, self._limit)

    def _open(self, intended: float) -> None:
        connection = HttpConnection(self._target)
        self._connections[connection.fd] = connection
        error = connection.socket.connect_ex(self._target.address)
        if error == 0:
            self._epoll.register(connection.fd, select.EPOLLIN)
            self._begin(connection, intended)
        else:
            self._epoll.register(connection.fd, select.EPOLLIN | select.EPOLLOUT)
            connection.intended = intended
            self._in_flight += 1
            connection.unsent = memoryview(next(self._requests))
            if error != errno.EINPROGRESS:
                self._end(connection, NO_RESPONSE)

    def _begin(self, connection: HttpConnection, intended: float) -> None:
        connection.intended = intended
        self._in_flight += 1
        request = next(self._requests)
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
        connection.intended = 0.0
        connection.received = b""
        again = now < self._again_until
        # A response that precedes the end of its request leaves the connection unusable.
        if response.closes or connection.unsent is not None:
            self._drop(connection)
            if response.status > 0 and again:
                self._waiting.append(now)
            elif now + PAUSE < self._again_until:
                self._due.append(now + PAUSE)
        elif again:
            self._begin(connection, now)
        elif self._waiting:
            self._begin(connection, self._waiting.popleft())
        else:
            self._free.append(connection)

    def _record(self, intended: float, now: float, response: HttpResponse) -> None:
        self._intended.append(intended)
        self._done.append(now)
        self._status.append(response.status)
        self._timing.append(response.timing)

    def _drop(self, connection: HttpConnection) -> None:
        if connection in self._free:
            self._free.remove(connection)
        connection.unsent = None
        del self._connections[connection.fd]
        connection.socket.close()  # This also removes it from the epoll object.

    def _tick(self, now: float) -> None:
        self._tick_at = now + TICK
        overdue = now - self._timeout
        while self._waiting and self._waiting[0] < overdue:
            self._record(self._waiting.popleft(), now, TOO_LATE)
        for connection in list(self._connections.values()):
            if 0.0 < connection.intended < overdue:
                self._end(connection, TOO_LATE)
        if self._on_tick:
            self._on_tick()
