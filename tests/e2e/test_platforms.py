"""What clients of other platforms send, over real sockets: one process, and two front ends."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.repository import catalog
from tests.conftest import Service, client, encoded, started
from tests.e2e.test_endpoints import samples
from tests.support import rounding

NAME = "resnet20-cifar10"
BUILTIN = catalog.load(f"builtin:{NAME}").bundle
LABELS = BUILTIN.labels
KEY = "a-key-of-many-letters"
KEYS = {"X-API-Key": KEY}
FILES = [encoded(), encoded("JPEG", (50, 40)), encoded("BMP", (20, 33))]
TEXTS = [base64.b64encode(file).decode() for file in FILES]
# Vertex AI's defaults: the paths of an endpoint.
HEALTH = "/v1/endpoints/7/deployedModels/3"
PREDICT = f"{HEALTH}:predict"


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two front ends"])
def served(request: pytest.FixtureRequest) -> Iterator[Service]:
    models = ("--model", f"builtin:{NAME}", "--model", "bare=random:resnet20")
    with started(
        *models,
        *("--precision", "fp32", "--engine", "eager"),
        RESNET_SERVE_WORKERS=request.param,
        RESNET_SERVE_API_KEYS=KEY,
        RESNET_SERVE_MAX_BATCH_IMAGES="8",
        RESNET_SERVE_MAX_BODY_BYTES="100000",
        RESNET_SERVE_MAX_BATCH_BODY_BYTES="1000000",
        AIP_HTTP_PORT="1",  # The flag wins.
        AIP_HEALTH_ROUTE=HEALTH,
        AIP_PREDICT_ROUTE=PREDICT,
    ) as running:
        yield running


def ask(served: Service, path: str, method: str = "POST", **sent: Any) -> httpx.Response:
    headers = KEYS | sent.pop("headers", {})
    return client.request(method, f"{served.url}{path}", headers=headers, **sent)


def answer(served: Service, path: str, method: str = "POST", **sent: Any) -> Any:
    response = ask(served, path, method, **sent)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def expected(served: Service) -> list[dict[str, Any]]:
    """What /v1/classify says of FILES."""
    return [answer(served, "/v1/classify?top_k=10", content=file) for file in FILES]


def vector(classified: dict[str, Any]) -> list[float]:
    ordered = sorted(classified["predictions"], key=lambda each: each["class_id"])
    return [each["probability"] for each in ordered]


def test_rows_give_vectors_in_the_order_of_the_classes(
    served: Service, expected: list[dict[str, Any]]
) -> None:
    body = {"instances": [{"b64": text} for text in TEXTS], "signature_name": "serving_default"}
    for path in (f"/v1/models/{NAME}:predict", f"/v1/models/{NAME}/versions/1:predict"):
        given = answer(served, path, json=body)
        assert list(given) == ["predictions"]
        want = np.array([vector(each) for each in expected], np.float32)
        rounding.assert_probabilities_near(
            np.array(given["predictions"], np.float32), want, BUILTIN.tensors
        )


def test_columns_give_columns(served: Service, expected: list[dict[str, Any]]) -> None:
    given = answer(served, f"/v1/models/{NAME}:predict", json={"inputs": {"image": TEXTS}})
    assert list(given) == ["outputs"]
    assert np.argmax(given["outputs"], 1).tolist() == [
        each["predictions"][0]["class_id"] for each in expected
    ]


def test_labels_come_with_top_k(served: Service, expected: list[dict[str, Any]]) -> None:
    body = {"instances": TEXTS, "parameters": {"top_k": 2}}
    given = answer(served, f"/v1/models/{NAME}:predict", json=body)["predictions"]
    for ours, theirs in zip(given, expected, strict=True):
        assert [set(each) for each in ours] == [{"class_id", "label", "probability"}] * 2
        assert [each["label"] for each in ours] == [
            each["label"] for each in theirs["predictions"][:2]
        ]


def test_tensors_in_json_are_those_of_v2(served: Service) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).round(3)
    tensor = {"name": "input", "datatype": "FP32", "shape": [2, 32, 32, 3], "data": pixels.tolist()}
    v2 = answer(served, f"/v2/models/{NAME}/infer", json={"inputs": [tensor]})
    want = np.array(v2["outputs"][0]["data"], np.float32).reshape(2, 10)
    for body in (
        {"instances": pixels.tolist()},
        {"instances": pixels.transpose(0, 3, 1, 2).tolist()},
        {"inputs": {"input": pixels.tolist()}},
    ):
        (given,) = answer(served, f"/v1/models/{NAME}:predict", json=body).values()
        rounding.assert_probabilities_near(np.array(given, np.float32), want, BUILTIN.tensors)


def test_examples_are_classified_as_pairs(served: Service, expected: list[dict[str, Any]]) -> None:
    body = {"examples": [{"image/encoded": {"b64": text}} for text in TEXTS]}
    results = answer(served, f"/v1/models/{NAME}:classify", json=body)["results"]
    for pairs, classified in zip(results, expected, strict=True):
        assert {label for label, _ in pairs} == set(LABELS)
        assert pairs[0][0] == classified["predictions"][0]["label"]
        assert [score for _, score in pairs] == sorted((s for _, s in pairs), reverse=True)


def test_a_model_is_described_to_both_kinds_of_clients(served: Service) -> None:
    status = {"error_code": "OK", "error_message": ""}
    versions = [{"version": "1", "state": "AVAILABLE", "status": status}]
    card = answer(served, f"/v1/models/{NAME}", "GET")
    assert (card["name"], card["ready"]) == (NAME, True)
    assert card["model_version_status"] == versions
    assert card["layers"] == 22
    version = answer(served, f"/v1/models/{NAME}/versions/1", "GET")
    assert version == {"name": NAME, "ready": True, "model_version_status": versions}
    described = answer(served, f"/v1/models/{NAME}/metadata", "GET")
    assert described["model_spec"] == {"name": NAME, "signature_name": "", "version": "1"}
    signature = described["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["image"]["dtype"] == "DT_STRING"
    shape = signature["inputs"]["input"]["tensor_shape"]
    assert [int(dimension["size"]) for dimension in shape["dim"]] == [-1, 3, 32, 32]
    output = signature["outputs"]["probabilities"]
    assert output["dtype"] == "DT_FLOAT"
    assert [dimension["size"] for dimension in output["tensor_shape"]["dim"]] == ["-1", "10"]


@pytest.mark.parametrize(
    ("method", "tail", "status", "words"),
    [
        ("POST", "/versions/2:predict", 404, "only version 1"),
        ("GET", "/versions/2", 404, "only version 1"),
        ("GET", "/versions/2/metadata", 404, "only version 1"),
        ("POST", ":regress", 404, "the verbs are :predict and :classify"),
        ("GET", ":explain", 404, "the verbs are :predict and :classify"),
        ("POST", "/versions/1:explain", 404, "the verbs are :predict and :classify"),
        ("GET", ":predict", 405, "does not accept GET"),
        ("PUT", ":predict", 405, "does not accept PUT"),
    ],
)
def test_what_is_not_there_is_said_in_tensorflow_servings_form(
    served: Service, method: str, tail: str, status: int, words: str
) -> None:
    response = ask(served, f"/v1/models/{NAME}{tail}", method)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert words in response.json()["error"]
    assert (response.headers.get("allow") == "POST") is (status == 405)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"instances": [TEXTS[0], "AAAA"]}, 400, "instances[1]: "),
        ({"instances": [TEXTS[0], "?"]}, 400, "instances[1]: "),
        ({"inputs": [TEXTS[0], TEXTS[0][:200]]}, 400, "inputs[1]: "),
        ({"instances": TEXTS * 3}, 413, "more than 8 images"),
        ({"instances": TEXTS, "signature_name": "x"}, 400, "serving_default"),
        ({"instances": TEXTS, "parameters": {"top_k": 11}}, 400, "from 1 to 10"),
        ({"instances": ["A" * 1_000_000]}, 413, "limit is 1000000"),
        ({"data": TEXTS[0]}, 400, '{"instances": '),
    ],
)
def test_one_wrong_instance_fails_the_request(
    served: Service, body: dict[str, Any], status: int, words: str
) -> None:
    response = ask(served, f"/v1/models/{NAME}:predict", json=body)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert words in response.json()["error"]


@pytest.mark.parametrize("how", ["raw", "form", "data", "curl -T", "gzip"])
@pytest.mark.parametrize("version", ["", "/1.0", "/1"])
def test_torchserves_labels_and_probabilities(
    served: Service, expected: list[dict[str, Any]], how: str, version: str, tmp_path: Path
) -> None:
    path = f"/predictions/{NAME}{version}"
    if how == "raw":
        given = answer(served, path, content=FILES[1])
    elif how == "form":
        given = answer(served, path, files={"data": ("a.jpg", FILES[1])})
    elif how == "data":
        given = answer(served, path, json={"data": TEXTS[1]})
    elif how == "gzip":
        headers = {"Content-Encoding": "gzip"}
        given = answer(served, path, content=gzip.compress(FILES[1]), headers=headers)
    elif shutil.which("curl"):
        (tmp_path / "a.jpg").write_bytes(FILES[1])
        command = ["curl", "-sS", f"{served.url}{path}", "-T", "a.jpg", "-H", f"X-API-Key: {KEY}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        given = json.loads(done.stdout)
    else:
        pytest.skip("needs curl")
    best = expected[1]["predictions"][:5]
    assert list(given) == [each["label"] for each in best]
    assert list(given.values()) == pytest.approx([each["probability"] for each in best], abs=1e-3)


RAW = (f"/predictions/{NAME}", "/invocations", PREDICT)


@pytest.mark.parametrize("path", RAW)
def test_bytes_decide_what_a_body_is_as_under_v1(served: Service, path: str) -> None:
    want = answer(served, path, content=FILES[1])
    for kind in (
        *("image/png", "application/json", "text/plain", "text/csv", "application/x-npy"),
        *("application/x-www-form-urlencoded", "multipart/form-data", "application/jsonlines"),
    ):
        given = answer(served, path, content=FILES[1], headers={"Content-Type": kind})
        assert list(given) == list(want)
    for sent in (
        {"data": {"data": TEXTS[1]}},
        {"files": {"body": (None, FILES[1])}},
        {"json": {"body": TEXTS[1]}},
        {"content": b"\xef\xbb\xbf" + json.dumps({"data": TEXTS[1]}).encode()},
    ):
        assert list(answer(served, path, **sent)) == list(want)
    for kind in ("text/csv", "application/x-npy"):
        response = ask(served, path, content=b"1,2,3\n" * 9, headers={"Content-Type": kind})
        assert response.status_code == 415
        assert f"unsupported content type '{kind}', and the body is no image" in response.text
    response = ask(served, path, content=b"xx", headers={"Content-Encoding": "br"})
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "gzip, deflate")


@pytest.mark.parametrize("path", RAW)
def test_a_parameter_that_would_be_ignored_is_refused(served: Service, path: str) -> None:
    name = "maxPredictions" if path == PREDICT else "top_k"
    for sent in (
        {"files": {"data": FILES[1]}, "data": {name: "1"}},
        {"data": {"data": TEXTS[1], name: "1"}},
        {"content": FILES[1], "params": {name: "1"}},
        {"json": {"instances": [TEXTS[1]], name: 1}},
        {"json": {"instances": [{"b64": TEXTS[1], name: 1}]}},
        {"json": {"data": TEXTS[1], name: 1}},
    ):
        response = ask(served, path, **sent)
        assert response.status_code in (400, 422)
        assert f"'{name}' is a parameter; send it" in response.text
    response = ask(served, path, content=FILES[1], params={"zzz": "1"})
    assert response.status_code == 422
    assert "unknown parameter 'zzz'; this endpoint takes none" in response.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (
            b'{"instances": ["%b"], "instances": ["%b"]}' % (TEXTS[0].encode(), TEXTS[1].encode()),
            400,
        ),
        (b'{"instances": ' + b"[" * 60_000 + b"]" * 60_000 + b"}", 400),
        (b'{"instances": [' + b'{"a": ' * 60_000 + b"1" + b"}" * 60_000 + b"]}", 413),
        (b'{"instances": [' + b"9" * 100_000 + b"]}", 400),
        (b'{"instances": [[[[1e999]]]]}', 400),
        (b'{"instances": ["\\ud800"], "signature_name": "\\ud800"}', 400),
        (b'{"instances": ["\xff"]}', 400),
        (json.dumps({"instances": TEXTS}).encode("utf-16"), 400),
        (b'{"instances": [' + b"1," * 300_000 + b"1]}", 413),
    ],
)
def test_hostile_json_is_refused_by_every_platform(
    served: Service, body: bytes, status: int
) -> None:
    for path in (f"/v1/models/{NAME}:predict", f"/v1/models/{NAME}:classify", *RAW):
        sent = {"Content-Type": "application/json"}
        assert ask(served, path, content=body, headers=sent).status_code == status


def test_torchserve_gives_as_many_labels_as_asked(served: Service) -> None:
    path, parameters = f"/predictions/{NAME}", {"top_k": 2}
    assert len(answer(served, path, json={"data": TEXTS[0], "parameters": parameters})) == 2
    given = answer(served, path, json={"instances": TEXTS, "parameters": parameters})
    assert [len(each) for each in given] == [2, 2, 2]
    response = ask(served, path, json={"data": TEXTS[0], "parameters": {"top_k": 11}})
    assert (response.status_code, response.json()["type"]) == (400, "BadRequestException")


def test_torchserves_batch_is_a_list(served: Service) -> None:
    for count in (1, 3):
        body = {"instances": [{"data": text} for text in TEXTS[:count]]}
        # As `curl --data` sends it.
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        given = answer(
            served, f"/predictions/{NAME}", content=json.dumps(body).encode(), headers=headers
        )
        assert [len(each) for each in given] == [5] * count


@pytest.mark.parametrize(
    ("path", "sent", "status", "kind"),
    [
        ("/predictions/nope", {"content": FILES[0]}, 404, "ModelNotFoundException"),
        (f"/predictions/{NAME}/2.0", {"content": FILES[0]}, 404, "ModelNotFoundException"),
        (f"/predictions/{NAME}", {"content": b"no image"}, 400, "BadRequestException"),
        (f"/predictions/{NAME}", {"content": b"{"}, 400, "BadRequestException"),
        (f"/predictions/{NAME}", {"json": {"images": TEXTS}}, 400, "BadRequestException"),
        (f"/predictions/{NAME}", {"content": b"x" * 100_001}, 413, "BadRequestException"),
        (f"/predictions/{NAME}", {"method": "GET"}, 405, "MethodNotAllowedException"),
        ("/models", {"method": "GET"}, 404, "ResourceNotFoundException"),
        (f"/models/{NAME}", {"method": "DELETE"}, 404, "ResourceNotFoundException"),
    ],
)
def test_torchserves_errors_have_its_types(
    served: Service, path: str, sent: dict[str, Any], status: int, kind: str
) -> None:
    response = ask(served, path, **sent)
    document = response.json()
    assert (response.status_code, document["code"], document["type"]) == (status, status, kind)
    assert document["message"]


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "application/x-image", "application/octet-stream", None]
)
def test_sagemaker_gets_what_v1_says_of_an_image(
    served: Service, expected: list[dict[str, Any]], kind: str | None
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    given = answer(served, "/invocations", content=FILES[1], headers=headers)
    assert given.keys() == expected[1].keys()
    assert given["model"] == NAME
    assert [each["label"] for each in given["predictions"]] == [
        each["label"] for each in expected[1]["predictions"][:5]
    ]


def test_sagemaker_may_name_a_model(served: Service) -> None:
    for target in ("bare", "bare.tar.gz", "/bare.tar.gz"):
        headers = {"X-Amzn-SageMaker-Target-Model": target}
        assert answer(served, "/invocations", content=FILES[0], headers=headers)["model"] == "bare"
    unknown = {"X-Amzn-SageMaker-Target-Model": "nope"}
    assert ask(served, "/invocations", content=FILES[0], headers=unknown).status_code == 404


def test_sagemakers_batches_are_json_or_lines(served: Service) -> None:
    body = {"instances": TEXTS, "parameters": {"top_k": 1}}
    whole = answer(served, "/invocations", json=body, headers={"Accept": "text/csv"})
    assert [len(each) for each in whole["predictions"]] == [1, 1, 1]
    lines = {"Accept": "application/jsonlines"}
    response = ask(served, "/invocations", json=body, headers=lines)
    assert response.headers["content-type"] == "application/jsonlines"
    given = [json.loads(line) for line in response.text.splitlines()]
    assert [[each["label"] for each in row] for row in given] == [
        [each["label"] for each in row] for row in whole["predictions"]
    ]
    sent = lines | {"Content-Type": "application/jsonlines"}
    content = "".join(f'{{"b64": "{text}"}}\n' for text in TEXTS).encode()
    response = ask(served, "/invocations", content=content, headers=sent)
    assert [len(json.loads(line)) for line in response.text.splitlines()] == [10, 10, 10]
    for bad in ('"AAAA"', "{", '{"top_k": 1}'):
        response = ask(served, "/invocations", content=content + bad.encode(), headers=sent)
        assert response.status_code == 400
        assert response.json()["detail"].startswith("line 4: ")


def test_vertex_gets_ids_names_and_confidences(
    served: Service, expected: list[dict[str, Any]]
) -> None:
    instances = [{"b64": TEXTS[0]}, {"content": TEXTS[1], "mimeType": "image/jpeg"}]
    given = answer(served, PREDICT, json={"instances": instances})["predictions"]
    for prediction, classified in zip(given, expected[:2], strict=True):
        best = classified["predictions"][:5]
        assert prediction["ids"] == [str(each["class_id"]) for each in best]
        assert prediction["displayNames"] == [each["label"] for each in best]
        assert prediction["confidences"] == sorted(prediction["confidences"], reverse=True)
    body = {"instances": instances, "parameters": {"maxPredictions": 1}}
    limited = answer(served, PREDICT, json=body)["predictions"]
    assert [each["ids"] for each in limited] == [each["ids"][:1] for each in given]
    # As rawPredict sends it.
    (raw,) = answer(served, PREDICT, content=FILES[0])["predictions"]
    assert raw["ids"] == given[0]["ids"]


def test_vertex_learns_what_is_wrong(served: Service) -> None:
    response = ask(served, PREDICT, json={"instances": [{"b64": "AAAA"}]})
    assert response.status_code == 400
    assert response.json()["detail"].startswith("instances[0]: ")
    assert ask(served, PREDICT, "GET").status_code == 405


def test_health_needs_no_key_and_predictions_do(served: Service) -> None:
    for path in ("/ping", HEALTH):
        for method in ("GET", "HEAD"):
            assert client.request(method, f"{served.url}{path}").status_code == 200
    assert client.get(f"{served.url}/ping").json() == {"status": "Healthy"}
    body = {"instances": TEXTS}
    for path in (f"/v1/models/{NAME}:predict", f"/predictions/{NAME}", "/invocations", PREDICT):
        response = client.post(f"{served.url}{path}", json=body)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json().keys() & {"error", "message", "detail"}


def test_responses_have_what_all_have_and_are_counted_by_route(served: Service) -> None:
    headers = {"X-Request-ID": "mine", "X-Request-Timeout-Ms": "60000"}
    for path, route in (
        (f"/v1/models/{NAME}:predict", "/v1/models/{name}:predict"),
        (f"/predictions/{NAME}", "/predictions/{name}"),
        ("/invocations", "/invocations"),
        (PREDICT, PREDICT),
    ):
        label = f'resnet_serve_requests_total{{route="{route}",status="200"}}'
        before = samples(served).get(label, 0)
        response = ask(served, path, json={"instances": TEXTS}, headers=headers)
        assert response.headers["x-request-id"] == "mine"
        assert response.headers["cache-control"] == "no-store"
        assert "inference;dur=" in response.headers["server-timing"]
        assert samples(served)[label] == before + 1
    late = ask(
        served, f"/predictions/{NAME}", content=FILES[0], headers={"X-Request-Timeout-Ms": "0.001"}
    )
    assert late.status_code in (429, 504)
    assert late.json()["type"] == "ServiceUnavailableException"


def test_many_clients_of_all_kinds_at_once(served: Service) -> None:
    body = {"instances": TEXTS}
    paths = [f"/v1/models/{NAME}:predict", f"/predictions/{NAME}", "/invocations", PREDICT] * 10
    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(lambda path: ask(served, path, json=body).status_code, paths))
    assert statuses == {200}


def test_without_classes_kserve_gets_embeddings_and_others_are_told(tmp_path: Path) -> None:
    architecture = {"block": "basic", "blocks": [1, 1, 1], "planes": [16, 32, 64], "stem": "small"}
    config = tmp_path / "serve.yaml"
    row = {"name": "bare", "spec": "random:", "architecture": architecture | {"num_classes": 0}}
    config.write_text(json.dumps({"models": [row | {"engine": "eager"}]}))
    with started("--config", str(config), AIP_PREDICT_ROUTE="/p") as service:
        body = {"instances": TEXTS}
        (given,) = answer(service, "/v1/models/bare:predict", json=body).values()
        assert np.array(given).shape == (3, 64)
        assert np.array(answer(service, "/invocations", json=body)["predictions"]).shape == (3, 64)
        for path, status in (
            ("/v1/models/bare:classify", 422), ("/predictions/bare", 422), ("/p", 422),
        ):  # fmt: skip
            response = ask(service, path, json=body)
            assert response.status_code == status
            assert "no classes" in response.text
        response = ask(service, "/invocations", content=FILES[0])
        assert response.status_code == 400
        assert "no classes" in response.text


def test_what_is_switched_off_is_not_there_and_a_chosen_path_wins() -> None:
    with started(
        RESNET_SERVE_PLATFORMS="vertex",
        AIP_HEALTH_ROUTE="/health/ready",
        AIP_PREDICT_ROUTE="/v1/classify",
    ) as service:
        for path in ("/predictions/resnet10-cifar10", "/invocations", "/ping", "/models"):
            assert ask(service, path, content=FILES[0]).status_code == 404
        response = ask(service, "/v1/models/resnet10-cifar10:predict", json={"instances": TEXTS})
        assert response.status_code == 404
        assert "not among the service's platforms" in response.json()["error"]
        assert len(answer(service, "/v1/classify", json={"instances": TEXTS})["predictions"]) == 3
        assert answer(service, "/health/ready", "GET")["status"] == "ready"
        assert [line for line in service.log if "POST /v1/classify answers Vertex AI" in line]
        assert not [line for line in service.log if "GET /health/ready answers" in line]
