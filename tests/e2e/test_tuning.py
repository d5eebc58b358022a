"""With default settings, the service measures what requests cost once, and says what it chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Service, client, encoded, started

pytest.importorskip("openvino")


def card(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"{service.url}/v1/models").json()["models"][0]
    return found


def test_a_first_start_measures_and_a_second_does_not(tmp_path: Path) -> None:
    cache = str(tmp_path)
    with started(
        "--model", "builtin:resnet20-cifar10", chosen={}, RESNET_SERVE_CACHE_DIR=cache
    ) as service:
        first, log = card(service), "".join(service.log)
        answer = client.post(
            f"{service.url}/v1/classify", content=encoded(), headers={"Content-Type": "image/png"}
        )
    assert answer.status_code == 200
    assert "measuring the cost of requests on this machine, once" in log
    assert "ms of CPU in the engine" in log
    assert first["threads"] >= 1
    assert first["cpu_ms"].keys() == {"engine", "decode", "request"}
    assert all(milliseconds > 0 for milliseconds in first["cpu_ms"].values())
    for _ in range(4):  # One that finds the machine much less busy than the last measures again.
        with started(
            "--model", "builtin:resnet20-cifar10", chosen={}, RESNET_SERVE_CACHE_DIR=cache
        ) as service:
            second, log = card(service), "".join(service.log)
        if "measuring" not in log:
            break
        first = second
    assert "measuring" not in log
    assert "ms of CPU in the engine" in log
    assert second["cpu_ms"] == first["cpu_ms"]


def test_threads_that_a_user_sets_are_used_and_nothing_is_measured(tmp_path: Path) -> None:
    with started(
        "--model",
        "builtin:resnet20-cifar10",
        RESNET_SERVE_CACHE_DIR=str(tmp_path),
        RESNET_SERVE_ENGINE_THREADS="3",
    ) as service:
        found, log = card(service), "".join(service.log)
    assert found["threads"] == 3
    assert found.get("cpu_ms") is None
    assert "measuring" not in log
    assert not list(tmp_path.glob("plan-*"))


@pytest.mark.slow
def test_several_front_ends_start_from_one_measurement(tmp_path: Path) -> None:
    """The plan is made before the processes are, and is the engine process's as well."""
    several: dict[str, Any] = {"RESNET_SERVE_CACHE_DIR": str(tmp_path), "RESNET_SERVE_WORKERS": "2"}
    with started("--model", "builtin:resnet20-cifar10", chosen={}, **several) as service:
        found, log = card(service), "".join(service.log)
    assert found["cpu_ms"]["request"] > 0
    assert log.count("measuring the cost of requests") == 1
    assert len(list(tmp_path.glob("tuning-*"))) == 1
