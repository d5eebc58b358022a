"""The models that ship say what they are, and are as good as they say."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from models import bundle
from models.data import datasets
from models.evaluation.evaluate import batches, evaluate, inference
from tests.support.shared import SHARED, needs_shared

NAMES = ("resnet10-cifar10", "resnet20-cifar10")


def read(name: str) -> bundle.Bundle:
    with resources.as_file(resources.files("models.builtin") / f"{name}.safetensors") as path:
        return bundle.read(path)


def test_no_other_models_ship() -> None:
    files = (Path(each.name) for each in resources.files("models.builtin").iterdir())
    assert sorted(file.stem for file in files if file.suffix == ".safetensors") == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_says_where_it_comes_from(name: str) -> None:
    shipped = read(name)
    assert shipped.name == name
    assert shipped.provenance["source"] == "trained by `resnet-serve train`"
    assert shipped.provenance["recipe"]
    assert "cifar10-jpeg-test.tar.xz" in shipped.metrics


def test_the_embedded_model_has_a_card_and_a_fitted_temperature() -> None:
    shipped = read("resnet10-cifar10")
    for word in ("Data", "Training", "Measured", "Limits", "Not to be used"):
        assert f"**{word}" in shipped.card
    assert shipped.temperature == shipped.provenance["calibration"]["temperature"] != 1


@needs_shared
def test_it_is_as_accurate_as_it_says() -> None:
    shipped, source = read("resnet10-cifar10"), "cifar10-lossless-sample.tar"
    data = datasets.read(SHARED / "data" / source, shipped.input).relabelled(shipped.labels)
    found = evaluate(inference(shipped.classifier()), batches(data, 100))
    assert found.top1 == shipped.metrics[source]["top1"]
