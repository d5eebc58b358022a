"""Requests to this host need no proxy; others take the one that the environment names."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client, Unreachable, asynchronous
from service.client.address import address_of
from service.client.transport import proxy_of
from tests.conftest import encoded
from tests.service.client.test_client import GOOD
from tests.service.http.test_tls import self_signed
from tests.support.forward_proxy import forward_proxy
from tests.support.unruly import unruly

IMAGE = encoded()
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CLOSED = "http://me:secret@127.0.0.1:9"


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("proxy", [CLOSED, "nonsense://x", "http://[::", "socks5://127.0.0.1:9"])
@pytest.mark.parametrize("variable", [*VARIABLES[:3], "http_proxy", "all_proxy"])
def test_this_host_is_reached_directly(
    monkeypatch: pytest.MonkeyPatch, proxy: str, variable: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    with unruly(GOOD) as server:
        for host in ("127.0.0.1", "localhost"):
            with Client(f"http://{host}:{server.port}", retries=0) as client:
                assert client.classify(IMAGE).best.label == "cat"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_another_host_is_reached_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with unruly(GOOD) as server, forward_proxy(models=server.port) as proxy:
        monkeypatch.setenv(variable, proxy.url.removeprefix("http://"))
        with Client("http://models.example/prefix?model=m") as client:
            assert client.classify(IMAGE, top_k=2).best.label == "cat"
        (line,) = proxy.seen
    assert line == "POST http://models.example/prefix/v1/classify?model=m&top_k=2 HTTP/1.1"


def test_https_goes_through_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    with unruly(GOOD) as server, forward_proxy(models=server.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        # What answers does not speak TLS.
        with Client("https://models.example", retries=0) as client, pytest.raises(Unreachable):
            client.classify(IMAGE)
        assert proxy.seen == ["CONNECT models.example:443 HTTP/1.1"]


@pytest.mark.parametrize("exempt", ["models.example", ".example", "*", "other, models.example:80"])
def test_hosts_in_no_proxy_are_reached_directly(
    monkeypatch: pytest.MonkeyPatch, exempt: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", CLOSED)
    url = "http://models.example:80" if ":80" in exempt else "http://models.example"
    assert proxy_of(address_of(url)) == CLOSED
    monkeypatch.setenv("NO_PROXY", exempt)
    assert proxy_of(address_of(url)) is None


def test_a_proxy_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", CLOSED)
    with (
        Client("http://models.example:8000", retries=0) as client,
        pytest.raises(Unreachable, match=r"through the proxy http://127\.0\.0\.1:9: ") as caught,
    ):
        client.classify(IMAGE)
    assert "set NO_PROXY=models.example to reach it directly" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["nonsense://me:secret@x", "http://me:secret@[::"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ValueError, match=r"\Athe proxy \S+ in the environment") as caught:
        Client("http://models.example:8000")
    assert "secret" not in str(caught.value)


def received(connection: socket.socket) -> bytes:
    """A whole request: what is left unread when a connection closes resets it."""
    whole = b""
    while not whole.endswith(IMAGE) and (data := connection.recv(65_536)):
        whole += data
    return whole


def test_a_companys_authority_counts_on_this_host_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with (
                    contextlib.suppress(ssl.SSLError),
                    context.wrap_socket(connection, server_side=True) as encrypted,
                ):
                    received(encrypted)
                    encrypted.sendall(GOOD)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with (
            Client(url, retries=0) as client,
            pytest.raises(Unreachable, match="its certificate is refused"),
        ):
            client.classify(IMAGE)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Client(url, retries=0) as client:
            assert client.classify(IMAGE).best.label == "cat"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def unix_server(tmp_path: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """A server on a Unix socket; the heads of its requests."""
    path, heads = tmp_path / "x.sock", []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    heads.append(received(connection))
                    connection.sendall(GOOD)

    thread = threading.Thread(target=serve)
    thread.start()
    yield path, heads
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize("form", ["unix:{path}", "http+unix://{quoted}", "unix://{path}"])
def test_a_unix_socket_is_an_address(
    monkeypatch: pytest.MonkeyPatch, unix_server: tuple[Path, list[bytes]], form: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", CLOSED)
    path, heads = unix_server
    url = form.format(path=path, quoted=str(path).replace("/", "%2F"))
    with Client(url) as client:
        assert client.classify(IMAGE).best.label == "cat"
        assert client.url == f"unix:{path}"
    assert heads[0].startswith(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n")


def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        Client(f"unix:{tmp_path}/none.sock", retries=0) as client,
        pytest.raises(Unreachable, match=f"unix:{tmp_path}/none.sock: cannot connect"),
    ):
        client.classify(IMAGE)


def test_a_closed_port_is_told_in_the_systems_words() -> None:
    with (
        Client("http://127.0.0.1:9", retries=0) as client,
        pytest.raises(
            Unreachable, match=r"\Ahttp://127.0.0.1:9: cannot connect: Connection refuse"
        ),
    ):
        client.classify(IMAGE)


def test_a_service_without_tls_is_told_at_once() -> None:
    connections = 0

    def serve(listener: socket.socket) -> None:
        nonlocal connections
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connections += 1
                    connection.recv(65_536)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url) as client, pytest.raises(Unreachable, match="TLS; write http://"):
            client.classify(IMAGE)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert connections == 1


def test_a_password_in_the_url_is_sent_but_not_told() -> None:
    with unruly(GOOD) as server:
        url = server.url.replace("http://", "http://me:secret@")
        with Client(url) as client:
            client.classify(IMAGE)
            assert "secret" not in client.url
        with pytest.raises(ValueError, match="a key excludes") as caught:
            Client(url, key="a-key-of-ours")
        assert "secret" not in str(caught.value)
    assert server.headers[0]["authorization"] == "Basic bWU6c2VjcmV0"


def test_a_prediction_is_repeated_at_once_on_a_connection_that_was_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a server whose time for idle connections ended when the request was on its way."""
    connections = 0
    monkeypatch.delattr(asynchronous, "pause")  # Nothing waits.

    def serve(listener: socket.socket) -> None:
        nonlocal connections
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections += 1
                with connection, connection.makefile("rb") as stream:
                    _one(stream)
                    connection.sendall(GOOD)
                    _one(stream)  # The second request gets no answer.

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=1) as client:
            for _ in range(4):
                client.classify(IMAGE)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert connections == 4


def _one(stream: object) -> None:
    length = 0
    while (line := stream.readline().strip().lower()) != b"":  # type: ignore[attr-defined]
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    stream.read(length)  # type: ignore[attr-defined]
