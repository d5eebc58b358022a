"""The peers, how each is installed and started, and one running peer."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.figures import OURS
from benchmarks.peers.supervise import peak_rss

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
VENVS = HERE / ".venvs"
HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 60.0
# None of the peers reports its use to anyone.
NO_TELEMETRY = {
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class PeerFailed(Exception):
    """One line that says why a peer could not be installed, started or believed."""


@dataclass(frozen=True)
class Peer:
    """`command` starts it, after its Python's folder; `form`: the field it takes the image in,
    or None for raw bytes; `venv`: whether it has one of its own, else it runs in this one."""

    command: tuple[str, ...]
    path: str = "/classify"
    form: str | None = None
    venv: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    tuned_environment: Mapping[str, str] = field(default_factory=dict)


PEERS = {
    "litserve": Peer(("python", "-m", "benchmarks.peers.with_litserve"), path="/predict"),
    "bentoml": Peer(
        ("bentoml", "serve", "benchmarks.peers.with_bentoml:Classifier", "--host", HOST),
        form="images",
    ),
    "ray": Peer(
        ("python", "-m", "benchmarks.peers.with_ray"),
        # The node's address becomes the loopback's, as Ray has it on systems without clusters.
        environment={"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        # Direct ingress is for an HAProxy in front, which is not part of the Python package.
        tuned_environment={
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
        },
    ),
    "fastapi": Peer(("python", "-m", "benchmarks.peers.with_fastapi"), venv=False),
    OURS: Peer(("python", "-m", "service.cli", "serve"), path="/v1/classify", venv=False),
}


def install(name: str) -> None:
    """Makes the peer's virtual environment, unless it is there with these requirements.

    Raises:
        PeerFailed: pip could not install them.
    """
    if not PEERS[name].venv:
        return
    requirements = HERE / f"requirements-{name}.txt"
    venv = VENVS / name
    stamp = venv / "requirements.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text().strip() == wanted:
        return
    print(f"{name}: installing {requirements.name} into {venv.relative_to(ROOT)}", flush=True)
    VENVS.mkdir(exist_ok=True)
    (VENVS / ".gitignore").write_text("*\n")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run(
            [*pip, "--disable-pip-version-check", "-r", str(requirements)],
            check=True,
            stderr=subprocess.PIPE,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or "").splitlines() if "ERROR" in line]
        raise PeerFailed(f"not installed: {lines[-1] if lines else error}") from None
    stamp.write_text(wanted + "\n")


def version_of(name: str) -> dict[str, str]:
    """The pinned versions that matter, of a peer with an environment of its own."""
    text = (HERE / f"requirements-{name}.txt").read_text() if PEERS[name].venv else ""
    pins = dict(line.split("==") for line in text.splitlines() if "==" in line)
    return {each: pins[each] for each in (name, "torch", "openvino") if each in pins}


@dataclass
class Running:
    """A started peer: `url` answers a POST with one image."""

    peer: Peer
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def classify(self, image: bytes) -> int:
        """The likeliest class.

        Raises:
            OSError, ValueError, KeyError, IndexError: no answer, or not such an answer.
        """
        body, kind = image, "application/octet-stream"
        if self.peer.form:
            body, kind = multipart(self.peer.form, image)
        request = urllib.request.Request(self.url, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        # An API that takes lists answers with a list.
        answer = answer[0] if isinstance(answer, list) else answer
        return int(answer["predictions"][0]["class_id"])

    def peak_rss(self) -> int:
        """Bytes; see `supervise.peak_rss`."""
        return peak_rss(self.process.pid)

    def why(self) -> str:
        """The last line of the log that says something of an error, else the last line."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace"))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"\w*(Error|Exception)\b", line)]
        return (errors or lines or ["nothing was logged"])[-1][:300]


def multipart(name: str, data: bytes) -> tuple[bytes, str]:
    """A form with one file, and its content type."""
    boundary = "resnet-serve-peer"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="image"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(name: str, variant: str, spec: str, first: bytes) -> Iterator[Running]:
    """A peer that answers `first`; afterwards it and all it started have ended.

    Raises:
        PeerFailed: it ends, or does not answer in time.
    """
    peer, port = PEERS[name], free_port()
    program, *arguments = peer.command
    folder = VENVS / name / "bin" if peer.venv else Path(sys.executable).parent
    if name == OURS:
        arguments += ["--model", spec, "--port", str(port)]
    elif name == "bentoml":
        arguments += ["--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="peer") as scratch:
        environment = {
            **os.environ,
            **NO_TELEMETRY,
            **peer.environment,
            **(peer.tuned_environment if variant == "tuned" else {}),
            "PYTHONPATH": str(ROOT),
            "PEER_MODEL": spec,
            "PEER_VARIANT": variant,
            "PEER_PORT": str(port),
            "BENTOML_HOME": scratch,
        }
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                supervised([str(folder / program), *arguments]),
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        running = Running(peer, f"http://{HOST}:{port}{peer.path}", process, log)
        try:
            _wait_for_answer(running, first)
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS)


def supervised(command: Sequence[str]) -> list[str]:
    """The command under `supervise`, which knows no library and so runs in this Python."""
    return [sys.executable, "-m", "benchmarks.peers.supervise", *command]


def _wait_for_answer(running: Running, image: bytes) -> None:
    until = time.monotonic() + START_SECONDS
    last: Any = None
    while time.monotonic() < until:
        if running.process.poll() is not None:
            raise PeerFailed(f"ended at its start: {running.why()}")
        try:
            running.classify(image)
        except (OSError, ValueError, KeyError, IndexError) as error:
            last = error
            time.sleep(0.2)
        else:
            return
    raise PeerFailed(f"no answer in {START_SECONDS:.0f} s ({last}): {running.why()}")
