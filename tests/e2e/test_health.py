"""`resnet-serve health` asks a real service, as a container's health check does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import COMMAND, clean_environment, started
from tests.service.http.test_tls import self_signed


def asked(*arguments: str, **environment: str) -> tuple[int, str]:
    """The exit status of the installed command, and what it printed."""
    done = subprocess.run(
        [COMMAND, "health", *arguments],
        env=clean_environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_it_follows_a_service_with_tls_through_its_life(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    config = tmp_path / "serve.yaml"
    config.write_text(f"host: 0.0.0.0\ntls_certificate: {certificate}\ntls_key: {key}\n")
    # Only the port is not the file's: the test does not choose it.
    with started("--config", str(config), RESNET_SERVE_ALLOW_ANONYMOUS="true") as service:
        told = {"RESNET_SERVE_CONFIG": str(config), "RESNET_SERVE_PORT": str(service.port)}
        assert asked(**told) == (0, "ready\n")
        assert asked("--live", **told) == (0, "live\n")
    nothing = f"resnet-serve: nothing listens on 127.0.0.1:{service.port}\n"
    assert asked(**told) == (1, nothing)
