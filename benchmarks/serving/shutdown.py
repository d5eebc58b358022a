"""How long the service takes to end while a client idles on its connection."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.common.process import started
from benchmarks.common.progress import say

END_SECONDS = 60.0
CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 -nodes "
    "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
)


def seconds_to_end(model: str, workers: int, image: bytes, folder: Path) -> dict[str, float]:
    """Seconds from SIGTERM to the end of the process, with a client that idles over http, https.

    The client does as one in a pool does: it reads nothing between requests, and so confirms no
    end of its connection.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [*CERTIFICATE.split(), "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    arguments = ["--model", model, "--workers", str(workers)]
    tls = {"RESNET_SERVE_TLS_CERTIFICATE": str(certificate), "RESNET_SERVE_TLS_KEY": str(key)}
    found = {}
    for scheme, environment in (("http", {}), ("https", tls)):
        say(f"{model}: SIGTERM while a client idles over {scheme}")
        with started(arguments, image, folder, **environment) as service:
            parts = urlsplit(service.url)
            with closing(_client(parts.hostname or "", parts.port or 0, scheme)):
                began = time.perf_counter()
                service.process.send_signal(signal.SIGTERM)
                service.process.wait(END_SECONDS)
                found[scheme] = round(time.perf_counter() - began, 2)
    return found


def _client(host: str, port: int, scheme: str) -> socket.socket:
    """A connection whose first request has its response."""
    connection = socket.create_connection((host, port))
    if scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    connection.recv(4096)
    return connection


def line(seconds: dict[str, float]) -> str:
    """The figures of `seconds_to_end` as a sentence."""
    return (
        f"It ends {seconds['http']:g} s after SIGTERM while a client idles, "
        f"{seconds['https']:g} s over TLS."
    )
