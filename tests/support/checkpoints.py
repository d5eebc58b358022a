"""One network, and what training programs make of it in their checkpoints.

The network is torchvision's, with few blocks.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.bundle import Bundle, BundleError
from models.interchange import convert
from models.interchange.pytorch import heads
from tests.support import libraries, tiny
from tests.support.said import said

FEATURES = 512
WITHOUT = heads.WITHOUT
# What a conversion says of tensors that it did not take.
LEFT = "left out, as no part of the network: "
State = dict[str, Tensor]


@functools.cache
def network(in_channels: int = 3) -> nn.Module:
    """The same one to whoever asks next: nobody changes it."""
    resnet = libraries.import_torchvision().models.resnet
    made: nn.Module = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)
    if in_channels == 3:
        return libraries.randomised(made, 64)
    made.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    return tiny.randomised(made, 3).eval()


def with_head(head: nn.Module) -> Any:
    """The network with another head, in which nothing is zero or one."""
    made: Any = copy.deepcopy(network())
    generator = torch.Generator().manual_seed(1)
    for name, value in head.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point():
            value.normal_(std=0.3, generator=generator)
    made.fc = head
    return made.eval()


def state() -> State:
    return network().state_dict()


def changed() -> State:
    """Other weights, which must not be taken."""
    return {name: value + 1 for name, value in state().items()}


def under(prefix: str, tensors: State | None = None) -> State:
    return {prefix + name: value for name, value in (tensors or state()).items()}


def renamed(tensors: State, **names: str) -> State:
    """Tensors with other names for the modules, and `other` for those that are not named."""
    other = names.pop("other", "")
    made: State = {}
    for name, value in tensors.items():
        module, _, rest = name.partition(".")
        made[f"{names[module]}.{rest}" if module in names else other + name] = value
    return made


def converted(content: Any, path: Path, format: str = "torchvision", **options: Any) -> Bundle:
    torch.save(content, path)
    return convert.convert(format, path, said(**options))


def notes(bundle: Bundle) -> list[str]:
    return list(bundle.provenance.get("notes", []))


def refusal(content: Any, path: Path, format: str = "torchvision", **options: Any) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        converted(content, path, format, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")
