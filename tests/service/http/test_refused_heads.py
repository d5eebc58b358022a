from __future__ import annotations

import pytest

from service.http.refused_heads import MAX_REMEMBERED, RefusedHeads, head_of
from service.http.turns import LoopTurns
from service.metrics import Metrics

START = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\n"


def request(body: bytes, more: bytes = b"") -> bytes:
    return START + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_requests_with_other_bodies_have_the_same_head() -> None:
    assert head_of(request(b"abc")) == head_of(request(b"x" * 5000)) is not None
    assert head_of(request(b"abc")) != head_of(request(b"abc", b"X-Request-Timeout-Ms: 5\r\n"))
    assert head_of(request(b"")) == head_of(request(b"a"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        START,
        request(b"abc")[:-1],
        request(b"abc") + b"d",
        request(b"abc") + request(b"abc"),
        START + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        START + b"\r\n" + b"Content-Length: 3\r\n\r\nabc",  # It is in the body.
        START + b"Content-Length: 3x\r\n\r\nabc",
        START + b"Content-Length: +3\r\n\r\nabc",
    ],
)
def test_only_one_whole_request_of_known_length_has_one(data: bytes) -> None:
    assert head_of(data) is None


def test_a_younger_refusal_stands_for_older_requests_until_the_turn_ends() -> None:
    turns = LoopTurns(Metrics())
    heads: RefusedHeads[str] = RefusedHeads(turns)
    assert heads.find(request(b"abc"), 1.0) is None
    heads.remember(request(b"abc"), 0.05, "older")
    assert heads.find(request(b"other"), 0.0) is None
    assert heads.find(request(b"other"), 0.06) == "older"
    heads.remember(request(b"abc"), 0.01, "younger")
    heads.remember(request(b"abc"), 0.05, "older")
    assert heads.find(request(b"other"), 0.02) == "younger"
    assert heads.find(request(b"other", b"X: 1\r\n"), 0.02) is None
    turns.number += 1
    assert heads.find(request(b"other"), 0.02) is None


def test_only_so_many_heads_are_remembered() -> None:
    heads: RefusedHeads[int] = RefusedHeads(LoopTurns(Metrics()))
    for number in range(2 * MAX_REMEMBERED):
        heads.remember(request(b"a", b"X: %d\r\n" % number), 0.0, number)
    assert len(heads._known) == MAX_REMEMBERED
    heads.remember(request(b"a", b"X: %s\r\n" % (b"x" * 5000)), 0.0, 1)
    assert max(map(len, heads._known)) < 100
