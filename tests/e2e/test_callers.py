"""Callers who leave, or still send when the service ends; and what its log tells of them."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from PIL import Image

from tests.conftest import Service, client, encoded, started
from tests.e2e.test_endpoints import samples
from tests.e2e.test_load import wait_for

# `waits` computes nothing for as long as the tests take, so that what is queued there stays; a
# forward of `computes` takes long enough to be caught at it.
CONFIG = """
models:
  - name: waits
    spec: "random:"
    architecture: {block: basic, blocks: [1], planes: [8], stem: small, num_classes: 10}
    engine: eager
    max_delay_ms: 60000
    max_queue: 4
  - {name: computes, spec: "random:resnet18", engine: eager, max_batch: 1, max_queue: 16}
log_format: json
log_level: debug
shutdown_grace_s: 0.3
shutdown_timeout_s: 2
"""
SECRET = "hidden-7f3a"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(1, id="one process", marks=pytest.mark.slow),
        pytest.param(2, id="two front ends"),
    ],
)
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    config = tmp_path_factory.mktemp("callers") / "serve.yaml"
    config.write_text(CONFIG)
    with started("--config", str(config), "--workers", str(request.param)) as running:
        for _ in range(4 * request.param):  # Whichever front end answers.
            running.wait_until_ready()
        yield running


def head(length: int, model: str = "waits", path: str = "/v1/classify", more: str = "") -> bytes:
    return (
        f"POST {path}?model={model} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n"
    ).encode()


def whole(model: str = "waits", body: bytes | None = None) -> bytes:
    body = encoded() if body is None else body
    return head(len(body), model) + body


@contextmanager
def sent(service: Service, data: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(data)
        yield connection


def depth(of: Service, count: int) -> None:
    wait_for(of, 'resnet_serve_queue_depth{model="waits"}', lambda found: found == count)


def left(of: Service, model: str = "waits") -> float:
    return samples(of)[f'resnet_serve_refusals_total{{model="{model}",reason="caller_left"}}']


def counted(of: Service, before: float, model: str = "waits") -> None:
    """Waits until one more has left; nothing of any request is left over then."""
    series = f'resnet_serve_refusals_total{{model="{model}",reason="caller_left"}}'
    wait_for(of, series, lambda count: count == before + 1)
    wait_for(of, "resnet_serve_requests_in_flight", lambda count: count <= 1)


def computed(of: Service, model: str = "waits") -> float:
    return samples(of)[f'resnet_serve_batch_size_sum{{model="{model}"}}']


@pytest.mark.parametrize("part", [0, 1000], ids=["before the body", "during the upload"])
def test_who_leaves_before_the_body_is_whole(service: Service, part: int) -> None:
    before = left(service)
    with sent(service, head(100_000) + b"x" * part):
        wait_for(service, "resnet_serve_requests_in_flight", lambda count: count >= 2)
    counted(service, before)
    assert computed(service) == 0


def test_who_leaves_while_queued_is_never_computed(service: Service) -> None:
    before = left(service)
    with sent(service, whole()):
        depth(service, 1)
    depth(service, 0)
    counted(service, before)
    assert computed(service) == 0


def test_who_leaves_while_the_image_is_decoded_frees_the_place_at_once(service: Service) -> None:
    before = left(service)
    large = io.BytesIO()
    Image.new("L", (7000, 7000)).save(large, "PNG", compress_level=1)
    with sent(service, whole(body=large.getvalue())):
        depth(service, 1)
    depth(service, 0)
    counted(service, before)
    assert computed(service) == 0


def test_who_leaves_with_a_batch_frees_every_place(service: Service) -> None:
    before = left(service)
    files = [("image", (f"{index}.png", encoded())) for index in range(3)]
    url = f"{service.url}/v1/classify/batch"
    form = httpx.Request("POST", url, files=files)
    kind = f"Content-Type: {form.headers['content-type']}\r\n"
    body = form.read()
    with sent(service, head(len(body), path="/v1/classify/batch", more=kind) + body):
        depth(service, 2)  # One request takes half of the places at a time.
    depth(service, 0)
    counted(service, before)
    assert computed(service) == 0


def test_who_leaves_while_it_is_computed_is_counted_and_the_next_is_served(
    service: Service,
) -> None:
    for attempt in range(40):
        before, images = left(service, "computes"), computed(service, "computes")
        with sent(service, whole("computes")):
            time.sleep(0.005 * attempt)
        answer = client.post(f"{service.url}/v1/classify?model=computes", content=encoded())
        assert answer.status_code == 200
        # Its caller has left, and it was computed before the next.
        if left(service, "computes") - before == 1 and computed(service, "computes") - images == 2:
            break
    else:
        raise AssertionError("never caught at it")


def test_who_leaves_between_requests_has_left_nothing(service: Service) -> None:
    before = samples(service)
    for beginning in (b"", b"POST /v1/class"):
        with sent(service, whole("computes")) as connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            connection.sendall(beginning)
    after = samples(service)
    refused = [name for name in after if name.startswith("resnet_serve_refusals_total")]
    assert {name: after[name] for name in refused} == {name: before[name] for name in refused}


def test_who_will_send_no_more_counts_as_having_left(service: Service) -> None:
    # A half-closed connection looks like a closed one until it is written to; as other servers
    # do, the place goes to somebody who certainly waits.
    before = left(service)
    with sent(service, whole()) as connection:
        depth(service, 1)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4096) == b""
    depth(service, 0)
    counted(service, before)
    assert computed(service) == 0


def test_odd_requests_are_answered(service: Service) -> None:
    """What the log must not be broken by; it is read when the service has ended."""
    url = f"{service.url}/v1/classify"
    secrets = {"Authorization": f"Bearer {SECRET}", "X-API-Key": SECRET, "X-Request-ID": 'a"b'}
    query = {"model": "computes"}
    odd = client.post(url, params=query, headers=secrets, content=b"no image")
    assert odd.status_code == 400
    query |= {"token": SECRET}
    assert client.post(url, params=query, content=encoded()).status_code == 422
    assert client.get(f"{service.url}/v1/a%0a{{%22b%22:1}}%1b[31m").status_code == 404
    # An animation without frames, of which Pillow warns.
    animated = encoded()[:33] + chunk(b"acTL", struct.pack(">II", 0, 0)) + encoded()[33:]
    assert client.post(url, params={"model": "computes"}, content=animated).status_code == 200
    with sent(service, b"\x00\x01 no HTTP\r\n\r\n") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_sigterm_with_everything_under_way_answers_what_can_be_answered(service: Service) -> None:
    answers: dict[str, bytes] = {}

    def receive(name: str, connection: socket.socket) -> None:
        answers[name] = connection.recv(4096)

    body = encoded()
    with (
        sent(service, whole("computes")) as idle,
        sent(service, head(len(body), "computes") + body[:20]) as slow,
        sent(service, head(100_000, "computes") + b"x" * 20) as endless,
        sent(service, whole("computes")) as first,
        sent(service, whole("computes")) as second,
        sent(service, whole("computes")) as third,
    ):
        answered = b""
        while not answered.endswith(b"}"):
            answered += idle.recv(4096)
        assert answered.startswith(b"HTTP/1.1 200 ")
        waiting = {"idle": idle, "slow": slow, "endless": endless}
        waiting |= {"1": first, "2": second, "3": third}
        threads = [threading.Thread(target=receive, args=pair) for pair in waiting.items()]
        for thread in threads:
            thread.start()
        service.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(0.5)  # Longer than the grace.
        slow.sendall(body[20:])
        assert service.process.wait(60) == 0
        took = time.monotonic() - began
        for thread in threads:
            thread.join(30)
    assert answers.pop("idle") == b""
    assert answers["endless"].startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in answers.pop("endless")
    assert {name: text[:13] for name, text in answers.items()} == dict.fromkeys(
        answers, b"HTTP/1.1 200 "
    )
    # Grace, a second for those who have just connected, patience; and a busy machine.
    assert took < 0.3 + 1 + 2 + 10
    check(service.log)


def check(log: list[str]) -> None:
    """Of everything above: JSON, a line for each request at most, nothing secret, no traceback."""
    records = [json.loads(line) for line in log]
    for record in records:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
        assert {"level", "logger", "message"} <= set(record)
        assert "exception" not in record
        assert record["logger"] != "py.warnings", record
        assert record["level"] != "ERROR" or record["message"].startswith("Cancel 1 "), record
    assert SECRET not in "".join(log)
    of_requests = [record for record in records if "request_id" in record]
    for record in of_requests:
        # One that is refused at the connection may be no HTTP at all.
        at_the_connection = record["logger"] == "service.http.limits"
        facts = {"status"} if at_the_connection else {"method", "path", "status", "duration_ms"}
        assert facts <= set(record)
    assert max(Counter(record["request_id"] for record in of_requests).values()) == 1
    (odd,) = [record for record in of_requests if record["request_id"] == 'a"b']
    assert (odd["level"], odd["status"], odd["reason"]) == ("INFO", 400, "undecodable_image")
    assert (odd["model"], odd["method"], odd["path"]) == ("computes", "POST", "/v1/classify")
    assert odd["message"].startswith("the image has only")
    answered = [record for record in of_requests if record["status"] == 200]
    assert answered
    assert {record["level"] for record in answered} == {"DEBUG"}
    reasons = {record.get("reason") for record in of_requests}
    assert {"caller_left", "not_ready"} <= reasons
