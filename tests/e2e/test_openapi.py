"""Requests drawn from the OpenAPI description: what comes back is what it describes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from service.http.api_document import examples
from service.http.app import ENDPOINTS
from service.http.routers import v2
from tests.conftest import Service, client, started
from tests.support import api_examples
from tests.support.api_examples import OWN, operations

# A deadline so short that it has passed is no server's error.
CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]
# PUT beside POST is described in words.
[phases.coverage]
unexpected-methods = ["GET", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"]
"""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


@pytest.mark.parametrize(
    ("phases", "examples"),
    [
        ("coverage", 1),
        pytest.param("coverage,fuzzing", 200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_answers_are_those_described(
    service: Service, tmp_path: Path, phases: str, examples: int
) -> None:
    lines = len(service.log)
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--phases", phases),
            *("--max-examples", str(examples), "--seed", "1", "--continue-on-failure"),
            *("--generation-database", "none", "--warnings", "off", "--no-color"),
            *("--suppress-health-check", "all", "--request-timeout", "60"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.get(f"{service.url}/health/ready").status_code == 200
    assert not [line for line in service.log[lines:] if "Traceback" in line or "ERROR" in line]


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    """The service with its default model, whose responses are the examples."""
    with started() as running:
        yield running


@pytest.fixture(scope="module")
def document(shared: Service) -> Any:
    return client.get(f"{shared.url}/openapi.json").json()


def resolved(document: Any, node: Any) -> Any:
    if "$ref" not in node:
        return node
    for step in node["$ref"].removeprefix("#/").split("/"):
        document = document[step]
    return document


def test_the_description_is_valid(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    assert not list(OPENAPI_31_VALIDATOR.iter_errors(document))
    text = json.dumps(document)
    assert "$defs" not in text
    for name in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        node = document
        for step in name.split("/"):
            node = node[step]


def test_generated_clients_get_names_that_read_well(document: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z]+([A-Z0-9][a-z0-9]*)*", name), name
    assert {"classify", "classifyBatch", "listModels", "showModel", "infer", "isReady"} <= {*names}
    tags = [tag["name"] for tag in document["tags"]]
    assert tags[:3] == ["Predictions", "Models", "Open Inference Protocol"]
    for _, _, operation in operations(document):
        assert len(operation["tags"]) == 1
        assert operation["tags"][0] in tags


def test_every_route_is_described(document: Any) -> None:
    methods = {(path, method.upper()) for path, method, _ in operations(document)}
    assert {(path, method) for path, _, method in v2.PATHS} <= methods
    unseen = {"/", "/docs", "/web/{file}", "/openapi.json"}
    for route in (each for router in ENDPOINTS for each in router.router.routes):
        assert route.path in unseen or route.path in document["paths"]


def test_responses_have_an_example_that_the_service_gives(shared: Service, document: Any) -> None:
    given = examples()
    answers = api_examples.found(shared.url)
    assert answers.keys() == given.keys()
    for name, answer in answers.items():
        same(answer, given[name], name)
    for path, method, operation in operations(document):
        media = operation["responses"].get("200", {}).get("content", {}).get("application/json")
        if media and api_examples.is_safe(method, operation) and operation["tags"][0] in OWN:
            assert api_examples.examples_of(media), f"{method} {path}"
            valid(document, media)


# What a machine or the time determines.
VARYING = {"device", "engine", "precision", "version", "kind", "parity", "batch_ms", "cpu_ms"}
VARYING |= {"threads", "streams", "split_from", "batch_stats", "card", "metrics"}


def same(found: Any, shown: Any, place: str) -> None:
    """But for numbers."""
    if isinstance(shown, dict) and "string_value" not in shown:
        assert found.keys() == shown.keys(), place
        for key in shown.keys() - VARYING:
            same(found[key], shown[key], f"{place}.{key}")
    elif isinstance(shown, list):
        assert bool(found) == bool(shown), place
        for one, other in zip(found, shown, strict=False):
            same(one, other, place)
    elif isinstance(shown, str) and not re.match(r"[\d.]+:", shown):
        assert found == shown, place


def valid(document: Any, media: Any) -> None:
    schema = {**media["schema"], "components": document["components"]}
    for example in api_examples.examples_of(media):
        jsonschema.Draft202012Validator(schema).validate(example)


def test_requests_have_examples_that_the_service_takes(shared: Service, document: Any) -> None:
    for path, method, operation in operations(document):
        for kind, media in operation.get("requestBody", {}).get("content", {}).items():
            valid(document, media)
            for example in api_examples.examples_of(media):
                if not api_examples.is_safe(method, operation):
                    continue
                place = shared.url + path.format(name=api_examples.MODEL, version=1)
                response = client.request(
                    method, place, content=json.dumps(example), headers={"Content-Type": kind}
                )
                assert response.status_code == 200, (path, example, response.text)


def test_the_description_says_what_needs_a_key() -> None:
    with started(RESNET_SERVE_API_KEYS="a-key-for-this-test") as running:
        document = client.get(f"{running.url}/openapi.json").json()
        schemes = document["components"]["securitySchemes"]
        assert (schemes["bearer"]["scheme"], schemes["apiKey"]["name"]) == ("bearer", "X-API-Key")
        for path, method, operation in operations(document):
            status = client.request(method, running.url + path).status_code
            needed = operation.get("security") == [{"bearer": []}, {"apiKey": []}]
            assert (status in (401, 403)) == needed, (method, path, status)
            # No admin key is configured.
            assert (status == 403) == ("admin key" in operation["description"])


def test_keys_are_optional_where_none_are_configured(document: Any) -> None:
    classify = document["paths"]["/v1/classify"]["post"]
    assert classify["security"] == [{}, {"bearer": []}, {"apiKey": []}]
    assert "security" not in document["paths"]["/health/live"]["get"]
    assert {} not in document["paths"]["/v1/models/{name}"]["put"]["security"]


def test_refusals_are_described_once_as_what_they_are(document: Any) -> None:
    texts = []
    for path, _, operation in operations(document):
        for status, given in operation["responses"].items():
            response = resolved(document, given)
            assert "X-Request-ID" in response["headers"]
            if int(status) < 400 or operation["tags"][0] not in OWN:
                continue
            texts += [] if "$ref" in given or "security" not in operation else [json.dumps(given)]
            ((kind, media),) = response["content"].items()
            name = media["schema"]["$ref"].rpartition("/")[2]
            if path.startswith("/v2"):
                assert (kind, name) in {
                    ("application/json", each) for each in ("V2Error", "V2Live", "V2Ready")
                }
            elif path.startswith("/v1"):
                assert (kind, name) == ("application/problem+json", "Problem")
            assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))
    assert len(set(texts)) == len(texts)


def test_a_description_is_small_enough_to_load_on_a_phone(shared: Service) -> None:
    assert len(client.get(f"{shared.url}/openapi.json").content) < 120_000
