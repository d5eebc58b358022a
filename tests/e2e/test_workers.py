"""Several front-end processes and one engine process behave as one service."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.repository import catalog
from tests.conftest import Service, client, encoded, started
from tests.e2e.test_endpoints import samples
from tests.e2e.test_load import post, send_all, wait_for
from tests.e2e.test_shutdown import assert_begin_and_end_are_told, load_until_gone
from tests.e2e.test_start import fail
from tests.service.http.test_tls import self_signed
from tests.support import rounding
from tests.support.waiting import until

BUILTIN = 'model="resnet20-cifar10"'
PREDICTED = "resnet_serve_predictions_total"


def children(service: Service, module: str = "") -> list[int]:
    """The service's processes that run `service.MODULE`."""
    pids = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()
    return [pid for pid in map(int, pids.split()) if f"service.workers.{module}" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def folder_of(service: Service) -> Path:
    return Path(command_of(children(service)[0]).split("\0")[-2])


def is_refused(service: Service) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", service.port)) == errno.ECONNREFUSED


def is_ready(service: Service) -> bool:
    return client.get(f"{service.url}/health/ready").status_code == 200


def all_ready(service: Service) -> bool:
    """Whether every front end says so; which one answers is chance."""
    return all(is_ready(service) for _ in range(12))


def images(count: int) -> list[bytes]:
    """Distinct ones, which the embedded model tells apart."""
    made = []
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
        made.append(buffer.getvalue())
    return made


def probabilities(response: httpx.Response) -> dict[str, float]:
    return {p["label"]: p["probability"] for p in response.json()["predictions"]}


@pytest.fixture(scope="module")
def trio() -> Iterator[Service]:
    model = ("--model", "builtin:resnet20-cifar10", "--precision", "fp32")
    with started("--workers", "3", *model) as running:
        until(lambda: all_ready(running))
        yield running


def test_load_is_answered_as_one_process_answers_it(service: Service, trio: Service) -> None:
    bodies = images(24)

    def requests(of: Service) -> list[httpx.Request]:
        url = f"{of.url}/v1/classify?top_k=10&model=resnet20-cifar10"
        return [httpx.Request("POST", url, content=body) for body in bodies]

    network = catalog.load("builtin:resnet20-cifar10").bundle.tensors
    alone = asyncio.run(send_all(requests(service)))
    many = asyncio.run(send_all(requests(trio) * 10))
    assert {response.status_code for response in many} == {200}
    wanted = [probabilities(response) for response in alone]
    for index, response in enumerate(many):
        expected, found = wanted[index % len(bodies)], probabilities(response)
        assert found.keys() == expected.keys()
        rounding.assert_probabilities_near(
            [found[label] for label in expected], list(expected.values()), network
        )
        timing = response.json()["timing_ms"]
        assert timing["total"] >= timing["inference"] > 0
    assert max(response.json()["batch_size"] for response in many) > 1


def test_only_the_engine_process_has_torch(trio: Service) -> None:
    def has_torch(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    front_ends = children(trio, "front_end")
    assert len(front_ends) == 3
    assert [has_torch(pid) for pid in [*front_ends, trio.process.pid]] == [False] * 4
    assert [has_torch(pid) for pid in children(trio, "engine_process")] == [True]


def test_any_front_end_answers_with_the_sums_of_all(trio: Service) -> None:
    before = samples(trio)
    asyncio.run(send_all([post(trio) for _ in range(30)]))
    client.post(f"{trio.url}/v1/classify", content=b"broken")
    # Gauges of other processes are up to a quarter of a second old.
    wait_for(trio, "resnet_serve_queue_depth", lambda depth: depth == 0)
    scrapes = [samples(trio) for _ in range(8)]
    for after in scrapes:

        def rise(name: str, after: dict[str, float] = after) -> float:
            return after[name] - before.get(name, 0)

        assert rise(f"resnet_serve_images_total{{{BUILTIN}}}") == 30
        assert rise(f"resnet_serve_batch_size_sum{{{BUILTIN}}}") == 30
        assert rise(f'resnet_serve_phase_seconds_count{{{BUILTIN},phase="queue"}}') == 30
        assert rise(f"resnet_serve_confidence_ratio_count{{{BUILTIN}}}") == 30
        assert sum(rise(name) for name in after if name.startswith(PREDICTED)) == 30
        assert 0 < after["resnet_serve_open_files_ratio"] < 0.5
        assert after[f'resnet_serve_model_load_seconds{{device="cpu",{BUILTIN}}}'] > 0
        assert [n for name, n in after.items() if "_build_info" in name] == [1]
        assert rise('resnet_serve_requests_total{route="/v1/classify",status="400"}') == 1
        assert after[f"resnet_serve_model_ready{{{BUILTIN}}}"] == 1
        assert after[f"resnet_serve_queue_depth{{{BUILTIN}}}"] == 0
        assert after[f"resnet_serve_queue_limit{{{BUILTIN}}}"] == 256
        assert (
            after[
                'resnet_serve_model_info{architecture="resnet20",device="cpu"'
                f',engine="openvino",{BUILTIN},precision="fp32",sha256="{sha256(trio)}"}}'
            ]
            == 1
        )
    resident = 0
    for pid in [trio.process.pid, *children(trio)]:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        resident += pages * os.sysconf("SC_PAGE_SIZE")
    assert scrapes[-1]["process_resident_memory_bytes"] == pytest.approx(resident, rel=0.1)
    seconds = [scrape["process_cpu_seconds_total"] for scrape in scrapes]
    assert seconds == sorted(seconds)
    assert seconds[0] > 1


def sha256(service: Service) -> str:
    card = client.get(f"{service.url}/v1/models/resnet20-cifar10").json()
    found: str = card["weights"]["sha256"]
    return found


def test_each_metric_has_the_names_and_labels_that_one_process_gives(
    service: Service, trio: Service
) -> None:
    def shapes(of: Service) -> set[str]:
        names = {name.partition("{")[0] for name in samples(of)}
        return {name for name in names if not name.startswith("python_") and "created" not in name}

    for of in (service, trio):
        client.post(f"{of.url}/v1/classify", content=encoded())
    assert shapes(trio) == shapes(service)


@contextmanager
def load(service: Service, callers: int = 8) -> Iterator[Counter[Any]]:
    """Callers who each use a connection for each request; statuses, or the name of an error."""
    counts: Counter[Any] = Counter()
    ended = threading.Event()
    body = encoded()

    def caller() -> None:
        with httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0)) as own:
            while not ended.is_set():
                try:
                    answer = own.post(f"{service.url}/v1/classify", content=body)
                except httpx.TransportError as error:
                    counts[type(error).__name__] += 1
                    continue
                counts[answer.status_code] += 1
                if answer.status_code == 503:
                    assert answer.headers["retry-after"] == "1"
                    time.sleep(0.05)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_a_front_end_that_cannot_come_back_says_why_in_one_line(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with started(
        *("--model", "builtin:resnet20-cifar10", "--workers", "2"),
        RESNET_SERVE_TLS_CERTIFICATE=str(certificate),
        RESNET_SERVE_TLS_KEY=str(key),
    ) as running:
        certificate.unlink()
        os.kill(children(running, "front_end")[0], signal.SIGKILL)
        running._wait_for(re.compile(r"(front end . cannot start: .*certificate.*No such file)"))
        assert client.get(f"{running.url}/health/live").status_code == 200
    assert not [line for line in running.log if "Traceback" in line]


def test_a_killed_front_end_is_replaced_and_the_others_do_not_notice(trio: Service) -> None:
    before = children(trio, "front_end")
    counted = samples(trio)[f"resnet_serve_images_total{{{BUILTIN}}}"]
    with load(trio) as counts:
        until(lambda: counts[200] > 20)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: before[0] not in children(trio, "front_end"))
        until(lambda: len(children(trio, "front_end")) == 3)
        reached = counts[200]
        until(lambda: counts[200] > reached + 20)
    assert set(children(trio, "front_end")) >= set(before[1:])
    # Only those lost their connection who were being answered by the one that died.
    broken = sum(count for outcome, count in counts.items() if outcome != 200)
    assert broken <= 8
    assert not {500, 503, 504} & set(counts)
    until(lambda: all_ready(trio))
    after = samples(trio)
    assert after[f"resnet_serve_images_total{{{BUILTIN}}}"] >= counted + counts[200] - 8
    wait_for(trio, "resnet_serve_requests_in_flight", lambda count: count == 1)
    wait_for(trio, "resnet_serve_queue_depth", lambda depth: depth == 0)


