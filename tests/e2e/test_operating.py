"""What an operator sees of a service: its log as JSON, its access log, its goals."""

from __future__ import annotations

import json
import re
import signal
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.conftest import Service, client, encoded, started
from tests.service.http.test_tls import self_signed

MODEL = ("--model", "random:resnet20")
KEY = "k" * 32


@pytest.fixture(scope="module")
def pair() -> Iterator[Service]:
    """Two front ends and an engine process, whose log nobody has read yet."""
    with started(
        *MODEL,
        *("--workers", "2"),
        RESNET_SERVE_LOG_FORMAT="json",
        RESNET_SERVE_LOG_LEVEL="debug",
        RESNET_SERVE_ACCESS_LOG="true",
        RESNET_SERVE_API_KEYS=KEY,
        RESNET_SERVE_REQUEST_TIMEOUT_MS="15000",
        RESNET_SERVE_LATENCY_BUCKETS_MS="0.5,5",
        RESNET_SERVE_SLO_LATENCY_MS="1",
        RESNET_SERVE_SHUTDOWN_GRACE_S="0.1",
    ) as service:
        yield service


def test_all_processes_count_in_the_bounds_that_were_chosen(pair: Service) -> None:
    for _ in range(8):  # Of both front ends, most likely.
        headers = {"x-api-key": KEY}
        done = client.post(f"{pair.url}/v1/classify", content=encoded(), headers=headers)
        assert done.status_code == 200
    text = client.get(f"{pair.url}/metrics").text
    bounds = re.findall(r'phase_seconds_bucket\{le="([^"]*)",.*phase="total"\} ', text)
    assert bounds == ["0.0005", "0.001", "0.005", "15.0", "+Inf"]
    assert 'resnet_serve_slow_images_total{model="resnet20"} 8.0' in text
    assert "resnet_serve_slo_latency_seconds 0.001\n" in text


def test_every_line_is_json_and_every_request_has_one(pair: Service) -> None:
    url = f"{pair.url}/v1/classify?model=resnet20"
    sent = {"x-request-id": "mine", "x-api-key": KEY}
    assert client.post(url, content=encoded(), headers=sent).status_code == 200
    client.get(f"{pair.url}/health/live?token=hidden")
    assert pair.end(signal.SIGTERM) == 0
    lines = [json.loads(line) for line in pair.log]
    (mine,) = [line for line in lines if line.get("request_id") == "mine"]
    assert mine["client"].startswith("127.0.0.1:")
    assert (mine["method"], mine["path"], mine["status"]) == ("POST", "/v1/classify", 200)
    assert (mine["model"], mine["level"]) == ("resnet20", "INFO")
    assert mine["duration_ms"] > 0
    whole = "".join(pair.log)
    assert "hidden" not in whole
    assert KEY not in whole
    assert {line["logger"].partition(".")[0] for line in lines} <= {"service", "models"}


def test_who_idles_over_tls_after_an_answer_in_the_grace_holds_nothing_up(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=certificate)
    with (
        started(
            *MODEL,
            RESNET_SERVE_SHUTDOWN_GRACE_S="2",
            RESNET_SERVE_TLS_CERTIFICATE=str(certificate),
            RESNET_SERVE_TLS_KEY=str(key),
        ) as service,
        httpx.Client(verify=trusting, base_url=f"https://127.0.0.1:{service.port}") as pooled,
        httpx.Client(verify=trusting, base_url=f"https://127.0.0.1:{service.port}") as idle,
    ):
        assert idle.get("/health/live").status_code == 200
        assert pooled.get("/health/live").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        with suppress(
            httpx.TransportError
        ):  # Where the machine was busy for longer than the grace.
            assert pooled.get("/health/live").status_code == 200
        assert service.process.wait(20) == 0
        service.reader.join(20)
    assert "Cancel" not in "".join(service.log)
    assert "every accepted request got a response" in service.log[-1]
