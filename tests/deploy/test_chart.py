"""The Helm chart: valid, documented, and clear about what it refuses."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from service.http.app import ENDPOINTS
from service.http.routers.v2 import ROUTES
from tests.conftest import client, started
from tests.deploy.chart import CHART, RELEASE, ROOT, SETS, Rendered, Values, render
from tests.deploy.crds import check

TEMPLATES = "".join(path.read_text("utf-8") for path in sorted((CHART / "templates").rglob("*.*")))
OF_A_BUNDLE = {"models": [{"spec": "/bundles/a.safetensors"}]}
OTHERS: dict[str, Values] = {
    "more replicas": {"replicas": 5},
    "other settings": {"config": {"max_batch_images": 32}},
    "longer drain": {"config": {"shutdown_grace_s": 2.5, "shutdown_timeout_s": 60}},
    "policy": {"networkPolicy": {"enabled": True}},
    "another family": {"config": {"host": "::"}, "service": {"ipFamilies": ["IPv6"]}},
    "two gpus": {"gpu": {"count": 2}},
    "policy for nobody": {"networkPolicy": {"enabled": True, "sameNamespace": False}},
    "more memory": {"resources": {"limits": {"memory": "8Gi"}}, "gpu": {"count": 1}},
    "no limit of CPUs": {"resources": {"limits": {"cpu": None}}},
    "claim": {"config": OF_A_BUNDLE, "bundles": {"existingClaim": "b"}},
    "image": {"config": OF_A_BUNDLE, "bundles": {"image": "x/b:1"}},
    "fetch": {"config": OF_A_BUNDLE, "bundles": {"fetch": {"image": "f", "command": ["f"]}}},
}


@pytest.fixture(scope="module")
def others() -> dict[str, Rendered]:
    return dict(zip(OTHERS, render(*OTHERS.values()), strict=True))


@pytest.mark.parametrize("name", SETS)
def test_what_it_makes_is_valid(charts: dict[str, Rendered], name: str) -> None:
    rendered = charts[name]
    assert not rendered.refusal
    for document in (*rendered.documents, *rendered.tests):
        check(document)
        assert document["metadata"]["name"].startswith(("resnet-serve", "cats"))


@pytest.mark.parametrize("name", SETS)
def test_helm_finds_no_fault(charts: dict[str, Rendered], name: str) -> None:
    assert charts[name].findings == []


def test_it_is_of_the_services_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert chart["appVersion"] == chart["version"] == project["version"]
    assert chart["name"] == project["name"]


def test_every_kind_is_made_by_some_values(charts: dict[str, Rendered]) -> None:
    def kinds(name: str) -> set[str]:
        return {each["kind"] for each in charts[name].documents}

    assert kinds("minimal") == {"ConfigMap", "Deployment", "Service"}
    assert kinds("default") == kinds("minimal") | {"PodDisruptionBudget"}
    assert kinds("everything") == set(re.findall(r"^kind: (\w+)$", TEMPLATES, re.MULTILINE)) - {
        "Pod"
    }
    for rendered in charts.values():
        assert [each["kind"] for each in rendered.tests] == ["Pod"]


def test_the_plain_file_is_the_chart_with_its_own_values(charts: dict[str, Rendered]) -> None:
    plain = yaml.safe_load_all((ROOT / "deploy/kubernetes/resnet-serve.yml").read_text("utf-8"))
    by_kind = {each["kind"]: each for each in plain}
    again = "render it anew: helm template resnet-serve deploy/kubernetes/chart"
    assert by_kind == {each["kind"]: each for each in charts["default"].documents}, again


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ServiceMonitor", ["spec", "endpoint"], []),
        ("ServiceMonitor", ["metadata", "label"], {}),
        ("PrometheusRule", ["spec", "groups", 0, "rules", 0, "for"], "soon"),
        ("HTTPRoute", ["spec", "rules", 0, "matches", 0, "path", "type"], "Prefix"),
        ("NetworkPolicy", ["spec", "ingres"], []),
        ("HorizontalPodAutoscaler", ["spec", "maxReplicas"], "many"),
    ],
)
def test_a_broken_document_is_found(
    charts: dict[str, Rendered], kind: str, path: list[str | int], value: Any
) -> None:
    document = copy.deepcopy(charts["everything"].one(kind))
    check(document)
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def test_other_settings_replace_the_pods(
    charts: dict[str, Rendered], others: dict[str, Rendered]
) -> None:
    def checksum(rendered: Rendered) -> str:
        template = rendered.one("Deployment")["spec"]["template"]
        found: str = template["metadata"]["annotations"]["checksum/config"]
        return found

    assert checksum(others["more replicas"]) == checksum(charts["default"])
    assert checksum(others["other settings"]) != checksum(charts["default"])


def test_a_release_of_another_name_has_objects_of_its_own() -> None:
    (rendered,) = render({}, release="cats")
    assert {each["metadata"]["name"] for each in rendered.documents} == {"cats-resnet-serve"}
    labels = rendered.one("Service")["spec"]["selector"]
    assert labels["app.kubernetes.io/instance"] == "cats"


def test_pods_listen_on_ipv6_where_it_is_asked_for(
    charts: dict[str, Rendered], others: dict[str, Rendered]
) -> None:
    """By a variable, as the image's is above the settings file."""

    def host(rendered: Rendered) -> list[str]:
        (container,) = rendered.one("Deployment")["spec"]["template"]["spec"]["containers"]
        return [each["value"] for each in container["env"] if each["name"] == "RESNET_SERVE_HOST"]

    assert host(charts["default"]) == []
    both = others["another family"]
    assert host(both) == ["::"]
    assert both.one("Service")["spec"]["ipFamilies"] == ["IPv6"]
    for rendered in (both, charts["everything"]):
        check(rendered.one("Service"))
        check(rendered.one("Deployment"))
    service = charts["everything"].one("Service")["spec"]
    assert service["ipFamilyPolicy"] == "RequireDualStack"
    assert service["ipFamilies"] == ["IPv6", "IPv4"]
    assert not {"ipFamilyPolicy", "ipFamilies"} & set(charts["default"].one("Service")["spec"])


