from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.nn import quantized

import models
from models.bundle import BundleError
from tests.support import tiny

L, R = nn.Linear, nn.ReLU


def headed(head: nn.Module) -> models.ResNet:
    network = tiny.network()
    network.set_head(tiny.randomised(head).eval())
    return network


@pytest.mark.parametrize(
    ("head", "classes", "widths"),
    [
        (L(8, 3), 3, ()),
        (L(8, 3, bias=False), 3, ()),
        (nn.Sequential(nn.Dropout(0.5), L(8, 3)), 3, ()),
        (nn.Sequential(nn.Flatten(), L(8, 6), R(inplace=True), nn.Dropout(), L(6, 4)), 4, (6,)),
        (nn.Sequential(nn.Sequential(L(8, 6, bias=False), R()), nn.Sequential(L(6, 4))), 4, (6,)),
        (nn.Sequential(nn.Identity(), L(8, 5), R(), L(5, 6), R(), L(6, 2)), 2, (5, 6)),
        (nn.Identity(), 0, ()),
    ],
)
def test_a_head_of_linear_layers_is_written_as_data(
    tmp_path: Path, head: nn.Module, classes: int, widths: tuple[int, ...]
) -> None:
    network, images = headed(head), torch.rand(2, 3, 8, 8)
    names = [f"class {index}" for index in range(classes)]
    made = models.from_network(network, name="own", input=tiny.INPUT, labels=names)
    models.write(made, tmp_path / "own.safetensors")
    found = models.read(tmp_path / "own.safetensors")
    assert (found.architecture.num_classes, found.architecture.head) == (classes, widths)
    assert found.own_code == ()
    with torch.no_grad():
        assert torch.equal(found.network()(images), network(images))


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(L(8, 4), L(4, 3)),
        nn.Sequential(R(), L(8, 3)),
        nn.Sequential(L(8, 3), R()),
        nn.Sequential(L(8, 3), nn.Sigmoid()),
        nn.Sequential(L(8, 4), nn.BatchNorm1d(4), R(), L(4, 3)),
        nn.LogSoftmax(1),
    ],
)
def test_a_head_of_other_layers_of_torch_is_refused(head: nn.Module) -> None:
    with pytest.raises(BundleError, match=r"\Aa bundle cannot describe this head[^\n]*\Z"):
        models.from_network(headed(head), name="x", input=tiny.INPUT, labels=["a", "b", "c"])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantised_layer_is_not_taken_for_the_usual_one_of_its_name() -> None:
    network = tiny.network()
    layer: Any = quantized.dynamic.Linear
    network.set_head(layer(8, 3))
    with pytest.raises(BundleError, match=r"this head \(torch\.ao\.nn\.[a-z.]*\.Linear\)"):
        models.from_network(network, name="x", input=tiny.INPUT, labels=["a", "b", "c"])


@pytest.mark.parametrize("head", [L(6, 3), nn.Sequential(nn.Flatten(0), L(8, 3))])
def test_a_head_that_does_not_take_the_features_is_refused_for_that(head: nn.Module) -> None:
    with pytest.raises(BundleError, match=r"\Aa head must take features \[N, 8\] to logits"):
        models.from_network(headed(head), name="x", input=tiny.INPUT, labels=["a", "b", "c"])
