"""The guide's commands as they are: `ray start`, `serve deploy`, `serve status`, `serve run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.ray.nodes import ROOT, STORE_BYTES, until
from tests.conftest import client, encoded
from tests.support.ports import free_port, free_ports

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def command(name: str, *arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name(name)), *map(str, arguments)]


@contextmanager
def running(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program and all that it starts, until the context ends."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            words,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of a head node as `ray start --head` makes it: of the cluster, and of its dashboard."""
    gcs, dashboard, callers = free_ports(3)
    start = command("ray", "start", "--head", "--block", "--port", gcs, "--num-cpus", 4)
    start += [f"--dashboard-port={dashboard}", f"--object-store-memory={STORE_BYTES}"]
    start += [f"--ray-client-server-port={callers}"]
    log = tmp_path / "ray.log"
    with running(log, *start) as process:
        board = f"http://127.0.0.1:{dashboard}"

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return client.get(f"{board}/api/version").status_code == 200
            except httpx.TransportError:
                return False

        until(is_up, log.read_text)
        yield {"cluster": f"127.0.0.1:{gcs}", "dashboard": board}


def configured(path: Path) -> str:
    """Our YAML on a port of its own, with few enough CPUs for this machine; where it listens."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
    config["http_options"]["port"] = free_port()
    ingress, model = config["applications"][0]["deployments"]
    ingress["num_replicas"] = 1
    model["autoscaling_config"]["max_replicas"] = 1
    path.write_text(yaml.safe_dump(config))
    return f"http://127.0.0.1:{config['http_options']['port']}"


def answers(url: str) -> bool:
    try:
        answer = client.post(f"{url}/v1/classify", content=encoded())
    except httpx.TransportError:
        return False
    return answer.status_code == 200 and len(answer.json()["predictions"]) == 5


def test_deploy_status_and_run(addresses: dict[str, str], tmp_path: Path) -> None:
    config, log = tmp_path / "serve.yaml", tmp_path / "run.log"
    url, board = configured(config), ("--address", addresses["dashboard"])
    run(*command("serve", "deploy", *board, config))

    def told() -> dict[str, Any]:
        status = yaml.safe_load(run(*command("serve", "status", *board)))
        found: dict[str, Any] = status["applications"]["resnet-serve"]
        return found

    until(lambda: answers(url), told)
    until(lambda: told()["status"] == "RUNNING", told)
    assert set(told()["deployments"]) == {"ingress", "resnet20-cifar10"}
    run(*command("serve", "shutdown", "--yes", *board))
    assert not answers(url)

    url = configured(config)
    words = command("serve", "run", "--address", addresses["cluster"], config)
    with running(log, *words) as process:
        until(lambda: answers(url) or process.poll() is not None, log.read_text)
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert not answers(url)