def test_a_killed_engine_process_is_replaced_and_every_request_is_answered(trio: Service) -> None:
    front_ends = children(trio, "front_end")
    (engine,) = children(trio, "engine_process")
    with load(trio) as counts:
        until(lambda: counts[200] > 20)
        os.kill(engine, signal.SIGKILL)
        until(lambda: counts[503] >= 8, seconds=5)
        assert not any(is_ready(trio) for _ in range(6))
        wait_for(trio, "resnet_serve_model_ready", lambda value: value == 0)
        reason = client.get(f"{trio.url}/health/ready").json()["reasons"]["resnet20-cifar10"]
        # By now another may be starting.
        assert "engine process ended" in reason or reason == "the engine process is starting"
        until(lambda: all_ready(trio))
        reached = counts[200]
        until(lambda: counts[200] > reached + 20)
    assert set(counts) == {200, 503}
    assert children(trio, "front_end") == front_ends
    assert children(trio, "engine_process") != [engine]


def test_a_killed_supervisor_leaves_nothing_behind(trio: Service) -> None:
    pids, folder = children(trio), folder_of(trio)
    assert len(pids) == 4
    trio.process.kill()
    until(lambda: not any(map(command_of, pids)), seconds=10)
    assert not folder.exists()
    until(lambda: is_refused(trio))


