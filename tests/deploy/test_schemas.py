"""Files for programs that do not run here are valid by the schemas that those programs publish."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema
import kubernetes_validate
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from pydantic import ConfigDict, TypeAdapter, ValidationError

ROOT = Path(__file__).parents[2]
# Values for somebody else's chart, and no manifest.
ADAPTER = ROOT / "deploy/kubernetes/prometheus-adapter.yml"
MANIFESTS = sorted({*(ROOT / "deploy/kubernetes").glob("*.yml")} - {ADAPTER})
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
# The oldest release that was maintained when this was written, and the newest that there was.
KUBERNETES = ("1.34", "1.37")
CLASSES = ConfigDict(arbitrary_types_allowed=True)

# What KServe 0.20 adds to the fields of a pod and of a container. Its own package cannot be
# installed beside ours (protobuf), so this restates the parts of its CRDs that files may use.
PROTOCOLS = {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
RUNTIME = {
    "supportedModelFormats": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string"},
                "version": {"type": "string"},
                "autoSelect": {"type": "boolean"},
                "priority": {"type": "integer", "minimum": 1},
            },
            "additionalProperties": False,
        },
    },
    "multiModel": {"type": "boolean"},
    "disabled": {"type": "boolean"},
    "protocolVersions": {"type": "array", "items": PROTOCOLS},
    "labels": TEXTS,
    "annotations": TEXTS,
}
PREDICTOR = {
    "minReplicas": COUNT,
    "maxReplicas": COUNT,
    "scaleTarget": COUNT,
    "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
    "containerConcurrency": COUNT,
    "timeout": COUNT,
    "canaryTrafficPercent": {"type": "integer", "minimum": 0, "maximum": 100},
    "labels": TEXTS,
    "annotations": TEXTS,
}
MODEL = {
    "modelFormat": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "version": {"type": "string"}},
        "additionalProperties": False,
    },
    "runtime": {"type": "string"},
    "storageUri": {"type": "string", "pattern": "^[a-z0-9]+://."},
    "runtimeVersion": {"type": "string"},
    "protocolVersion": PROTOCOLS,
}

# What Prometheus' data source adds to an annotation; Grafana's own types leave such fields open.
PROMETHEUS_MARKS = {
    "step": str,
    "titleFormat": str,
    "textFormat": str,
    "tagKeys": str,
    "useValueForTime": bool,
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text("utf-8")) if each]


def check_compose(content: Mapping[str, Any]) -> None:
    """By the schema of the Compose specification.

    Raises:
        jsonschema.ValidationError: it is not.
    """
    vendored = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.Draft202012Validator(json.loads(vendored.read_text("utf-8"))).validate(content)


def check_manifest(document: dict[str, Any]) -> None:
    """By Kubernetes' schemas; for a kind of KServe's, its pods by them and the rest by the above.

    Raises:
        jsonschema.ValidationError: it is not.
    """
    judged = document
    if document["apiVersion"].startswith("serving.kserve.io/"):
        judged = _pod_of_kserve(document)
    for version in KUBERNETES:
        kubernetes_validate.validate(judged, version, strict=True)


def _pod_of_kserve(document: dict[str, Any]) -> dict[str, Any]:
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    spec = copy.deepcopy(document["spec"])
    if document["kind"] == "InferenceService":
        assert document["apiVersion"] == "serving.kserve.io/v1beta1"
        assert set(spec) == {"predictor"}
        spec = spec["predictor"]
        container = spec.pop("model")
        _take(container, MODEL, required=["modelFormat"])
        _take(spec, PREDICTOR)
        spec["containers"] = [{"name": "kserve-container"} | container, *spec.get("containers", [])]
    else:
        assert document["kind"] in ("ServingRuntime", "ClusterServingRuntime")
        assert document["apiVersion"] == "serving.kserve.io/v1alpha1"
        _take(spec, RUNTIME, required=["supportedModelFormats"])
    metadata = document["metadata"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _take(
    spec: dict[str, Any], fields: Mapping[str, Any], required: list[str] | None = None
) -> None:
    """Removes KServe's own `fields` from `spec` after they were checked."""
    taken = {name: spec.pop(name) for name in list(spec) if name in fields}
    jsonschema.validate(taken, {"properties": fields, "required": required or []})


def check_dashboard(content: dict[str, Any]) -> None:
    """By the types that Grafana makes of its own schemas.

    Raises:
        ValueError: a field does not exist, or holds what it cannot.
    """
    plugins.register_default_plugins()
    content = copy.deepcopy(content)
    for mark in content.get("annotations", {}).get("list", []):
        if mark["datasource"]["type"] == "prometheus":
            held = {name: mark.pop(name) for name in PROMETHEUS_MARKS.keys() & mark.keys()}
            if wrong := [n for n, v in held.items() if not isinstance(v, PROMETHEUS_MARKS[n])]:
                raise ValueError(f"dashboard.annotations: {', '.join(wrong)} of another type")
    model = Dashboard.from_json(content)
    _check_types(model, "dashboard")
    # What the types do not know is not there any more.
    for lost in _lost(content, json.loads(json.dumps(model, cls=JSONEncoder)), "dashboard"):
        raise ValueError(f"{lost}: Grafana knows no such field, or no such value")


