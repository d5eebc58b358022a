"""Refusals at the connection, as clients see them, and what is left of requests afterwards."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from service.http.gate import V2_ROUTE
from tests.support.gated import IMAGE, Answer, Client, Gated, gated, post

BUSY = post("/v1/classify", IMAGE, "X-Request-Timeout-Ms: 200")
PIXELS = {"shape": [1, 3, 32, 32], "datatype": "FP32", "data": [0.0] * 3072}
V2_BODY = json.dumps({"inputs": [{"name": "input", **PIXELS}]}).encode()
V2 = post("/v2/models/first/infer", V2_BODY, "X-Request-Timeout-Ms: 200")


@contextmanager
def overloaded(seconds: float = 1.0, more: Sequence[str] = (), **settings: Any) -> Iterator[Gated]:
    """A service whose queue needs longer than the 200 ms that its next clients allow."""
    with gated(seconds, *more, **settings) as service:
        headers = [f"X-API-Key: {key}" for key in settings.get("api_keys", [])]
        service.model.open.clear()
        service.connect().send(post("/v1/classify", IMAGE, *headers))
        service.until(lambda: service.model.batcher.depth == 1)
        yield service


def refused(answer: Answer, status: int, reason: str) -> None:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body)["type"] == f"urn:resnet-serve:problem:{reason}"
    assert json.loads(answer.body)["status"] == status


def at_gate(answer: Answer) -> bool:
    """Whether the gate has refused it: the application times what it does."""
    return "server-timing" not in answer.headers


def test_what_would_come_too_late_is_refused_at_once() -> None:
    with overloaded() as service:
        answer = service.connect().send(BUSY).answer()
        refused(answer, 429, "deadline_too_short")
        assert at_gate(answer)
        assert "200 ms" in answer.detail
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert re.fullmatch(r"\S+", answer.headers["x-request-id"])
        assert "connection" not in answer.headers
        assert service.refusals("first", "deadline_too_short") == 1
        assert service.metrics.requests.labels("/v1/classify", 429)._value.get() == 1
        service.model.open.set()
        service.until(service.idle)


def test_a_default_deadline_that_cannot_be_kept_is_the_services_affair() -> None:
    with overloaded(request_timeout_ms=500) as service:
        answer = service.connect().send(post()).answer()
        refused(answer, 429, "queue_full")
        assert at_gate(answer)


def test_a_refused_connection_serves_its_next_request() -> None:
    with overloaded() as service:
        client = service.connect()
        for _ in range(5):
            refused(client.send(BUSY).answer(), 429, "deadline_too_short")
        service.model.open.set()
        service.until(service.idle)
        assert client.send(post()).answer().status == 200
        assert client.send(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").answer().status == 200


def test_a_body_that_comes_after_its_refusal_is_no_request() -> None:
    with overloaded() as service:
        client = service.connect()
        head, _, _ = BUSY.partition(IMAGE)
        client.send(head)
        refused(client.answer(), 429, "deadline_too_short")
        client.send(IMAGE[:50])
        client.send(IMAGE[50:] + BUSY)
        refused(client.answer(), 429, "deadline_too_short")


def test_pipelined_requests_have_their_responses_in_order() -> None:
    with overloaded() as service:
        client = service.connect()
        patient = post("/v1/classify", IMAGE, "X-Request-ID: patient")
        client.send(BUSY + BUSY + patient + BUSY)
        for _ in range(2):
            refused(client.answer(), 429, "deadline_too_short")
        service.model.open.set()
        answer = client.answer()
        assert (answer.status, answer.headers["x-request-id"]) == (200, "patient")
        # The last has waited for the one before it, so that the application decides.
        assert client.answer().status in (429, 504)
        service.until(service.idle)


@pytest.mark.parametrize(
    "request_", [BUSY.replace(b"Host", b"Connection: close\r\nHost"), BUSY.replace(b"1.1", b"1.0")]
)
def test_a_refused_connection_that_closes_is_closed_after_the_response(request_: bytes) -> None:
    with overloaded() as service:
        client = service.connect().send(request_)
        answer = client.answer()
        refused(answer, 429, "deadline_too_short")
        assert answer.headers["connection"] == "close"
        assert client.rest() == b""


def test_every_refused_client_is_told_its_own_time() -> None:
    with overloaded() as service:
        client = service.connect()
        told = {client.send(BUSY).answer().headers["retry-after"] for _ in range(100)}
        assert len(told) >= 5
        assert all(1 <= int(seconds) <= 60 for seconds in told)


def test_a_request_keeps_its_id_and_others_get_one_of_their_own() -> None:
    with overloaded() as service:
        client = service.connect()
        named = BUSY.replace(b"Host", b"X-Request-ID: mine\r\nHost")
        assert client.send(named).answer().headers["x-request-id"] == "mine"
        broken = BUSY.replace(b"Host", b"X-Request-ID: not one word\r\nHost")
        made = [
            client.send(request).answer().headers["x-request-id"]
            for request in (BUSY, BUSY, broken)
        ]
        assert len({*made, "mine", "not one word"}) == 5


def test_a_model_that_is_not_ready_is_503() -> None:
    with gated() as service:
        service.model.ready, service.model.reason = False, "its engine is loading"
        answer = service.connect().send(post()).answer()
        refused(answer, 503, "not_ready")
        assert at_gate(answer)
        assert answer.detail == "first is not ready: its engine is loading"
        assert answer.headers["retry-after"] == "1"


def test_only_the_model_that_is_asked_for_counts() -> None:
    with gated(0.0, "second") as service:
        service.models["second"].ready = False
        client = service.connect()
        assert client.send(post()).answer().status == 200
        assert client.send(post("/v1/classify?model=first")).answer().status == 200
        refused(client.send(post("/v1/classify?top_k=1&model=second")).answer(), 503, "not_ready")
        # What nobody knows, the application explains.
        refused(client.send(post("/v1/classify?model=third")).answer(), 404, "unknown_model")
        service.until(service.idle)


@pytest.mark.parametrize("own", [True, False])
def test_what_waited_longer_than_its_client_is_504(own: bool) -> None:
    with gated(request_timeout_ms=200 if own else 60_000) as service:
        request = post() if own else BUSY
        client = service.connect()
        assert client.send(post()).answer().status == 200
        with service.stalled():
            client.send(request)
            time.sleep(0.4)
        answer = client.answer()
        refused(answer, 504, "deadline_exceeded" if own else "client_deadline")
        assert at_gate(answer)
        service.until(service.idle)


def test_data_that_waits_while_the_loop_stands_still_is_as_old_as_it_is() -> None:
    with gated() as service:
        for client in (service.connect(), service.connect()):
            with service.stalled():
                client.send(post())
                time.sleep(0.3)
            answer = client.answer()
            assert answer.status == 200
            timing = json.loads(answer.body)["timing_ms"]
            assert 280 < timing["accept"] < 30_000
            assert timing["total"] >= timing["accept"]
            assert f"accept;dur={timing['accept']}" in answer.headers["server-timing"]


def test_data_of_a_new_connection_is_as_old_as_it_is() -> None:
    """Also where the turn that accepts it reads from others."""
    with gated() as service:
        known = service.connect()
        assert known.send(post()).answer().status == 200
        with service.stalled():
            known.send(post())
            fresh = service.connect().send(post())
            time.sleep(0.3)
        for client in (known, fresh):
            assert json.loads(client.answer().body)["timing_ms"]["accept"] > 280


def test_without_a_key_the_application_says_so() -> None:
    with overloaded(api_keys=["k" * 32]) as service:
        client = service.connect()
        for request in (BUSY, BUSY.replace(b"Host", b"X-API-Key: wrong\r\nHost")):
            answer = client.send(request).answer()
            refused(answer, 401, "unauthorized")
            assert not at_gate(answer)
        known = BUSY.replace(b"Host", b"X-API-Key: " + b"k" * 32 + b"\r\nHost")
        answer = client.send(known).answer()
        refused(answer, 429, "deadline_too_short")
        assert at_gate(answer)


@pytest.mark.parametrize(
    ("header", "status"),
    [(b"Origin: http://a.example", 429), (b"X-Request-Timeout-Ms: soon", 422)],
)
def test_what_only_the_application_knows_goes_to_it(header: bytes, status: int) -> None:
    with overloaded(cors_origins=["http://a.example"]) as service:
        request = BUSY.replace(b"Host", header + b"\r\nHost")
        answer = service.connect().send(request).answer()
        assert answer.status == status
        assert not at_gate(answer)
        if status == 429:
            assert answer.headers["access-control-allow-origin"] == "http://a.example"


def test_whoever_asks_first_is_answered_by_the_application() -> None:
    with overloaded() as service:
        head, _, _ = BUSY.replace(b"Host", b"Expect: 100-continue\r\nHost").partition(IMAGE)
        answer = service.connect().send(head).answer()
        refused(answer, 429, "deadline_too_short")
        assert not at_gate(answer)


@pytest.mark.parametrize("path", ["/v2/models/first/infer", "/v2/models/first/versions/1/infer"])
def test_a_refusal_under_v2_has_its_form(path: str) -> None:
    with overloaded() as service:
        client = service.connect()
        answer = client.send(V2.replace(b"/v2/models/first/infer", path.encode())).answer()
        assert answer.status == 429
        assert at_gate(answer)
        assert answer.headers["content-type"] == "application/json"
        document = json.loads(answer.body)
        assert document.keys() == {"error"}
        assert "200 ms" in document["error"]
        assert service.metrics.requests.labels(V2_ROUTE, 429)._value.get() == 1
        service.model.open.set()
        service.until(service.idle)
        assert client.send(post("/v2/models/first/infer", V2_BODY)).answer().status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/classify/batch"),
        ("POST", "/v1/embed"),
        ("POST", "/v1/explain"),
        ("POST", "/v1/explain/"),
        ("PUT", "/v1/classify"),
        ("PUT", "/v1/classify/?model=first"),
        ("PUT", "/v1/embed"),
        ("PUT", "/v1/explain"),
    ],
)
def test_every_prediction_is_refused_at_the_gate(
    method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with overloaded() as service:
        request = BUSY.replace(b"POST /v1/classify", f"{method} {path}".encode())
        client = service.connect()
        for _ in range(2):  # The second is recognised.
            assert at_gate(client.send(request).answer())
        assert service.refusals("first", "deadline_too_short") == 2
    (line,) = [line for line in caplog.messages if "deadline_too_short" in line]
    assert f" {method} {path.partition('?')[0].rstrip('/')} 429 " in line


def test_an_image_by_put_is_let_in_and_leaves_nothing() -> None:
    with gated() as service:
        client = service.connect()
        for path in ("/v1/classify", "/v1/classify/"):
            request = post(path).replace(b"POST", b"PUT")
            assert client.send(request).answer().status == 200
        assert (
            client.send(post("/v1/classify/batch").replace(b"POST", b"PUT")).answer().status == 405
        )
        nothing_is_left(service)


INSTANCES = json.dumps({"instances": [base64.b64encode(IMAGE).decode()]}).encode()


@pytest.mark.parametrize(
    ("path", "body", "route", "keys"),
    [
        ("/v1/models/first:predict", INSTANCES, "/v1/models/{name}:predict", ["error"]),
        ("/v1/models/first/versions/1:predict", INSTANCES, "/v1/models/{name}:predict", ["error"]),
        ("/predictions/first", IMAGE, "/predictions/{name}", ["code", "type", "message"]),
        ("/predictions/first/1.0", IMAGE, "/predictions/{name}", ["code", "type", "message"]),
        ("/invocations", IMAGE, "/invocations", ["type", "title", "status", "detail"]),
        ("/vertex", IMAGE, "/vertex", ["type", "title", "status", "detail"]),
    ],
)
def test_a_platforms_prediction_is_refused_in_its_form(
    path: str, body: bytes, route: str, keys: list[str]
) -> None:
    with overloaded(vertex_predict_route="/vertex") as service:
        client = service.connect()
        answer = client.send(post(path, body, "X-Request-Timeout-Ms: 200")).answer()
        assert (answer.status, at_gate(answer)) == (429, True)
        assert list(json.loads(answer.body)) == keys
        assert int(answer.headers["retry-after"]) >= 1
        assert service.metrics.requests.labels(route, 429)._value.get() == 1
        service.model.open.set()
        service.until(service.idle)
        answer = client.send(post(path, body)).answer()
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert "inference;dur=" in answer.headers["server-timing"]
        nothing_is_left(service)


def test_what_is_switched_off_is_not_refused_but_unknown() -> None:
    with overloaded(platforms=[]) as service:
        for path in ("/predictions/first", "/invocations", "/v1/models/first:predict"):
            request = post(path, IMAGE, "X-Request-Timeout-Ms: 200")
            assert service.connect().send(request).answer().status == 404
        ping = b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"
        assert service.connect().send(ping).answer().status == 404


def test_a_header_that_names_the_model_is_read_by_the_application() -> None:
    with overloaded(more=["second"]) as service:
        named = post("/invocations", IMAGE, "X-Amzn-SageMaker-Target-Model: second.tar.gz")
        assert service.connect().send(named).answer().status == 200


def test_what_predicts_nothing_passes() -> None:
    with overloaded() as service:
        client = service.connect()
        for path in ("/health/live", "/metrics", "/openapi.json"):
            asked = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
            assert client.send(asked).answer().status == 200
        assert client.send(post("/v1/nothing")).answer().status == 404


def nothing_is_left(service: Gated) -> None:
    service.until(service.idle)
    assert service.model.batcher.depth == 0


def test_requests_that_are_served_leave_nothing() -> None:
    with gated() as service:
        clients = [service.connect().send(post()) for _ in range(20)]
        assert {client.answer().status for client in clients} <= {200, 429}
        nothing_is_left(service)


def test_a_client_that_leaves_while_its_image_waits_leaves_nothing() -> None:
    with gated() as service:
        service.model.open.clear()
        clients = [service.connect().send(post()) for _ in range(5)]
        service.until(lambda: service.model.batcher.depth == 5)
        for client in clients:
            client.close()
        nothing_is_left(service)


def test_a_client_that_leaves_before_its_request_begins_leaves_nothing() -> None:
    with gated() as service:
        # Each takes the whole of a turn, so that most of them wait for one.
        service.on_loop(lambda: setattr(service.turns, "request", 1.0))
        clients = [service.connect() for _ in range(20)]
        for client in clients:
            client.send(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            client.answer()
        with service.stalled():
            for client in clients:
                client.send(post())
                client.close()
        nothing_is_left(service)
        assert service.connect().send(post()).answer().status == 200


def test_a_client_that_leaves_within_its_body_leaves_nothing() -> None:
    with gated() as service:
        client = service.connect().send(post(length=10_000))
        service.until(lambda: service.metrics.in_flight._value.get() == 1)
        assert service.on_loop(service.idle)  # It counts from when its body is complete.
        client.close()
        service.until(lambda: service.metrics.in_flight._value.get() == 0)
        nothing_is_left(service)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(body=b"no image"), 400),
        (post("/v1/classify?top_k=0"), 422),
        (post("/v1/classify?top_k=many"), 422),
        (post("/v1/embed?nonsense=1"), 200),
        (post("/v1/classify/batch"), 422),
        (post(body=b""), 400),
    ],
)
def test_a_refusal_by_the_application_leaves_nothing(request_: bytes, status: int) -> None:
    with gated() as service:
        service.connect().send(request_).answer()
        nothing_is_left(service)


def test_a_bug_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with gated() as service:

        async def fails(*_: Any) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(service.model, "compute", fails)
        assert service.connect().send(post()).answer().status == 500
        nothing_is_left(service)


def test_a_body_that_ends_after_its_response_leaves_nothing() -> None:
    with gated() as service:
        client = service.connect().send(post("/v1/classify?top_k=0", b"", length=len(IMAGE)))
        assert client.answer().status == 422
        client.send(IMAGE)
        assert client.send(post()).answer().status == 200
        time.sleep(0.05)
        assert service.on_loop(service.idle)


def test_a_client_that_does_not_read_its_refusals_is_read_no_further() -> None:
    """Else the service keeps all of them in memory."""
    with gated() as service:
        service.model.ready = False
        client = service.connect()
        client._socket.settimeout(1)
        sent, many = 0, post(body=b"") * 1000
        with suppress(TimeoutError):
            while sent < 2**24:
                client._socket.sendall(many)
                sent += len(many)
        assert sent < 2**24


def test_a_refusal_names_its_own_clients_deadline() -> None:
    with overloaded() as service:
        client = service.connect()
        for milliseconds in (200, 300):
            request = BUSY.replace(b"Ms: 200", b"Ms: %d" % milliseconds)
            assert f"the {milliseconds} ms that" in client.send(request).answer().detail


def test_a_bug_in_the_gate_is_not_the_clients_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with gated() as service:

        def fails(*_: Any) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(service.gate, "_check", fails)
        service.connect().send(post()).rest()
        assert "a bug" in caplog.text
        assert service.refusals("", "malformed_request") == 0


def test_a_timeout_of_v2_counts_from_arrival() -> None:
    body = json.loads(V2_BODY) | {"parameters": {"timeout": 200_000}}  # in microseconds
    with gated() as service:
        client = service.connect()
        assert client.send(post()).answer().status == 200
        with service.stalled():
            client.send(post("/v2/models/first/infer", json.dumps(body).encode()))
            time.sleep(0.5)
        assert client.answer().status == 504


def test_what_was_let_in_counts_before_it_is_in_the_queue() -> None:
    """Else all of those that arrive at once would pass the same check."""
    with gated(0.2) as service:
        client = service.connect()
        assert client.send(post()).answer().status == 200
        patient = post("/v1/classify", IMAGE, "X-Request-Timeout-Ms: 1500")
        clients = [service.connect() for _ in range(60)]
        with service.stalled():
            for each in clients:
                each.send(patient)
        statuses = [each.answer().status for each in clients]
        # 1.5 s are enough for 7 of 0.2 s each.
        assert 1 <= statuses.count(200) <= 7
        assert statuses.count(429) >= 50
        nothing_is_left(service)


def test_probes_are_answered_while_many_are_refused() -> None:
    with overloaded() as service:
        stopped = threading.Event()

        def ask(client: Client) -> None:
            while not stopped.is_set():
                client.send(BUSY * 10)
                for _ in range(10):
                    assert client.answer().status == 429

        threads = [threading.Thread(target=ask, args=(service.connect(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        for _ in range(10):
            probe = service.connect().send(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert probe.answer().status == 200
        assert time.monotonic() - began < 30
        stopped.set()
        for thread in threads:
            thread.join()
