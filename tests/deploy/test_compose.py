"""docker-compose.yml: two variants of the service, confined, with monitoring beside them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config.loading import MODEL_WIDE
from service.config.settings import Settings
from service.config.variables import PREFIX
from tests.deploy.test_image import one, stages

ROOT = Path(__file__).parents[2]
VARIANTS = {"gpu": "service-gpu", "cpu": "service-cpu"}


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))[
        "services"
    ]
    return found


def test_plain_up_is_the_gpu() -> None:
    lines = (ROOT / ".env").read_text("utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == ["COMPOSE_PROFILES=gpu"]


def test_a_profile_chooses_the_variant(services: dict[str, Any]) -> None:
    for profile, name in VARIANTS.items():
        assert services[name]["profiles"] == [profile]
    others = services.keys() - VARIANTS.values()
    assert others == {"prometheus", "grafana"}
    assert not any("profiles" in services[name] for name in others)


def test_variants_differ_in_device_and_image_only(services: dict[str, Any]) -> None:
    gpu, cpu = (services[name] for name in VARIANTS.values())
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"][0]) == ("nvidia", "gpu")
    assert "deploy" not in cpu
    # A lost GPU is an error.
    only = gpu["environment"].items() - cpu["environment"].items()
    assert only == {(f"{PREFIX}DEVICE", f"${{{PREFIX}DEVICE:-cuda}}")}
    assert cpu["environment"].items() <= gpu["environment"].items()
    assert (gpu["build"]["args"]["DEVICE"], cpu["build"]["args"]["DEVICE"]) == ("cuda", "cpu")
    assert gpu["image"] != cpu["image"]
    own = {"profiles", "image", "build", "deploy", "environment"}
    assert {k: v for k, v in gpu.items() if k not in own} == {
        k: v for k, v in cpu.items() if k not in own
    }


@pytest.mark.parametrize("name", ["service-gpu", "service-cpu", "prometheus", "grafana"])
def test_each_is_confined_and_local(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for port in service["ports"]:
        assert re.match(r"(\$\{\w+:-127\.0\.0\.1\}|127\.0\.0\.1):", port)


@pytest.mark.parametrize("name", VARIANTS.values())
def test_a_service_is_given_what_it_needs(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["networks"]["default"]["aliases"] == ["resnet-serve"]
    assert service["pids_limit"] > 0
    assert service["init"] is True
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    settings = Settings()
    needed = settings.shutdown_grace_s + settings.shutdown_timeout_s
    assert int(service["stop_grace_period"].removesuffix("s")) > needed


@pytest.mark.parametrize("name", VARIANTS.values())
def test_a_service_is_told_settings_that_exist(services: dict[str, Any], name: str) -> None:
    settings = {"config", *Settings.model_fields, *MODEL_WIDE}
    for variable, value in services[name]["environment"].items():
        assert variable == "TMPDIR" or variable.removeprefix(PREFIX).lower() in settings
        # Else what is not set outside would be empty, rather than unset, inside.
        assert value is None or (value and not value.endswith(":-}"))


@pytest.mark.parametrize("name", VARIANTS.values())
def test_a_service_is_open_to_all_only_where_nobody_else_reaches_it(
    services: dict[str, Any], name: str
) -> None:
    (port,) = services[name]["ports"]
    assert port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:")
    told = services[name]["environment"]
    assert told[f"{PREFIX}ALLOW_ANONYMOUS"] == f"${{{PREFIX}ALLOW_ANONYMOUS:-true}}"
    assert {f"{PREFIX}API_KEYS", f"{PREFIX}ADMIN_KEYS"} <= set(told)


@pytest.mark.parametrize("name", VARIANTS.values())
def test_a_service_keeps_its_cache_in_a_volume(services: dict[str, Any], name: str) -> None:
    told = services[name]["environment"]
    assert f"service-cache:{told[f'{PREFIX}CACHE_DIR']}" in services[name]["volumes"]


@pytest.mark.parametrize("name", VARIANTS.values())
def test_nothing_can_be_executed_but_in_volumes(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert all("exec" not in mount.split(",") for mount in service["tmpfs"])
    # What a compiled engine unpacks there, it loads.
    mounted = [volume.split(":")[1] for volume in service["volumes"]]
    assert service["environment"]["TMPDIR"] in mounted


def test_the_driver_gives_the_same_libraries_with_and_without_compose(
    services: dict[str, Any],
) -> None:
    (device,) = services["service-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    found = one(stages((ROOT / "Dockerfile").read_text("utf-8"))[-1], "ENV")
    variables = dict(word.split("=", 1) for word in found.split())
    assert variables["NVIDIA_DRIVER_CAPABILITIES"].split(",") == device["capabilities"][1:]
    assert variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # NVML's order.


@pytest.mark.parametrize(
    ("name", "data"), [("prometheus", "/prometheus"), ("grafana", "/var/lib/grafana")]
)
def test_monitoring_is_pinned_and_keeps_its_data(
    services: dict[str, Any], name: str, data: str
) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"])
    assert f"{name}-data:{data}" in services[name]["volumes"]


def test_what_is_mounted_exists(services: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert mounted
    assert all((ROOT / path).is_dir() for path in mounted)


@pytest.mark.parametrize(("flags", "profile"), [([], "gpu"), (["--profile", "cpu"], "cpu")])
def test_compose_itself_starts_that_variant(flags: list[str], profile: str) -> None:
    docker = shutil.which("docker")
    environ = {name: value for name, value in os.environ.items() if name != "COMPOSE_PROFILES"}

    def compose(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [docker or "docker", "compose", *arguments],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    if docker is None or compose("version").returncode:
        pytest.skip("docker compose is not installed")
    listed = compose(*flags, "config", "--services")
    assert listed.returncode == 0, listed.stderr
    assert set(listed.stdout.split()) == {VARIANTS[profile], "prometheus", "grafana"}
