"""From the command line to the first answer, or to one clear line."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.process import processes
from models.hardware import native_precision
from tests.conftest import CACHE, CHOSEN, COMMAND, clean_environment, client, encoded, started


def fail(*arguments: str, **environment: str) -> str:
    """What a start that fails prints: one line, status 2."""
    done = subprocess.run(
        [COMMAND, "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment() | CHOSEN | {"RESNET_SERVE_CACHE_DIR": CACHE} | environment,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("resnet-serve: ")
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml", "No such file"]),
        (["--engine", "triton"], ["--engine: must be ", "'compile' or 'openvino'", "'triton'"]),
        (["--model", "random:resnet51"], ["--model: random:resnet51: ", "nearest", "resnet50"]),
        (["--host", "999.1.1.1"], ["cannot listen on 999.1.1.1"]),
        (["--workers", "0"], ["workers", "at least 1"]),
    ],
)
def test_a_wrong_configuration_is_one_line(arguments: list[str], words: list[str]) -> None:
    line = fail(*arguments)
    for word in words:
        assert word in line


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "Address already in use" in fail("--port", port)


def test_a_checkpoint_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04 and so on")
    assert "resnet-serve convert --from FORMAT SRC DST" in fail("--model", str(path))


def test_while_loading_it_is_live_but_not_ready_and_idle_it_exits_with_0() -> None:
    quick: dict[str, Any] = {"RESNET_SERVE_MAX_BATCH": "2", "RESNET_SERVE_SHUTDOWN_GRACE_S": "0"}
    with started("--model", "random:resnet34", ready=False, **quick) as service:
        ready = client.get(f"{service.url}/health/ready")
        assert client.get(f"{service.url}/health/live").status_code == 200
        assert ready.status_code == 503
        assert "warming up" in ready.json()["reasons"]["resnet34"]
        early = client.post(f"{service.url}/v1/classify", content=encoded())
        assert early.status_code == 503
        assert early.headers["retry-after"] == "1"
        service.wait_until_ready()
        assert client.post(f"{service.url}/v1/classify", content=encoded()).status_code == 200
        assert service.end(signal.SIGINT) == 0
        assert not any("Traceback" in line for line in service.log)


@pytest.mark.precision
def test_a_file_configures_several_models_devices_and_a_nameless_network(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(
        """
        max_body_bytes: 5000
        models:
          - {name: twins, spec: "random:resnet20", device: [cpu, cpu], max_batch: 2}
          - name: own
            spec: "random:"
            precision: bf16
            architecture:
              {block: basic, blocks: [1, 2], planes: [8, 16], stem: small, num_classes: 7}
          - {name: c, spec: "random:preact_resnet20", architecture: {shortcut: C, num_classes: 3}}
        """
    )
    with started("--config", str(config)) as service:
        twins, own, c = client.get(f"{service.url}/v1/models").json()["models"]
        assert (twins["name"], twins["device"], twins["precision"]) == (
            "twins",
            "cpu",
            native_precision("cpu"),
        )
        assert (own["architecture"], own["depth"], own["num_classes"]) == ("custom", 8, 7)
        assert own["precision"] == "bf16"
        assert (c["architecture"], c["configuration"]["shortcut"]) == ("preact_resnet20", "C")
        for name, classes in (("twins", 10), ("own", 7), ("c", 3)):
            answer = client.post(
                f"{service.url}/v1/classify",
                params={"model": name, "top_k": classes},
                content=encoded(),
            ).json()
            assert len(answer["predictions"]) == classes
        large = client.post(f"{service.url}/v1/classify", content=b"x" * 5001)
        assert (large.status_code, "5000" in large.json()["detail"]) == (413, True)


SIGCGT = re.compile(r"SigCgt:\s+([0-9a-f]+)")


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    found = SIGCGT.search(Path(f"/proc/{pid}/status").read_text())
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def test_a_sighup_in_the_first_moments_does_not_end_it() -> None:
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--model", "random:resnet20"],
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 30
    while not handles(process.pid, signal.SIGTERM):
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log


def test_ctrl_c_while_the_command_is_imported_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [COMMAND, "serve"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment() | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        # A shell has its background jobs ignore the signal, tests among them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("workers", "seconds", "number"),
    [(1, 0.0, signal.SIGTERM), (1, 0.7, signal.SIGINT), (2, 0.7, signal.SIGTERM)],
)
def test_a_signal_in_the_first_moments_ends_it_at_once(
    workers: int, seconds: float, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--model", "random:resnet20", "--workers", str(workers)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 30
    # Python handles SIGINT from its first moment, this program both of them a moment later.
    while not handles(process.pid, signal.SIGTERM):
        assert time.monotonic() < until
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(number)
    if workers > 1:  # A service manager sends it to every process.
        for child in processes(process.pid)[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    assert "Traceback" not in log
