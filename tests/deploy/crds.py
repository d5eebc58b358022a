"""Kinds that are not Kubernetes' own, and how any document of the chart is checked."""

from __future__ import annotations

from typing import Any

import jsonschema

from tests.deploy.test_schemas import check_manifest

# No package for Python has the schemas that the Prometheus operator and the Gateway API publish, so
# this restates the parts that the chart uses.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def several(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


TEXT = {"type": "string", "minLength": 1}
CUSTOM: dict[tuple[str, str], dict[str, Any]] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): closed(
        "selector",
        "endpoints",
        jobLabel=TEXT,
        selector=closed("matchLabels", matchLabels=TEXTS),
        endpoints=several(
            closed(
                "port",
                port=TEXT,
                path=TEXT,
                interval=DURATION,
                scheme={"enum": ["http", "https"]},
                tlsConfig=closed(insecureSkipVerify={"type": "boolean"}, serverName=TEXT),
            )
        ),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): closed(
        "groups",
        groups=several(
            closed(
                "name",
                "rules",
                name=TEXT,
                interval=DURATION,
                rules=several(
                    {
                        "oneOf": [
                            closed(
                                "alert",
                                "expr",
                                alert=TEXT,
                                expr=TEXT,
                                labels=TEXTS,
                                annotations=TEXTS,
                                **{"for": DURATION},
                            ),
                            closed("record", "expr", record=TEXT, expr=TEXT, labels=TEXTS),
                        ]
                    }
                ),
            )
        ),
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): closed(
        "parentRefs",
        "rules",
        parentRefs=several(closed("name", name=TEXT, namespace=TEXT, sectionName=TEXT)),
        hostnames=several(TEXT),
        rules=several(
            closed(
                matches=several(
                    closed(
                        "path",
                        path=closed(
                            type={"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                            value={"type": "string", "pattern": "^/"},
                        ),
                    )
                ),
                backendRefs=several(closed("name", "port", name=TEXT, port={"type": "integer"})),
            )
        ),
    ),
}


def check(document: dict[str, Any]) -> None:
    """By Kubernetes' published schemas, or by the above.

    Raises:
        jsonschema.ValidationError: it is not.
    """
    schema = CUSTOM.get((document["apiVersion"], document["kind"]))
    if schema is None:
        check_manifest(document)
        return
    jsonschema.validate(document["spec"], schema)
    # Its metadata is what any kind's is.
    check_manifest({"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]})
