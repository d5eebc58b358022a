"""What stops `serve`, `config check` says at once, in the same words."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import clean_environment
from tests.service.http.test_tls import self_signed
from tests.support.commands import run

MODEL = {"spec": "random:resnet20"}
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """`serve` changes its process; here others use it afterwards."""
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    root, threads = logging.getLogger(), torch.get_num_threads()
    level, logged = root.level, list(root.handlers)
    monkeypatch.chdir(tmp_path)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    root.setLevel(level)
    root.handlers[:] = logged
    torch.set_num_threads(threads)


def write(folder: Path, **settings: Any) -> Path:
    path = folder / "serve.yaml"
    given = {"port": 0, "engine_threads": 1, "models": [MODEL]} | settings
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


def both(path: Path) -> str:
    """The one problem that `config check` and `serve` name."""
    (line,) = run("config", "check", "--config", path, status=2).stderr.splitlines()
    assert run("serve", "--config", path, status=2).stderr == f"resnet-serve: {line}\n"
    return line.removeprefix(f"{path}:")


def keys_open_to_all(folder: Path) -> dict[str, Any]:
    path = folder / "keys"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o644)
    return {"api_keys_file": str(path)}


def text(folder: Path) -> dict[str, Any]:
    (folder / "notes.txt").write_text("these are the notes of a meeting\n")
    return {"models": [{"spec": str(folder / "notes.txt")}]}


def cut_onnx(folder: Path) -> dict[str, Any]:
    # An IR version, and a graph of 100 bytes that are not there.
    (folder / "cut.onnx").write_bytes(b"\x08\x08\x3a\x64abc")
    return model(spec=str(folder / "cut.onnx"))


def pipe(name: str) -> Callable[[Path], dict[str, Any]]:
    """A pipe without a writer as the file of a setting; opening it to read would wait forever."""

    def made(folder: Path) -> dict[str, Any]:
        path = folder / "pipe"
        os.mkfifo(path, 0o600)
        return model(spec=str(path)) if name == "spec" else {name: str(path)}

    return made


def model(**settings: Any) -> dict[str, Any]:
    return {"models": [MODEL | settings]}


FAULTS: dict[str, tuple[Any, str]] = {
    "port": ({"port": 70000}, "1: port: must be at most 65535, not 70000"),
    "typo": ({"prot": 1}, "5: prot: unknown setting; did you mean port?"),
    "no model": ({"models": []}, "3: models: must have at least 1 item, not an empty list"),
    "empty": (model(spec=""), "4: models[0].spec: is empty; write a SPEC such as builtin:"),
    "truth": ({"port": True}, "1: port: must be a whole number, not true"),
    "true time": ({"keep_alive_s": True}, "keep_alive_s: must be a number, not true"),
    "forever": ({"shutdown_timeout_s": 1e300}, "shutdown_timeout_s: must be at most 2592000, not"),
    "infinite": ({"header_timeout_s": math.inf}, "header_timeout_s: must be at most 2592000, not"),
    "threads": ({"engine_threads": 100_000}, "engine_threads: must be at most 1024, not 100000"),
    "bytes": ({"max_body_bytes": 10**40}, "max_body_bytes: must be at most 1099511627776, not 1"),
    "only a SPEC": ({"models": ["a"]}, "models[0]: must be a mapping of settings, such as `spec: "),
    "long": ({"cache_dir": "/" + "a" * 300}, "a: File name too long; name another folder"),
    "cut short": (cut_onnx, "cut.onnx: not an ONNX file, or a damaged one\n"),
    "no cache": ({"cache_dir": ""}, "5: cache_dir: must be a path; it is empty\n"),
    "no folder": ({"model_folder": ""}, "5: model_folder: must be a path; it is empty\n"),
    "no PEM": (
        {"tls_key": __file__, "tls_certificate": ""},
        "6: tls_certificate: must be a path; it is empty\n",
    ),
    "long SPEC": (model(spec="/" + "a" * 300), "a: File name too long\n"),
    "two decoders": (
        model(decode="device", exact_decode=True),
        "use decode: host\n",
    ),
    "origins": ({"cors_origins": ["a b"]}, "such as https://example.org, without a path, or *\n"),
    "falling": ({"latency_buckets_ms": [2, 1]}, "must rise from each bound to the next\n"),
    "keys": (keys_open_to_all, "5: api_keys_file: {} must be readable only by its owner"),
    "no keys": ({"admin_keys_file": "/nowhere"}, "admin_keys_file: /nowhere: No such file"),
    "pipe of keys": (
        pipe("api_keys_file"),
        "api_keys_file: {}/pipe: a pipe to which nothing writes; name a file",
    ),
    "pipe of PEM": (
        lambda folder: pipe("tls_key")(folder) | {"tls_certificate": __file__},
        "tls_key: {}/pipe: not a regular file; copy it to one",
    ),
    "pipe of weights": (pipe("spec"), "models[0].spec: {}/pipe: not a regular file; copy it to"),
    "exposed": ({"host": "0.0.0.0"}, "host: on 0.0.0.0 other hosts could use the service"),
    "no host": ({"host": "no.such.invalid"}, "host: cannot listen on no.such.invalid port 0: "),
    "other's": ({"host": "203.0.113.1", "allow_anonymous": True}, "give an address or a name of"),
    "grpc port": ({"port": 8001, "grpc_port": 8001}, "grpc_port: 8001 is the port of HTTP"),
    "no certificate": (
        {"tls_key": __file__, "tls_certificate": "/c"},
        "tls_certificate: /c: No such file",
    ),
    "text": (text, "4: models[0].spec: {}: not a safetensors file, as bundles are; `resnet-serve"),
    "name": (model(spec="resnet18"), "did you mean torchvision:resnet18 or random:resnet18?"),
    "architecture": (
        model(architecture={"shortcut": "D"}),
        "4: models[0].spec: random:resnet20: shortcut must be one of A, B, C, conv",
    ),
    "of a bundle": (
        model(spec="builtin:resnet10-cifar10", architecture={"shortcut": "A"}),
        "models[0].spec: builtin:resnet10-cifar10: architecture: only random networks take one",
    ),
    "same name": ({"models": [MODEL, MODEL]}, "models[1].name: 'resnet20' is already in use"),
    "calibration": (
        model(precision="int8"),
        "5: models[0].precision: int8 needs a calibrated bundle; `resnet-serve calibrate",
    ),
    "fused": (model(device="cpu", engine="fused"), "6: models[0].engine: fused needs a CUDA"),
    "fp16": (model(device="cpu", precision="fp16"), "models[0].precision: fp16 needs a CUDA"),
    "decode": (model(device="cpu", decode="device"), "models[0].decode: device needs a CUDA"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_what_stops_serve_with_its_place(fault: str, tmp_path: Path) -> None:
    settings, words = FAULTS[fault]
    path = write(tmp_path, **(settings(tmp_path) if callable(settings) else settings))
    line = f"{both(path)}\n"
    begin, _, end = words.partition("{}")
    assert begin in line
    assert end in line


@NO_GPU
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    line = both(write(tmp_path, **model(device="cuda:0")))
    assert line.startswith("5: models[0].device: cuda:0 is not available")


def test_a_port_of_another_process_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = write(tmp_path, port=port)
        taken.settimeout(0.1)
        listening = threading.Thread(target=_hang_up, args=(taken,))
        listening.start()
        line = both(path)
        listening.join()
    assert line == (
        f"1: port: cannot listen on 127.0.0.1:{port}: Address already in use; stop the process "
        "that listens there, or choose another port"
    )


def _hang_up(listener: socket.socket) -> None:
    listener.settimeout(30)
    listener.accept()[0].close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every port")
def test_a_privileged_port_is_named(tmp_path: Path) -> None:
    assert "ports below 1024 need root" in both(write(tmp_path, port=1))


class OurAnswer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ready", "reasons": {}}')

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_settings_are_checked_while_the_service_that_will_reread_them_runs(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), OurAnswer) as server:
        threading.Thread(target=server.handle_request).start()
        path = write(tmp_path, port=server.server_port)
        assert run("config", "check", "--config", path).stdout == f"{path}: ok; serves {NAME}\n"


NAME = MODEL["spec"]


def test_all_problems_are_named_together(tmp_path: Path) -> None:
    settings = {
        "port": 70000,
        "log_level": "loud",
        "api_keys_file": "/nowhere",
        "tls_certificate": "/c",
        "tls_key": "/k",
        "models": [
            {"spec": "resnet18", "device": "gpu"},
            {"spec": "random:resnet20", "precision": "int8"},
            {"spec": "random:resnet20", "max_batch": 0, "name": "b"},
        ],
    }
    path = write(tmp_path, **settings)
    lines = run("config", "check", "--config", path, status=2).stderr.splitlines()
    named = [line.removeprefix(f"{path}:").split(": ")[1] for line in lines]
    assert named == [
        "port",
        "models[0].device",
        "models[2].max_batch",
        "log_level",
        "api_keys_file",
        "tls_certificate",
        "tls_key",
        "models[0].spec",
        "models[1].precision",
    ]
    said = run("serve", "--config", path, status=2).stderr
    assert said == f"resnet-serve: {lines[0]}; `resnet-serve config check` lists all problems\n"


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_files_of_tls_that_do_not_fit_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (one, key), (other, _) = self_signed(tmp_path / "a"), self_signed(tmp_path / "b")
    path = write(tmp_path, tls_certificate=str(other), tls_key=str(key))
    assert both(path) == f"6: tls_key: {key} is not the key of {other}; give a pair"
    key.write_text("no key")
    path = write(tmp_path, tls_certificate=str(one), tls_key=str(key))
    assert both(path).startswith(f"6: tls_key: {key} contains no PEM private key")


def test_an_expired_certificate_is_named_by_check(tmp_path: Path) -> None:
    certificate, key = expired(tmp_path)
    path = write(tmp_path, tls_certificate=str(certificate), tls_key=str(key))
    (line,) = run("config", "check", "--config", path, status=2).stderr.splitlines()
    assert line.startswith(f"{path}:5: tls_certificate: {certificate} expired on ")
    assert line.endswith(" UTC, and clients refuse it; renew it")


def expired(folder: Path) -> tuple[Path, Path]:
    """A certificate of yesterday and its key, which openssl's commands do not make."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now - timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = folder / "old.pem", folder / "old-key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def test_a_pipe_of_settings_is_read_once_and_without_a_writer_not_waited_for(
    tmp_path: Path,
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"models: [{spec: 'random:resnet20'}]\nport: 0\n")
    os.close(writing)
    try:
        said = run("config", "check", "--config", f"/dev/fd/{reading}").stdout
        assert said == f"/dev/fd/{reading}: ok; serves {NAME}\n"
        # What was read is gone, and must not become the defaults.
        said = run("config", "check", "--config", f"/dev/fd/{reading}", status=2).stderr
        assert said == f"/dev/fd/{reading}: a pipe to which nothing writes; name a file\n"
    finally:
        os.close(reading)
