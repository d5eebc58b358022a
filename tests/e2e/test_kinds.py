"""Models of every kind of input, head and output, on a real service."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tritonclient import grpc as over_grpc
from tritonclient import http as over_http
from tritonclient.utils import InferenceServerException

from models import preprocess
from models.bundle import Bundle
from service.client import Client
from tests.conftest import Service, client, encoded, started
from tests.e2e.test_grpc import address_of
from tests.support import kinds
from tests.support.commands import run

NAMES = tuple(kinds.KINDS)
CLASSES = [name for name in NAMES if name != "headless"]
# Neither the proportions nor the channels of any model.
FILE = encoded(size=(70, 50), mode="RGBA")
PHOTO = encoded("JPEG", size=(70, 50))
# A response has six decimals of a probability; the rest is the order of sums.
DIGITS = 2e-6
NO_CLASSES = "the model headless has no classes; use POST /v1/embed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@pytest.fixture(scope="module")
def bundles(folder: Path) -> dict[str, Bundle]:
    return kinds.write(folder, *NAMES)


@pytest.fixture(
    scope="module", params=[pytest.param("1", marks=pytest.mark.slow, id="1-worker"), "2"]
)
def serving(
    bundles: dict[str, Bundle], folder: Path, request: pytest.FixtureRequest
) -> Iterator[Service]:
    models = kinds.options(folder, *bundles)
    kind = ("--engine", "eager", "--precision", "fp32", "--grpc-port", "0")
    settings = {"RESNET_SERVE_WORKERS": request.param, "RESNET_SERVE_MAX_BATCH": "2"}
    with started(*models, *kind, **settings) as running:
        yield running


def ask(serving: Service, path: str, file: bytes = FILE, status: int = 200, **query: Any) -> Any:
    response = client.post(f"{serving.url}/v1/{path}", params=query, content=file)
    assert response.status_code == status, response.text
    return response


def by_class(predictions: list[dict[str, Any]]) -> NDArray[np.float64]:
    ordered = sorted(predictions, key=lambda each: each["class_id"])
    return np.array([each["probability"] for each in ordered])


@pytest.mark.parametrize("file", [FILE, PHOTO], ids=["png", "jpeg"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_model_answers_what_its_classifier_computes(
    serving: Service, bundles: dict[str, Bundle], name: str, file: bytes
) -> None:
    made = bundles[name]
    expected = kinds.probabilities(made, kinds.pixels(file, made.input))
    body = ask(serving, "classify", file, model=name, top_k=len(made.labels)).json()
    found = by_class(body["predictions"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=DIGITS)
    assert (np.diff([each["probability"] for each in body["predictions"]]) <= 0).all()
    form = {"image": ("a.png", file)}
    batch = client.post(
        f"{serving.url}/v1/classify/batch",
        params={"model": name, "top_k": len(made.labels)},
        files=form,
    ).json()
    np.testing.assert_allclose(
        by_class(batch["results"][0]["predictions"]), expected, rtol=0, atol=DIGITS
    )


def test_independent_labels_do_not_share_a_whole(serving: Service) -> None:
    found = ask(serving, "classify", model="independent", top_k=7).json()["predictions"]
    assert abs(sum(each["probability"] for each in found) - 1) > 0.1
    (only,) = ask(serving, "classify", model="one").json()["predictions"]
    assert 0 < only["probability"] < 1


@pytest.mark.parametrize("name", NAMES)
def test_the_models_say_what_they_take_and_give(
    serving: Service, bundles: dict[str, Bundle], name: str
) -> None:
    made = bundles[name]
    card = client.get(f"{serving.url}/v1/models/{name}").json()
    spec = card["input"]
    assert (card["num_classes"], card["outputs"]) == (len(made.labels), made.outputs)
    assert preprocess.InputSpec(**spec) == made.input
    assert card["explain"] is (name not in ("headless", "layers"))
    assert card.get("views", "plain") == made.views
    with Client(serving.url) as ours:
        told = ours.model(name)
    assert (told.outputs, told.num_classes) == (made.outputs, len(made.labels))
    assert told.views == made.views
    assert (told.input.size, told.input.channels) == (made.input.size, made.input.channels)
    assert (told.input.resize, told.input.fill) == (made.input.resize, made.input.fill)


def test_a_list_of_models_has_no_tables_and_one_model_has_them(serving: Service) -> None:
    listed = client.get(f"{serving.url}/v1/models").json()["models"]
    assert {str(each["metrics"]) for each in listed} == {"{'a set': {'top1': 0.5}}", "{}"}
    url = f"{serving.url}/v1/models/grey"
    told = client.get(url).json()["metrics"]["a set"]
    assert told == {"top1": 0.5, "per_class": [{"label": "label 0"}]}
    assert client.get(url, params={"labels": "false"}).json()["metrics"] == {"a set": {"top1": 0.5}}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_embeds_what_its_network_computes(
    serving: Service, bundles: dict[str, Bundle], name: str
) -> None:
    expected = kinds.features(bundles[name], kinds.pixels(FILE, bundles[name].input))
    found = np.array(ask(serving, "embed", model=name).json()["embedding"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("query", [{}, {"top_k": 1}])
@pytest.mark.parametrize("path", ["classify", "classify/batch"])
def test_a_model_without_classes_says_what_to_ask_instead(
    serving: Service, path: str, query: dict[str, int]
) -> None:
    response = client.post(
        f"{serving.url}/v1/{path}",
        params={"model": "headless", **query},
        files={"image": ("a.png", FILE)},
    )
    assert response.status_code == 422
    problem = response.json()
    assert (problem["type"], problem["detail"]) == (
        "urn:resnet-serve:problem:bad_parameter",
        NO_CLASSES,
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("headless", "headless cannot explain: it has no classes; use POST /v1/embed"),
        ("layers", "layers cannot explain: its head is not a single linear layer"),
    ],
)
def test_only_a_head_of_one_layer_explains(serving: Service, name: str, says: str) -> None:
    problem = ask(serving, "explain", model=name, status=422).json()
    assert problem["detail"].startswith(says)
    assert "\n" not in problem["detail"]


@pytest.mark.parametrize(
    ("name", "sides", "region"),
    [
        ("squashed", (24, 16), (0, 0, 1, 1)),
        # 70 x 50 pixels become 56 x 40.
        ("letterboxed", (20, 28), (0, 0, 1, 1)),
        ("grey", (14, 14), (1 / 7, 0, 5 / 7, 1)),
        ("independent", (16, 16), None),
        ("mirrored", (16, 16), None),
    ],
)
def test_a_map_covers_what_the_network_sees(
    serving: Service,
    bundles: dict[str, Bundle],
    name: str,
    sides: tuple[int, int],
    region: tuple[float, ...] | None,
) -> None:
    body = ask(serving, "explain", model=name, class_id=0).json()
    grid = np.array(body["grid"])
    assert grid.shape == sides
    assert grid.mean() + body["bias"] == pytest.approx(body["logit"], abs=1e-6)
    made = bundles[name]
    if made.outputs == "independent":
        assert body["probability"] == pytest.approx(1 / (1 + np.exp(-body["logit"])), abs=1e-5)
    if region is not None:
        assert tuple(body["region"].values()) == pytest.approx(region, abs=0.02)
    file = ask(serving, "explain", model=name, format="png").content
    picture = Image.open(io.BytesIO(file))
    height, width = made.input.height, made.input.width
    times = max(1, round(224 / max(height, width)))
    assert (picture.mode, picture.size) == ("RGB", (times * width, times * height))


@pytest.mark.parametrize("size", [(80, 20), (30, 90)])
def test_the_map_of_a_letterboxed_image_goes_beyond_it(
    serving: Service, size: tuple[int, int]
) -> None:
    region = ask(serving, "explain", encoded(size=size), model="letterboxed").json()["region"]
    start, length = ("top", "height") if size[0] > size[1] else ("left", "width")
    assert region[start] < 0
    assert region[start] + region[length] > 1
    assert region[start] == pytest.approx((1 - region[length]) / 2, abs=0.05)


def test_the_picture_of_a_map_shows_the_colours_of_the_image(serving: Service) -> None:
    """The network sees bgr, people do not; beside the image is its fill."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 40), (10, 20, 250)).save(buffer, "PNG")
    pictures = []
    for class_id in range(10):
        query: dict[str, Any] = {"class_id": class_id, "format": "png"}
        file = ask(serving, "explain", buffer.getvalue(), model="letterboxed", **query).content
        pictures.append(np.asarray(Image.open(io.BytesIO(file)), int))
    height, width = pictures[0].shape[:2]
    # What speaks against a class is not coloured, and something speaks against one of ten.
    for place, colour in (((height // 2, width // 2), (10, 20, 250)), ((0, 0), (230, 120, 10))):
        assert [*colour] in [picture[place].tolist() for picture in pictures]


def infer(serving: Service, name: str, status: int = 200, **request: Any) -> Any:
    response = client.post(f"{serving.url}/v2/models/{name}/infer", json=request)
    assert response.status_code == status, response.text
    return response.json()


def tensor(name: str, values: NDArray[Any]) -> dict[str, Any]:
    datatype = {"pixels": "UINT8", "input": "FP32"}[name]
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(values.shape),
        "data": values.ravel().tolist(),
    }


@pytest.mark.parametrize("name", CLASSES)
def test_tensors_have_the_shape_and_the_channels_of_the_model(
    serving: Service, bundles: dict[str, Bundle], name: str
) -> None:
    made = bundles[name]
    spec = made.input
    height, width, channels = spec.shape
    told = client.get(f"{serving.url}/v2/models/{name}").json()
    assert {each["name"]: each["shape"] for each in told["inputs"]} == {
        "image": [-1, 1],
        "pixels": [-1, height, width, channels],
        "input": [-1, channels, height, width],
    }
    assert told["parameters"] == {"channels": spec.channels, "outputs": made.outputs}
    config = client.get(f"{serving.url}/v2/models/{name}/config").json()
    assert config["parameters"]["outputs"] == {"string_value": made.outputs}
    assert config["parameters"]["channels"] == {"string_value": spec.channels}
    assert [each["dims"] for each in config["input"]] == [
        [1],
        [height, width, channels],
        [channels, height, width],
    ]
    seen = kinds.pixels(FILE, spec)
    normalised = ((seen / 255 - spec.mean) / spec.std).astype(np.float32)
    expected = kinds.probabilities(made, seen)
    for given in (
        tensor("pixels", seen[None]),
        tensor("input", normalised[None]),
        tensor("input", normalised.transpose(2, 0, 1)[None]),
        tensor("input", normalised.transpose(2, 0, 1)),
    ):
        (output,) = infer(serving, name, inputs=[given])["outputs"]
        assert (output["name"], output["shape"]) == ("probabilities", [1, len(made.labels)])
        np.testing.assert_allclose(output["data"], expected, rtol=0, atol=1e-5)
    wrong = tensor("pixels", np.zeros((1, height + 1, width, channels), np.uint8))
    refused = infer(serving, name, 400, inputs=[wrong])["error"]
    assert f"must be [-1, {height}, {width}, {channels}]" in refused


def test_v2_offers_only_the_embedding_of_a_model_without_classes(
    serving: Service, bundles: dict[str, Bundle]
) -> None:
    told = client.get(f"{serving.url}/v2/models/headless").json()
    assert told["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 8]}]
    assert told["parameters"] == {"channels": "rgb"}
    made = bundles["headless"]
    seen = kinds.pixels(FILE, made.input)
    (output,) = infer(serving, "headless", inputs=[tensor("pixels", seen[None])])["outputs"]
    assert (output["name"], output["shape"]) == ("embedding", [1, 8])
    np.testing.assert_allclose(output["data"], kinds.features(made, seen), rtol=1e-4, atol=1e-5)
    asked = [{"name": "probabilities"}]
    refused = infer(serving, "headless", 400, inputs=[tensor("pixels", seen[None])], outputs=asked)[
        "error"
    ]
    assert refused == "outputs: the model headless has no classes; request embedding"


@pytest.fixture
def askers(serving: Service) -> Iterator[list[tuple[Any, Any]]]:
    """The modules of Triton's clients, each with a client: gRPC first, then HTTP."""
    with (
        over_grpc.InferenceServerClient(address_of(serving)) as first,
        over_http.InferenceServerClient(serving.url.removeprefix("http://")) as second,
    ):
        yield [(over_grpc, first), (over_http, second)]


def rows(asker: tuple[Any, Any], model: str, values: NDArray[Any], *outputs: str) -> Any:
    """The outputs asked for, or the default one, of an input that its datatype tells."""
    module, asking = asker
    name, datatype = {
        "object": ("image", "BYTES"),
        "uint8": ("pixels", "UINT8"),
        "float32": ("input", "FP32"),
    }[values.dtype.name]
    given = module.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values)
    wanted = [module.InferRequestedOutput(output) for output in outputs]
    found = asking.infer(model, [given], outputs=wanted or None)
    default = "embedding" if model == "headless" else "probabilities"
    return [found.as_numpy(output) for output in outputs or (default,)]


@pytest.mark.parametrize("name", NAMES)
def test_grpc_answers_what_http_answers(
    serving: Service, bundles: dict[str, Bundle], askers: list[tuple[Any, Any]], name: str
) -> None:
    spec, labels = bundles[name].input, bundles[name].labels
    seen = kinds.pixels(FILE, spec)[None]
    normalised = ((seen / 255 - spec.mean) / spec.std).astype(np.float32)
    planes = np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
    outputs = ("embedding", "probabilities") if labels else ("embedding",)
    card = ask(serving, "embed", model=name).json()["embedding"]
    expected = [np.array([card])]
    if labels:
        found = ask(serving, "classify", model=name, top_k=len(labels)).json()["predictions"]
        expected.append(by_class(found)[None])
    file = np.array([[FILE]], np.object_)
    for given in (file, seen, normalised, planes, seen[0], planes[0]):
        ours, theirs = (rows(asker, name, given, *outputs) for asker in askers)
        for mine, other, wanted in zip(ours, theirs, expected, strict=True):
            assert mine.dtype == other.dtype == np.float32
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)
        (default,) = rows(askers[0], name, given)
        np.testing.assert_allclose(default, ours[-1], rtol=1e-4, atol=1e-5)
    two = np.array([[FILE], [PHOTO]], np.object_)
    ours, theirs = (rows(asker, name, two, *outputs) for asker in askers)
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine) == 2
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


