"""deploy/kubernetes: confined, with keys, and in agreement with the image and the service."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config.keys import TOO_OPEN
from service.config.loading import load
from service.config.settings import Settings
from service.config.variables import PREFIX
from service.http.listener import NEW_CONNECTION_SECONDS
from service.http.routers.health import router
from service.metrics import Metrics
from service.workers.process import MARGIN_SECONDS
from tests.deploy.chart import SETS
from tests.deploy.test_image import one, stages
from tests.deploy.test_monitoring import exposed

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "deploy/kubernetes/resnet-serve.yml"


@dataclass(frozen=True)
class Deployed:
    documents: list[dict[str, Any]]
    # What `helm test` starts.
    tests: list[dict[str, Any]]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.documents if each["kind"] == kind]

    def spec(self, kind: str) -> Any:
        (found,) = self.all(kind)
        return found["spec"]

    @property
    def pod(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec("Deployment")["template"]["spec"]
        return found

    @property
    def container(self) -> dict[str, Any]:
        (found,) = self.pod["containers"]
        assert isinstance(found, dict)
        return found

    @property
    def volumes(self) -> dict[str, dict[str, Any]]:
        return {volume["name"]: volume for volume in self.pod["volumes"]}

    @property
    def mounted(self) -> dict[str, dict[str, Any]]:
        """The volumes of the service, by where it sees them."""
        mounts = self.container["volumeMounts"]
        return {mount["mountPath"]: self.volumes[mount["name"]] for mount in mounts}

    @property
    def environ(self) -> dict[str, str]:
        return {entry["name"]: entry["value"] for entry in self.container["env"]}

    def settings(self, folder: Path) -> Settings:
        """What the container would read, from files like those of its volumes in `folder`."""
        environ = self.environ
        (config,) = self.all("ConfigMap")
        for path, volume in self.mounted.items():
            place = folder / volume["name"]
            place.mkdir()
            if "configMap" in volume:
                assert volume["configMap"]["name"] == config["metadata"]["name"]
                for name, text in config["data"].items():
                    (place / name).write_text(text)
            for variable, value in self.environ.items():
                if value.startswith(f"{path}/"):
                    environ[variable] = str(place / value.removeprefix(f"{path}/"))
                if "secret" in volume and variable.endswith("_KEYS_FILE"):
                    Path(environ[variable]).write_text("0123456789abcdef\n")
                    Path(environ[variable]).chmod(volume["secret"]["defaultMode"])
        return load(environ=environ)


@pytest.fixture(params=SETS)
def deployed(request: pytest.FixtureRequest) -> Deployed:
    """The plain file, which is the chart with its own values, and the chart with others."""
    if request.param == "default":
        return Deployed(list(yaml.safe_load_all(PLAIN.read_text("utf-8"))), [])
    rendered = request.getfixturevalue("charts")[request.param]
    return Deployed(rendered.documents, rendered.tests)


def test_it_may_do_nothing_but_serve(deployed: Deployed) -> None:
    for pod in (deployed.pod, *(each["spec"] for each in deployed.tests)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
            assert forbidden not in pod
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))


def test_it_runs_as_the_images_user(deployed: Deployed) -> None:
    final = stages((ROOT / "Dockerfile").read_text("utf-8"))[-1]
    for pod in (deployed.pod, *(each["spec"] for each in deployed.tests)):
        context = pod["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == one(final, "USER")


def test_the_service_takes_its_settings(deployed: Deployed, tmp_path: Path) -> None:
    settings = deployed.settings(tmp_path)
    ports = {port["name"]: port["containerPort"] for port in deployed.container["ports"]}
    grpc = {"grpc": settings.grpc_port} if settings.grpc_port else {}
    assert ports == {"http": settings.port} | grpc
    assert f"{PREFIX}API_KEYS" not in deployed.environ
    assert bool(settings.api_keys) is not settings.allow_anonymous
    assert bool(settings.admin_keys) is (f"{PREFIX}ADMIN_KEYS_FILE" in deployed.environ)
    (config,) = deployed.all("ConfigMap")
    (text,) = config["data"].values()
    for name, value in yaml.safe_load(text).items():
        if name != "models":
            assert getattr(settings, name) == value
    for model, given in zip(settings.models, yaml.safe_load(text).get("models", []), strict=False):
        assert {name: getattr(model, name) for name in given} == given


def test_it_is_killed_only_after_it_has_drained(deployed: Deployed, tmp_path: Path) -> None:
    settings = deployed.settings(tmp_path)
    hook = deployed.container.get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})
    assert deployed.pod["terminationGracePeriodSeconds"] > (
        hook["preStop"]["sleep"]["seconds"]
        + settings.shutdown_grace_s
        + NEW_CONNECTION_SECONDS
        + settings.shutdown_timeout_s
        + MARGIN_SECONDS
    )


def test_it_is_not_process_1(deployed: Deployed) -> None:
    assert deployed.pod["shareProcessNamespace"] is True


def test_the_files_of_secrets_are_not_too_open(deployed: Deployed) -> None:
    secrets = [volume["secret"] for volume in deployed.pod["volumes"] if "secret" in volume]
    for secret in secrets:
        assert secret["defaultMode"] & stat.S_IRGRP
        assert not secret["defaultMode"] & TOO_OPEN
    assert deployed.pod["securityContext"]["fsGroup"]


def test_what_is_written_to_has_a_volume(deployed: Deployed, tmp_path: Path) -> None:
    for path in ("/tmp", deployed.environ[f"{PREFIX}CACHE_DIR"]):
        assert {"emptyDir", "persistentVolumeClaim"} & set(deployed.mounted[path])
    for model in deployed.settings(tmp_path).models:
        if model.spec.startswith("/"):
            assert str(Path(model.spec).parent) in deployed.mounted
    used = {mount["name"] for mount in deployed.container["volumeMounts"]}
    assert used == set(deployed.volumes)


def test_its_probes_and_ports_lead_somewhere(deployed: Deployed) -> None:
    container = deployed.container
    paths = {getattr(route, "path", "") for route in router.routes}
    port, *others = container["ports"]
    scheme = "HTTPS" if f"{PREFIX}TLS_CERTIFICATE" in deployed.environ else "HTTP"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in paths
        assert asked["port"] == port["name"]
        assert asked["scheme"] == scheme
    assert container["startupProbe"]["httpGet"]["path"] == "/health/live"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    targets = [target["targetPort"] for target in deployed.spec("Service")["ports"]]
    assert targets == [each["name"] for each in (port, *others)]


def test_everything_is_about_these_pods(deployed: Deployed) -> None:
    labels = deployed.spec("Deployment")["template"]["metadata"]["labels"]
    spread = deployed.pod.get("topologySpreadConstraints", [])
    selectors = [
        deployed.spec("Service")["selector"],
        deployed.spec("Deployment")["selector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in spread),
        *(each["spec"]["selector"]["matchLabels"] for each in deployed.all("PodDisruptionBudget")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in deployed.all("NetworkPolicy")),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    # One selector for all: what Service and budget are about can be no other pods.
    assert all(selector == selectors[0] for selector in selectors)


def test_what_scales_it_exists(deployed: Deployed) -> None:
    (deployment,) = deployed.all("Deployment")
    autoscalers = deployed.all("HorizontalPodAutoscaler")
    assert ("replicas" in deployment["spec"]) is not bool(autoscalers)
    names = exposed(Metrics().render().decode())
    for autoscaler in autoscalers:
        spec = autoscaler["spec"]
        assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        asked = [each["pods"]["metric"]["name"] for each in spec["metrics"] if "pods" in each]
        assert asked
        assert set(asked) <= names
        if any("resource" in each for each in spec["metrics"]):
            assert deployed.container["resources"]["requests"]["cpu"]
