"""Many callers, callers who leave, full queues and deadlines."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Service, client, encoded, started
from tests.e2e.test_endpoints import samples


def post(service: Service, timeout_ms: int = 60_000) -> httpx.Request:
    headers = {"X-Request-Timeout-Ms": str(timeout_ms)}
    return httpx.Request("POST", f"{service.url}/v1/classify", content=encoded(), headers=headers)


async def send_all(requests: list[httpx.Request]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        return await asyncio.gather(*(client.send(request) for request in requests))


def test_64_concurrent_requests_are_answered_and_batched(service: Service) -> None:
    requests = [post(service) for _ in range(64)] * 4
    responses = asyncio.run(send_all(requests))
    assert {response.status_code for response in responses} == {200}
    answers = [response.json() for response in responses]
    assert max(answer["batch_size"] for answer in answers) > 1
    likeliest = {answer["predictions"][0]["label"] for answer in answers}
    assert len(likeliest) == 1


@pytest.fixture(scope="module")
def slow() -> Iterator[Service]:
    # It waits three seconds for company that its small queue never lets in: work piles up on any
    # machine, and what happens does not depend on how fast it is.
    with started(
        "--model",
        "random:resnet20",
        RESNET_SERVE_MAX_QUEUE="4",
        RESNET_SERVE_MAX_QUEUE_BYTES="100000",
        RESNET_SERVE_MAX_DELAY_MS="3000",
    ) as running:
        yield running


def test_a_full_queue_is_429_with_the_time_to_retry(slow: Service) -> None:
    responses = asyncio.run(send_all([post(slow) for _ in range(24)]))
    refused = [response for response in responses if response.status_code == 429]
    answered = [response for response in responses if response.status_code == 200]
    assert len(refused) + len(answered) == 24
    assert len(answered) == 4
    for response in refused:
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["content-type"] == "application/problem+json"
        assert "queue is full" in response.json()["detail"]
    counted = samples(slow)['resnet_serve_refusals_total{model="resnet20",reason="queue_full"}']
    assert counted == len(refused)


def test_a_batch_that_finds_no_place_is_refused_as_a_whole(slow: Service) -> None:
    files = [("image", (f"{index}.png", encoded())) for index in range(3)]
    url = f"{slow.url}/v1/classify/batch"
    batch = httpx.Request("POST", url, files=files)
    *_, late = asyncio.run(send_all([*(post(slow) for _ in range(6)), batch]))
    assert late.status_code == 429
    alone = client.post(url, files=files)
    assert [set(r) for r in alone.json()["results"]] == [{"filename", "predictions"}] * 3


def test_an_image_larger_than_the_queues_limit_is_413(slow: Service) -> None:
    """And not 429, which would have it sent again and again."""
    image = encoded("BMP", (200, 200))
    assert len(image) > 100_000
    response = client.post(f"{slow.url}/v1/classify", content=image)
    assert response.status_code == 413
    assert "the limit of resnet20 is 100000" in response.json()["detail"]


def test_a_passed_deadline_is_504_and_frees_its_place(slow: Service) -> None:
    before = samples(slow)['resnet_serve_batch_size_sum{model="resnet20"}']
    patient = post(slow)
    # Longer than what was measured would let it be refused for, and shorter than the company takes.
    hurried = [post(slow, timeout_ms=1000) for _ in range(3)]
    first, *late = asyncio.run(send_all([patient, *hurried]))
    assert first.status_code == 200
    for response in late:
        assert response.status_code == 504
        assert "deadline" in response.json()["detail"]
    assert samples(slow)['resnet_serve_queue_depth{model="resnet20"}'] == 0
    computed = samples(slow)['resnet_serve_batch_size_sum{model="resnet20"}'] - before
    assert computed == 1


def test_a_caller_who_left_while_waiting_is_never_computed(slow: Service) -> None:
    before = samples(slow)
    body = encoded()
    head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    connections = []
    for _ in range(4):
        connection = socket.create_connection(("127.0.0.1", slow.port))
        connection.sendall(head.encode() + body)
        connections.append(connection)
    wait_for(slow, "resnet_serve_queue_depth", lambda depth: depth == 4)
    for connection in connections:
        connection.close()
    wait_for(slow, "resnet_serve_queue_depth", lambda depth: depth == 0)
    wait_for(slow, "resnet_serve_requests_in_flight", lambda count: count <= 1)
    after = samples(slow)
    left = 'resnet_serve_refusals_total{model="resnet20",reason="caller_left"}'
    assert after[left] - before.get(left, 0) == 4
    size = 'resnet_serve_batch_size_sum{model="resnet20"}'
    assert after[size] == before[size]
    assert asyncio.run(send_all([post(slow)]))[0].status_code == 200


def test_a_caller_who_left_while_sending_is_counted_and_forgotten(slow: Service) -> None:
    left = 'resnet_serve_refusals_total{model="resnet20",reason="caller_left"}'
    before = samples(slow).get(left, 0)
    head = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", slow.port)) as connection:
        connection.sendall(head + b"x" * 1000)
    wait_for(slow, left, lambda count: count == before + 1)


def test_a_large_body_is_refused_before_it_is_sent(slow: Service) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", slow.port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_large_body_of_unknown_length_is_refused_before_its_end(slow: Service) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    megabyte = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    with socket.create_connection(("127.0.0.1", slow.port), timeout=10) as connection:
        connection.sendall(head + megabyte * 22)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def wait_for(service: Service, series: str, is_met: Callable[[float], bool]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = [v for name, v in samples(service).items() if name.startswith(series)]
        if found and is_met(found[0]):
            return
        time.sleep(0.01)
    raise AssertionError(f"{series} stayed at {found}")


def test_clients_of_the_highest_priority_leave_others_a_share() -> None:
    key, image = "a-key-0123456789", encoded()
    tensor: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}
    tensor["parameters"] = {"binary_data_size": 4 + len(image)}
    head = json.dumps({"inputs": [tensor], "parameters": {"priority": 1}}).encode()
    first = head + len(image).to_bytes(4, "little") + image
    with started(
        *("--model", "random:resnet50"),
        RESNET_SERVE_MAX_BATCH="1",
        RESNET_SERVE_ADMIN_KEYS=key,
    ) as service:
        served = Counter[int]()

        async def ask_for_ever(client: httpx.AsyncClient) -> None:
            url = f"{service.url}/v2/models/resnet50/infer"
            headers = {"Inference-Header-Content-Length": str(len(head))}
            while True:
                served[(await client.post(url, content=first, headers=headers)).status_code] += 1

        async def beside() -> list[int]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(
                timeout=60, limits=limits, headers={"X-API-Key": key}
            ) as client:
                others = [asyncio.create_task(ask_for_ever(client)) for _ in range(16)]
                while served[200] < 32:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                statuses = [
                    (await client.send(post(service, 20_000))).status_code for _ in range(3)
                ]
                for other in others:
                    other.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                return statuses

        assert asyncio.run(beside()) == [200] * 3
        assert set(served) == {200}
