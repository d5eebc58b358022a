"""deploy/kubernetes/kserve.yml: confined, and what it starts serves what KServe puts there."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config.loading import load
from service.http.listener import NEW_CONNECTION_SECONDS
from service.workers.process import MARGIN_SECONDS
from tests.conftest import client, encoded, started
from tests.deploy.test_image import one, stages
from tests.e2e.test_runtime_models import write

ROOT = Path(__file__).parents[2]
# Kubernetes' own terminationGracePeriodSeconds, which serverless InferenceServices cannot change.
BY_DEFAULT = 30
RUNTIME, SERVICE = yaml.safe_load_all((ROOT / "deploy/kubernetes/kserve.yml").read_text("utf-8"))


@pytest.fixture
def container() -> dict[str, Any]:
    (found,) = RUNTIME["spec"]["containers"]
    assert found["name"] == "kserve-container"  # The one that KServe gives the model to.
    assert isinstance(found, dict)
    return found


def test_the_example_is_for_the_runtime() -> None:
    assert (RUNTIME["kind"], SERVICE["kind"]) == ("ClusterServingRuntime", "InferenceService")
    model = SERVICE["spec"]["predictor"]["model"]
    formats = {each["name"] for each in RUNTIME["spec"]["supportedModelFormats"]}
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


def test_it_may_do_nothing_but_serve(container: dict[str, Any]) -> None:
    context = container["securityContext"]
    final = stages((ROOT / "Dockerfile").read_text("utf-8"))[-1]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == one(final, "USER")
    assert context["runAsNonRoot"] is True
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    writable = {volume["name"] for volume in RUNTIME["spec"]["volumes"] if "emptyDir" in volume}
    assert set(mounted.values()) <= writable
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environ["RESNET_SERVE_CACHE_DIR"] in mounted


def test_it_has_drained_before_it_is_killed(container: dict[str, Any]) -> None:
    assert "terminationGracePeriodSeconds" not in SERVICE["spec"]["predictor"]
    settings = load(environ={entry["name"]: entry["value"] for entry in container["env"]})
    taken = settings.shutdown_grace_s + NEW_CONNECTION_SECONDS + settings.shutdown_timeout_s
    assert taken + MARGIN_SECONDS < BY_DEFAULT


def test_its_command_serves_the_bundle_under_the_services_name(
    container: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "whatever.safetensors", "a", 3)
    name = SERVICE["metadata"]["name"]
    (port,) = container["ports"]
    *arguments, flag, number = [
        argument.replace("{{.Name}}", name).replace("/mnt/models", str(tmp_path))
        for argument in container["args"]
    ]
    assert (flag, number) == ("--port", str(port["containerPort"]))
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    environ |= {"RESNET_SERVE_CACHE_DIR": str(tmp_path), "RESNET_SERVE_ENGINE": "eager"}
    assert (*container["command"], arguments[0]) == ("resnet-serve", "serve")
    with started(*arguments[1:], **environ) as service:
        for probe in ("livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == port["containerPort"]
            assert client.get(f"{service.url}{asked['path']}").status_code == 200
        told = client.get(f"{service.url}/v2/models/{name}").json()
        assert told["outputs"][0]["shape"] == [-1, 3]
        answer = client.post(
            f"{service.url}/v2/models/{name}/infer",
            content=encoded(),
            headers={"Inference-Header-Content-Length": "0"},
        )
        assert answer.status_code == 200
        # V1, which KServe assumes of an InferenceService that names no protocol.
        assert set(RUNTIME["spec"]["protocolVersions"]) == {"v1", "v2"}
        assert client.get(f"{service.url}/v1/models/{name}").json()["ready"] is True
        body = {"instances": [{"b64": base64.b64encode(encoded()).decode()}]}
        answer = client.post(f"{service.url}/v1/models/{name}:predict", json=body)
        assert len(answer.json()["predictions"][0]) == 3
