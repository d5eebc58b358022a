"""The table of docs/guides/clients.md: every client with every route that it can use."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from tests.conftest import Service, started
from tests.support import senders
from tests.support.senders import Call, Reply, Sender

ROOT = Path(__file__).parents[2]
SHIP = (ROOT / "docs/ship.png").read_bytes()
TEXT = base64.b64encode(SHIP).decode()
NAME = "resnet10-cifar10"
JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}
TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}


def calls_json(method: str, path: str, document: Any) -> Call:
    return Call(method, path, json.dumps(document).encode(), JSON)


# What is sent, and where the response has the label. No label: the likeliest class, by its number.
CALLS: dict[str, tuple[list[Call], Callable[[Any], Any]]] = {
    "`/v1` bytes": (
        [
            Call("POST", "/v1/classify", SHIP, PNG),
            Call("POST", "/v1/classify/", SHIP),  # with the type that the client thinks of
            Call("POST", "/v1/classify", SHIP, {"Content-Type": "binary/octet-stream"}),
        ],
        lambda body: body["predictions"][0]["label"],
    ),
    "`/v1` PUT": (
        [Call("PUT", "/v1/classify", SHIP)],
        lambda body: body["predictions"][0]["label"],
    ),
    "`/v1` form": (
        [Call("POST", "/v1/classify", SHIP, form=field) for field in ("image", "file")],
        lambda body: body["predictions"][0]["label"],
    ),
    "`/v1` JSON": (
        [
            calls_json("POST", "/v1/classify", {"image": TEXT}),
            calls_json("POST", "/v1/classify", {"image": f"data:image/png;base64,{TEXT}"}),
        ],
        lambda body: body["predictions"][0]["label"],
    ),
    "KServe V1": (
        [calls_json("POST", f"/v1/models/{NAME}:predict", {"instances": [{"b64": TEXT}]})],
        lambda body: int(np.argmax(body["predictions"][0])),
    ),
    "TorchServe": (
        [Call(method, f"/predictions/{NAME}", SHIP) for method in ("POST", "PUT")],
        lambda body: next(iter(body)),
    ),
    "SageMaker": (
        [Call("POST", "/invocations", SHIP, {"Content-Type": "application/x-image"})],
        lambda body: body["predictions"][0]["label"],
    ),
    "Vertex AI": (
        [calls_json("POST", "/vertex/predict", {"instances": [{"b64": TEXT}]})],
        lambda body: body["predictions"][0]["displayNames"][0],
    ),
    "V2": (
        [calls_json("POST", f"/v2/models/{NAME}/infer", {"inputs": [TENSOR]})],
        lambda body: int(np.argmax(body["outputs"][0]["data"])),
    ),
}
HTTP: dict[str, Sender] = {
    "curl": senders.curl,
    "`curl --http2`": senders.curl_http2,
    "Python's urllib": senders.with_urllib,
    "requests": senders.with_requests,
    "httpx": senders.with_httpx,
    "aiohttp": senders.with_aiohttp,
    "Node's fetch": senders.node,
    "Java's HttpClient": senders.java,
}
NO_FORMS = ("Python's urllib", "`/v1` form")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with started(
        "--grpc-port", "0", AIP_PREDICT_ROUTE="/vertex/predict", AIP_HEALTH_ROUTE="/vertex/health"
    ) as running:
        running.wait_until_ready()
        yield running


@cache
def replies_of(client: str, url: str) -> dict[str, list[Reply]]:
    """What a client receives, by way; in one run, as starting Java takes longer than all else."""
    ways = {way: calls for way, (calls, _) in CALLS.items() if (client, way) != NO_FORMS}
    replies = iter(HTTP[client](url, [*chain.from_iterable(ways.values())]))
    return {way: [*islice(replies, len(calls))] for way, calls in ways.items()}


def check_http(client: str, way: str, service: Service) -> None:
    calls, label_of = CALLS[way]
    replies = replies_of(client, service.url)[way]
    assert [reply.status for reply in replies] == [200] * len(calls), replies
    assert {label_of(json.loads(reply.body)) for reply in replies} <= {"ship", 8}


def check_triton_http(service: Service) -> None:
    image = tritonclient.http.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([SHIP], object))
    with tritonclient.http.InferenceServerClient(service.url.removeprefix("http://")) as client:
        response = client.infer(NAME, [image])
    assert response.as_numpy("probabilities").argmax() == 8


def check_triton_grpc(service: Service) -> None:
    image = tritonclient.grpc.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([SHIP], object))
    (address,) = re.findall(r"gRPC on \S*?(\S+:\d+)", "".join(service.log))
    with tritonclient.grpc.InferenceServerClient(address) as client:
        response = client.infer(NAME, [image])
    assert response.as_numpy("probabilities").argmax() == 8


# A cell of the table that says yes, and its check.
CHECKS: Mapping[tuple[str, str], Callable[[Service], None]] = {
    **{
        (client, way): partial(check_http, client, way)
        for client in HTTP
        for way in CALLS
        if (client, way) != NO_FORMS
    },
    ("tritonclient.http", "V2"): check_triton_http,
    ("tritonclient.grpc", "gRPC"): check_triton_grpc,
}
PROGRAMS = {
    "curl": "curl",
    "`curl --http2`": "curl",
    "Node's fetch": "node",
    "Java's HttpClient": "java",
}


def table() -> dict[tuple[str, str], str]:
    """The cells by client and way."""
    text = (ROOT / "docs/guides/clients.md").read_text("utf-8")
    (rows,) = re.findall(r"^(\| client \|.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()
    ]
    return {
        (line[0], way): cell for line in lines for way, cell in zip(head[1:], line[1:], strict=True)
    }


def test_the_table_says_yes_where_a_check_is() -> None:
    assert {key for key, cell in table().items() if cell == "yes"} == set(CHECKS)
    assert set(table().values()) == {"yes", "-"}


@pytest.mark.parametrize(
    ("client", "way"), CHECKS, ids=[re.sub(r"[^A-Za-z0-9]+", "-", " ".join(key)) for key in CHECKS]
)
def test_a_cell_is_true(client: str, way: str, service: Service) -> None:
    program = PROGRAMS.get(client)
    if program is not None and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if client == "`curl --http2`" and not senders.curl_has_http2():
        pytest.skip("this curl was built without HTTP/2")
    CHECKS[client, way](service)
