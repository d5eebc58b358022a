"""SIGTERM drains: nothing accepted is lost."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

import pytest

from tests.conftest import Service, client, encoded, started
from tests.support.waiting import until


async def load_until_gone(service: Service) -> tuple[list[int], list[str]]:
    """Statuses of all answers, and what happened to requests that got none."""
    statuses: list[int] = []
    unanswered: list[str] = []
    body = encoded()
    head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"

    async def caller() -> None:
        # A connection for each request: what is accepted is then exactly what connects.
        while True:
            try:
                reader, writer = await (
                    asyncio.open_unix_connection(service.path)
                    if service.path
                    else asyncio.open_connection("127.0.0.1", service.port)
                )
            except (ConnectionRefusedError, FileNotFoundError):
                return
            try:
                writer.write(head.encode() + body)
                statuses.append(int((await reader.readuntil(b"\r\n")).split()[1]))
            except (OSError, asyncio.IncompleteReadError) as error:
                unanswered.append(repr(error))
            finally:
                writer.close()

    async def terminate() -> None:
        while len(statuses) < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)

    async with asyncio.timeout(60):
        await asyncio.gather(terminate(), *(caller() for _ in range(16)))
    return statuses, unanswered


def assert_begin_and_end_are_told(service: Service, signal_: str, grace: str = "") -> None:
    begin, end = [line for line in service.log if "stopp" in line]
    assert f"stopping on {signal_}: no longer ready; {grace}completes " in begin
    assert "stopped after " in end
    assert "every accepted request got a response" in end
    assert end == service.log[-1]


def test_under_load_every_accepted_request_is_answered() -> None:
    with started("--model", "random:resnet20", RESNET_SERVE_SHUTDOWN_GRACE_S="0.5") as service:
        statuses, unanswered = asyncio.run(load_until_gone(service))
        assert service.process.wait(30) == 0
    assert set(statuses) <= {200, 503}
    assert unanswered == []
    assert_begin_and_end_are_told(service, "SIGTERM", "serves for 0.5 s, then ")


def test_readiness_turns_false_at_once_while_requests_are_still_served() -> None:
    with started("--model", "random:resnet20", RESNET_SERVE_SHUTDOWN_GRACE_S="2") as service:
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        ready = client.get(f"{service.url}/health/ready")
        assert ready.status_code == 503
        assert "shutting down" in ready.json()["reasons"]["resnet20"]
        assert client.get(f"{service.url}/health/live").status_code == 200
        answer = client.post(f"{service.url}/v1/classify", content=encoded())
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        assert service.process.wait(30) == 0
        assert not any("Traceback" in line for line in service.log)


def test_a_signal_while_loading_ends_it() -> None:
    with started("--model", "random:resnet18", ready=False) as service:
        assert service.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_on_ctrl_c_a_shutdown_without_a_grace_period_is_told_too(workers: str) -> None:
    arguments = ("--model", "random:resnet20", "--workers", workers)
    with started(*arguments, RESNET_SERVE_SHUTDOWN_GRACE_S="0.1") as service:
        assert service.end(signal.SIGINT) == 0
    assert_begin_and_end_are_told(service, "SIGINT")


def test_who_loses_the_supervisor_says_so() -> None:
    with started("--model", "random:resnet20", "--workers", "2") as service:
        until(lambda: all(client.get(f"{service.url}/health/ready").is_success for _ in range(12)))
        service.process.kill()
        service.process.wait(30)
        service.reader.join(30)
    said = [line for line in service.log if "the supervisor has ended without a word" in line]
    assert len(said) == 3


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_cuts_requests_off_and_says_so(workers: str) -> None:
    with (
        started("--model", "random:resnet20", "--workers", workers) as service,
        socket.create_connection(("127.0.0.1", service.port)) as slow,
    ):
        slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert service.end(signal.SIGTERM) == 1
    log = "".join(service.log)
    assert "Traceback" not in log
    assert "every accepted request got a response" not in log
    assert "requests cut off: 1" in log
    assert "by a second signal; requests were cut off" in service.log[-1]
