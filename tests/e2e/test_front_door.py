"""What callers meet before anything answers them: limits, keys and TLS of a real service."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from service.http import certificate
from tests.conftest import COMMAND, PATIENCE, Service, client, encoded, started
from tests.e2e.test_classify import is_problem
from tests.e2e.test_endpoints import samples
from tests.e2e.test_start import fail
from tests.service.http.test_tls import self_signed

API, OTHER, ADMIN = "an-api-key-0123456789", "another-key-0123456789", "an-admin-key-0123456789"
KEY = {"X-API-Key": API}
ORIGIN = "https://example.org"
UPLOADS = 100_000
# All that any test was answered, which is searched for keys at the end.
answers: list[str] = []


@pytest.fixture(scope="module")
def door() -> Iterator[Service]:
    """A service with keys and small limits."""
    with started(
        "--model",
        "random:resnet20",
        RESNET_SERVE_API_KEYS=f"{OTHER},{API}",
        RESNET_SERVE_ADMIN_KEYS=ADMIN,
        RESNET_SERVE_CORS_ORIGINS=ORIGIN,
        # Longer than a busy machine keeps this process from sending what it connects for.
        RESNET_SERVE_HEADER_TIMEOUT_S="5",
        RESNET_SERVE_MAX_HEADER_BYTES="4096",
        RESNET_SERVE_MAX_CONNECTIONS="8",
        RESNET_SERVE_MAX_UPLOAD_BYTES=str(UPLOADS),
    ) as running:
        yield running


def connect(service: Service, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    connection.sendall(sent)
    return connection


def answer(connection: socket.socket) -> tuple[HTTPResponse, httpx.Response]:
    """The next answer, as http.client and as httpx know it."""
    raw = HTTPResponse(connection, method="GET")
    raw.begin()
    body = raw.read()
    answers.append(f"{raw.headers}{body.decode()}")
    return raw, httpx.Response(raw.status, headers=raw.getheaders(), content=body)


def refused(connection: socket.socket, status: int) -> str:
    """The reason of the problem that comes next, after which the connection closes."""
    with connection:
        _, response = answer(connection)
        problem = is_problem(response, status)
        assert connection.recv(1) == b""
    return str(problem["type"]).rpartition(":")[2]


def ask(service: Service, method: str, path: str, **options: object) -> httpx.Response:
    response = client.request(method, f"{service.url}{path}", **options)  # type: ignore[arg-type]
    answers.append(f"{response.headers}{response.text}")
    return response


def post(length: int, *headers: str) -> bytes:
    lines = ["POST /v1/classify HTTP/1.1", "Host: a", f"Content-Length: {length}"]
    return "\r\n".join([*lines, f"X-API-Key: {API}", *headers, "", ""]).encode()


def test_headers_too_long_or_too_slow_are_refused(door: Service) -> None:
    slow, silent = connect(door, b"GET / HTTP/1.1\r\nHo"), connect(door)
    large = b"GET / HTTP/1.1\r\nX: " + b"x" * 5000 + b"\r\n\r\n"
    assert refused(connect(door, large), 431) == "headers_too_large"
    assert refused(connect(door, b"nonsense\r\n\r\n"), 400) == "malformed_request"
    assert refused(slow, 408) == "request_too_slow"
    with silent:
        assert silent.recv(1) == b""


def test_more_connections_than_allowed_are_told_when_to_come_again(door: Service) -> None:
    with contextlib.ExitStack() as held:
        request = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
        for connection in [held.enter_context(connect(door, request)) for _ in range(8)]:
            assert answer(connection)[0].status == 200
        surplus = connect(door, b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        _, response = answer(held.enter_context(surplus))
        assert is_problem(response, 503)["type"].endswith("too_many_connections")
        assert response.headers["retry-after"] == "1"
        assert ask(door, "GET", "/health/live").status_code == 200


def test_a_deadline_holds_while_the_body_arrives(door: Service) -> None:
    slow = connect(door, post(UPLOADS - 1, "X-Request-Timeout-Ms: 300") + b"x" * 10)
    with slow:
        _, response = answer(slow)
        assert is_problem(response, 504)["type"].endswith("client_deadline")
        slow.sendall(b"x" * 10)  # Nobody reads it, and before long the connection closes.
        with suppress(ConnectionResetError):
            assert slow.recv(1) == b""
    assert ask(door, "POST", "/v1/classify", headers=KEY, content=encoded()).status_code == 200


def test_what_was_only_announced_keeps_nobody_out(door: Service) -> None:
    """Nor does the largest body, of which nearly all has arrived."""
    patient = "X-Request-Timeout-Ms: 3600000"
    announcing = post(20 * 2**20, patient) + b"x"
    with contextlib.ExitStack() as held:
        for _ in range(5):
            held.enter_context(connect(door, announcing))
        large = encoded("BMP", (200, 200))
        assert len(large) > UPLOADS
        for image in (encoded(), large):
            response = ask(door, "POST", "/v1/classify", headers=KEY, content=image)
            assert response.status_code == 200
        held.enter_context(connect(door, announcing + b"x" * 2 * UPLOADS))
        response = ask(door, "POST", "/v1/classify", headers=KEY, content=encoded())
        assert response.status_code == 200


def test_beyond_the_common_limit_the_slowest_body_gives_way(door: Service) -> None:
    patient = "X-Request-Timeout-Ms: 3600000"
    with (
        connect(door, post(20 * 2**20, patient) + b"x" * 2 * UPLOADS),
        connect(door, post(10 * 2**20, patient) + b"x" * (UPLOADS - 100)) as slow,
    ):
        image = encoded("PNG", (32, 32))
        assert len(image) > 100
        until = time.monotonic() + PATIENCE
        while not select.select([slow], [], [], 0)[0]:  # Its bytes arrive, at a rate yet unknown.
            ask(door, "POST", "/v1/classify", headers=KEY, content=image)
            assert time.monotonic() < until
        response = ask(door, "POST", "/v1/classify", headers=KEY, content=image)
        assert response.status_code == 200
        raw, refusal = answer(slow)
        assert is_problem(refusal, 429)["type"].endswith("uploads_full")
        assert refusal.headers["retry-after"] == "1"
        assert raw.getheader("connection") is None


def test_pipelined_requests_and_callers_who_ask_first_are_served(door: Service) -> None:
    image = encoded()
    with connect(
        door, (post(len(image)) + image) * 2 + post(len(image), "Connection: close") + image
    ) as connection:
        statuses = re.findall(rb"HTTP/1.1 (\d+)", connection.makefile("rb").read())
        assert statuses == [b"200"] * 3
    with connect(door, post(len(image), "Expect: 100-continue")) as connection:
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(image)
        assert answer(connection)[0].status == 200


def test_a_key_opens_the_api_and_only_the_api_needs_one(door: Service) -> None:
    for headers in (KEY, {"Authorization": f"Bearer {OTHER}"}, {"X-API-Key": ADMIN}):
        response = ask(door, "POST", "/v1/classify", headers=headers, content=encoded())
        assert response.status_code == 200
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/health/ready", "/web/app.js"):
        assert ask(door, "GET", path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/classify"),
        ("POST", "/v1/classify?top_k=1"),
        ("POST", "/v1/classify?unusual=1"),
        ("POST", "/v1/classify/"),
        ("POST", "/v1%2fclassify"),
        ("POST", "/v1/%63lassify"),
        ("POST", "//v1/classify"),
        ("POST", "/health/../v1/classify"),
        ("POST", "/V1/classify"),
        ("POST", "/v1/classify/batch"),
        ("GET", "/v1/models"),
        ("HEAD", "/v1/models"),
        ("GET", "/v1/models/resnet20"),
        ("PUT", "/v1/models/resnet20"),
        ("DELETE", "/v1/models/resnet20"),
    ],
)
def test_without_a_key_there_is_no_way_in(door: Service, method: str, path: str) -> None:
    sent = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX-API-Key: guess"
    with connect(door, f"{sent}\r\nConnection: close\r\n\r\n".encode()) as connection:
        head = connection.makefile("rb").read().decode()
    answers.append(head)
    if path.startswith("/health/"):  # No way to anything.
        assert head.startswith("HTTP/1.1 404")
        return
    assert head.startswith("HTTP/1.1 401")
    assert "www-authenticate: Bearer" in head
    assert "application/problem+json" in head


def test_models_are_changed_with_an_admin_key_only(door: Service, service: Service) -> None:
    for method in ("PUT", "DELETE"):
        problem = is_problem(ask(door, method, "/v1/models/nope", headers=KEY), 403)
        assert "needs an admin key" in problem["detail"]
        given = {"Authorization": f"Bearer {ADMIN}"}
        assert ask(door, method, "/v1/models/nope", headers=given).status_code not in {401, 403}
        problem = is_problem(ask(service, method, "/v1/models/resnet20"), 403)
        assert "admin_keys" in problem["detail"]


def test_without_a_folder_no_file_is_served_over_http(door: Service, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"x")
    for path in (there, tmp_path / "nowhere"):
        response = ask(
            door, "PUT", "/v1/models/new", headers={"X-API-Key": ADMIN}, json={"spec": str(path)}
        )
        detail = is_problem(response, 422)["detail"].removeprefix(str(path))
        assert detail.startswith(": not among the files that may be served over HTTP")
        assert "model_folder, which is not set" in detail


def test_pages_of_one_other_origin_may_use_the_api(door: Service, service: Service) -> None:
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "x-api-key,content-type,x-request-timeout-ms"
    preflight = ask(door, "OPTIONS", "/v1/classify", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    done = ask(door, "POST", "/v1/classify", headers=KEY | asked, content=encoded())
    exposed = done.headers["access-control-expose-headers"]
    told = {"Inference-Header-Content-Length", "Retry-After", "Server-Timing", "X-Request-ID"}
    assert told == set(exposed.split(", "))
    assert done.headers["timing-allow-origin"] == ORIGIN
    refusal = ask(door, "POST", "/v1/classify", headers=asked, content=encoded())
    assert refusal.status_code == 401
    assert refusal.headers["access-control-allow-origin"] == ORIGIN
    evil = ask(door, "POST", "/v1/classify", headers=KEY | {"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in evil.headers
    without = ask(service, "OPTIONS", "/v1/classify", headers=asked)
    assert not any(name.startswith("access-control") for name in without.headers)


def test_every_answer_says_that_it_is_what_it_says(door: Service) -> None:
    for path in ("/", "/v1/models", "/nowhere", "/metrics", "/web/app.js"):
        response = ask(door, "GET", path, headers=KEY)
        assert response.headers.get_list("x-content-type-options") == ["nosniff"]
        assert ("no-store" in response.headers.get("cache-control", "")) is path.startswith("/v1/")
        assert "server" not in response.headers


def test_every_refusal_was_counted_and_nothing_showed_a_key(door: Service) -> None:
    """Runs behind the others, in this file's order."""
    counted = samples(door)
    for reason in (
        "headers_too_large",
        "request_too_slow",
        "malformed_request",
        "too_many_connections",
        "unauthorized",
        "forbidden",
    ):
        assert counted[f'resnet_serve_refusals_total{{model="",reason="{reason}"}}'] > 0
    for reason in ("uploads_full", "client_deadline"):
        assert counted[f'resnet_serve_refusals_total{{model="resnet20",reason="{reason}"}}'] > 0
    answers.append(client.get(f"{door.url}/metrics").text)
    told = "".join([*answers, *door.log])
    assert len(told) > 10_000
    for key in (API, OTHER, ADMIN):
        assert key not in told
    assert "Traceback" not in told


