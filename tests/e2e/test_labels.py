"""What a client learns about a model is enough to name its classes and to prepare its tensors."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tritonclient import http as triton

from service.client import Client
from tests.conftest import Service, client, encoded, started
from tests.support import kinds

CIFAR = "resnet20-cifar10"
LABELS = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
MANY = 1001
MODELS = f"""
models:
  - {{spec: "builtin:{CIFAR}", engine: eager, precision: fp32, max_batch: 2}}
  - name: many
    spec: random:resnet20
    architecture: {{num_classes: {MANY}}}
    engine: eager
    max_batch: 1
"""
KINDS = ("independent", "grey", "rgba", "squashed", "letterboxed", "headless")


@pytest.fixture(scope="module", params=["1", "2"])
def serving(tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("labels")
    kinds.write(folder, *KINDS)
    config = folder / "serve.yaml"
    more = [
        f"  - {{name: {name}, spec: {folder / name}.safetensors, engine: eager, precision: fp32}}\n"
        for name in KINDS
    ]
    config.write_text(MODELS + "".join(more))
    with started("--config", str(config), RESNET_SERVE_WORKERS=request.param) as running:
        yield running


def ask(serving: Service, path: str, **query: Any) -> Any:
    response = client.get(f"{serving.url}{path}", params=query)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_model_lists_its_labels_in_class_order(serving: Service) -> None:
    assert ask(serving, f"/v1/models/{CIFAR}")["labels"] == LABELS
    answer = client.post(f"{serving.url}/v1/classify?top_k=10", content=encoded()).json()
    for prediction in answer["predictions"]:
        assert LABELS[prediction["class_id"]] == prediction["label"]


def test_more_than_a_thousand_labels_are_listed_on_request(serving: Service) -> None:
    assert "labels" not in ask(serving, "/v1/models/many")
    labels = ask(serving, "/v1/models/many", labels="true")["labels"]
    assert len(labels) == MANY
    answer = client.post(f"{serving.url}/v1/classify?model=many", content=encoded()).json()
    for prediction in answer["predictions"]:
        assert labels[prediction["class_id"]] == prediction["label"]
    metadata, config = "/v2/models/many", "/v2/models/many/config"
    assert "parameters" not in ask(serving, metadata)["outputs"][0]
    assert "labels" not in ask(serving, config)["parameters"]
    (output, _) = ask(serving, metadata, labels="true")["outputs"]
    assert output["parameters"] == {"labels": labels}
    text = ask(serving, config, labels="true")["parameters"]["labels"]["string_value"]
    assert json.loads(text) == labels


def test_labels_are_left_out_on_request_and_in_the_list(serving: Service) -> None:
    assert "labels" not in ask(serving, f"/v1/models/{CIFAR}", labels="false")
    assert "parameters" not in ask(serving, f"/v2/models/{CIFAR}", labels="false")["outputs"][0]
    assert not any("labels" in model for model in ask(serving, "/v1/models")["models"])


def test_a_model_without_classes_has_no_labels(serving: Service) -> None:
    assert ask(serving, "/v1/models/headless")["labels"] == []
    assert [o["name"] for o in ask(serving, "/v2/models/headless")["outputs"]] == ["embedding"]


@pytest.mark.parametrize(("path", "status"), [("/v1", 422), ("/v2", 400)])
def test_an_unclear_wish_for_labels_is_refused(serving: Service, path: str, status: int) -> None:
    response = client.get(f"{serving.url}{path}/models/{CIFAR}?labels=perhaps")
    assert response.status_code == status
    assert "labels" in response.text


def test_clients_of_triton_and_our_own_get_the_labels(serving: Service) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{serving.port}") as asking:
        output = asking.get_model_metadata(CIFAR)["outputs"][0]
        assert output["parameters"]["labels"] == LABELS
        config = asking.get_model_config(CIFAR)
        assert json.loads(config["parameters"]["labels"]["string_value"]) == LABELS
    with Client(serving.url) as own:
        assert own.model(CIFAR).labels == tuple(LABELS)
        assert own.model("many").labels is None
        assert {model.labels for model in own.models()} == {None}


def prepared(image: Image.Image, told: dict[str, Any]) -> NDArray[np.float32]:
    """The image as a tensor [H, W, C], from the words of a V2 input's parameters alone."""
    channels = told["channels"]
    image = image.convert({"grey": "L", "rgba": "RGBA"}.get(channels, "RGB"))
    height, width = np.broadcast_to(told["size"], 2).tolist()
    box_height, box_width = np.broadcast_to(told["resize"], 2).tolist()
    resampling = Image.Resampling[told["interpolation"].upper()]
    factors = box_width / image.width, box_height / image.height
    if told["crop"] == "squash":
        image = image.resize((box_width, box_height), resampling)
    elif told["crop"] == "letterbox":
        sides = round(image.width * min(factors)), round(image.height * min(factors))
        fill = told["fill"][::-1] if channels == "bgr" else told["fill"]
        whole = Image.new(image.mode, (width, height), tuple(fill))
        whole.paste(
            image.resize(sides, resampling), ((width - sides[0]) // 2, (height - sides[1]) // 2)
        )
        image = whole
    else:
        assert (told["crop"], box_width) == ("center", box_height)
        sides = int(image.width * max(factors)), int(image.height * max(factors))
        image = image.resize(sides, resampling)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image).reshape(height, width, -1)
    if channels == "bgr":
        pixels = pixels[:, :, ::-1]
    tensor: NDArray[np.float32] = ((pixels / 255 - told["mean"]) / told["std"]).astype("f4")
    return tensor


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", [CIFAR, *KINDS[:-1]])
def test_a_tensor_prepared_as_the_metadata_says_gives_what_the_file_gives(
    serving: Service, name: str, layout: str
) -> None:
    file = encoded(size=(90, 70))
    (told,) = [
        each["parameters"]
        for each in ask(serving, f"/v2/models/{name}")["inputs"]
        if each["name"] == "input"
    ]
    card = ask(serving, f"/v1/models/{name}")["input"]
    assert card.items() <= told.items()
    assert layout in told["layouts"]
    array = prepared(Image.open(io.BytesIO(file)), told)[None]
    if layout == "NCHW":
        array = array.transpose(0, 3, 1, 2)
    given = triton.InferInput("input", list(array.shape), "FP32")
    given.set_data_from_numpy(np.ascontiguousarray(array))
    with triton.InferenceServerClient(f"127.0.0.1:{serving.port}") as asking:
        found = asking.infer(name, [given]).as_numpy("probabilities")[0]
    answer = client.post(
        f"{serving.url}/v1/classify", params={"model": name, "top_k": len(found)}, content=file
    ).json()["predictions"]
    assert answer[0]["class_id"] == found.argmax()
    for prediction in answer:
        assert found[prediction["class_id"]] == pytest.approx(prediction["probability"], abs=1e-3)
