"""Downloads through proxies and redirects, and with a company's certificates."""

from __future__ import annotations

import hashlib
import shutil
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from models.interchange import connection, download, variables
from models.interchange.connection import DownloadError, StatusError, Unreachable
from tests.service.http.test_tls import self_signed
from tests.support.forward_proxy import forward_proxy
from tests.support.unruly import answer, unruly

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CLOSED = "http://me:secret@127.0.0.1:9"
CONTENT = b"weights"
GOOD = answer(200, CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    for name in (*VARIABLES, *variables.CERTIFICATES, "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_downloads_go_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    with unruly(GOOD) as server, forward_proxy(weights=server.port) as proxy:
        monkeypatch.setenv(variable, proxy.url.replace("http://", "http://me:secret@"))
        path = download.fetch("http://weights.example/a/x.pth", tmp_path, SHA256)
        assert path.read_bytes() == CONTENT
        assert proxy.seen == ["GET http://weights.example/a/x.pth HTTP/1.1"]
        assert "Basic bWU6c2VjcmV0" in proxy.heads[0]
        # Those that are exempt are reached directly; this one does not exist.
        monkeypatch.setenv("NO_PROXY", "other.example, .weights.example")
        with pytest.raises(Unreachable, match="cannot be downloaded"):
            connection.get("http://weights.example/y.pth")
        assert len(proxy.seen) == 1


def test_this_host_is_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", CLOSED)
    with unruly(GOOD) as server, connection.get(f"{server.url}/x") as response:
        assert response.read() == CONTENT


@pytest.mark.parametrize("proxy", [CLOSED, "socks5://me:secret@127.0.0.1:9"])
def test_a_proxy_that_fails_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(Unreachable, match=r"through the proxy \w+://127\.0\.0\.1:9: ") as caught:
        connection.get("https://weights.example/x")
    assert "secret" not in str(caught.value)


class Tls(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n" + CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of a server, and the certificate that it shows."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Tls) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port, certificate
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_companys_authority_is_trusted_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tls: tuple[int, Path], variable: str
) -> None:
    port, certificate = tls
    with pytest.raises(Unreachable, match="certificate verify failed"):
        connection.get(f"https://127.0.0.1:{port}/x")
    monkeypatch.setenv(variable, str(certificate))
    with connection.get(f"https://127.0.0.1:{port}/x") as response:
        assert response.read() == CONTENT


def test_certificates_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(DownloadError, match=r"\A/nowhere\.pem: cannot be read as certificates"):
        connection.get("https://127.0.0.1:9/x")


def test_https_takes_a_tunnel_that_does_not_see_the_token(
    monkeypatch: pytest.MonkeyPatch, tls: tuple[int, Path]
) -> None:
    port, certificate = tls
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with forward_proxy(weights=port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        # The certificate is for another name, which is known after the tunnel was made.
        with pytest.raises(Unreachable, match=r"through the proxy .*verify failed"):
            connection.get("https://weights.example/x", token="a-token")
        (line,) = proxy.seen
        assert line.startswith("CONNECT weights.example:443 HTTP/1.")
        assert "a-token" not in proxy.heads[0]


def test_a_token_stays_with_its_origin() -> None:
    with unruly(GOOD) as storage:
        away = answer(302, b"", f"Location: {storage.url}/signed?x=secret")
        with unruly(answer(307, b"", "Location: /renamed"), away) as hub:
            with connection.get(f"{hub.url}/x", {"Range": "bytes=0-"}, "a-token") as response:
                assert response.read() == CONTENT
            assert [sent.get("authorization") for sent in hub.headers] == ["Bearer a-token"] * 2
    assert "authorization" not in storage.headers[0]
    assert storage.headers[0]["range"] == "bytes=0-"


def test_what_a_redirect_leads_to_is_not_told() -> None:
    with unruly(answer(403, b"no")) as storage:
        away = answer(302, b"", f"Location: {storage.url}/signed?x=secret")
        with unruly(away) as hub, pytest.raises(StatusError, match="/x: 403 Some") as caught:
            connection.get(f"{hub.url}/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("Location: /x", "more than 10 redirects"),
        ("Location: file:///etc/passwd", "leads nowhere"),
        ("X-Other: 1", "leads nowhere"),
    ],
)
@pytest.mark.parametrize("ask", [connection.get, connection.head])
def test_redirects_end(header: str, words: str, ask: object) -> None:
    assert callable(ask)
    with unruly(answer(302, b"", header)) as server, pytest.raises(DownloadError, match=words):
        ask(f"{server.url}/x")
