"""A bundle of a network computes what the network does, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import models
from models import bundle, bundling
from models.bundle import BundleError
from models.classifier import Classifier
from models.resnet import ResNet
from tests.support import own_blocks, tiny


def made(network: Any) -> models.Bundle:
    return bundling.from_network(network, name="x", input=tiny.INPUT, labels=["x"] * 10)


def hooked(network: models.ResNet) -> None:
    network.head.register_forward_hook(lambda _, __, logits: logits * 2)


def normed(network: models.ResNet) -> None:
    nn.utils.spectral_norm(network.head)


def replaced(network: models.ResNet) -> None:
    network.norm = nn.Tanh()  # type: ignore[assignment]


@pytest.mark.parametrize("change", [hooked, normed, replaced])
def test_what_a_bundle_would_lose_without_a_word_is_refused(change: Any) -> None:
    network = tiny.network()
    change(network)
    with pytest.raises(BundleError, match=r"\A[^\n]*computes something else than this one"):
        made(network)


@pytest.mark.parametrize(
    "change",
    [
        lambda n: parametrizations.weight_norm(n.head),
        lambda n: parametrizations.spectral_norm(n.stem.conv),
        lambda n: prune.l1_unstructured(n.stem.conv, "weight", 0.5),  # type: ignore[no-untyped-call]
        normed,
    ],
)
def test_weights_computed_from_others_are_refused_with_what_makes_them_plain(change: Any) -> None:
    network = tiny.network()
    change(network)
    with pytest.raises(BundleError, match=r"\A[^\n]*; make them plain first, by [^\n]*\Z"):
        made(network)


def test_a_block_of_ones_own_may_compute_its_weights() -> None:
    network = ResNet(tiny.ARCHITECTURE, block=own_blocks.WeightNormed).eval()
    assert made(network).own_code == ("tests.support.own_blocks:WeightNormed",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_refused_with_the_remedy(dtype: torch.dtype) -> None:
    with pytest.raises(BundleError, match=r"not torch[^\n]*; call network.float\(\) first\Z"):
        made(tiny.network().to(dtype))


@pytest.mark.parametrize("wrap", [lambda n: torch.compile(n, backend="eager"), nn.DataParallel])
def test_what_training_wraps_around_a_network_does_not_matter(wrap: Any) -> None:
    network = tiny.network()
    assert made(wrap(network)).fingerprint() == made(network).fingerprint()


def test_other_networks_are_refused_in_one_line() -> None:
    with pytest.raises(BundleError, match=r"\Athe network must be a models.ResNet, not a Linear"):
        made(nn.Linear(3, 3))


@pytest.mark.parametrize("figure", [np.float32(0.5), float("nan"), float("inf")])
def test_figures_that_are_no_json_are_refused_before_a_file_is_made(
    figure: Any, tmp_path: Path
) -> None:
    one = made(tiny.network())
    one.metrics["top1"] = figure
    with pytest.raises(BundleError, match="metrics and calibration must be JSON values"):
        bundle.write(one, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_head_that_was_set_answers_through_a_classifier() -> None:
    network = tiny.network(num_classes=0)
    network.set_head(nn.Linear(network.out_channels, 3))
    assert Classifier(network, tiny.INPUT)(torch.zeros(2, 8, 8, 3)).shape == (2, 3)
    network.set_head(nn.Identity())
    assert Classifier(network, tiny.INPUT)(torch.zeros(2, 8, 8, 3)).shape == (2, 0)
