"""The real Prometheus scrapes the real service."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.metrics import PHASES
from tests.conftest import PATIENCE, Service, client, encoded
from tests.deploy.test_monitoring import filled_in, rules
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs the prometheus command"
)


DEPLOY = Path(__file__).parents[2] / "deploy"
SCRAPE_SECONDS = 0.4


def query(base: str, expression: str) -> list[dict[str, Any]]:
    answer = client.get(f"{base}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


@contextmanager
def scraping(service: Service, folder: Path, **replaced: str) -> Iterator[str]:
    """The URL of a Prometheus with our configuration, quicker, that scrapes `service`.

    `replaced` are further patterns in the alerts' file and what takes their place.
    """
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text("utf-8"))
    pace = f"{SCRAPE_SECONDS * 1000:.0f}ms"
    config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), pace)
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    alerts = (DEPLOY / "prometheus/alerts.yml").read_text("utf-8")
    for old, new in replaced.items():
        alerts, count = re.subn(old, new, alerts)
        assert count, old
    (folder / "alerts.yml").write_text(alerts)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    prometheus = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: is_up(f"http://127.0.0.1:{port}"), PATIENCE)
        yield f"http://127.0.0.1:{port}"
    finally:
        prometheus.terminate()
        prometheus.wait(20)


def is_up(base: str) -> bool:
    try:
        return query(base, "up") != []
    except (httpx.TransportError, json.JSONDecodeError):
        return False


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scraping(service, tmp_path_factory.mktemp("prometheus")) as base:
        yield base


def test_prometheus_reads_every_series_and_computes_quantiles(
    service: Service, prometheus: str
) -> None:
    quantile = (
        "histogram_quantile(0.99, sum by (le, phase) (rate(resnet_serve_phase_seconds_bucket[5s])))"
    )

    def phases() -> set[str]:
        client.post(f"{service.url}/v1/classify", content=encoded())
        found = query(prometheus, quantile)
        return {r["metric"]["phase"] for r in found if r["value"][1] != "NaN"}

    until(lambda: phases() == {*PHASES}, PATIENCE)
    assert query(prometheus, "up")[0]["value"][1] == "1"
    assert query(prometheus, "resnet_serve_model_ready == 1")
    assert query(prometheus, "resnet_serve_model_info")[0]["metric"]["precision"]


def panels() -> Iterator[tuple[str, str]]:
    """Each panel's title, and what it asks for."""
    path = DEPLOY / "grafana/dashboards/resnet-serve.json"
    for panel in json.loads(path.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], filled_in(target["expr"])


def of_gpus_and_tls() -> set[str]:
    """The panels that a service without a GPU or without a certificate leaves empty."""
    absent = ("resnet_serve_gpu_", "resnet_serve_certificate_")
    return {title for title, expression in panels() if any(name in expression for name in absent)}


def test_every_panel_of_the_dashboard_shows_something_after_load(
    service: Service, prometheus: str
) -> None:
    def empty() -> list[str]:
        client.post(f"{service.url}/v1/classify", content=encoded())
        client.post(f"{service.url}/v1/classify", content=b"no image")
        found = [(title, query(prometheus, expression)) for title, expression in panels()]
        return [
            title
            for title, series in found
            if not any(each["value"][1] != "NaN" for each in series)
        ]

    # Nothing is wrong with this service.
    until(lambda: set(empty()) <= {"Alerts", *of_gpus_and_tls()}, PATIENCE)


def test_every_recording_rule_has_a_value_after_load(service: Service, prometheus: str) -> None:
    names = {rule["record"] for rule in rules() if "record" in rule}

    def missing() -> set[str]:
        client.post(f"{service.url}/v1/classify", content=encoded())
        return {name for name in names if not query(prometheus, f"{name} >= 0")}

    until(lambda: missing() <= {name for name in names if "refused:r" in name}, PATIENCE)


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
