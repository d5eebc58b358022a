"""Load on real sockets, from a server whose every answer is written down here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from service.cli.load.report import Report, Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target
from tests.support.scripted import CLOSE, answer, scripted

# Short, and without a warm-up: what is asserted does not depend on how fast the machine is.
CLOSED: dict[str, Any] = {"connections": 2, "seconds": 0.4, "warm_up": 0.0}
OPEN: dict[str, Any] = {"connections": 256, "rate": 100, "seconds": 0.5, "warm_up": 0.0}


def closed(target: Target, **changes: Any) -> Report:
    return run_load(target, Run(**CLOSED | changes))


def opened(target: Target, **changes: Any) -> Report:
    return run_load(target, Run(**OPEN | changes))


def plain(number: int, body: bytes) -> Iterator[bytes]:
    yield answer()


def test_a_closed_loop_counts_each_request_once_and_keeps_its_connections() -> None:
    with scripted(plain) as server:
        report = closed(Target.of(server.url, [b"1", b"2", b"3"]))
    assert set(report.answers) == {200}
    assert report.answers[200] == report.histogram.total == len(server.bodies)
    assert server.connections == 3  # One of them only asked whether anybody listens.
    assert report.timeouts == 0
    assert report.run.mode == "closed"
    assert report.goodput is None
    assert 0 < report.latency_ms["p50"] <= report.latency_ms["p99"] <= report.latency_ms["max"]


def test_images_are_sent_in_turn() -> None:
    images = [bytes([index]) * 10 for index in range(5)]
    with scripted(plain) as server:
        closed(Target.of(server.url, images), connections=1)
    assert server.bodies[:10] == (images * 2)[: len(server.bodies[:10])]
    assert len(server.bodies) > 5


def test_the_warm_up_is_sent_but_not_counted() -> None:
    with scripted(plain) as server:
        report = opened(Target.of(server.url, [b""]), arrivals="fixed", warm_up=0.5)
    assert len(server.bodies) == 100
    assert 49 <= report.answers[200] <= 51


def test_an_open_loop_sees_the_stall_that_a_closed_one_hides() -> None:
    """One pause of a second: callers who come in that second wait for its end."""

    def pauses_once(lock: threading.Lock, number: int, body: bytes) -> Iterator[bytes]:
        with lock:  # All connections wait for the one that pauses.
            if number == 20:
                time.sleep(1.0)
        yield answer()

    def slow(report_of: str) -> tuple[int, int]:
        with scripted(partial(pauses_once, threading.Lock())) as server:
            target = Target.of(server.url, [b"image"])
            if report_of == "open":
                report = opened(target, rate=100, seconds=1.5, connections=16)
            else:
                report = closed(target, connections=1, seconds=1.5)
        histogram = report.histogram
        seconds = histogram.quantiles((np.arange(histogram.total) + 1) / histogram.total)
        return int((seconds > 0.3).sum()), histogram.total

    few, _ = slow("closed")
    many, total = slow("open")
    # A busy machine may add stalls of its own to the one.
    assert few <= 5
    assert many >= 40
    assert total > 100


def test_waiting_for_a_connection_counts() -> None:
    def slow(number: int, body: bytes) -> Iterator[bytes | float]:
        yield 0.1
        yield answer()

    with scripted(slow) as server:
        report = opened(Target.of(server.url, [b""]), connections=1, rate=50, arrivals="fixed")
    assert server.connections == 2
    assert report.answers == {200: 25}
    # The last of 25 requests came after half a second, and 24 of a tenth each are before it.
    assert report.latency_ms["max"] > 1500


def test_an_answer_that_closes_its_connection_is_followed_by_a_new_one() -> None:
    def closes(number: int, body: bytes) -> Iterator[bytes | None]:
        yield answer(headers="Connection: close\r\n")
        yield CLOSE

    with scripted(closes) as server:
        report = closed(Target.of(server.url, [b""]))
    assert set(report.answers) == {200}
    assert server.connections == len(server.bodies) + 1


def test_an_answer_that_comes_in_pieces_is_put_together() -> None:
    def dribbles(number: int, body: bytes) -> Iterator[bytes | float]:
        whole = answer(body=b"x" * 100)
        for start in range(0, len(whole), 17):
            yield whole[start : start + 17]
            yield 0.001

    with scripted(dribbles) as server:
        report = closed(Target.of(server.url, [b""]))
    assert report.answers == {200: len(server.bodies)}


def test_a_body_without_a_length_ends_with_its_chunks_or_with_the_connection() -> None:
    def lengthless(number: int, body: bytes) -> Iterator[bytes | float | None]:
        if number % 2:
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"
            yield 0.001
            yield b"lo\r\n0\r\n\r\n"
        else:
            yield b"HTTP/1.1 200 OK\r\n\r\nhello"
            yield CLOSE

    with scripted(lengthless) as server:
        report = closed(Target.of(server.url, [b""]))
    assert report.answers == {200: len(server.bodies)}


def test_a_large_image_is_sent_whole_to_a_slow_reader() -> None:
    image = np.random.default_rng(0).bytes(12_000_000)
    with scripted(plain) as server:
        report = closed(Target.of(server.url, [image]), connections=1, seconds=0.3)
    assert set(report.answers) == {200}
    assert set(server.bodies) == {image}


def test_refusals_are_told_apart_with_their_own_latency() -> None:
    def refuses_fast(number: int, body: bytes) -> Iterator[bytes | float]:
        if number % 2:
            yield answer(429)
        else:
            yield 0.05
            yield answer()

    with scripted(refuses_fast) as server:
        report = opened(Target.of(server.url, [b""]), slo_ms=10_000)
    assert set(report.answers) == {200, 429}
    assert report.histogram.total == report.answers[200]
    assert report.latency_ms["p50"] > 50
    assert set(report.refused_ms) == {429}
    assert report.refused_ms[429]["p50"] < report.latency_ms["max"]
    assert report.goodput == report.answers[200] / 0.5


def test_a_broken_connection_is_counted_and_replaced() -> None:
    def breaks(number: int, body: bytes) -> Iterator[bytes | None]:
        if number % 3 == 0:
            yield b"HTTP/1.1 200 OK\r\ncontent-le"
            yield CLOSE
        elif number % 3 == 1:
            yield b"SSH-2.0-OpenSSH_9.9\r\n"
        yield answer()

    with scripted(breaks) as server:
        report = closed(Target.of(server.url, [b""]))
    assert set(report.answers) == {0, 200}
    assert sum(report.answers.values()) == len(server.bodies)
    assert report.timeouts == 0


def test_a_server_that_goes_away_ends_no_run() -> None:
    def closes(number: int, body: bytes) -> Iterator[bytes | None]:
        if number == 5:
            server.stop_listening()
        yield answer()
        if number >= 5:
            yield CLOSE

    with scripted(closes) as server:
        report = closed(Target.of(server.url, [b""]))
    assert set(report.answers) == {0, 200}


def test_what_is_never_answered_is_given_up_and_counted() -> None:
    def forgets(number: int, body: bytes) -> Iterator[bytes | float]:
        if number >= 5:
            yield 1.0
        else:
            yield answer()

    with scripted(forgets) as server:
        target = Target.of(server.url, [b""])
        report = opened(target, connections=2, arrivals="fixed", timeout=0.2)
    # Also those that never got a connection.
    assert sum(report.answers.values()) == 50
    assert report.timeouts == report.answers[0] >= 45


def test_progress_is_told_while_a_run_lasts() -> None:
    told: list[float] = []
    with scripted(plain) as server:
        run_load(Target.of(server.url, [b""]), Run(**CLOSED), told.append)
    assert len(told) >= 2
    assert told == sorted(told)


def test_who_finds_no_connection_in_time_leaves_and_is_never_sent_late() -> None:
    def slow(number: int, body: bytes) -> Iterator[bytes | float]:
        yield 0.1
        yield answer()

    with scripted(slow) as server:
        target = Target.of(server.url, [b""])
        report = opened(target, connections=1, rate=200, arrivals="fixed", patience_ms=50)
    # A hundred come in half a second to a server that takes a tenth of it for each.
    assert report.answers == {200: len(server.bodies)}
    # A machine busy with something else may keep the generator from noticing a few.
    assert report.no_connection + report.generator_late == 100 - len(server.bodies) > 80
    assert report.no_connection > 40
    # Sent in turn, however late, half of them would take five seconds.
    assert report.latency_ms["p50"] < 1000
    assert report.as_json()["no_connection"] == report.no_connection


def test_what_the_generator_was_too_busy_to_send_is_told_apart() -> None:
    def busy(seconds: float) -> None:
        if not stalled:
            stalled.append(seconds)
            time.sleep(0.3)

    stalled: list[float] = []
    with scripted(plain) as server:
        run = Run(256, 0.5, rate=200, arrivals="fixed", warm_up=0.0, patience_ms=100)
        report = run_load(Target.of(server.url, [b""]), run, busy)
    assert report.answers == {200: len(server.bodies)}
    assert report.no_connection == 0
    # Of the sixty that came meanwhile, those whose clients had not left.
    assert report.generator_late == report.run.seconds * 200 - len(server.bodies) >= 30
    assert report.sent == len(server.bodies)


def test_a_share_of_the_requests_opens_connections_of_their_own() -> None:
    for load, connections in ((closed, 8), (opened, 256)):
        with scripted(plain) as server:
            target = Target.of(server.url, [b""])
            report = load(target, new_connections=0.5, connections=connections)
        # The server leaves its connections open: the clients close them.
        assert report.answers == {200: len(server.bodies)}
        assert len(server.bodies) > 20
        assert len(server.bodies) / 2 - 1 <= server.connections <= len(server.bodies) / 2 + 10


def test_a_request_on_a_connection_of_its_own_says_so() -> None:
    target = Target("", 0, None, (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n\r\n",))
    assert target.last_requests == (b"POST / HTTP/1.1\r\nConnection: close\r\nHost: a\r\n\r\n\r\n",)


def test_responses_that_come_together_are_read_together_without_losing_any() -> None:
    with scripted(plain) as server:
        target = Target.of(server.url, [b""])
        report = opened(target, rate=1000, arrivals="fixed", grain_ms=20)
    assert report.answers == {200: 500}
    assert server.connections < 500
    assert report.generator_us > 0
