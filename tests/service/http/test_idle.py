from __future__ import annotations

import logging

import pytest

from service.http.idle import LEAST_SECONDS, PAUSE_SECONDS, QUIET_SECONDS, SHARE, Room

NOW = 1000.0


class Idle:
    """See `service.http.idle.IdleConnection`; `arrived`: it has a request that was not read."""

    def __init__(self, since: float | None, arrived: bool = False) -> None:
        self.since = since
        self.arrived = arrived
        self.closed = self.asked = False

    @property
    def idle_since(self) -> float | None:
        self.asked = True
        return self.since

    def give_way(self) -> bool:
        self.closed = not self.arrived
        return self.closed


def test_below_the_limit_nobody_is_asked() -> None:
    connections = [Idle(0.0), Idle(0.0)]
    assert Room().has(connections, 3, NOW)
    assert not any(each.asked for each in connections)


def test_the_one_that_idles_longest_gives_way() -> None:
    connections = [Idle(since) for since in (900.0, None, 800.0, 850.0, 999.0)]
    assert Room().has(connections, 5, NOW)
    assert [each.closed for each in connections] == [False, False, True, False, False]


@pytest.mark.parametrize(("seconds", "closed"), [(LEAST_SECONDS, True), (4.99, False)])
def test_a_pause_between_two_requests_is_left_alone(seconds: float, closed: bool) -> None:
    connection = Idle(NOW - seconds)
    assert Room().has([connection], 1, NOW) == closed == connection.closed


def test_whose_request_has_arrived_stays() -> None:
    connection = Idle(0.0, arrived=True)
    assert not Room().has([connection], 1, NOW)


def test_whose_request_has_arrived_keeps_no_other_from_giving_way() -> None:
    connections = [Idle(0.0, arrived=True), Idle(1.0), Idle(2.0)]
    assert Room().has(connections, 3, NOW)
    assert [each.closed for each in connections] == [False, True, False]


def test_many_connections_are_looked_through_once_for_many() -> None:
    limit = 5 * SHARE
    connections = [Idle(float(since)) for since in range(limit)]
    assert Room().has(connections, limit, NOW)
    assert [each.closed for each in connections] == [True] * 5 + [False] * (limit - 5)


def test_where_nobody_could_give_way_nobody_is_asked_again_for_a_while() -> None:
    room, connection = Room(), Idle(None)
    assert not room.has([connection], 1, NOW)
    connection.asked, connection.since = False, 0.0
    assert not room.has([connection], 1, NOW + PAUSE_SECONDS - 0.01)
    assert not connection.asked
    assert room.has([], 1, NOW)
    assert room.has([connection], 1, NOW + PAUSE_SECONDS)
    assert connection.closed


def test_it_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    room = Room()
    for _ in range(3):
        assert room.has([Idle(0.0)], 1, NOW)
    assert QUIET_SECONDS >= 10
    assert caplog.messages == [
        "the limit of 1 open connections is reached; closed the longest idle: 1"
    ]
