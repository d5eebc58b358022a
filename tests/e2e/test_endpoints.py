"""Everything but classification."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import Any

import pytest

from service.http.routers.pages import WEB
from service.metrics import PHASES
from tests.conftest import Service, client, encoded

FIELDS = {
    "name",
    "architecture",
    "parameters",
    "layers",
    "macs",
    "num_classes",
    "input",
    "device",
    "precision",
    "engine",
    "state",
    "weights",
    "metrics",
}


def get(service: Service, path: str) -> Any:
    response = client.get(f"{service.url}{path}")
    assert response.status_code == 200, response.text
    return response.json()


def samples(service: Service) -> dict[str, float]:
    text = client.get(f"{service.url}/metrics").text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_models_are_listed_with_the_golden_counts(service: Service) -> None:
    listed = get(service, "/v1/models")["models"]
    assert [m["name"] for m in listed] == ["resnet20-cifar10", "resnet20"]
    for model in listed:
        assert set(model) >= FIELDS
        assert set(model["input"]) == {"size", "resize", "crop", "interpolation", "mean", "std"}
        assert set(model["weights"]) >= {"source", "sha256"}
        assert (model["state"], model["device"], model["engine"]) == ("ready", "cpu", "openvino")
    small = listed[1]
    assert (small["parameters"], small["layers"], small["macs"]) == (272474, 22, 40813184)
    assert (small["architecture"], small["depth"]) == ("resnet20", 20)


def test_random_weights_say_that_they_are(service: Service) -> None:
    weights = get(service, "/v1/models/resnet20")["weights"]
    assert weights["source"] == "random:resnet20"
    assert "untrained" in weights["provenance"]["source"]
    assert weights["sha256"] is None


def test_the_embedded_model_tells_its_checksum_and_accuracy(service: Service) -> None:
    card = get(service, "/v1/models/resnet20-cifar10")
    file = resources.files("models.builtin") / "resnet20-cifar10.safetensors"
    assert card["weights"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    (measured,) = card["metrics"].values()
    assert measured["top1"] >= 0.84
    assert "resnet-serve train" in card["weights"]["provenance"]["source"]


def test_health_tells_live_and_ready(service: Service) -> None:
    assert get(service, "/health/live") == {"status": "live", "reasons": {}}
    assert get(service, "/health/ready") == {"status": "ready", "reasons": {}}


def test_metrics_count_images_phases_batches_and_refusals(service: Service) -> None:
    before = samples(service)
    for content in (encoded(), encoded(), b"broken"):
        client.post(f"{service.url}/v1/classify", content=content)
    after = samples(service)

    def rise(name: str) -> float:
        return after[name] - before.get(name, 0)

    model = 'model="resnet20-cifar10"'
    assert rise(f"resnet_serve_images_total{{{model}}}") == 2
    for phase in PHASES:
        series = f'resnet_serve_phase_seconds_count{{{model},phase="{phase}"}}'
        assert rise(series) == 2
    assert rise(f"resnet_serve_batch_size_sum{{{model}}}") == 2
    assert rise(f'resnet_serve_refusals_total{{{model},reason="undecodable_image"}}') == 1
    assert rise('resnet_serve_requests_total{route="/v1/classify",status="200"}') == 2
    assert rise('resnet_serve_requests_total{route="/v1/classify",status="400"}') == 1
    assert after[f"resnet_serve_queue_depth{{{model}}}"] == 0
    assert after[f"resnet_serve_model_ready{{{model}}}"] == 1
    assert any(name.startswith("resnet_serve_model_info{architecture=") for name in after)


def test_paths_and_model_names_of_callers_never_become_series(service: Service) -> None:
    client.get(f"{service.url}/secret-path")
    client.post(f"{service.url}/v1/classify", params={"model": "made-up"}, content=b"")
    text = client.get(f"{service.url}/metrics").text
    assert "secret-path" not in text
    assert "made-up" not in text


def test_the_buckets_reach_from_a_quarter_millisecond_to_ten_seconds(service: Service) -> None:
    bounds = [
        name.partition('le="')[2].partition('"')[0]
        for name in samples(service)
        if name.startswith("resnet_serve_phase_seconds_bucket{") and 'phase="total"' in name
    ]
    assert (bounds[0], bounds[-2 if bounds[-1] == "+Inf" else -1]) == ("0.00025", "10.0")


def test_the_description_shows_every_endpoint_and_its_refusals(service: Service) -> None:
    described = get(service, "/openapi.json")
    model = described["paths"]["/v1/models/{name}"]
    assert set(model) == {"get", "put", "delete"}
    assert set(model["put"]["responses"]) == {
        "200",
        "201",
        "401",
        "403",
        "408",
        "409",
        "413",
        "415",
        "422",
        "429",
        "503",
    }
    fields = model["put"]["requestBody"]["content"]["application/json"]["schema"]
    assert (fields["required"], "name" in fields["properties"]) == (["spec"], False)
    assert set(model["delete"]["responses"]) == {"204", "401", "403", "404", "409", "422", "503"}
    classify = described["paths"]["/v1/classify"]["post"]
    assert set(classify["responses"]) >= {"400", "404", "413", "415", "422", "429", "503", "504"}
    assert set(classify["requestBody"]["content"]) == {
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_a_page_needs_no_other_host(service: Service, page: str) -> None:
    text = client.get(f"{service.url}{page}").text
    named = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert len(named) > 3
    for place in named:
        assert re.fullmatch(r"[a-z./0-9]+", place), "relative, so that a prefix before it may stay"
        assert client.get(f"{service.url}/{place}").status_code == 200


def test_the_pages_and_their_parts_are_served_with_a_strict_policy(service: Service) -> None:
    parts = {f"/web/{file}": kind for file, kind in WEB.items()}
    for path, kind in {"/": "text/html", "/docs": "text/html", **parts}.items():
        response = client.get(f"{service.url}{path}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        policy = response.headers["content-security-policy"]
        for wanted in ("default-src 'none'", "require-trusted-types-for 'script'"):
            assert wanted in policy
        assert "unsafe" not in policy
        assert "camera=(self)" in response.headers["permissions-policy"]
        if kind.startswith("text/"):
            named = response.text.replace("http://www.w3.org", "")
            assert not re.search(r"//\w|@import|\burl\(|\bstyle=", named)
            for module in re.findall(r'\bfrom "\./([^"]+)"', response.text):
                assert module in WEB
    assert client.get(f"{service.url}/web/__init__.py").status_code == 404


def test_every_part_of_the_pages_is_listed() -> None:
    folder = resources.files("service.http.web")
    assert set(WEB) == {file.name for file in folder.iterdir()} - {"__init__.py", "__pycache__"}