def listed(told: list[dict[str, Any]], shape: str) -> list[tuple[str, list[int]]]:
    """Names and shapes; the 64-bit integers of protobuf's JSON are texts."""
    return [(each["name"], [int(side) for side in each[shape]]) for each in told]


@pytest.mark.parametrize("name", NAMES)
def test_grpc_describes_the_models_as_http_does(askers: list[tuple[Any, Any]], name: str) -> None:
    (_, ours), (_, theirs) = askers
    told, wanted = ours.get_model_metadata(name, as_json=True), theirs.get_model_metadata(name)
    for part in ("inputs", "outputs"):
        assert listed(told[part], "shape") == listed(wanted[part], "shape")
    told, wanted = ours.get_model_config(name, as_json=True), theirs.get_model_config(name)
    for part in ("input", "output"):
        assert listed(told["config"][part], "dims") == listed(wanted[part], "dims")
    assert told["config"]["parameters"] == wanted["parameters"]


@pytest.mark.parametrize(
    ("name", "shape", "output"),
    [
        ("headless", (32, 32, 3), "probabilities"),
        ("grey", (28, 28, 3), "probabilities"),
        ("rgba", (24, 24, 3), "probabilities"),
        ("letterboxed", (56, 40, 3), "probabilities"),
        ("independent", (32, 32, 3), "logits"),
    ],
)
def test_grpc_refuses_with_the_text_of_http(
    askers: list[tuple[Any, Any]], name: str, shape: tuple[int, ...], output: str
) -> None:
    errors = []
    for asker in askers:
        with pytest.raises(InferenceServerException) as caught:
            rows(asker, name, np.zeros((1, *shape), np.uint8), output)
        errors.append((caught.value.status(), caught.value.message()))
    (status, text), (_, wanted) = errors
    assert (status, text) == ("StatusCode.INVALID_ARGUMENT", wanted)
    if name == "headless":
        assert text == "outputs: the model headless has no classes; request embedding"


