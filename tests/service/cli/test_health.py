"""`resnet-serve health`: it asks where the settings say that the service is."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import clean_environment
from tests.service.http.test_tls import self_signed
from tests.support.commands import run
from tests.support.ports import free_port


@pytest.fixture(autouse=True)
def _only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)


READY: dict[str, Any] = {"status": "ready", "reasons": {}}
LOADING = {"status": "not ready", "reasons": {"a": "loading", "b": "the engine failed: no device"}}
LIVE: dict[str, Any] = {"status": "live", "reasons": {}}


class Responding:
    """A server that returns `body` with `status` for /health/ready, and is live."""

    status, body = 200, json.dumps(READY)

    def __init__(
        self, certificate: tuple[Path, Path] | None = None, host: str = "127.0.0.1"
    ) -> None:
        state = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                live = self.path == "/health/live"
                assert live or self.path == "/health/ready"
                self.send_response(200 if live else state.status)
                self.end_headers()
                self.wfile.write((json.dumps(LIVE) if live else state.body).encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.HTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self.server = Server((host, 0), Handler)
        self.port = self.server.server_address[1]
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Responding]:
    made = Responding()
    monkeypatch.setenv("RESNET_SERVE_PORT", str(made.port))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def encrypted(pair: tuple[Path, Path]) -> Iterator[Responding]:
    made = Responding(pair)
    yield made
    made.close()


def why(*arguments: str | Path) -> str:
    """The one line that says why a service is not healthy."""
    done = run("health", *arguments, status=1)
    (line,) = done.stderr.splitlines()
    return line.removeprefix("resnet-serve: ")


def test_a_service_that_is_ready_is_healthy(server: Responding) -> None:
    assert run("health").stdout == "ready\n"
    assert json.loads(run("health", "--json").stdout) == READY


def test_the_reasons_of_one_that_is_not_are_one_line(server: Responding) -> None:
    server.status, server.body = 503, json.dumps(LOADING)
    assert why() == "not ready: a: loading; b: the engine failed: no device"
    done = run("health", "--json", status=1)
    assert json.loads(done.stdout) == LOADING
    assert run("health", "--live").stdout == "live\n"


def test_the_port_may_come_from_the_file_the_environment_or_a_flag(
    server: Responding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 1\n")
    assert run("health", "--config", path).stdout == "ready\n"  # The environment wins.
    assert why("--port", "1") == "nothing listens on 127.0.0.1:1"
    monkeypatch.delenv("RESNET_SERVE_PORT")
    path.write_text(f"port: {server.port}\n")
    assert run("health", "--config", path).stdout == "ready\n"
    monkeypatch.setenv("RESNET_SERVE_CONFIG", str(path))
    assert run("health").stdout == "ready\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost", "127.0.0.1"])
def test_a_service_on_all_addresses_is_asked_by_loopback(server: Responding, host: str) -> None:
    assert run("health", "--host", host).stdout == "ready\n"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6")
@pytest.mark.parametrize("only", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("host", ["localhost", "::"])
def test_of_both_families_it_asks_the_one_that_answers(host: str, only: str) -> None:
    server = Responding(host=only)
    try:
        assert run("health", "--host", host, "--port", str(server.port)).stdout == "ready\n"
    finally:
        server.close()


def test_addresses_of_ipv6_have_brackets() -> None:
    for host in ("::", "::1"):
        line = why("--host", host, "--port", str(free_port()))
        # Where there is no IPv6, the kernel says so.
        assert line.startswith(("nothing listens on [::1]:", "[::1]:", "host: "))


def test_it_asks_by_tls_where_the_settings_have_a_certificate(
    encrypted: Responding, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = pair
    path = tmp_path / "serve.yaml"
    text = f"port: {encrypted.port}\ntls_certificate: {certificate}\ntls_key: {key}\n"
    path.write_text(text)
    assert run("health", "--config", path).stdout == "ready\n"
    plain = why("--port", str(encrypted.port))
    assert plain.startswith(f"127.0.0.1:{encrypted.port} does not respond to http: ")


def test_the_file_that_the_environment_names_says_all_that_a_container_is_asked_by(
    encrypted: Responding,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "serve.yaml"
    monkeypatch.setenv("RESNET_SERVE_CONFIG", str(path))
    # As the image has it.
    monkeypatch.setenv("RESNET_SERVE_HOST", "0.0.0.0")
    certificate, key = pair
    text = f"tls_certificate: {certificate}\ntls_key: {key}\n"
    path.write_text(f"port: {encrypted.port}\n{text}")
    assert run("health").stdout == "ready\n"
    monkeypatch.delenv("RESNET_SERVE_HOST")
    path.write_text(f"host: unix:{tmp_path}/a.sock\n{text}")
    assert why() == f"nothing listens on unix:{tmp_path}/a.sock"


def test_a_plain_service_does_not_pass_for_an_encrypted_one(
    server: Responding, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET_SERVE_TLS_CERTIFICATE", str(pair[0]))
    assert why().startswith(f"127.0.0.1:{server.port} does not respond to https: ")


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"status": "ready", "reasons": 1}', "<p>hello"])
def test_another_server_on_the_port_is_not_healthy(server: Responding, body: str) -> None:
    server.body = body
    assert why() == f"127.0.0.1:{server.port} is not this service: /health/ready returned 200"


def test_a_service_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.health.PATIENCE_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert why("--port", str(port)) == f"127.0.0.1:{port} did not respond within 0.05 s"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "0"], "port: 0 means any free port; give --port"),
        (["--port", "70000"], "--port: must be at most 65535, not 70000"),
        (["--host", "nowhere.invalid"], "host: nowhere.invalid: "),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: No such file"),
        (["--config", ""], "--config: the path is empty; name a file, or none"),
    ],
)
def test_settings_that_do_not_say_where_are_one_line(arguments: list[str], words: str) -> None:
    assert words in why(*arguments)


def test_it_asks_no_proxy_and_imports_no_torch(server: Responding) -> None:
    code = """
import sys
from service.cli.main import main
main(["health"], standalone_mode=False)
print([name for name in ("torch", "numpy", "fastapi", "uvicorn") if name in sys.modules])
"""
    proxied = {"http_proxy": "http://127.0.0.1:1", "RESNET_SERVE_PORT": str(server.port)}
    said = subprocess.check_output(
        [sys.executable, "-c", code], env=clean_environment() | proxied, text=True
    )
    assert said == "ready\n[]\n"