@pytest.fixture(scope="module")
def patient() -> Iterator[Service]:
    """It waits for fuller batches than its queue lets in, and long before it ends."""
    with started(
        "--workers",
        "2",
        "--model",
        "random:resnet20",
        RESNET_SERVE_MAX_QUEUE="4",
        RESNET_SERVE_MAX_DELAY_MS="3000",
        RESNET_SERVE_SHUTDOWN_GRACE_S="3",
    ) as running:
        until(lambda: all_ready(running))
        yield running


def test_a_full_queue_is_429_and_callers_who_leave_give_their_places_back(
    patient: Service,
) -> None:
    responses = asyncio.run(send_all([post(patient) for _ in range(24)]))
    statuses = Counter(response.status_code for response in responses)
    assert set(statuses) == {200, 429}
    assert statuses[200] == 4
    for response in responses:
        if response.status_code == 429:
            assert 1 <= int(response.headers["retry-after"]) <= 60
    body = encoded()
    head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(3):
        connection = socket.create_connection(("127.0.0.1", patient.port))
        connection.sendall(head.encode() + body)
        wait_for(patient, "resnet_serve_queue_depth", lambda depth: depth == 1)
        connection.close()
        wait_for(patient, "resnet_serve_queue_depth", lambda depth: depth == 0)
    assert {asyncio.run(send_all([post(patient)]))[0].status_code} == {200}


def test_on_sigterm_every_front_end_is_unready_at_once_and_still_serves(patient: Service) -> None:
    # Also where a terminal or a service manager sends it to every process.
    for pid in [*children(patient), patient.process.pid]:
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    assert not any(is_ready(patient) for _ in range(8))
    answer = client.post(f"{patient.url}/v1/classify", content=encoded())
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"
    assert patient.process.wait(30) == 0


def test_sigterm_under_load_loses_nothing() -> None:
    with started(
        "--workers", "2", "--model", "random:resnet20", RESNET_SERVE_SHUTDOWN_GRACE_S="0.5"
    ) as service:
        until(lambda: all_ready(service))
        folder = folder_of(service)
        pids = children(service)
        statuses, unanswered = asyncio.run(load_until_gone(service))
        assert service.process.wait(30) == 0
    assert set(statuses) <= {200, 503}
    assert unanswered == []
    assert_begin_and_end_are_told(service, "SIGTERM", "serves for 0.5 s, then ")
    assert not any("Traceback" in line for line in service.log)
    assert not any(map(command_of, pids))
    assert not folder.exists()


@pytest.mark.slow
def test_what_cannot_be_served_ends_the_start_with_one_line() -> None:
    line = fail("--workers", "2", "--model", "random:resnet51")
    for word in ("models[0]", "resnet51", "nearest", "resnet50"):
        assert word in line


@pytest.mark.slow
def test_while_loading_it_is_live_but_not_ready_and_a_signal_ends_it() -> None:
    with started("--workers", "2", "--model", "random:resnet18", ready=False) as service:
        assert client.get(f"{service.url}/health/live").status_code == 200
        assert client.get(f"{service.url}/health/ready").status_code == 503
        early = client.post(f"{service.url}/v1/classify", content=encoded())
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert client.get(f"{service.url}/v1/models/resnet18").json()["state"] == "loading"
        assert service.end(signal.SIGINT) == 0
