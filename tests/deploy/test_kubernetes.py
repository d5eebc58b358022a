"""deploy/kubernetes: confined, with keys, and in agreement with the image and the service."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.keys import TOO_OPEN
from service.routes import router
from service.settings import PREFIX, load
from tests.deploy.test_image import one, stages

ROOT = Path(__file__).parents[2]
DOCUMENTS = yaml.safe_load_all(
    (ROOT / "deploy/kubernetes/resnet-serve.yml").read_text("utf-8"),
)
BY_KIND: dict[str, Any] = {each["kind"]: each for each in DOCUMENTS}


@pytest.fixture
def pod() -> dict[str, Any]:
    found: dict[str, Any] = BY_KIND["Deployment"]["spec"]["template"]["spec"]
    return found


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    assert isinstance(found, dict)
    return found


def test_it_may_do_nothing_but_serve(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
        assert forbidden not in pod
    assert not any("hostPath" in volume for volume in pod["volumes"])


def test_it_runs_as_the_images_user(pod: dict[str, Any]) -> None:
    final = stages((ROOT / "Dockerfile").read_text("utf-8"))[-1]
    context = pod["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == one(final, "USER")


def test_its_settings_exist_and_do_not_let_everybody_in(
    container: dict[str, Any], tmp_path: Path
) -> None:
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    assert f"{PREFIX}ALLOW_ANONYMOUS" not in environ
    for kind in ("API", "ADMIN"):
        assert environ[f"{PREFIX}{kind}_KEYS_FILE"].startswith("/keys/")
        assert f"{PREFIX}{kind}_KEYS" not in environ
        file = tmp_path / kind
        file.write_text("0123456789abcdef\n")
        file.chmod(0o440)
        environ[f"{PREFIX}{kind}_KEYS_FILE"] = str(file)
    settings = load(environ=environ)
    assert settings.api_keys
    grace = BY_KIND["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > settings.shutdown_grace_s + settings.shutdown_timeout_s


def test_the_files_of_keys_are_not_too_open(pod: dict[str, Any]) -> None:
    (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert secret["defaultMode"] & stat.S_IRGRP
    assert not secret["defaultMode"] & TOO_OPEN
    assert pod["securityContext"]["fsGroup"]


def test_what_is_written_to_has_a_volume(pod: dict[str, Any], container: dict[str, Any]) -> None:
    writable = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    assert mounted["/tmp"] in writable
    assert mounted[environ[f"{PREFIX}CACHE_DIR"]] in writable


def test_its_probes_and_ports_lead_somewhere(container: dict[str, Any]) -> None:
    paths = {getattr(route, "path", "") for route in router.routes}
    (port,) = container["ports"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in paths
        assert asked["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    (target,) = BY_KIND["Service"]["spec"]["ports"]
    assert target["targetPort"] == port["name"]
    selector = BY_KIND["Service"]["spec"]["selector"]
    labels = BY_KIND["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
