"""How many steps folding leaves; `tests/service/engines/test_fused.py` computes them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from models.folding import Step, fold
from models.operations import record
from models.resnet import ResNet
from models.variants import variant
from tests.support import tiny


def steps_of(network: ResNet, size: int) -> list[Step]:
    return fold(record(network, (network.architecture.in_channels, size, size)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20", "wide_resnet50_2"])
def test_a_residual_network_becomes_its_convolutions(name: str) -> None:
    """Each addition and ReLU is the end of a convolution, but for the stem's."""
    network = ResNet(variant(name).architecture).eval()
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())
    kinds = Counter(step.kind for step in steps_of(network, 64))
    if network.architecture.stem == "imagenet":
        assert kinds == {"input": 1, "convolution": convolutions, "max_pool": 1, "affine": 1}
    else:
        assert kinds == {"input": 1, "convolution": convolutions}


def test_a_sum_that_others_read_stays_a_sum() -> None:
    kinds = Counter(step.kind for step in steps_of(tiny.network(preact=True), 8))
    assert kinds == {"input": 1, "convolution": 6, "affine": 3}