def test_a_service_for_other_hosts_needs_keys_or_a_word() -> None:
    line = fail("--host", "0.0.0.0")
    for word in ("api_keys", "127.0.0.1", "allow_anonymous: true"):
        assert word in line


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key that were made for this."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_https(pair: tuple[Path, Path], tmp_path: Path, workers: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{API}\n")
    keys.chmod(0o600)
    with started(
        "--model",
        "random:resnet20",
        "--workers",
        workers,
        RESNET_SERVE_API_KEYS_FILE=str(keys),
        RESNET_SERVE_HEADER_TIMEOUT_S="1.5",
        RESNET_SERVE_TLS_CERTIFICATE=str(pair[0]),
        RESNET_SERVE_TLS_KEY=str(pair[1]),
    ) as service:
        assert service.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=pair[0])
        with httpx.Client(verify=trusting, timeout=60) as verifying:
            for headers, status in ((KEY, 200), ({}, 401)):
                url = f"{service.url}/v1/classify"
                while True:  # Another front end may not be ready yet.
                    response = verifying.post(url, headers=headers, content=encoded())
                    if response.status_code != 503:
                        break
                assert response.status_code == status
            name = "resnet_serve_certificate_expiry_timestamp_seconds"
            metrics = verifying.get(f"{service.url}/metrics").text
            (expiry,) = re.findall(rf"^{name} (\S+)$", metrics, re.MULTILINE)
            assert float(expiry) == certificate.expiry(pair[0])
        with connect(service, b"GET / HTTP/1.1\r\n\r\n") as plain:
            assert not plain.recv(1000).startswith(b"HTTP")
        with connect(service) as silent:
            assert silent.recv(1) == b""  # A handshake has as long as headers have.
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with connect(service) as connection, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(connection)
        assert client.get(f"{service.url}/health/live").status_code == 200
        assert not any("Traceback" in line or API in line for line in service.log)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")
