"""Where a real service listens: on both families, on a unix socket, on sockets of systemd's."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COMMAND, PATIENCE, Service, encoded, started
from tests.e2e.test_health import asked
from tests.e2e.test_shutdown import load_until_gone
from tests.e2e.test_workers import all_ready, children
from tests.service.http.test_service_manager import as_systemd
from tests.service.http.test_tls import self_signed
from tests.support.waiting import until

MODEL = ("--model", "random:resnet20")
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6")
# A network of its own, with loopback and no address of IPv6.
WITHOUT_IPV6 = (
    "unshare", "--net", "sh", "-c",
    'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up; exec "$@"', "sh",
)  # fmt: skip
has_networks = (
    os.geteuid() == 0
    and shutil.which("unshare") is not None
    and shutil.which("ip") is not None
    and subprocess.run([*WITHOUT_IPV6, "true"], check=False, capture_output=True).returncode == 0
)


def curl(*arguments: str, image: Path | None = None) -> str:
    """What curl gets, which fails on any status but 200."""
    body = [] if image is None else ["--data-binary", f"@{image}", "-H", "Content-Type: image/png"]
    return subprocess.check_output(
        ["curl", "-sS", "--fail", "--max-time", str(PATIENCE), *body, *arguments], text=True
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(encoded())
    return path


def stale(path: Path) -> None:
    """What a service leaves that was killed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()


def is_quiet(service: Service) -> bool:
    """Whether its log has nothing but what a good life leaves there."""
    return not any(word in line for line in service.log for word in ("Traceback", "ERROR", "WARN"))


@needs_curl
@needs_ipv6
@pytest.mark.parametrize(("host", "workers"), [("localhost", "1"), ("::", "2")])
def test_both_families_are_served_on_one_port(image: Path, host: str, workers: str) -> None:
    allowed: dict[str, Any] = {"RESNET_SERVE_ALLOW_ANONYMOUS": "true"}
    with started("--host", host, "--workers", workers, *MODEL, **allowed) as service:
        until(lambda: all_ready(service))
        for address in ("127.0.0.1", "[::1]", "localhost"):
            url = f"http://{address}:{service.port}/v1/classify"
            assert '"model":"resnet20"' in curl(url, image=image).replace(" ", "")
        told = {"RESNET_SERVE_HOST": host, "RESNET_SERVE_PORT": str(service.port)}
        assert asked(**told) == (0, "ready\n")
        assert service.end() == 0
        assert is_quiet(service)
    port = service.port
    status, line = asked(**told)
    assert status == 1
    assert "nothing listens on" in line
    assert f"[::1]:{port}" in line
    assert f"127.0.0.1:{port}" in line


@pytest.mark.skipif(not has_networks, reason="cannot make a network without IPv6")
@pytest.mark.parametrize("host", ["localhost", "::"])
def test_without_ipv6_the_other_family_serves(host: str, tmp_path: Path) -> None:
    """Asked from within, as nothing leads into its network."""
    allowed: dict[str, Any] = {"RESNET_SERVE_ALLOW_ANONYMOUS": "true"}
    command = (*WITHOUT_IPV6, COMMAND)
    with started("--host", host, *MODEL, command=command, ready=False, **allowed) as service:
        inside = ["nsenter", "--net", "--target", str(service.process.pid)]
        ask = [*inside, COMMAND, "health", "--host", host, "--port", str(service.port)]
        until(lambda: subprocess.run(ask, check=False, capture_output=True).returncode == 0)
        assert service.end() == 0
        assert is_quiet(service)


@needs_curl
@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_unix_socket_is_served_from_a_stale_file_to_its_end(
    image: Path, tmp_path: Path, workers: str
) -> None:
    path = tmp_path / "s"
    stale(path)
    host = f"unix:{path}"
    ending: dict[str, Any] = {"RESNET_SERVE_SHUTDOWN_GRACE_S": "0.5"}
    with started("--host", host, "--workers", workers, *MODEL, **ending) as service:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        at = ("--unix-socket", str(path))
        until(lambda: asked("--host", host) == (0, "ready\n"))
        url = "http://localhost/v1/classify"
        assert '"predictions"' in curl(*at, url, image=image)
        # Without a Host header, URLs of the service itself have nothing but the socket to name.
        assert '"models"' in curl(*at, "--http1.0", "-H", "Host:", "http://localhost/v1/models/")
        hint = f"(curl --unix-socket {path} http://localhost/v1/models)"
        assert any(f"serving resnet20 on {host} {hint}" in line for line in service.log)
        statuses, unanswered = asyncio.run(load_until_gone(service))
        assert service.process.wait(30) == 0
    assert set(statuses) <= {200, 503}
    assert unanswered == []
    assert not path.exists()
    assert is_quiet(service)
    assert asked("--host", host) == (1, f"resnet-serve: nothing listens on {host}\n")


def test_a_killed_front_end_leaves_the_socket_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with started("--host", f"unix:{path}", "--workers", "2", *MODEL) as service:
        first, _ = children(service, "front_end")
        os.kill(first, signal.SIGKILL)
        until(lambda: len(set(children(service, "front_end")) - {first}) == 2)
        assert service.client.get(f"{service.url}/health/live").status_code == 200
        assert path.exists()
        assert service.end() == 0
    assert not path.exists()