def test_a_longer_drain_has_longer_until_the_kill(others: dict[str, Rendered]) -> None:
    pod = others["longer drain"].one("Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 5 + 63 + 10


def test_what_is_passed_on_from_outside_exists(charts: dict[str, Rendered]) -> None:
    everything = charts["everything"]
    routes = [*ROUTES, *(route for each in ENDPOINTS for route in each.router.routes)]
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    for prefix in (*values["ingress"]["paths"], *values["httpRoute"]["paths"]):
        assert any(getattr(route, "path", "").startswith(f"{prefix}/") for route in routes)
    service = everything.one("Service")
    port, grpc = service["spec"]["ports"]
    assert (grpc["name"], grpc["port"]) == ("grpc", SETS["everything"]["config"]["grpc_port"])
    for rule in everything.one("Ingress")["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            asked = path["backend"]["service"]
            assert asked == {"name": service["metadata"]["name"], "port": {"name": port["name"]}}
    (rule,) = everything.one("HTTPRoute")["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    assert backend == {"name": service["metadata"]["name"], "port": port["port"]}


def test_only_those_named_connect(charts: dict[str, Rendered]) -> None:
    policy = charts["everything"].one("NetworkPolicy")["spec"]
    ports = charts["everything"].one("Deployment")["spec"]["template"]["spec"]["containers"][0][
        "ports"
    ]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    named, extra = policy["ingress"]
    assert [each["port"] for each in named["ports"]] == [port["name"] for port in ports]
    (source,) = named["from"]
    (rule,) = source["namespaceSelector"]["matchExpressions"]
    assert rule["values"] == ["ingress-nginx", "clients", "monitoring"]
    assert extra == SETS["everything"]["networkPolicy"]["extraIngress"][0]
    names, models, _ = policy["egress"]
    assert {(each["port"], each["protocol"]) for each in names["ports"]} == {
        (53, "UDP"),
        (53, "TCP"),
    }
    assert [each["ipBlock"]["cidr"] for each in models["to"]] == ["203.0.113.0/24", "2001:db8::/32"]


def test_a_policy_by_default_lets_in_the_namespace_and_nobody_out(
    others: dict[str, Rendered],
) -> None:
    policy = others["policy"].one("NetworkPolicy")["spec"]
    assert [each["from"] for each in policy["ingress"]] == [[{"podSelector": {}}]]
    assert len(policy["egress"]) == 1
    # An empty list lets nobody in; a rule without `from` would let everybody in.
    assert not others["policy for nobody"].one("NetworkPolicy")["spec"]["ingress"]


def test_gpus_are_asked_for(charts: dict[str, Rendered], others: dict[str, Rendered]) -> None:
    for name, resource, count in (
        ("gpu", "nvidia.com/gpu", 1),
        ("everything", "example.com/gpu", 2),
    ):
        pod = charts[name].one("Deployment")["spec"]["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        assert resources["limits"][resource] == count
        assert "memory" in resources["limits"]
        assert pod["runtimeClassName"] == "nvidia"
        assert pod["tolerations"]
        assert pod["nodeSelector"]

    def device(rendered: Rendered) -> list[str]:
        pod = rendered.one("Deployment")["spec"]["template"]["spec"]
        variables = pod["containers"][0]["env"]
        return [each["value"] for each in variables if each["name"] == "RESNET_SERVE_DEVICE"]

    # The models of "everything" name theirs, which the variable would override.
    named = {name: device(charts[name]) for name in SETS}
    assert {name: device for name, device in named.items() if device} == {"gpu": ["cuda"]}
    assert device(others["two gpus"]) == ["cuda:all"]
    images = {
        name: charts[name].one("Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
        for name in SETS
    }
    assert (images["default"], images["gpu"]) == ("resnet-serve:cpu", "resnet-serve:cuda")


def test_resources_are_by_device_unless_they_are_given(
    charts: dict[str, Rendered], others: dict[str, Rendered]
) -> None:
    def resources(rendered: Rendered) -> Any:
        deployment = rendered.one("Deployment")
        check(deployment)
        return deployment["spec"]["template"]["spec"]["containers"][0]["resources"]

    assert resources(charts["default"]) == {
        "requests": {"cpu": "2", "memory": "2Gi"},
        "limits": {"cpu": "2", "memory": "4Gi"},
    }
    for_gpu: dict[str, dict[str, Any]] = {
        "requests": {"cpu": "3", "memory": "8Gi"},
        "limits": {"memory": "32Gi", "nvidia.com/gpu": 1},
    }
    assert resources(charts["gpu"]) == for_gpu
    # What is given replaces its own default only.
    for_gpu["limits"]["memory"] = "8Gi"
    assert resources(others["more memory"]) == for_gpu
    assert resources(others["no limit of CPUs"])["limits"] == {"memory": "4Gi"}


@pytest.mark.parametrize(
    ("source", "volume"),
    [
        ("claim", {"persistentVolumeClaim": {"claimName": "b", "readOnly": True}}),
        ("image", {"image": {"reference": "x/b:1", "pullPolicy": "IfNotPresent"}}),
        ("fetch", {"emptyDir": {"sizeLimit": "8Gi"}}),
    ],
)
def test_bundles_come_from_a_volume(
    others: dict[str, Rendered], source: str, volume: dict[str, Any]
) -> None:
    deployment = others[source].one("Deployment")
    check(deployment)
    pod = deployment["spec"]["template"]["spec"]
    assert {"name": "bundles"} | volume in pod["volumes"]
    mounts = pod["containers"][0]["volumeMounts"]
    assert {"name": "bundles", "mountPath": "/bundles", "readOnly": True} in mounts
    for container in pod.get("initContainers", []):
        assert {"name": "bundles", "mountPath": "/bundles"} in container["volumeMounts"]
    assert bool(pod.get("initContainers")) is (source == "fetch")


def test_notes_say_what_is_missing(charts: dict[str, Rendered]) -> None:
    assert "create secret generic resnet-serve-keys" in charts["default"].notes
    assert "--from-literal=administrators=" in charts["everything"].notes
    assert "Anyone who can reach the pods is served" in charts["minimal"].notes
    assert "custom.metrics.k8s.io" in charts["gpu"].notes


@pytest.mark.slow  # Starts a service and has it drain.
def test_a_service_with_its_settings_passes_the_charts_own_test_and_drains(
    charts: dict[str, Rendered], tmp_path: Path
) -> None:
    rendered = charts["default"]
    (text,) = rendered.one("ConfigMap")["data"].values()
    config = tmp_path / "resnet-serve.yml"
    config.write_text(text)
    (pod,) = rendered.tests
    python, flag, program = pod["spec"]["containers"][0]["command"]
    assert (python, flag) == ("python", "-c")
    deployed = rendered.one("Deployment")["spec"]["template"]["spec"]
    with started(RESNET_SERVE_CONFIG=str(config)) as service:
        here = program.replace(f'"{RELEASE}", 80', f'"127.0.0.1", {service.port}')
        assert here != program
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = deployed["containers"][0][probe]["httpGet"]
            assert client.get(service.url + asked["path"]).status_code == 200
        assert subprocess.run([sys.executable, flag, here], check=False).returncode == 0
        begun = time.monotonic()
        assert service.end() == 0
        assert time.monotonic() - begun < deployed["terminationGracePeriodSeconds"]
        assert subprocess.run([sys.executable, flag, here], check=False).returncode != 0
