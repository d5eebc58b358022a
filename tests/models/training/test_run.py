"""One run from data to a bundle that serves."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import bundle
from models.classifier import Classifier
from models.training import loop
from models.training.datasets import Dataset
from models.training.evaluate import accuracy, inference
from models.training.recipes import RECIPES
from models.training.run import train_bundle
from tests.models import tiny

RECIPE = replace(RECIPES["quick"], epochs=6, batch_size=8, learning_rate=0.02, crop_padding=1)
SMALL: dict[str, Any] = {"blocks": (1, 1, 1), "planes": (4, 8, 16)}


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a compiler: compiling takes longer than these runs."""
    monkeypatch.setattr(loop, "_can_compile", lambda device: False)


def coloured(count: int, source: str, seed: int = 0) -> Dataset:
    """Noise that is mostly red, green or blue."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    images = random.integers(0, 128, (count, 32, 32, 3))
    images[np.arange(count), :, :, targets] += 127
    classes = ("blue", "green", "red")
    return Dataset(images.astype(np.uint8), 2 - targets.astype(np.int64), classes, source)


def run(data: Dataset, test: Dataset | None, **options: Any) -> bundle.Bundle:
    return train_bundle(
        "resnet20", data, test, RECIPE, **{"name": "colours", "seed": 3, **SMALL, **options}
    )


def test_a_run_gives_a_measured_bundle_that_says_where_it_comes_from(tmp_path: Path) -> None:
    data, test = coloured(48, "train.tar"), coloured(30, "test.tar", seed=1)
    steps: list[int] = []
    trained = run(data, test, shortcut="A", report=lambda at: steps.append(at.step))
    assert trained.name == "colours"
    assert trained.labels == ("blue", "green", "red")
    assert trained.architecture.shortcut == "A"
    assert trained.architecture.num_classes == 3
    assert trained.metrics.keys() == {"test.tar"}
    assert trained.metrics["test.tar"]["images"] == 30
    assert trained.metrics["test.tar"]["top1"] > 0.9
    assert trained.metrics["test.tar"]["top5"] == 1
    assert steps[-1] == 36
    provenance = trained.provenance
    assert provenance["recipe"] == asdict(RECIPE)
    assert provenance["seed"] == 3
    assert provenance["data"] == "train.tar: 48 images"
    assert provenance["torch"] == torch.__version__
    assert provenance["device"] == "cpu"

    bundle.write(trained, tmp_path / "x.safetensors")
    read = bundle.read(tmp_path / "x.safetensors")
    measured = accuracy(inference(Classifier(read.network(), read.input)), test, batch_size=256)
    assert asdict(measured) == read.metrics["test.tar"], "what was measured is what serves"


def test_equal_seeds_give_equal_bundles_whatever_was_drawn_before() -> None:
    def weights(seed: int, unrelated: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(unrelated)
        return run(coloured(24, "train"), None, seed=seed, dropout=0.2).tensors

    first = weights(3, unrelated=0)
    assert tiny.same_bits(weights(3, unrelated=1), first)
    assert not tiny.same_bits(weights(4, unrelated=0), first)


def test_without_test_data_nothing_is_claimed() -> None:
    trained = run(coloured(24, "train"), None)
    assert trained.metrics == {}
    assert trained.variant is None


def test_test_data_of_other_classes_is_refused_before_training() -> None:
    other = replace(coloured(9, "test.tar"), classes=("blue", "green", "violet"))
    with pytest.raises(ValueError, match=r"test\.tar has other classes than train\.tar"):
        run(coloured(24, "train.tar"), other)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shortcuts": "A"}, "did you mean shortcut"), ({"shortcut": "Z"}, "shortcut must be one of")],
)
def test_an_impossible_override_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(coloured(24, "train"), None, **options)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="no variant is called 'resnet21'"):
        train_bundle("resnet21", coloured(24, "train"), None, RECIPE, name="x", seed=0)
