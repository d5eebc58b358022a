"""Processes that are stopped, as native code that never returns would stop them, and paused ones.

What is stopped cannot notice it; who watches must not take a pause of the whole service for a hang.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import Service, client, encoded, started
from tests.e2e.test_faults import commanded
from tests.e2e.test_workers import all_ready, children, is_ready
from tests.support.waiting import until


@pytest.fixture(scope="module")
def pair() -> Iterator[Service]:
    """Two front ends and an engine process, which may be silent for 10 s."""
    model = ("--model", "random:resnet20", "--engine", "eager")
    with started("--workers", "2", *model, RESNET_SERVE_ENGINE_TIMEOUT_S="1") as running:
        until(lambda: all_ready(running))
        yield running


def live(service: Service) -> tuple[int, str]:
    answer = client.get(f"{service.url}/health/live")
    return answer.status_code, " ".join(answer.json()["reasons"].values())


def test_a_frozen_engine_process_is_not_ready_and_is_replaced(pair: Service) -> None:
    (engine,) = children(pair, "engine_process")
    front_ends = children(pair, "front_end")
    os.kill(engine, signal.SIGSTOP)
    until(lambda: not is_ready(pair))
    until(lambda: not any(is_ready(pair) for _ in range(8)))
    reasons = client.get(f"{pair.url}/health/ready").json()["reasons"]
    assert reasons["resnet20"] == "the engine process does not respond"
    answer = client.post(f"{pair.url}/v1/classify", content=encoded())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert live(pair)[0] == 200, "the supervisor repairs it"
    until(lambda: children(pair, "engine_process") not in ([], [engine]))
    until(lambda: all_ready(pair))
    assert client.post(f"{pair.url}/v1/classify", content=encoded()).status_code == 200
    assert children(pair, "front_end") == front_ends
    assert any("the engine process" in line and "killing it" in line for line in pair.log)


@pytest.mark.slow
def test_a_frozen_front_end_is_replaced(pair: Service) -> None:
    frozen, other = children(pair, "front_end")
    os.kill(frozen, signal.SIGSTOP)
    until(lambda: frozen not in children(pair, "front_end"))
    until(lambda: len(children(pair, "front_end")) == 2)
    assert other in children(pair, "front_end")
    until(lambda: all_ready(pair))


@pytest.mark.slow
def test_a_frozen_supervisor_is_told_by_the_liveness_probe(pair: Service) -> None:
    pair.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: live(pair) == (503, "the supervisor does not respond"))
        assert client.post(f"{pair.url}/v1/classify", content=encoded()).status_code == 200
    finally:
        pair.process.send_signal(signal.SIGCONT)
    until(lambda: all(live(pair)[0] == 200 for _ in range(8)))


@contextmanager
def paused(service: Service, seconds: float) -> Iterator[None]:
    """All processes are stopped for so long, as `docker pause` stops them, and then go on."""
    processes = [*children(service), service.process.pid]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in processes:
        os.kill(pid, signal.SIGCONT)
    yield
    assert [*children(service), service.process.pid] == processes


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "seconds"), [("1", 6.0), ("2", 13.0)])
def test_a_pause_of_the_whole_service_is_no_hang(
    workers: str, seconds: float, tmp_path: Path
) -> None:
    """The pause is longer than the timeout, and a batch is in flight."""
    with (
        commanded(tmp_path, "--workers", workers, RESNET_SERVE_ENGINE_TIMEOUT_S="4") as running,
        ThreadPoolExecutor() as threads,
    ):
        service = running.service
        patient = {"X-Request-Timeout-Ms": "60000"}
        url = f"{service.url}/v1/classify"

        def ask() -> httpx.Response:
            return httpx.post(url, content=encoded(), headers=patient, timeout=60)

        running.command("hang")
        in_flight = threads.submit(ask)
        time.sleep(0.5)
        with paused(service, seconds):
            time.sleep(0.5)  # For whoever would declare a hang to do so.
            running.command("")
            assert in_flight.result().status_code == 200
            assert ask().status_code == 200
            until(lambda: all_ready(service))
        assert not any("hang" in line or "respond" in line for line in service.log)