@needs_curl
@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_a_unix_socket_may_be_encrypted(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    path = tmp_path / "s"
    variables: dict[str, Any] = {
        "RESNET_SERVE_HOST": f"unix:{path}",
        "RESNET_SERVE_TLS_CERTIFICATE": str(certificate),
        "RESNET_SERVE_TLS_KEY": str(key),
    }
    with started(*MODEL, ready=False, **variables) as service:
        until(lambda: asked(**variables) == (0, "ready\n"))
        ready = curl("--insecure", "--unix-socket", str(path), "https://localhost/health/ready")
        assert '"ready"' in ready
        assert service.end() == 0
    assert not path.exists()


def refused(host: str) -> str:
    done = subprocess.run(
        [COMMAND, "serve", "--host", host, *MODEL],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line.removeprefix("resnet-serve: ")


def test_a_socket_in_use_stays_its_owners_and_a_start_that_fails_leaves_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    with started("--host", f"unix:{path}", *MODEL) as service:
        line = f"--host: cannot listen on unix:{path}: another process listens there; "
        assert refused(f"unix:{path}").startswith(line)
        assert service.client.get(f"{service.url}/health/live").status_code == 200
        path.unlink()
        with socket.create_server(str(path), family=socket.AF_UNIX):
            assert service.end() == 0
            assert path.exists()  # Not the service's any more.
    other = tmp_path / "other"
    done = subprocess.run(
        [COMMAND, "serve", "--host", f"unix:{other}", "--model", "random:resnet51"],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert not other.exists()


@contextmanager
def handed_over(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Sockets that outlive a service, as those of a .socket unit do."""
    unix = str(tmp_path / "s")
    with (
        socket.create_server(("127.0.0.1", 0), backlog=100) as first,
        socket.create_server(unix, family=socket.AF_UNIX, backlog=100) as second,
    ):
        yield first, second


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_sockets_of_a_service_manager_outlive_the_service(tmp_path: Path, workers: str) -> None:
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(str(tmp_path / "ear"))
    ear.settimeout(PATIENCE)
    variables: dict[str, Any] = {
        "RESNET_SERVE_SHUTDOWN_GRACE_S": "0.2",
        "NOTIFY_SOCKET": str(tmp_path / "ear"),
        # Not used, or the start would fail.
        "RESNET_SERVE_HOST": "203.0.113.1",
    }
    image = encoded()
    post = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(image)}\r\n"
    request = f"{post}Connection: close\r\n\r\n".encode() + image
    with ear, handed_over(tmp_path) as listeners:
        descriptors = [each.fileno() for each in listeners]
        arguments = ("--workers", workers, *MODEL)
        command = (*as_systemd(descriptors), COMMAND)

        def ask(listener: socket.socket) -> socket.socket:
            connection = socket.socket(listener.family)
            connection.settimeout(PATIENCE)
            connection.connect(listener.getsockname())
            connection.sendall(request)
            return connection

        waiting: list[socket.socket] = []
        for _ in range(2):
            with started(*arguments, command=command, pass_fds=descriptors, **variables) as service:
                assert ear.recv(100) == b"READY=1"
                until(lambda: all_ready(service))
                assert any(f", unix:{tmp_path / 's'} (" in line for line in service.log)
                for connection in waiting:  # Answered at once: the model was loading.
                    with connection:
                        assert connection.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 503")
                for connection in map(ask, listeners):
                    with connection:
                        assert connection.recv(12) == b"HTTP/1.1 200"
                assert service.end() == 0
                assert ear.recv(100) == b"STOPPING=1"
                assert is_quiet(service)
            # Nobody serves, and nothing is refused: the next service answers.
            waiting = [ask(each) for each in listeners]
        assert (tmp_path / "s").exists()
        for connection in waiting:
            connection.close()


def test_a_socket_of_a_service_manager_for_other_hosts_needs_keys() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        done = subprocess.run(
            [*as_systemd([listener.fileno()]), COMMAND, "serve", *MODEL],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[listener.fileno()],
            timeout=PATIENCE,
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "on 0.0.0.0 other hosts could use the service without a key" in line


def test_under_load_a_service_manager_loses_no_request(tmp_path: Path) -> None:
    """Those that come during the restart wait for the next service, which is loading then."""
    with handed_over(tmp_path) as (listener, _):
        descriptors = [listener.fileno()]
        arguments: dict[str, Any] = {
            "command": (*as_systemd(descriptors), COMMAND),
            "pass_fds": descriptors,
            "RESNET_SERVE_SHUTDOWN_GRACE_S": "0.2",
        }
        port = listener.getsockname()[1]
        statuses: list[int] = []

        async def caller() -> None:
            body = encoded()
            head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            while not ended:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head.encode() + body)
                statuses.append(int((await reader.readuntil(b"\r\n")).split()[1]))
                writer.close()

        def restart() -> None:
            with started(*MODEL, **arguments) as service:
                until(lambda: len(statuses) > 50)
                assert service.end() == 0
            count = len(statuses)
            with started(*MODEL, **arguments) as service:
                until(lambda: len(statuses) > count + 50)
                ended.append(True)
                assert service.end() == 0

        ended: list[bool] = []

        async def test() -> None:
            async with asyncio.timeout(2 * PATIENCE):
                await asyncio.gather(asyncio.to_thread(restart), *(caller() for _ in range(8)))

        asyncio.run(test())
        assert set(statuses) <= {200, 503}
