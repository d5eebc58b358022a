"""The real Prometheus alarms of what really goes wrong."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from service.cli.load.report import Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target
from tests.conftest import PATIENCE, Service, client, encoded
from tests.deploy.test_monitoring import alerts
from tests.e2e.test_faults import commanded
from tests.e2e.test_prometheus import of_gpus_and_tls, panels, query, scraping
from tests.support.collector import collecting
from tests.support.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs the prometheus command"),
]
READY = 'resnet_serve_model_ready{model="resnet20"}'
# A process that starts again is another process, and the target stays configured; the rules' own
# tests have these, and those that take hours, a limit, a certificate or a loop that is late.
NOT_HERE = {
    "ResnetServeRestarting",
    "ResnetServeGone",
    "ResnetServeCertificateExpiring",
    "ResnetServeCertificateLastDay",
    "ResnetServeConfidenceShifted",
    "ResnetServeFilesNearLimit",
    "ResnetServeLoopLate",
    "ResnetServeMemoryGrowing",
    "ResnetServeMemoryNearLimit",
}


def alarmed(base: str) -> set[str]:
    return {each["metric"]["alertname"] for each in query(base, 'ALERTS{alertstate="firing"}')}


def ask(service: Service, images: int = 1) -> int:
    """The status of an answer."""
    files = [("image", (f"{i}.png", encoded())) for i in range(images)]
    return client.post(f"{service.url}/v1/classify/batch", files=files).status_code


def test_each_alert_fires_when_it_happens(tmp_path: Path) -> None:
    with (
        collecting() as collector,
        commanded(
            tmp_path,
            RESNET_SERVE_MAX_QUEUE="16",
            RESNET_SERVE_ENGINE_TIMEOUT_S="60",
            RESNET_SERVE_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="50",
        ) as faulty,
        scraping(faulty.service, tmp_path, **{r"for: \S+": "for: 0s", r"\[1m\]": "[2s]"}) as base,
    ):
        service, seen = faulty.service, set[str]()

        def fires(*names: str) -> bool:
            seen.update(alarmed(base))
            return seen >= set(names)

        for _ in range(20):
            ask(service)
        until(lambda: query(base, "resnet_serve_images_total >= 20"), PATIENCE)
        assert alarmed(base) <= {"ResnetServeDown"}  # A scrape that is late on a busy machine.

        # More comes than an engine takes: sixteen wait, the others are refused.
        faulty.command("hang")
        target = Target.of(f"{service.url}/v1/classify", [encoded()])
        run = Run(256, seconds=4, rate=50, warm_up=0, timeout=PATIENCE)
        thread = threading.Thread(target=run_load, args=(target, run))
        thread.start()
        until(lambda: fires("ResnetServeQueueNearlyFull"), PATIENCE)
        faulty.command("")
        thread.join(PATIENCE)
        burnt = ("ResnetServeRefusing", "ResnetServeBudgetBurnsFast", "ResnetServeBudgetBurns")
        until(lambda: fires(*burnt, "ResnetServeSlow"), PATIENCE)

        faulty.command("oom 1")
        until(lambda: ask(service, 8) and fires("ResnetServeOutOfMemory"), PATIENCE)

        for _ in range(2):
            faulty.command("raise")
            until(lambda: ask(service) and query(base, f"{READY} == 0"), PATIENCE)
            until(lambda: fires("ResnetServeEngineFailing", "ResnetServeModelNotReady"), PATIENCE)
            faulty.command("")
            until(lambda: query(base, f"{READY} == 1"), PATIENCE)
        until(lambda: fires("ResnetServeEngineRestarting"), PATIENCE)

        # One scrape in time has all of them; on a busy machine one may come late.
        shown = [each for each in panels() if each[0] not in of_gpus_and_tls()]
        until(lambda: all(query(base, expression) for _, expression in shown), PATIENCE)
        for each in client.get(f"{base}/api/v1/alerts").json()["data"]["alerts"]:
            assert each["annotations"]["runbook"]
            assert each["annotations"]["runbook_url"].endswith(
                f"#{each['labels']['alertname'].lower()}"
            )
            assert "{{" not in each["annotations"]["summary"]
        found = client.get(
            f"{base}/api/v1/query_exemplars",
            params={
                "query": "resnet_serve_phase_seconds_bucket",
                "start": time.time() - 600,
                "end": time.time() + 60,
            },
        ).json()["data"]
        exemplars = {each["labels"]["trace_id"] for one in found for each in one["exemplars"]}
        assert exemplars
        assert exemplars <= {span.trace_id for span in collector.spans}

        service.end()
        until(lambda: fires("ResnetServeDown"), PATIENCE)
        assert seen == {rule["alert"] for rule in alerts()} - NOT_HERE
