"""The real Prometheus scrapes the real service."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Service, client, encoded

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs the prometheus command"
)


def query(base: str, expression: str) -> list[dict[str, Any]]:
    answer = client.get(f"{base}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def test_prometheus_reads_every_series_and_computes_quantiles(
    service: Service, tmp_path: Path
) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 200ms}\n"
        "scrape_configs:\n"
        "  - job_name: resnet-serve\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{service.port}']}}]\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    prometheus = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        quantile = (
            "histogram_quantile(0.99, sum by (le, phase) "
            "(rate(resnet_serve_phase_seconds_bucket[5s])))"
        )
        while True:
            client.post(f"{service.url}/v1/classify", content=encoded())
            try:
                found = query(base, quantile)
            except httpx.TransportError:
                found = []
            phases = {r["metric"]["phase"] for r in found if r["value"][1] != "NaN"}
            if len(phases) == 4:
                break
            assert time.monotonic() < until, found
            time.sleep(0.1)
        assert query(base, "up")[0]["value"][1] == "1"
        assert query(base, "resnet_serve_model_ready == 1")
        assert query(base, "resnet_serve_model_info")[0]["metric"]["precision"]
    finally:
        prometheus.terminate()
        prometheus.wait(20)


OPENMETRICS = "application/openmetrics-text"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("application/json", "text/plain"),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.6", "text/plain"),
        ("application/openmetrics-text;q=0, */*", "text/plain"),
        ("application/openmetrics-text;q=nan", "text/plain"),
        ("application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5", OPENMETRICS),
        ("Application/OpenMetrics-Text; version=5; escaping=x", OPENMETRICS),
    ],
)
def test_who_scrapes_chooses_the_format(service: Service, accept: str, kind: str) -> None:
    answer = client.get(f"{service.url}/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == kind
    assert answer.text.endswith("# EOF\n") == (kind == OPENMETRICS)
    assert "_created" not in answer.text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_promtool_finds_nothing_wrong_with_the_exposition(service: Service) -> None:
    text = client.get(f"{service.url}/metrics").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
