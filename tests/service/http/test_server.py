"""What a server does of itself, without being asked anything."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.config.settings import Settings
from service.errors import Unauthorized
from service.http.app import create_app
from service.http.listener import Listeners
from service.http.server import Server
from service.metrics import Metrics
from service.runtime import allow_files
from tests.service.http.test_access import API, OTHER, scope
from tests.service.http.test_tls import der, presented, self_signed

FLEET: Any = SimpleNamespace(models={}, start=lambda: None, close=lambda timeout: True)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_a_certificate_that_cannot_be_used_keeps_no_key_that_was_revoked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def settings(name: str, key: str, days: str) -> Settings:
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            self_signed(folder, "-nodes", "-days", days)
        return Settings.model_validate(
            {
                "tls_certificate": folder / "certificate.pem",
                "tls_key": folder / "key.pem",
                "api_keys": [key],
            }
        )

    def expiry() -> float:
        (family,) = metrics.certificate_expiry.collect()
        return family.samples[0].value

    before, after = settings("before", API, "5"), settings("after", OTHER, "95")
    metrics = Metrics()
    app = create_app(before, metrics, FLEET)
    assert expiry() == 0
    with socket.socket() as listener:
        server = Server(app, before, Listeners((listener,)))
    assert server._tls is not None
    broken = after.model_copy(update={"tls_key": before.tls_key})
    server.apply(broken)
    assert "the certificate stays as it was" in caplog.text
    assert "is not the key of" in caplog.text
    with pytest.raises(Unauthorized):
        app.state.services.keys.check(scope("GET", "/v1/models", x_api_key=API))
    assert presented(server._tls) == der(tmp_path / "before/certificate.pem")
    assert 4 < (expiry() - time.time()) / 86400 < 6
    server.apply(after)
    assert 94 < (expiry() - time.time()) / 86400 < 96
    app.state.services.keys.check(scope("GET", "/v1/models", x_api_key=OTHER))
    with pytest.raises(Unauthorized):
        app.state.services.keys.check(scope("GET", "/v1/models", x_api_key=API))
    assert presented(server._tls) == der(tmp_path / "after/certificate.pem")


def test_where_too_few_files_may_be_open_there_are_fewer_connections_and_a_warning() -> None:
    limited = ["sh", "-c", 'ulimit -n 1024; exec "$@"', "sh"]
    serve = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--workers", "1"]
    with subprocess.Popen(
        [*limited, *serve],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"RESNET_SERVE_MAX_CONNECTIONS": "4096", "RESNET_SERVE_ENGINE_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "serving" in line:
                process.terminate()
    assert process.returncode == 0
    assert any("serves 256 connections at a time, not 4096" in line for line in lines), lines


def test_as_many_files_may_be_open_as_there_may_be_connections() -> None:
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = 256 if hard == resource.RLIM_INFINITY else min(256, hard - 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
    try:
        allow_files(lower - 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == lower
        allow_files(lower + 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == lower + 1
        if hard != resource.RLIM_INFINITY:
            allow_files(hard + 1)
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
