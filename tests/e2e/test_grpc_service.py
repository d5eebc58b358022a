"""Limits, keys, certificates, ports and the end of services of gRPC."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from models.extras import install
from service.grpc.receiving import QUICK_SECONDS
from tests.conftest import (
    CHOSEN,
    COMMAND,
    PATIENCE,
    Service,
    clean_environment,
    client,
    started,
)
from tests.e2e.test_endpoints import samples
from tests.e2e.test_grpc import (
    CLASSES,
    FILES,
    GOOD,
    NAME,
    SERVICE,
    address_of,
    call,
    channel,
    images,
    listening,
    raw_rows,
    refused,
)
from tests.e2e.test_workers import children
from tests.service.http.test_tls import self_signed
from tests.support.waiting import until


class Stream:
    """A stream whose client sends a request when it is told to, and otherwise waits."""

    def __init__(self, opened: Any, metadata: Any = None) -> None:
        self.requests: queue.Queue[bytes | None] = queue.Queue()
        stream = opened.stream_stream(f"{SERVICE}/ModelStreamInfer")
        self.responses = stream(iter(self.requests.get, None), timeout=PATIENCE, metadata=metadata)

    def ask(self) -> NDArray[np.float32]:
        self.requests.put(GOOD)
        message = service_pb2.ModelStreamInferResponse.FromString(next(self.responses))
        return raw_rows(message.infer_response.SerializeToString())


@contextmanager
def simple(*arguments: str, **environment: str) -> Iterator[Service]:
    models = ("--model", "builtin:resnet20-cifar10", "--engine", "eager", "--precision", "fp32")
    with started(*models, "--grpc-port", "0", *arguments, **environment) as running:  # type: ignore[arg-type]
        yield running


def test_what_takes_too_long_to_arrive_is_refused() -> None:
    def slowly() -> Iterator[bytes]:
        ended.wait(PATIENCE)
        yield b""

    ended = threading.Event()
    with simple(RESNET_SERVE_UPLOAD_TIMEOUT_S="0.5") as running, channel(running) as opened:
        with pytest.raises(grpc.RpcError) as caught:
            opened.stream_unary(f"{SERVICE}/ModelInfer")(slowly(), timeout=PATIENCE)
        ended.set()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "took longer than 0.5 s" in caught.value.details()


def test_connections_and_calls_beyond_the_limit_are_refused() -> None:
    with (
        simple(RESNET_SERVE_MAX_CONNECTIONS="2", RESNET_SERVE_MAX_DELAY_MS="3000") as running,
        channel(running) as first,
    ):
        unary = first.unary_unary(f"{SERVICE}/ModelInfer")
        calls = [unary.future(GOOD, timeout=PATIENCE) for _ in range(2)]
        until(lambda: samples(running)[f'resnet_serve_queue_depth{{model="{NAME}"}}'] == 2)
        error = refused(first, "ModelInfer", GOOD)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 calls in progress" in error.details()
        with channel(running) as second:
            assert refused(second, "ServerLive", b"").code() is error.code()
            with channel(running) as third:
                error = refused(third, "ServerLive", b"", timeout=5)
                assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert all(raw_rows(each.result()).size for each in calls)


def test_streams_that_wait_for_their_clients_stay_open_up_to_a_limit_of_their_own() -> None:
    """However few uploads may be in progress."""
    with (
        simple(RESNET_SERVE_MAX_UPLOAD_BYTES="1", RESNET_SERVE_GRPC_MAX_STREAMS="3") as running,
        channel(running) as opened,
    ):
        streams = [Stream(opened) for _ in range(3)]
        for stream in streams:
            assert stream.ask().shape == (1, CLASSES)
        time.sleep(2 * QUICK_SECONDS)
        more = Stream(opened)
        with pytest.raises(grpc.RpcError) as caught:
            next(more.responses)
        more.requests.put(None)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the limit of 3 open streams" in caught.value.details()
        assert all(stream.ask().size for stream in streams)
        streams[0].requests.put(None)
        assert not list(streams[0].responses)
        assert Stream(opened).ask().size


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A frame of HTTP/2: RFC 9113, section 4.1."""
    length = len(content).to_bytes(3, "big")
    return length + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that is not indexed: RFC 7541, section 6.2.2."""
    return b"\0" + b"".join(bytes([len(text)]) + text for text in (name, value))


def test_who_does_not_read_is_disconnected(tmp_path: Path) -> None:
    """Open calls are limited: else, a client that opens no window keeps all others out."""
    (tmp_path / "sitecustomize.py").write_text(
        "from tests.support.import_hook import change_on_import\n"
        "change_on_import(['service.http.timed_connection'],\n"
        "    lambda module: setattr(module, 'STALLED_SECONDS', 1.0))\n"
    )
    paths = f"{tmp_path}:{Path(__file__).parents[2]}"
    with simple(PYTHONPATH=paths) as running:
        host, _, port = address_of(running).rpartition(":")
        fields = {
            b":method": b"POST",
            b":scheme": b"http",
            b":path": f"{SERVICE}/ServerLive".encode(),
            b":authority": b"a",
            b"content-type": b"application/grpc",
            b"te": b"trailers",
        }
        block = b"".join(literal(*each) for each in fields.items())
        no_window = frame(4, 0, 0, b"\0\4\0\0\0\0")
        with socket.create_connection((host, int(port)), PATIENCE) as opened:
            opened.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + no_window)
            for number in range(5):
                stream = 2 * number + 1
                opened.sendall(frame(1, 4, stream, block) + frame(0, 1, stream, bytes(5)))
            received = b"".join(iter(partial(opened.recv, 2**16), b""))
        assert b"application/grpc" in received  # Responses began.
        with channel(running) as other:
            assert raw_rows(call(other, "ModelInfer", GOOD)).size


def test_at_shutdown_streams_end_once_what_arrived_is_answered() -> None:
    """Those that wait for their clients do not keep it waiting."""
    patience = str(2 * PATIENCE)
    with (
        simple(
            RESNET_SERVE_MAX_DELAY_MS="1500", RESNET_SERVE_SHUTDOWN_TIMEOUT_S=patience
        ) as running,
        channel(running) as opened,
    ):
        idle, busy = Stream(opened), Stream(opened)
        busy.requests.put(GOOD)
        until(lambda: samples(running)[f'resnet_serve_queue_depth{{model="{NAME}"}}'] == 1)
        running.process.send_signal(signal.SIGTERM)
        assert next(busy.responses)
        for stream in (idle, busy):
            with pytest.raises(grpc.RpcError) as caught:
                next(stream.responses)
            stream.requests.put(None)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "open the stream again" in caught.value.details()
        assert running.process.wait(PATIENCE) == 0
    assert not [line for line in running.log if "ERROR" in line or "Traceback" in line]


def test_a_second_signal_cuts_calls_off_and_says_so() -> None:
    with simple(RESNET_SERVE_MAX_DELAY_MS="60000") as running, channel(running) as opened:
        held = opened.unary_unary(f"{SERVICE}/ModelInfer").future(GOOD, timeout=PATIENCE)
        until(lambda: samples(running)[f'resnet_serve_queue_depth{{model="{NAME}"}}'] == 1)
        running.process.send_signal(signal.SIGTERM)
        until(lambda: client.get(f"{running.url}/health/ready").status_code == 503)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE) == 1
        with pytest.raises(grpc.RpcError):
            held.result()
    assert [line for line in running.log if "requests cut off: 1" in line]


KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with KEY and another one."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.touch(0o600)
    file.write_text(f"{KEY}\nthe-first-of-two-keys\n")
    return file


@pytest.fixture(scope="module")
def locked(keys: Path) -> Iterator[Service]:
    with simple(RESNET_SERVE_API_KEYS_FILE=str(keys)) as running:
        yield running


def test_keys_are_those_of_http(locked: Service) -> None:
    with triton.InferenceServerClient(address_of(locked)) as asking:
        assert asking.is_server_ready()
        given = [images(FILES[0])]
        for headers in (None, {"x-api-key": "not-the-right-key"}):
            with pytest.raises(InferenceServerException, match="key") as caught:
                asking.infer(NAME, given, headers=headers)
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
            with pytest.raises(InferenceServerException, match="key"):
                asking.get_model_metadata(NAME, headers=headers)
        for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
            assert asking.infer(NAME, given, headers=headers).as_numpy("probabilities").size
        with pytest.raises(InferenceServerException, match="no admin key") as caught:
            asking.unload_model(NAME, headers={"x-api-key": KEY})
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        with channel(locked) as opened:
            status = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest())
            assert status.status == health_pb2.HealthCheckResponse.SERVING


def test_a_stream_ends_with_the_key_that_it_was_opened_with(locked: Service, keys: Path) -> None:
    with channel(locked) as opened:
        metadata = [("x-api-key", "the-first-of-two-keys")]
        stream = Stream(opened, metadata)
        assert stream.ask().size
        keys.write_text(f"{KEY}\nthe-second-of-two-keys\n")
        locked.process.send_signal(signal.SIGHUP)
        until(lambda: revoked(opened, metadata))
        stream.requests.put(GOOD)
        message = service_pb2.ModelStreamInferResponse.FromString(next(stream.responses))
        assert "unknown key" in message.error_message
        stream.requests.put(None)


def revoked(opened: Any, metadata: Any) -> bool:
    try:
        call(opened, "ModelInfer", GOOD, metadata=metadata)
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_certificates_are_those_of_https_and_are_reloaded(tmp_path: Path, workers: str) -> None:
    certificate, key = self_signed(tmp_path)

    def asked(address: str) -> bool:
        with triton.InferenceServerClient(
            address,
            ssl=True,
            root_certificates=str(certificate),
            channel_args=[("grpc.use_local_subchannel_pool", 1)],
        ) as asking:
            found = asking.infer(NAME, [images(FILES[0])], client_timeout=PATIENCE)
            return bool(found.as_numpy("probabilities").size)

    def presented(address: str) -> str:
        host, _, port = address.rpartition(":")
        return ssl.get_server_certificate((host, int(port)))

    with simple(
        RESNET_SERVE_WORKERS=workers,
        RESNET_SERVE_TLS_CERTIFICATE=str(certificate),
        RESNET_SERVE_TLS_KEY=str(key),
    ) as running:
        address = address_of(running)
        assert asked(address)
        before = presented(address)
        self_signed(tmp_path)
        running.process.send_signal(signal.SIGHUP)
        until(lambda: all(presented(address) != before for _ in range(8)))
        assert asked(address)


def test_at_shutdown_health_says_so_and_accepted_calls_are_completed() -> None:
    with simple(
        *("--model", "random:resnet20", "--workers", "2"),
        RESNET_SERVE_WORKERS="2",
        RESNET_SERVE_MAX_DELAY_MS="2500",
        RESNET_SERVE_SHUTDOWN_GRACE_S="1",
    ) as running:
        with channel(running) as opened:
            stub = health_pb2_grpc.HealthStub(opened)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            unary = opened.unary_unary(f"{SERVICE}/ModelInfer")
            accepted = unary.future(GOOD, timeout=PATIENCE)
            until(lambda: samples(running)[f'resnet_serve_queue_depth{{model="{NAME}"}}'] == 1)
            running.process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            # Still served during the grace period.
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status == 2
            assert raw_rows(accepted.result()).shape == (1, CLASSES)
            error = refused(opened, "ModelInfer", GOOD, timeout=20)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert running.process.wait(PATIENCE) == 0
    assert not [line for line in running.log if "ERROR" in line or "Traceback" in line]


# What is said before it, such as of engines that got ready, depends on which process is first.
ONLY_ERRORS = {"RESNET_SERVE_LOG_LEVEL": "error"}


def failed_start(*arguments: str, **environment: str) -> str:
    """The one line with which a service does not start."""
    clean = clean_environment() | dict(CHOSEN)
    process = subprocess.run(
        [COMMAND, "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=clean | environment,
        check=False,
    )
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("\n") == 1
    return process.stderr


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = failed_start("--grpc-port", str(port))
    assert f"--grpc-port: cannot listen on 127.0.0.1:{port}: Address already in use" in line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_address_that_a_front_end_cannot_serve_is_one_line(tmp_path: Path, workers: str) -> None:
    """However many front ends there are, and none is started again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "sitecustomize.py").write_text(
            "from tests.support.import_hook import change_on_import\n"
            "def change(module):\n"
            "    build = module.GrpcServer.__init__\n"
            "    module.GrpcServer.__init__ = (\n"
            f"        lambda server, services, _: build(server, services, ['{address}'])\n"
            "    )\n"
            "change_on_import(['service.grpc.endpoint'], change)\n"
        )
        paths = f"{tmp_path}:{Path(__file__).parents[2]}"
        models = ("--model", f"builtin:{NAME}", "--workers", workers)
        line = failed_start(*models, "--grpc-port", "0", PYTHONPATH=paths, **ONLY_ERRORS)
    assert f"cannot serve gRPC on {address}" in line


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("grpc", f"--grpc-port: needs gRPC; {install('grpc')}"),
        ("grpc_reflection", "--grpc-port: needs gRPC"),
        ("google.protobuf", f"No module named 'google.protobuf'); {install('grpc')}"),
    ],
)
def test_without_the_extra_a_port_for_grpc_is_one_line(
    tmp_path: Path, missing: str, says: str, workers: str
) -> None:
    models = ("--model", f"builtin:{NAME}", "--workers", workers)
    paths = without(tmp_path, missing)
    line = failed_start(*models, "--grpc-port", "0", PYTHONPATH=paths, **ONLY_ERRORS)
    assert says in line