def test_it_runs_as_nobody_without_a_home_where_it_can_write_nothing(tmp_path: Path) -> None:
    """As in the container: another user, no HOME, a working directory of somebody else."""
    somebody = ["setpriv", "--reuid", "10001", "--regid", "10001", "--clear-groups"]
    somebody += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    probe = [*somebody, COMMAND, "--help"]
    if subprocess.run(probe, capture_output=True, check=False, cwd="/").returncode:
        pytest.skip("another user cannot read this installation")
    command = ["env", "-u", "HOME", "-C", "/", *somebody, COMMAND]
    with started(
        "--model", "random:resnet20", command=command, RESNET_SERVE_CACHE_DIR="/proc/none"
    ) as service:
        answer_ = client.post(f"{service.url}/v1/classify", content=encoded())
        assert answer_.status_code == 200
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        assert re.search(r"^Uid:\t10001\t10001", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert not any("Traceback" in line for line in service.log)


def test_a_client_that_idles_over_tls_does_not_hold_up_the_end(pair: tuple[Path, Path]) -> None:
    """It never confirms the end of its connection, as pooled ones do not."""
    with started(
        "--model",
        "random:resnet20",
        RESNET_SERVE_SHUTDOWN_GRACE_S="0",
        RESNET_SERVE_TLS_CERTIFICATE=str(pair[0]),
        RESNET_SERVE_TLS_KEY=str(pair[1]),
    ) as service:
        trusting = ssl.create_default_context(cafile=pair[0])
        with (
            socket.create_connection(("127.0.0.1", service.port)) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as idle,
        ):
            idle.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert idle.recv(4096).startswith(b"HTTP/1.1 200")
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(15) == 0


def served(service: Service, trusting: ssl.SSLContext) -> ssl.SSLSocket | None:
    """A connection, if the service serves one more."""
    plain = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)
    connection = trusting.wrap_socket(plain, server_hostname="localhost")
    connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
    response = HTTPResponse(connection, method="GET")
    response.begin()
    response.read()
    if response.status == 200:
        return connection
    connection.close()
    return None


