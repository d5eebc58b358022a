"""What nobody should send, sent to a real service: answered, and nothing harmed."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Service, client, encoded, started
from tests.support.hostile import images, wire

MEGABYTE = 2**20
# Over what the service had before: an image of the most pixels, converted, and its body.
MOST_MEMORY = 450 * MEGABYTE
# Of that, kept afterwards: by allocators, and what libraries load when it is first needed.
KEPT_MEMORY = 150 * MEGABYTE
# Seconds until an answer; what takes none of it is only given up on a machine that stands still.
PATIENCE = 60
# Seconds after which a service that may wait for the rest is taken to do so.
WAITING = 0.3
GOOD = encoded("PNG", (40, 40))
HEAD = b" HTTP/1.1\r\nHost: "


class Besieged:
    """A service with its state before anything hostile was sent."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.url = service.url
        self.sent = 0
        self.lines = len(service.log)
        self.expected = self.predictions()
        self.memory = self.status("VmRSS")

    def status(self, key: str) -> int:
        """Bytes of memory: VmRSS has them now, VmHWM at the most."""
        text = Path(f"/proc/{self.service.process.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    def predictions(self) -> Any:
        return client.post(f"{self.url}/v1/classify", content=GOOD).json()["predictions"]

    def classify(self, content: bytes, **options: Any) -> httpx.Response:
        self.sent += 1
        return client.post(f"{self.url}/v1/classify", content=content, **options)

    def speak(self, data: bytes, statuses: Set[int | None]) -> tuple[int | None, bytes]:
        """The status and all that comes back; None if nothing does within a moment."""
        self.sent += data.count(b"HTTP/") or 1
        with socket.create_connection(("127.0.0.1", self.service.port), timeout=PATIENCE) as peer:
            received = b""
            with contextlib.suppress(OSError):  # It may have refused already, and closed.
                peer.sendall(data)
            with contextlib.suppress(OSError):
                peer.settimeout(WAITING if None in statuses else PATIENCE)
                while more := peer.recv(65_536):
                    received += more
        status = int(received.split(b" ", 2)[1]) if received.startswith(b"HTTP/") else None
        return status, received


@pytest.fixture(scope="module")
def besieged() -> Iterator[Besieged]:
    # The deadline is long, so that a busy machine gives the same answers as an idle one.
    long = "300000"
    with started(
        "--model", "builtin:resnet20-cifar10", RESNET_SERVE_REQUEST_TIMEOUT_MS=long
    ) as service:
        yield Besieged(service)


def refusal(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["detail"].isprintable()
    assert " at 0x" not in problem["detail"]
    return str(problem["detail"])


@pytest.mark.parametrize("name", images.CASES)
def test_every_image_is_answered_as_it_should_be(besieged: Besieged, name: str) -> None:
    make, statuses = images.CASES[name]
    data = make()
    Path(f"/proc/{besieged.service.process.pid}/clear_refs").write_text("5")
    response = besieged.classify(data)
    assert response.status_code in statuses, response.text
    if response.status_code == 200:
        assert len(response.json()["predictions"]) == 5
    else:
        refusal(response)
    assert besieged.status("VmHWM") - besieged.memory < MOST_MEMORY


@pytest.mark.parametrize("name", images.SEEDS)
def test_files_cut_off_and_with_bits_turned_fail_alone(besieged: Besieged, name: str) -> None:
    """Those of one kind in one form, with a good image in the middle."""
    bad = images.broken(name)
    middle = len(bad) // 2
    files = [
        ("image", (f"{i}", data)) for i, data in enumerate([*bad[:middle], GOOD, *bad[middle:]])
    ]
    besieged.sent += 1
    response = client.post(f"{besieged.url}/v1/classify/batch", files=files)
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert len(results) == len(files)
    assert results[middle]["predictions"] == besieged.expected
    failed = [result["error"] for result in results if "error" in result]
    assert len(failed) >= 5
    for error in failed:
        assert error.isprintable()


@pytest.mark.parametrize("name", wire.CASES)
def test_every_request_is_answered_as_it_should_be(besieged: Besieged, name: str) -> None:
    data, statuses = wire.CASES[name]
    status, received = besieged.speak(data, statuses)
    assert status in statuses, received[:500]
    head, _, body = received.partition(b"\r\n\r\n")
    if b"application/problem+json" in head and body:
        problem = json.loads(body)
        assert problem["status"] == status
        assert problem["detail"].isprintable()
    elif status is not None and status >= 400:
        # The server's own refusal of what is no HTTP.
        assert b"Traceback" not in body
        assert b"x-request-id" not in head.lower() or not body


@pytest.mark.parametrize("name", [name for name, case in wire.CASES.items() if HEAD in case[0]])
def test_a_wish_for_another_protocol_changes_no_status(besieged: Besieged, name: str) -> None:
    data, statuses = wire.CASES[name]
    without, _ = besieged.speak(data, statuses)
    status, received = besieged.speak(wire.wishing(data), statuses)
    assert status == without, received[:500]


def test_a_deadline_that_passes_while_decoding_is_answered_at_once(besieged: Besieged) -> None:
    slow = images.LIKE_OTHERS["png of 49 megapixels"]()
    started_at = time.perf_counter()
    late = besieged.classify(slow, headers={"X-Request-Timeout-Ms": "100"})
    answered = time.perf_counter() - started_at
    whole = besieged.classify(slow).json()["timing_ms"]["decode"] / 1000
    assert late.status_code == 504
    assert answered < whole


def test_nothing_was_harmed(besieged: Besieged) -> None:
    """Last in this file: what all that was sent has left."""
    assert besieged.predictions() == besieged.expected
    assert besieged.service.process.poll() is None
    assert client.get(f"{besieged.url}/health/ready").status_code == 200
    # What is decoded for nobody, as its caller's deadline has passed, ends by itself.
    until = time.monotonic() + PATIENCE
    while besieged.status("VmRSS") - besieged.memory > KEPT_MEMORY and time.monotonic() < until:
        time.sleep(0.1)
    assert besieged.status("VmRSS") - besieged.memory <= KEPT_MEMORY
    lines = besieged.service.log[besieged.lines :]
    assert len(lines) <= besieged.sent
    for line in lines:
        assert "Traceback" not in line
        assert "ERROR" not in line
        assert "forged" not in line.split()[0]
        assert line.rstrip("\n").isprintable()
