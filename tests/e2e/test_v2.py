"""/v2 as the real Triton client sees it: two front ends, one engine process, models that change."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from service.metrics import REASONS
from service.repository import catalog
from tests.conftest import Service, client, encoded, started
from tests.e2e.test_endpoints import samples
from tests.e2e.test_runtime_models import ADMIN, KEY, write
from tests.service.oip.test_codec import MALFORMED
from tests.support import rounding
from tests.support.waiting import until

NAME = "resnet20-cifar10"
CLASSES = 10
LIMIT = 2**20
INFER = f"/v2/models/{NAME}/infer"
BUILTIN = catalog.load(f"builtin:{NAME}").bundle.tensors
same_probabilities = partial(rounding.assert_probabilities_near, layers=BUILTIN)
FILES = [encoded(), encoded("JPEG", (50, 40)), encoded("BMP", (20, 33))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("v2")
    write(made / "a.safetensors", "a", 3)
    write(made / "b.safetensors", "b", 4)
    return made


@pytest.fixture(scope="module")
def v2(folder: Path) -> Iterator[Service]:
    config = folder / "serve.yaml"
    shared = "engine: eager, precision: fp32, max_batch: 2"
    config.write_text(
        f"models:\n  - {{spec: 'builtin:{NAME}', {shared}}}\n"
        f"  - {{spec: {folder}/a.safetensors, name: tiny, {shared}}}\n"
    )
    with started(
        *("--config", str(config), "--workers", "2"),
        RESNET_SERVE_WORKERS="2",
        RESNET_SERVE_ADMIN_KEYS=KEY,
        RESNET_SERVE_MODEL_FOLDER=str(folder),
        RESNET_SERVE_MAX_BATCH_BODY_BYTES=str(LIMIT),
        RESNET_SERVE_MAX_BATCH_IMAGES="8",
    ) as running:
        yield running


@pytest.fixture
def asking(v2: Service) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{v2.port}") as found:
        yield found


def images(*files: bytes) -> Any:
    given = triton.InferInput("image", [len(files), 1], "BYTES")
    given.set_data_from_numpy(np.array([[file] for file in files], dtype=np.object_))
    return given


def tensor(name: str, values: NDArray[Any], *, binary: bool = True) -> Any:
    datatype = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32"}[values.dtype.name]
    given = triton.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def pixels(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def probabilities(asking: Any, given: Any, **options: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = asking.infer(NAME, [given], **options).as_numpy("probabilities")
    return found


def post(v2: Service, path: str, content: bytes = b"", **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"{v2.url}{path}", content=content, headers=sent)


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"]
    body = response.json()
    assert list(body) == ["error"]
    assert "\n" not in body["error"]
    return str(body["error"])


def test_the_service_and_its_models_tell_what_they_are(asking: Any) -> None:
    assert asking.is_server_live()
    assert asking.is_server_ready()
    assert asking.is_model_ready(NAME)
    assert asking.is_model_ready(NAME, "1")
    assert not asking.is_model_ready(NAME, "2")
    assert not asking.is_model_ready("nope")
    assert {"binary_tensor_data", "classification"} <= set(
        asking.get_server_metadata()["extensions"]
    )
    told = asking.get_model_metadata(NAME)
    assert (told["name"], told["versions"]) == (NAME, ["1"])
    assert {each["name"]: each["shape"] for each in told["inputs"]} == {
        "image": [-1, 1],
        "pixels": [-1, 32, 32, 3],
        "input": [-1, 3, 32, 32],
    }
    shapes = {each["name"]: (each["datatype"], each["shape"]) for each in told["outputs"]}
    assert shapes["probabilities"] == ("FP32", [-1, CLASSES])
    configuration = asking.get_model_config(NAME, "1")
    assert configuration["max_batch_size"] == 8
    assert {each["name"] for each in configuration["input"]} == {"image", "pixels", "input"}
    with pytest.raises(InferenceServerException, match="no model is called 'nope'"):
        asking.get_model_metadata("nope")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_files_are_classified_as_elsewhere(
    v2: Service, asking: Any, binary: bool, compression: str | None
) -> None:
    wanted = triton.InferRequestedOutput("probabilities", binary_data=binary)
    found = asking.infer(
        NAME,
        [images(*FILES)],
        outputs=[wanted],
        request_id="seven",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert found.get_response()["id"] == "seven"
    rows = found.as_numpy("probabilities")
    assert rows.shape == (3, CLASSES)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(1), 1, rtol=0, atol=rounding.of_sums([CLASSES] * 2))
    for file, row in zip(FILES, rows, strict=True):
        answer = client.post(f"{v2.url}/v1/classify", params={"top_k": 10}, content=file).json()
        found = {each["class_id"]: each["probability"] for each in answer["predictions"]}
        same_probabilities([found[number] for number in range(CLASSES)], row)


def test_pixels_are_computed_as_they_are(asking: Any) -> None:
    given = pixels(5)
    rows = probabilities(asking, tensor("pixels", given))
    assert rows.shape == (5, CLASSES)
    as_json = probabilities(asking, tensor("pixels", given, binary=False))
    same_probabilities(as_json, rows)
    same_probabilities(probabilities(asking, tensor("pixels", given[0])), rows[:1])


@pytest.mark.parametrize("planes", [True, False])
def test_what_is_normalised_is_computed_as_the_pixels_it_was_made_of(
    asking: Any, v2: Service, planes: bool
) -> None:
    spec = client.get(f"{v2.url}/v1/models/{NAME}").json()["input"]
    given = pixels(5)
    values = ((given / 255 - spec["mean"]) / spec["std"]).astype(np.float32)
    if planes:
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    wanted = probabilities(asking, tensor("pixels", given))
    same_probabilities(probabilities(asking, tensor("input", values)), wanted)
    as_json = probabilities(asking, tensor("input", values[:2], binary=False))
    same_probabilities(as_json, wanted[:2])
    halves = values.astype(np.float16)
    wanted = probabilities(asking, tensor("input", halves.astype(np.float32)))
    same_probabilities(probabilities(asking, tensor("input", halves)), wanted)


def test_an_embedding_is_that_of_v1(asking: Any, v2: Service) -> None:
    outputs = [triton.InferRequestedOutput(name) for name in ("embedding", "probabilities")]
    found = asking.infer(NAME, [images(*FILES)], outputs=outputs)
    rows = found.as_numpy("embedding")
    assert found.as_numpy("probabilities").shape == (3, CLASSES)
    for file, row in zip(FILES, rows, strict=True):
        answer = client.post(f"{v2.url}/v1/embed", content=file).json()
        rounding.assert_near(row, answer["embedding"], BUILTIN)


def test_classes_come_with_their_labels(asking: Any) -> None:
    wanted = triton.InferRequestedOutput("probabilities", class_count=3)
    told = asking.infer(NAME, [images(*FILES)], outputs=[wanted]).as_numpy("probabilities")
    assert told.shape == (3, 3)
    rows = probabilities(asking, images(*FILES))
    for texts, row in zip(told, rows, strict=True):
        values, numbers, labels = zip(*(text.decode().split(":") for text in texts), strict=True)
        assert list(map(int, numbers)) == np.argsort(-row)[:3].tolist()
        # Three of the classes have less of a scale than all; as text, they have six digits.
        allowed = rounding.relative(BUILTIN) * np.ptp(np.log(row)) / 2 + 1e-6
        np.testing.assert_allclose(
            np.array(values, float), np.sort(row)[::-1][:3], rtol=0, atol=allowed
        )
        assert all(label.isalpha() for label in labels)


def test_many_requests_at_a_time(asking: Any, v2: Service) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{v2.port}", concurrency=4) as several:
        waiting = [
            several.async_infer(NAME, [images(file)], priority=1, timeout=30_000_000)
            for file in FILES * 4
        ]
        rows = [each.get_result().as_numpy("probabilities")[0] for each in waiting]
    same_probabilities(np.stack(rows), np.tile(probabilities(asking, images(*FILES)), (4, 1)))


def test_a_timeout_that_has_passed_is_504(v2: Service, asking: Any) -> None:
    reasons = ("client_deadline", "deadline_exceeded")
    series = [f'resnet_serve_refusals_total{{model="{NAME}",reason="{each}"}}' for each in reasons]
    before = samples(v2)
    with pytest.raises(InferenceServerException) as caught:
        asking.infer(NAME, [images(*FILES)], timeout=1)
    assert caught.value.status() == "504"
    after = samples(v2)
    assert [after[name] - before[name] for name in series] == [1, 0]


def test_statistics_grow_with_what_is_computed(v2: Service, asking: Any) -> None:
    def told(*which: str) -> dict[str, Any]:
        (found,) = asking.get_inference_statistics(*which)["model_stats"]
        assert (found["name"], found["version"]) == ("tiny", "1")
        return dict(found)

    before = told("tiny")
    sent = triton.InferInput("image", [3], "BYTES")
    sent.set_data_from_numpy(np.array(FILES, dtype=np.object_))
    asking.infer("tiny", [sent])
    after = told("tiny", "1")
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] in (2, 3)  # It has max_batch 2.
    spans = {
        name: {key: span[key] - before["inference_stats"][name][key] for key in span}
        for name, span in after["inference_stats"].items()
    }
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    for part in parts:
        assert spans[part]["count"] == spans["success"]["count"] == 3
    assert spans["compute_infer"]["ns"] > 0
    total = sum(spans[part]["ns"] for part in parts)
    assert total == pytest.approx(spans["success"]["ns"], rel=1e-3)
    assert after["last_inference"] > before["last_inference"]
    sizes = {each["batch_size"]: each["compute_infer"] for each in after["batch_stats"]}
    assert set(sizes) <= {1, 2}
    assert sum(each["count"] for each in sizes.values()) == after["execution_count"]
    assert all(each["ns"] > 0 for each in sizes.values())
    with pytest.raises(InferenceServerException, match=r"image 2 of 2: the image has only"):
        asking.infer("tiny", [images(FILES[0], b"nonsense")])
    failed = told("tiny")["inference_stats"]["fail"]["count"]
    assert failed == after["inference_stats"]["fail"]["count"] + 1
    everything = asking.get_inference_statistics()["model_stats"]
    assert {NAME, "tiny"} <= {each["name"] for each in everything}


def test_models_are_loaded_and_unloaded_by_who_may(asking: Any, folder: Path) -> None:
    with pytest.raises(InferenceServerException, match="a key is required"):
        asking.load_model("tiny")
    with pytest.raises(InferenceServerException, match="a key is required"):
        asking.unload_model("tiny")
    asking.load_model("tiny", headers=dict(ADMIN))
    fields = {"spec": str(folder / "b.safetensors"), "engine": "eager", "max_batch": 1}
    asking.load_model("tiny", headers=dict(ADMIN), config=json.dumps(fields))
    assert asking.get_model_metadata("tiny")["outputs"][0]["shape"] == [-1, 4]
    for config in ("", "[]", "{", "3"):
        with pytest.raises(InferenceServerException, match="config: must be a JSON object"):
            asking.load_model("tiny", headers=dict(ADMIN), config=config)
    with pytest.raises(InferenceServerException, match="spek: unknown setting; did you mean spec"):
        asking.load_model("tiny", headers=dict(ADMIN), config='{"spec": "x", "spek": "x"}')
    with pytest.raises(InferenceServerException, match="never is not configured"):
        asking.load_model("never", headers=dict(ADMIN))
    asking.unload_model("tiny", headers=dict(ADMIN))
    assert not asking.is_model_ready("tiny")
    states = {each["name"]: each["state"] for each in asking.get_model_repository_index()}
    assert states == {NAME: "READY", "tiny": "UNAVAILABLE"}
    asking.load_model("tiny", headers=dict(ADMIN))
    assert asking.get_model_metadata("tiny")["outputs"][0]["shape"] == [-1, 3]
    with pytest.raises(InferenceServerException, match="the default model"):
        asking.unload_model(NAME, headers=dict(ADMIN))


def test_a_file_alone_is_a_request(v2: Service) -> None:
    """What `curl --data-binary @cat.png` sends with one header."""
    answer = post(v2, INFER, FILES[0], Inference_Header_Content_Length="0")
    assert answer.status_code == 200
    at = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:at])["outputs"][0]["shape"] == [1, CLASSES]
    assert len(answer.content) - at == CLASSES * 4


GOOD = {"name": "image", "datatype": "BYTES", "shape": [1]}
GOOD["data"] = [base64.b64encode(FILES[0]).decode()]


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/json; x=y"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_neither_a_content_type_nor_a_slash_matters(v2: Service, kind: str, slash: str) -> None:
    content = json.dumps({"inputs": [GOOD]}).encode()
    answer = post(v2, INFER + slash, content, Content_Type=kind)
    assert answer.status_code == 200
    assert len(answer.json()["outputs"][0]["data"]) == CLASSES


def test_one_connection_serves_many_requests(v2: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", v2.port, timeout=60)
    connection.connect()
    opened = connection.sock
    for path in (f"/v2/models/{NAME}/ready", "/v2/", f"/v2/models/{NAME}/"):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, answer.version) == (200, 11)
        assert json.loads(answer.read())["name"]
        assert connection.sock is opened
    connection.close()


def test_what_is_refused_is_an_error_in_the_protocols_form(v2: Service) -> None:
    assert "nope" in refused(post(v2, "/v2/models/nope/infer", b"{}"), 404)
    assert "version 1" in refused(post(v2, f"/v2/models/{NAME}/versions/2/infer", b"{}"), 404)
    assert "GET" in refused(client.get(f"{v2.url}{INFER}"), 405)
    assert "there is no /v2/nowhere" in refused(post(v2, "/v2/nowhere", b"{}"), 404)
    assert "a key is required" in refused(post(v2, "/v2/repository/models/x/load", b"{}"), 401)
    assert "inputs" in refused(post(v2, INFER, b"{}"), 400)
    assert "JSON" in refused(post(v2, INFER), 400)
    assert "unknown output 'logits'" in refused(
        post(v2, INFER, json.dumps({"inputs": [GOOD], "outputs": [{"name": "logits"}]}).encode()),
        400,
    )
    twice = {"inputs": [GOOD], "outputs": [{"name": "probabilities"}] * 2}
    assert "twice" in refused(post(v2, INFER, json.dumps(twice).encode()), 400)
    assert "the image has only" in refused(
        post(v2, INFER, b"x", Inference_Header_Content_Length="0"), 400
    )
    assert "limit" in refused(post(v2, INFER, bytes(LIMIT + 1)), 413)
    headers = {"X_Request_Timeout_Ms": "no"}
    assert "X-Request-Timeout-Ms" in refused(post(v2, INFER, b"{}", **headers), 422)


@pytest.mark.parametrize(("request_", "behind", "_words"), MALFORMED)
def test_what_is_malformed_is_the_callers_fault(
    v2: Service, request_: Any, behind: bytes, _words: str
) -> None:
    text = request_ if isinstance(request_, bytes) else json.dumps(request_).encode()
    lines = len(v2.log)
    answer = post(v2, INFER, text + behind, Inference_Header_Content_Length=str(len(text)))
    refused(answer, 400)
    assert not [line for line in v2.log[lines:] if "Traceback" in line or "ERROR" in line]


def test_what_is_refused_before_any_endpoint_has_the_form_too(v2: Service) -> None:
    answer = client.get(f"{v2.url}/v2/models", headers={"X": "x" * 70_000})
    assert "headers" in refused(answer, 431)


def test_who_leaves_before_the_body_is_whole(v2: Service) -> None:
    name = f'resnet_serve_refusals_total{{model="{NAME}",reason="caller_left"}}'
    before = samples(v2)[name]
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx".encode()
    with socket.create_connection(("127.0.0.1", v2.port), timeout=60) as connection:
        connection.sendall(head)
    until(lambda: samples(v2)[name] > before)


def test_a_bomb_is_refused(v2: Service) -> None:
    bomb = gzip.compress(bytes(8 * LIMIT))
    for length in ({}, {"Inference_Header_Content_Length": "2"}):
        answer = post(v2, INFER, bomb, Content_Encoding="gzip", **length)
        assert "decompresses to more than" in refused(answer, 413)
    numbers = b'{"inputs": [' + b"1," * (8 * 32 * 32 * 3 + 9000) + b"1]}"
    answer = post(v2, INFER, gzip.compress(numbers), Content_Encoding="gzip")
    assert "values; the limit is" in refused(answer, 413)
    assert "gzip or deflate" in refused(post(v2, INFER, bomb, Content_Encoding="br"), 415)
    assert {"invalid_input", "unsupported_encoding"} <= set(REASONS)