def _check_types(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for name, each in value.items():
            _check_types(each, f"{where}.{name}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _check_types(each, f"{where}[{number}]")
    elif type(value).__module__.startswith("grafana_foundation_sdk.models"):
        for name, hint in get_type_hints(type(value)).items():
            held = getattr(value, name)
            _check_types(held, f"{where}.{name}")
            if isinstance(held, (dict, list)):  # Not all of them are read as what their type says.
                continue
            try:
                TypeAdapter(hint, config=CLASSES).validate_python(held)
            except ValidationError as error:
                raise ValueError(f"{where}.{name}: {error.errors()[0]['msg']}") from None


def _lost(given: Any, kept: Any, where: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            yield from _lost(value, kept.get(name), f"{where}.{name}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _lost(one, other, f"{where}[{number}]")
    elif given != kept:
        yield where


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return found


def test_the_compose_file_is_valid() -> None:
    check_compose(compose())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path: Path) -> None:
    assert documents(path)
    for document in documents(path):
        check_manifest(document)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_dashboards_are_valid(path: Path) -> None:
    check_dashboard(json.loads(path.read_text("utf-8")))


def edited(content: dict[str, Any], path: list[str | int], value: Any) -> dict[str, Any]:
    """A copy with `value` at `path`."""
    changed = copy.deepcopy(content)
    place: Any = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["services", "grafana", "imag"], "grafana"),
        (["services", "service-cpu", "profiles"], "cpu"),
        (["services", "service-gpu", "deploy", "resources", "reservations", "devices"], {}),
        (["volume"], {}),
    ],
    ids=str,
)
def test_a_broken_compose_file_is_found(path: list[str | int], value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_compose(edited(compose(), path, value))


CONTAINER: list[str | int] = ["spec", "template", "spec", "containers", 0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "replicas"], "two"),
        ([*CONTAINER, "imagePullPolice"], "Always"),
        ([*CONTAINER, "ports", 0], {"name": "http"}),
        ([*CONTAINER, "readinessProbe", "httpGet", "port"], None),
        (["spec", "selector"], {}),
        (["metadata", "label"], {}),
    ],
    ids=str,
)
def test_a_broken_manifest_is_found(path: list[str | int], value: Any) -> None:
    (deployment,) = (
        each
        for each in documents(ROOT / "deploy/kubernetes/resnet-serve.yml")
        if each["kind"] == "Deployment"
    )
    changed = edited(deployment, path, value)
    if path == ["spec", "selector"]:
        del changed["spec"]["selector"]
    with pytest.raises(jsonschema.ValidationError):
        check_manifest(changed)


SERVING_RUNTIME = {
    "apiVersion": "serving.kserve.io/v1alpha1",
    "kind": "ClusterServingRuntime",
    "metadata": {"name": "resnet-serve"},
    "spec": {
        "supportedModelFormats": [{"name": "resnet", "autoSelect": True, "priority": 1}],
        "protocolVersions": ["v2"],
        "containers": [{"name": "kserve-container", "image": "resnet-serve:cpu"}],
    },
}
INFERENCE_SERVICE = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "resnet"},
    "spec": {
        "predictor": {
            "minReplicas": 1,
            "model": {"modelFormat": {"name": "resnet"}, "storageUri": "pvc://bundles/resnet50"},
        }
    },
}


@pytest.mark.parametrize("document", [SERVING_RUNTIME, INFERENCE_SERVICE], ids=lambda d: d["kind"])
def test_kinds_of_kserve_are_known(document: dict[str, Any]) -> None:
    check_manifest(document)


@pytest.mark.parametrize(
    ("document", "path", "value"),
    [
        (SERVING_RUNTIME, ["spec", "protocolVersions"], ["v3"]),
        (SERVING_RUNTIME, ["spec", "containers", 0, "imag"], "x"),
        (SERVING_RUNTIME, ["spec", "supportedModelFormat"], []),
        (SERVING_RUNTIME, ["spec", "supportedModelFormats"], [{"version": "1"}]),
        (INFERENCE_SERVICE, ["spec", "predictor", "replicas"], 1),
        (INFERENCE_SERVICE, ["spec", "predictor", "model", "storageURI"], "pvc://x"),
        (INFERENCE_SERVICE, ["spec", "predictor", "model", "modelFormat"], "resnet"),
    ],
    ids=str,
)
def test_a_broken_kind_of_kserve_is_found(
    document: dict[str, Any], path: list[str | int], value: Any
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_manifest(edited(document, path, value))


def _panel(content: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in content["panels"] if each["type"] == kind)
    return found


BREAKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "unknown field": lambda content: content.update(refreshing="5s"),
    "wrong type": lambda content: content.update(schemaVersion="new"),
    "wrong type within": lambda content: content["panels"][0]["gridPos"].update(w="wide"),
    "unknown option": lambda content: _panel(content, "timeseries")["options"].update(legends={}),
    "wrong type of a mark": lambda content: content["annotations"]["list"].append(
        {"name": "x", "datasource": {"type": "prometheus", "uid": "x"}, "step": 5}
    ),
    "unknown field of a mark": lambda content: content["annotations"]["list"][0].update(titel="x"),
    "unknown field of a query": lambda content: _panel(content, "timeseries")["targets"][0].update(
        expression="up"
    ),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_a_broken_dashboard_is_found(fault: str) -> None:
    content = json.loads(DASHBOARDS[0].read_text("utf-8"))
    BREAKS[fault](content)
    with pytest.raises(ValueError, match="dashboard"):
        check_dashboard(content)