def test_a_front_end_that_cannot_come_back_says_why_and_is_tried_again(tmp_path: Path) -> None:
    paths = without(tmp_path, "google.protobuf")
    hook = tmp_path / "sitecustomize.py"
    held = hook.rename(tmp_path / "held")
    with simple(PYTHONPATH=paths, RESNET_SERVE_WORKERS="2") as running:
        held.rename(hook)
        lost = children(running, "front_end")[0]
        os.kill(lost, signal.SIGKILL)
        said = re.compile(r"(front end . cannot start: grpc_port: gRPC cannot be imported .*)")
        assert "pip install" in running._wait_for(said)
        with channel(running) as opened:
            assert raw_rows(call(opened, "ModelInfer", GOOD)).size
        hook.unlink()
        port = int(address_of(running).rpartition(":")[2])
        until(lambda: len(listening(port)) == 2)
    assert not [line for line in running.log if "Traceback" in line]


def without(folder: Path, package: str) -> str:
    """A PYTHONPATH with which processes do not find an installed package, as if it were absent."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Finder(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        if name != {package!r}:\n"
        "            return super().find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Finder if each is PathFinder else each for each in sys.meta_path]\n"
    )
    return f"{folder}:{Path(__file__).parents[2]}"


def test_http_needs_no_grpc(tmp_path: Path) -> None:
    paths = without(tmp_path, "grpc")
    with started("--model", f"builtin:{NAME}", PYTHONPATH=paths) as running:
        assert client.post(f"{running.url}/v1/classify", content=FILES[0]).status_code == 200


def test_other_hosts_need_a_key() -> None:
    assert "set api_keys" in failed_start("--host", "0.0.0.0", "--grpc-port", "0")


def test_it_is_off_by_default(service: Service) -> None:
    assert not [line for line in service.log if "gRPC" in line]