@pytest.mark.slow
def test_a_connection_that_idles_over_tls_gives_way(pair: tuple[Path, Path]) -> None:
    with started(
        "--model",
        "random:resnet20",
        RESNET_SERVE_MAX_CONNECTIONS="1",
        RESNET_SERVE_TLS_CERTIFICATE=str(pair[0]),
        RESNET_SERVE_TLS_KEY=str(pair[1]),
    ) as service:
        trusting = ssl.create_default_context(cafile=pair[0])
        first = served(service, trusting)
        assert first is not None
        until = time.monotonic() + PATIENCE
        while (
            second := served(service, trusting)
        ) is None:  # For as long as the first may be in a pause.
            assert time.monotonic() < until
            time.sleep(0.2)
        with first, second:
            assert first.recv(1) == b""


def test_a_request_of_which_half_a_tls_record_has_arrived_is_not_closed_as_idle(
    pair: tuple[Path, Path],
) -> None:
    with started(
        "--model",
        "random:resnet20",
        RESNET_SERVE_MAX_CONNECTIONS="2",
        RESNET_SERVE_HEADER_TIMEOUT_S=str(PATIENCE),
        RESNET_SERVE_TLS_CERTIFICATE=str(pair[0]),
        RESNET_SERVE_TLS_KEY=str(pair[1]),
    ) as service:
        trusting = ssl.create_default_context(cafile=pair[0])
        arrived, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        client_ = trusting.wrap_bio(arrived, to_send, server_hostname="localhost")
        address = ("127.0.0.1", service.port)
        with socket.create_connection(address, timeout=PATIENCE) as plain:

            def read_until(text: bytes) -> None:
                seen = b""
                while text not in seen:
                    try:
                        got = client_.read(100)
                        assert got, "the connection was closed"
                        seen += got
                    except ssl.SSLWantReadError:
                        arrived.write(plain.recv(2**16))

            while True:
                try:
                    client_.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    plain.sendall(to_send.read())
                    arrived.write(plain.recv(2**16))
            client_.write(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            plain.sendall(to_send.read())
            read_until(b"HTTP/1.1 200")
            # The other one idles for less time, and is to give way all the same.
            other = served(service, trusting)
            assert other is not None
            time.sleep(0.3)
            client_.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            record = to_send.read()
            plain.sendall(record[:20])
            until = time.monotonic() + PATIENCE
            while (third := served(service, trusting)) is None:
                assert time.monotonic() < until
                time.sleep(0.2)
            plain.sendall(record[20:])
            read_until(b"HTTP/1.1 200")
            with other, third:
                assert other.recv(1) == b""


def test_connections_that_never_finish_their_tls_handshake_are_bounded(
    pair: tuple[Path, Path],
) -> None:
    with started(
        "--model",
        "random:resnet20",
        RESNET_SERVE_MAX_CONNECTIONS="20",
        RESNET_SERVE_HEADER_TIMEOUT_S="3",
        RESNET_SERVE_TLS_CERTIFICATE=str(pair[0]),
        RESNET_SERVE_TLS_KEY=str(pair[1]),
    ) as service:
        with contextlib.ExitStack() as stack:
            half = [
                stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
                for _ in range(200)
            ]
            until = time.monotonic() + 30
            while sum(map(has_ended, half)) < 160:
                assert time.monotonic() < until
                time.sleep(0.05)
        trusting = ssl.create_default_context(cafile=pair[0])
        until = time.monotonic() + 30
        while True:  # The others are given up after a while.
            assert time.monotonic() < until
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", service.port), timeout=10) as plain,
                trusting.wrap_socket(plain, server_hostname="localhost") as idle,
            ):
                idle.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                with idle.makefile() as response:
                    text = response.read()
                break
        counted = re.search(
            r'refusals_total{model="",reason="too_many_connections"} ([0-9.]+)', text
        )
        assert counted is not None
        assert float(counted[1]) >= 160


def has_ended(connection: socket.socket) -> bool:
    """Whether the other side has closed the connection."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
