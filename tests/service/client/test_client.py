"""The client against a server that misbehaves, and what needs no server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import aclosing
from typing import Any

import pytest

from service.client import (
    AsyncClient,
    Busy,
    Client,
    DeadlinePassed,
    ImageRefused,
    KeyRefused,
    RequestRefused,
    TimedOut,
    UnknownModel,
    Unreachable,
    UnreadableAnswer,
    UnreadableImage,
)
from service.client.exceptions import refusal
from tests.conftest import encoded
from tests.support.unruly import answer, breaks_off, drips, is_silent, unruly

IMAGE = encoded()


TIMING = {"decode": 1, "queue": 2, "inference": 3, "total": 6}


CLASSIFIED = {
    "model": "m",
    "predictions": [{"class_id": 3, "label": "cat", "probability": 0.9, "new": 1}],
    "timing_ms": TIMING,
    "batch_size": 1,
    "later": "fields of later versions are no error",
}


GOOD = answer(200, json.dumps(CLASSIFIED).encode())


def problem(status: int, reason: str, *headers: str) -> bytes:
    body = {"type": f"urn:resnet-serve:problem:{reason}", "detail": f"because {reason}"}
    return answer(status, json.dumps(body).encode(), *headers)


BUSY = problem(429, "queue_full")


def test_what_it_does_not_import() -> None:
    probe = (
        "import sys, service.client; print([m for m in ('torch', 'fastapi') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", probe], text=True) == "[]\n"


def test_retries_are_one_request_with_less_time_left() -> None:
    with (
        unruly(BUSY, problem(503, "not_ready"), breaks_off, GOOD) as server,
        Client(server.url, timeout=60, key="a-key-of-ours") as client,
    ):
        assert client.classify(IMAGE).best.label == "cat"
    assert len(server.headers) == 4
    assert len({headers["x-request-id"] for headers in server.headers}) == 1
    assert {headers["authorization"] for headers in server.headers} == {"Bearer a-key-of-ours"}
    left = [float(headers["x-request-timeout-ms"]) for headers in server.headers]
    assert 0 < left[3] < left[2] < left[1] < left[0] <= 60_000


def test_retry_after_is_waited_for() -> None:
    with (
        unruly(problem(429, "queue_full", "Retry-After: 1"), GOOD) as server,
        Client(server.url) as client,
    ):
        client.classify(IMAGE)
    assert server.times[1] - server.times[0] >= 0.99


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "undecodable_image", ImageRefused),
        (401, "unauthorized", KeyRefused),
        (404, "unknown_model", UnknownModel),
        (413, "too_large", ImageRefused),
        (422, "bad_parameter", RequestRefused),
        (500, "internal_error", RequestRefused),
        (504, "deadline_exceeded", DeadlinePassed),
        (504, "client_deadline", DeadlinePassed),
    ],
)
def test_what_no_retry_changes_is_sent_once(
    status: int, reason: str, kind: type[RequestRefused]
) -> None:
    with (
        unruly(problem(status, reason, "X-Request-ID: r1", "Retry-After: 0")) as server,
        Client(server.url) as client,
        pytest.raises(kind) as caught,
    ):
        client.classify(IMAGE)
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason) == (status, reason)
    assert (str(caught.value), caught.value.request_id) == (f"because {reason}", "r1")
    assert len(server.times) == 1


def test_a_wait_that_would_outlast_the_call_is_not_begun() -> None:
    with (
        unruly(problem(503, "not_ready", "Retry-After: 100")) as server,
        Client(server.url, timeout=50) as client,
        pytest.raises(Busy) as caught,
    ):
        client.classify(IMAGE)
    assert (caught.value.retry_after, len(server.times)) == (100, 1)


def test_retries_are_counted() -> None:
    with unruly(BUSY) as server, Client(server.url, retries=2) as client, pytest.raises(Busy):
        client.classify(IMAGE)
    assert len(server.times) == 3


@pytest.mark.parametrize("how", [drips, is_silent])
def test_a_call_ends_in_its_time_however_slowly_it_is_answered(how: Any) -> None:
    with unruly(how) as server, Client(server.url, timeout=0.3) as client:
        with pytest.raises(TimedOut, match=r"no response within 0\.3 s"):
            client.classify(IMAGE)
        assert not client.ready()


def test_a_call_that_times_out_tells_what_was_in_the_way() -> None:
    with (
        unruly(problem(503, "not_ready", "Retry-After: 0"), is_silent) as server,
        Client(server.url, timeout=0.4) as client,
        pytest.raises(TimedOut, match="before that: because not_ready"),
    ):
        client.classify(IMAGE)


def test_nobody_there() -> None:
    with unruly(GOOD) as server:
        url = server.url
    with Client(url, retries=1) as client:
        with pytest.raises(Unreachable, match=url):
            client.classify(IMAGE)
        health = client.live()
    assert (bool(health), health.status) == (False, "unreachable")


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b"{}", json.dumps(CLASSIFIED | {"predictions": 3}).encode(), b"\xff"],
)
def test_an_answer_of_something_else_is_told(body: bytes) -> None:
    with (
        unruly(answer(200, body)) as server,
        Client(server.url) as client,
        pytest.raises(UnreadableAnswer, match="is not a valid Classification"),
    ):
        client.classify(IMAGE)


def test_a_packed_answer_that_is_broken_is_told() -> None:
    packed = answer(200, b"no gzip", "Content-Encoding: gzip")
    with (
        unruly(packed) as server,
        Client(server.url) as client,
        pytest.raises(UnreadableAnswer, match="cannot be decompressed"),
    ):
        client.classify(IMAGE)


def test_a_proxys_answer_is_told_in_its_words() -> None:
    with (
        unruly(answer(418, b"<b>I am\n a teapot")) as server,
        Client(server.url) as client,
        pytest.raises(RequestRefused, match=r"418 .*: I am a teapot"),
    ):
        client.classify(IMAGE)
    with (
        unruly(answer(308, b"", "Location: https://x/")) as server,
        Client(server.url) as client,
        pytest.raises(RequestRefused, match="308 Permanent Redirect to https://x/"),
    ):
        client.classify(IMAGE)
    deep = b'{"type":' + b"[" * 100_000
    assert refusal(503, deep, {}, None).reason == "service_unavailable"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "localhost:8000"}, "must look like http://"),
        ({"url": "http://"}, "must look like http://"),
        ({"url": "http://[::"}, "url"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"key": "two words"}, "key: must be"),
        ({"key": "line\nbreak"}, "key: must be"),
    ],
)
def test_an_impossible_argument_is_told_without_the_key(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Client(**{"url": "http://127.0.0.1", **given})
    assert given.get("key", "?") not in str(caught.value)


def test_many_are_answered_in_order_and_not_taken_ahead() -> None:
    taken = 0

    def images() -> Any:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield IMAGE if number % 3 else f"/nowhere-{number}.png"

    with unruly(GOOD) as server, Client(server.url) as client:
        found = []
        for number, item in enumerate(client.classify_many(images(), concurrency=4)):
            assert taken <= number + 4
            found.append(item)
    assert len(found) == 20
    for number, item in enumerate(found):
        if number % 3:
            assert item.error is None
            assert item.classification
        else:
            assert isinstance(item.error, UnreadableImage)
            assert str(number) in str(item.error)
            assert item.source == f"/nowhere-{number}.png"


def test_many_end_where_no_image_can_succeed() -> None:
    with unruly(problem(401, "unauthorized")) as server, Client(server.url) as client:
        with pytest.raises(KeyRefused):
            list(client.classify_many([IMAGE] * 100))
        assert len(server.times) < 100
        with pytest.raises(ValueError, match="concurrency"):
            list(client.classify_many([IMAGE], concurrency=0))


def test_who_stops_early_leaves_nothing_running() -> None:
    async def some() -> tuple[str, int]:
        async def images() -> Any:
            while True:
                yield IMAGE

        async with AsyncClient(server.url) as client:
            async with aclosing(client.classify_many(images())) as items:
                async for item in items:
                    assert item.classification
                    label = item.classification.best.label
                    break
            return label, len(asyncio.all_tasks())

    with unruly(GOOD) as server:
        assert asyncio.run(some()) == ("cat", 1)


def test_threads_share_a_client() -> None:
    with unruly(GOOD) as server, Client(server.url) as client:
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.append(client.classify(IMAGE).model))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["m"] * 8


def test_a_client_that_is_closed_or_forgotten_has_no_thread_left() -> None:
    def running() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if "resnet-serve" in thread.name]

    client = Client("http://127.0.0.1:1")
    assert len(running()) == 1
    client.close()
    client.close()
    assert not running()
    with pytest.raises(RuntimeError, match="is closed"):
        client.ready()
    Client("http://127.0.0.1:1")
    until = time.monotonic() + 30
    while running() and time.monotonic() < until:
        time.sleep(0.01)
    assert not running()


def test_a_fork_is_told_to_make_its_own() -> None:
    probe = """
import os
from service.client import Client
client = Client("http://127.0.0.1:1")
if os.fork() == 0:
    try:
        client.ready()
    except RuntimeError as error:
        print(error, flush=True)
    client.close()
    os._exit(0)
os.wait()
"""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    said = subprocess.check_output([sys.executable, "-c", probe], text=True, env=environment)
    assert "create one here" in said
