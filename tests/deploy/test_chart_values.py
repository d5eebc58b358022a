"""The values of the Helm chart: documented, used, and refused where they are wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from deploy.kubernetes import settings_schema
from tests.deploy.chart import CHART, SETS, Values, render

VALUES = (CHART / "values.yaml").read_text("utf-8")
DEFAULTS: Values = yaml.safe_load(VALUES)
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
TEMPLATES = "".join(path.read_text("utf-8") for path in sorted((CHART / "templates").rglob("*.*")))
# Values of several lines that say one thing.
WHOLE = {("resources",), ("autoscaling", "behavior")}


def leaves(values: Any, schema: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    """The paths of values that mean something by themselves."""
    inner = values if "properties" in schema and above not in WHOLE else {}
    if not inner:
        yield above
    for name, value in inner.items():
        yield from leaves(value, schema["properties"][name], *above, name)


LEAVES = sorted(leaves(DEFAULTS, SCHEMA))


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_every_value_is_documented_and_used(path: tuple[str, ...]) -> None:
    lines = VALUES.splitlines()
    at = -1
    for depth, name in enumerate(path):
        at = next(
            number
            for number, line in enumerate(lines)
            if number > at and line.startswith("  " * depth + f"{name}:")
        )
    assert lines[at - 1].strip().startswith("#"), "say what it does, in a comment above it"
    name = ".".join(path)
    block = rf"with \.Values\.{path[0]} .*?\.{'.'.join(path[1:])}\b"
    assert re.search(rf"\.Values\.{name}\b", TEMPLATES) or re.search(block, TEMPLATES, re.DOTALL)


def test_every_value_is_tried() -> None:
    def tried(path: tuple[str, ...]) -> bool:
        place: Any = SETS["everything"]
        for name in path:
            if name not in place:
                return False
            place = place[name]
        return True

    # Of three ways that bundles come, and two of keeping a cache, each excludes the others.
    assert [path for path in LEAVES if not tried(path)] == [
        ("bundles", "existingClaim"),
        ("bundles", "image"),
        ("cache", "sizeLimit"),
        ("podDisruptionBudget", "enabled"),
    ]


def test_every_value_has_a_rule() -> None:
    open_ended = {"global"}
    assert set(SCHEMA["properties"]) - open_ended == set(DEFAULTS)
    assert SCHEMA["additionalProperties"] is False


def test_settings_are_those_of_the_service() -> None:
    held = {name: SCHEMA["$defs"][name] for name in settings_schema.of_settings()}
    assert held == settings_schema.of_settings(), "python -m deploy.kubernetes.settings_schema"


MODEL = {"spec": "random:resnet18"}
REFUSED: dict[str, tuple[Values, str]] = {
    "unknown value": ({"replica": 3}, "additional properties 'replica' not allowed"),
    "unknown value within": ({"gpu": {"number": 1}}, "at '/gpu': additional properties 'number'"),
    "wrong type": ({"replicas": "two"}, "at '/replicas': got string, want integer"),
    "no quantity": ({"tmp": {"sizeLimit": "much"}}, "at '/tmp/sizeLimit'"),
    "no name of a Service": ({"fullnameOverride": "1.cat"}, "at '/fullnameOverride'"),
    "no name": ({"tls": {"existingSecret": "My Secret"}}, "at '/tls/existingSecret'"),
    "tag in the repository": ({"image": {"repository": "a:b"}}, "at '/image/repository'"),
    "no setting": ({"config": {"prot": 1}}, "at '/config': additional properties 'prot'"),
    "wrong setting": ({"config": {"port": 99999}}, "at '/config/port': maximum"),
    "wrong setting of a model": (
        {"config": {"models": [MODEL | {"precision": "fp8"}]}},
        "at '/config/models/0/precision'",
    ),
    "keys for everybody to read": (
        {"config": {"api_keys": ["0123456789abcdef"]}},
        "at '/config': additional properties 'api_keys'",
    ),
    "a drain of unknown length": (
        {"config": {"shutdown_timeout_s": None}},
        "at '/config': missing property 'shutdown_timeout_s'",
    ),
    "killed while it answers": (
        {"drain": {"terminationGracePeriodSeconds": 40}},
        "terminationGracePeriodSeconds is 40, but preStopSeconds, config.shutdown_grace_s, "
        "config.shutdown_timeout_s and 10 s to end are 46",
    ),
    "nobody may": (
        {"keys": {"existingSecret": ""}},
        "name a Secret with keys, or set config.allow_anonymous",
    ),
    "any port": ({"config": {"port": 0}}, "config.port is 0"),
    "where no probe comes": (
        {"config": {"host": "unix:/run/x.sock"}},
        "config.host is unix:/run/x.sock, which no probe and no Service could reach",
    ),
    "only for the pod": (
        {"config": {"host": "127.0.0.1"}},
        "config.host is 127.0.0.1, where only the pod itself could reach the service",
    ),
    "no family": ({"service": {"ipFamilies": ["IPv5"]}}, "at '/service/ipFamilies/0'"),
    "IPv6 of pods without": (
        {"service": {"ipFamilies": ["IPv6"]}},
        "service.ipFamilies has IPv6, but pods listen on IPv4 only: set config.host to ::",
    ),
    "both families of pods with one": (
        {"service": {"ipFamilyPolicy": "PreferDualStack"}, "config": {"host": "0.0.0.0"}},
        "service.ipFamilyPolicy is PreferDualStack, but pods listen on IPv4 only",
    ),
    "another host by a variable": (
        {"extraEnv": [{"name": "RESNET_SERVE_HOST", "value": "::"}]},
        "give it as config.host",
    ),
    "a setting beside the settings": (
        {"extraEnv": [{"name": "RESNET_SERVE_PORT", "value": "1"}]},
        "give it as config.port",
    ),
    "bundles from two places": (
        {"bundles": {"existingClaim": "a", "image": "b"}},
        "not each of a, b",
    ),
    "bundles from nowhere": (
        {"config": {"models": [{"spec": "/bundles/a.safetensors"}]}},
        "config.models[0].spec is /bundles/a.safetensors, but nothing is mounted there",
    ),
    "fetching by nothing": ({"bundles": {"fetch": {"image": "a"}}}, "bundles.fetch.command"),
    "no GPU": (
        {"config": {"models": [MODEL | {"device": "cuda"}]}},
        "config.models[0].device is cuda, but pods have 0 GPUs: raise gpu.count",
    ),
    "too few GPUs": (
        {"gpu": {"count": 1}, "config": {"models": [MODEL, MODEL | {"device": ["cuda:1"]}]}},
        "config.models[1].device is cuda:1, but pods have 1 GPUs",
    ),
    "some models placed": (
        {"gpu": {"count": 1}, "config": {"models": [MODEL, MODEL | {"device": "cuda"}]}},
        "some of config.models have a device and some have none",
    ),
    "more at least than at most": (
        {"autoscaling": {"enabled": True, "minReplicas": 20}},
        "minReplicas is 20, more than maxReplicas, 10",
    ),
    "scaled by nothing": (
        {"autoscaling": {"enabled": True, "cpuUtilization": None}},
        "autoscaling has no metric",
    ),
    "no way to roll": ({"rollingUpdate": {"maxSurge": "0%"}}, "no pod could be replaced"),
    "Prometheus kept out": (
        {"networkPolicy": {"enabled": True}, "serviceMonitor": {"enabled": True}},
        "set networkPolicy.prometheusNamespace",
    ),
    "a route from nowhere": ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is empty"),
}


@pytest.fixture(scope="module")
def refused() -> dict[str, str]:
    rendered = render(*(values for values, _ in REFUSED.values()))
    return {name: each.refusal for name, each in zip(REFUSED, rendered, strict=True)}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_values_are_refused_and_named(refused: dict[str, str], name: str) -> None:
    assert REFUSED[name][1] in refused[name]
