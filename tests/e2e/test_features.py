"""POST /v1/embed and /v1/explain, in one process and in several."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models import bundle, bundling, preprocess
from models.architecture import Architecture
from models.preprocess import CIFAR, InputSpec
from service.inference.decoding import decode_image
from service.repository import catalog
from tests.conftest import Service, client, encoded, started
from tests.support import rounding

IMAGE = encoded(size=(40, 32))
MODEL = "builtin:resnet20-cifar10"


SERVICES = [
    pytest.param(("1", "fp32"), marks=pytest.mark.slow, id="1-fp32"),
    pytest.param(("2", "fp32"), id="2-fp32"),
    pytest.param(("2", "bf16"), marks=pytest.mark.precision, id="2-bf16"),
]


@pytest.fixture(scope="module", params=SERVICES)
def serving(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One with maps to explain, and one whose last maps have one place."""
    workers, precision = request.param
    file = tmp_path_factory.mktemp("bundles") / "coarse.safetensors"
    spec = InputSpec(size=32, resize=32, mean=CIFAR.mean, std=CIFAR.std)
    halving = Architecture(
        block="basic", blocks=(1, 1, 1, 1), planes=(8, 8, 8, 8), stem="imagenet", num_classes=5
    )
    bundle.write(bundling.untrained(halving, "coarse", spec), file)
    models = ("--model", MODEL, "--model", str(file))
    settings = {"RESNET_SERVE_WORKERS": workers, "RESNET_SERVE_PRECISION": precision}
    with started(*models, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def precision(serving: Service) -> str:
    told: str = client.get(f"{serving.url}/v1/models/resnet20-cifar10").json()["precision"]
    return told


def ask(serving: Service, path: str, status: int = 200, **query: Any) -> Any:
    response = client.post(f"{serving.url}/v1/{path}", params=query, content=IMAGE)
    assert response.status_code == status, response.text
    return response


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Features [C], maps [C, h, w] and logits [K], by plain PyTorch; and the network itself."""
    opened = catalog.load(MODEL).bundle
    network, classifier = opened.network(), opened.classifier()
    pixels = decode_image(IMAGE, opened.input, 10**6).pixels
    with torch.inference_mode():
        normalised = classifier.normalise(torch.from_numpy(pixels)[None])
        maps = network.maps(normalised)
        found = {
            "maps": maps,
            "features": network.features(normalised),
            "logits": network(normalised),
        }
    return {name: value[0].numpy() for name, value in found.items()} | {
        "weight": opened.tensors["head.weight"].numpy(),
        "pixels": pixels,
        "network": network,
    }


def test_features_in_every_format(
    serving: Service, expected: dict[str, Any], precision: str
) -> None:
    body = ask(serving, "embed").json()
    assert (body["model"], body["dimensions"], body["normalized"]) == (
        "resnet20-cifar10",
        64,
        False,
    )
    features = np.array(body["embedding"], np.float32)
    rounding.assert_near(features, expected["features"], expected["network"], precision)
    packed = ask(serving, "embed", format="f32")
    np.testing.assert_array_equal(np.frombuffer(packed.content, "<f4"), features)
    saved = ask(serving, "embed", format="npy")
    assert saved.headers["content-type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(saved.content)), features)
    assert set(body["timing_ms"]) == {"accept", "decode", "queue", "inference", "total"}
    for each in (packed, saved):
        assert "inference;dur=" in each.headers["server-timing"]


def test_normalised_features_have_length_one(serving: Service) -> None:
    plain = np.array(ask(serving, "embed").json()["embedding"])
    body = ask(serving, "embed", normalize=True).json()
    assert body["normalized"] is True
    found = np.array(body["embedding"])
    # Of 64 numbers in float32.
    assert np.linalg.norm(found) == pytest.approx(1, abs=rounding.of_sums([64]))
    allowed = rounding.of_sums([64]) * np.abs(plain).max()
    np.testing.assert_allclose(found * np.linalg.norm(plain), plain, rtol=0, atol=allowed)


@pytest.mark.parametrize("class_id", [None, 0, 9])
def test_a_map_adds_up_to_the_logit_of_its_class(
    serving: Service, expected: dict[str, Any], precision: str, class_id: int | None
) -> None:
    query = {} if class_id is None else {"class_id": class_id}
    body = ask(serving, "explain", **query).json()
    usual = ask(serving, "classify", top_k=5).json()
    assert body["predictions"] == usual["predictions"]
    chosen = usual["predictions"][0]["class_id"] if class_id is None else class_id
    assert body["class_id"] == chosen
    grid = np.array(body["grid"])
    maps = np.tensordot(expected["weight"][chosen], expected["maps"], 1)
    within = partial(rounding.assert_near, layers=expected["network"], precision=precision)
    # Each place adds up 64 maps with signs: to the scale of their sizes, not of what is left.
    scale = np.tensordot(np.abs(expected["weight"][chosen]), np.abs(expected["maps"]), 1).max()
    within(grid, maps, scale=scale)
    assert grid.mean() + body["bias"] == pytest.approx(body["logit"], abs=1e-9)
    within([body["logit"]], [expected["logits"][chosen]], scale=scale)
    # 40 x 32 pixels: the middle 32 x 32 are seen.
    assert body["region"] == {"left": 0.1, "top": 0, "width": 0.8, "height": 1}


def test_the_picture_colours_what_speaks_for_the_class(
    serving: Service, expected: dict[str, Any]
) -> None:
    response = ask(serving, "explain", format="png")
    assert response.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(response.content)), float)
    assert picture.shape == (224, 224, 3)
    plain = expected["pixels"].repeat(7, 0).repeat(7, 1)
    changed = np.abs(picture - plain).sum(-1)
    grid = np.array(ask(serving, "explain").json()["grid"])
    row, column = np.unravel_index(grid.argmax(), grid.shape)
    cell = 224 // len(grid)
    assert changed[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].mean() > 30
    against = np.kron(grid, np.ones((cell, cell))) < np.minimum(0, np.quantile(grid, 0.1))
    if against.any():
        assert changed[against].mean() < changed.mean()


@pytest.mark.parametrize(
    ("path", "query", "says"),
    [
        ("explain", {"class_id": 10}, "class_id must be from 0 to 9, not 10"),
        ("explain", {"class_id": -1}, "class_id"),
        ("explain", {"format": "gif"}, "'json' or 'png'"),
        ("embed", {"format": "npz"}, "'json', 'npy' or 'f32'"),
        ("embed", {"normalize": "perhaps"}, "normalize"),
    ],
)
def test_what_cannot_be_asked_is_said(
    serving: Service, path: str, query: dict[str, Any], says: str
) -> None:
    problem = ask(serving, path, 422, **query).json()
    assert says in problem["detail"]


def test_the_models_say_what_they_can(serving: Service) -> None:
    card = client.get(f"{serving.url}/v1/models/resnet20-cifar10").json()
    assert (card["embedding"], card["explain"]) == (64, True)


def test_a_model_whose_last_maps_have_one_place_explains_nothing(serving: Service) -> None:
    problem = ask(serving, "explain", 422, model="coarse").json()
    assert (
        "coarse cannot explain: its last feature maps have a single position" in problem["detail"]
    )
    assert len(ask(serving, "embed", model="coarse").json()["embedding"]) == 8
    card = client.get(f"{serving.url}/v1/models/coarse").json()
    assert (card["embedding"], card["explain"]) == (8, False)


@pytest.mark.parametrize("crop", ["center", "center_floor", "before_resize"])
@pytest.mark.parametrize("size", [(500, 375), (375, 501), (64, 64), (33, 200)])
def test_a_region_is_what_the_network_sees(crop: Any, size: tuple[int, int]) -> None:
    spec = InputSpec(size=56, resize=64, crop=crop, mean=CIFAR.mean, std=CIFAR.std)
    width, height = size
    # Each pixel says where it is, in parts of the width and of the height.
    x = np.linspace(0.5 / width, 1 - 0.5 / width, width) * 255
    y = np.linspace(0.5 / height, 1 - 0.5 / height, height) * 255
    places = np.zeros((height, width, 3), np.uint8)
    places[..., 0], places[..., 1] = x.round()[None, :], y.round()[:, None]
    seen = preprocess.resize_and_crop(Image.fromarray(places), spec).mean((0, 1)) / 255
    left, top, across, down = preprocess.region(width, height, spec)
    assert left + across / 2 == pytest.approx(seen[0], abs=0.01)
    assert top + down / 2 == pytest.approx(seen[1], abs=0.01)
    short = min(size)
    assert across * width == pytest.approx(short * 56 / 64, abs=2)
    assert down * height == pytest.approx(short * 56 / 64, abs=2)
