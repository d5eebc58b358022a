"""HTTP responses are the same wherever JPEGs are decoded, with one process and with several.

`tests/decoders/sitecustomize.py` lets a decoder that gives PIL's pixels stand for a device's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import bundle, bundling
from tests.conftest import Service, client, started
from tests.e2e.test_workers import all_ready
from tests.service.inference.test_pipeline import DAMAGED, NEAR, OTHERS, SPEC, jpeg, picture
from tests.support import tiny
from tests.support.hostile.formats import saved
from tests.support.waiting import until

DECODERS = Path(__file__).parents[1] / "decoders"
IMAGES = {
    **{f"plain {seed}": jpeg(seed, (100 + seed, 90)) for seed in range(4)},
    "grey": saved(picture(5).convert("L"), "JPEG"),
    **{name: make() for name, make in OTHERS.items()},
    "damaged": DAMAGED,
}


@pytest.fixture(scope="module", params=["1", "2"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One network twice: "host" and "device" decode there."""
    folder = tmp_path_factory.mktemp("service")
    path = folder / "tiny.safetensors"
    bundle.write(bundling.from_network(tiny.network(), **tiny.described(input=SPEC)), path)
    common = {"spec": str(path), "device": "cpu", "engine": "eager", "precision": "fp32"}
    models = [{**common, "name": name, "decode": name} for name in ("host", "device")]
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps({"models": models, "max_pixels": 300_000}))
    found = [str(DECODERS), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    with started(
        *("--config", str(settings), "--workers", request.param),
        ready=False,
        PYTHONPATH=os.pathsep.join(filter(None, found)),
    ) as running:
        until(lambda: all_ready(running))
        yield running


def post(service: Service, path: str, data: bytes, model: str) -> tuple[int, Any]:
    response = client.post(f"{service.url}{path}?model={model}", content=data)
    return response.status_code, response.json()


def without_what_varies(body: Any) -> Any:
    return {
        key: value
        for key, value in body.items()
        if key not in {"model", "predictions", "embedding", "timing_ms", "batch_size", "instance"}
    }


def check_near(ours: Any, theirs: Any) -> None:
    def probabilities(body: Any) -> dict[str, float]:
        return {each["label"]: each["probability"] for each in body["predictions"]}

    found, expected = probabilities(ours), probabilities(theirs)
    near = [abs(found[label] - expected[label]) < NEAR for label in found.keys() & expected.keys()]
    assert len(near) >= 4
    assert all(near)


def test_the_cards_say_where_files_are_decoded(service: Service) -> None:
    cards = client.get(f"{service.url}/v1/models").json()["models"]
    assert {card["name"]: card["decode"] for card in cards} == {"host": "host", "device": "device"}


@pytest.mark.parametrize("name", IMAGES)
def test_responses_are_those_of_the_host(service: Service, name: str) -> None:
    (status, host), (on_device, device) = (
        post(service, "/v1/classify", IMAGES[name], model) for model in ("host", "device")
    )
    assert on_device == status
    assert without_what_varies(device) == without_what_varies(host)
    if status == 200:
        check_near(device, host)
        is_plain = name == "grey" or name.startswith("plain")
        assert (device["timing_ms"]["decode"] == 0) is is_plain
        assert host["timing_ms"]["decode"] > 0


def test_features_and_explanations_too(service: Service) -> None:
    for path in ("/v1/embed", "/v1/explain"):
        (status, host), (on_device, device) = (
            post(service, path, jpeg(), model) for model in ("host", "device")
        )
        assert (status, on_device) == (200, 200)
        key = "embedding" if path == "/v1/embed" else "grid"
        np.testing.assert_allclose(device[key], host[key], atol=0.05)
    picture = client.post(f"{service.url}/v1/explain?model=device&format=png", content=jpeg())
    assert picture.headers["content-type"] == "image/png"


def test_images_of_a_batch_keep_their_places(service: Service) -> None:
    names = [*IMAGES, *IMAGES]
    forms = [("image", (name, IMAGES[name])) for name in names]
    host, device = (
        client.post(f"{service.url}/v1/classify/batch?model={model}", files=forms).json()["results"]
        for model in ("host", "device")
    )
    for ours, theirs in zip(device, host, strict=True):
        assert (ours["filename"], ours.get("error")) == (theirs["filename"], theirs.get("error"))
        if "predictions" in theirs:
            check_near(ours, theirs)
    assert len(device) == len(names)
