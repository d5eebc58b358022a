"""What is seen beside a load, of a server whose every answer is written down here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving.beside import beside, quantiles_ms
from tests.support.scripted import CLOSE, answer, scripted

METRICS = b'resnet_serve_queue_depth{model="a"} 7\n'


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"an image")
    return path


def test_probes_come_on_new_connections_and_a_slow_one_delays_none_of_the_next(image: Path) -> None:
    def slow(number: int, body: bytes) -> Iterator[bytes | float]:
        yield 0.5
        yield answer(body=METRICS)

    with scripted(slow) as server, beside(server.url, image) as seen:
        time.sleep(2.0)
    live, ready = seen["probes"]["live"], seen["probes"]["ready"]
    # One after the other, they would be four.
    assert live["count"] == ready["count"] > 10
    assert live["failed"] == ready["failed"] == 0
    assert 500 <= live["p50"] <= live["p99"] <= live["max"]
    assert server.connections >= live["count"] + ready["count"]
    assert seen["deepest_queue"] == 7


def test_probes_that_get_no_200_have_failed(image: Path) -> None:
    def fails(number: int, body: bytes) -> Iterator[bytes | None]:
        if number % 2:
            yield CLOSE
        yield answer(503, headers="Retry-After: 1\r\n", body=METRICS)

    with scripted(fails) as server, beside(server.url, image) as seen:
        time.sleep(1.0)
    for probe in seen["probes"].values():
        assert probe["failed"] == probe["count"] > 5


def test_the_polite_client_waits_as_it_is_told(image: Path) -> None:
    def refuses_once(number: int, body: bytes) -> Iterator[bytes]:
        if body and body not in server.bodies[:-1]:
            yield answer(429, headers="Retry-After: 1\r\n")
        yield answer(body=METRICS)

    with scripted(refuses_once) as server, beside(server.url, image) as seen:
        time.sleep(2.0)
    client = seen["polite_client"]
    assert client["answers"]["429"] == 1
    assert client["answers"]["200"] >= 1
    assert client["answered_at_the_next_try"] == 1
    assert client["refused_without_retry_after"] == 0
    assert client["retry_after_s"] == [1.0, 1.0, 1.0]


def test_quantiles_are_of_the_values() -> None:
    assert quantiles_ms([0.001 * value for value in range(100, 0, -1)]) == {
        "p50": 51,
        "p99": 100,
        "max": 100,
    }