def test_the_largest_values_over_grpc_have_labels_where_the_model_has(
    serving: Service, askers: list[tuple[Any, Any]]
) -> None:
    found = ask(serving, "classify", model="independent", top_k=3).json()["predictions"]
    given = over_grpc.InferInput("image", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[FILE]], np.object_))
    (_, asking), _ = askers
    wanted = over_grpc.InferRequestedOutput("probabilities", class_count=3)
    told = asking.infer("independent", [given], outputs=[wanted]).as_numpy("probabilities")
    texts = [text.decode().split(":") for text in told[0]]
    assert [(int(number), label) for _, number, label in texts] == [
        (each["class_id"], each["label"]) for each in found
    ]
    values = [float(value) for value, _, _ in texts]
    assert values == pytest.approx([each["probability"] for each in found], abs=1e-5)
    wanted = over_grpc.InferRequestedOutput("embedding", class_count=3)
    told = asking.infer("headless", [given], outputs=[wanted]).as_numpy("embedding")
    features = np.array(ask(serving, "embed", model="headless").json()["embedding"])
    numbers = [int(text.decode().split(":")[1]) for text in told[0]]
    assert numbers == np.argsort(-features, kind="stable")[:3].tolist()
    assert all(text.count(b":") == 1 for text in told[0])


def test_the_api_reference_tells_both_kinds_of_outputs(serving: Service) -> None:
    schemas = client.get(f"{serving.url}/openapi.json").json()["components"]["schemas"]
    assert schemas["ModelCard"]["properties"]["outputs"]["enum"] == ["exclusive", "independent"]
    assert "sigmoid" in schemas["Prediction"]["properties"]["probability"]["description"]


def test_the_shell_prints_independent_labels_without_percent(
    serving: Service, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(FILE)
    printed = run("classify", tmp_path / "a.png", "--url", serving.url)
    made = bundles["independent"]
    expected = kinds.probabilities(made, kinds.pixels(FILE, made.input)).max()
    assert f" {expected:.3f}" in printed.stdout
    assert "%" not in printed.output
    assert printed.stderr.startswith("independent labels: ")
    printed = run("classify", tmp_path / "a.png", "--url", serving.url, "--model", "grey")
    assert "%" in printed.stdout
    assert not printed.stderr
    refused = run(
        "classify", tmp_path / "a.png", "--url", serving.url, "--model", "headless", status=2
    )
    assert refused.output.count("\n") == 1
    assert NO_CLASSES in refused.output


def test_a_refusal_is_one_that_clients_read(serving: Service) -> None:
    response: httpx.Response = ask(serving, "classify", model="headless", status=422)
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.content)["status"] == 422
