"""Other libraries' networks, imported beside any build of torch, and compared with ours."""

from __future__ import annotations

import functools
import importlib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.common.vision import import_torchvision
from models import bundle
from models.interchange.pytorch.layout import Layout, to_ours
from models.resnet import ResNet, on_meta
from tests.support import rounding

__all__ = [
    "difference",
    "images",
    "import_timm",
    "import_torchvision",
    "import_transformers",
    "ours",
    "randomised",
]

M = TypeVar("M", bound=nn.Module)


@functools.cache
def import_timm() -> ModuleType:
    import_torchvision()
    return importlib.import_module("timm")


@functools.cache
def import_transformers() -> ModuleType:
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("transformers.models.resnet.modeling_resnet")


@torch.no_grad()
def randomised(module: M, size: int, seed: int = 0) -> M:
    """`module` in evaluation mode; all that its norms hold random, yet near what they would have
    learned from images of `size`, so that a network of any depth answers sensibly."""
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(seed)
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.uniform_(0.3, 1.0, generator=generator)
        norm.bias.normal_(std=0.3, generator=generator)
    module.train()(images(size, 4))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.running_var.sqrt()
        norm.running_mean += 0.1 * scale * torch.randn(scale.shape, generator=generator)
        norm.running_var *= torch.empty_like(scale).uniform_(0.8, 1.5, generator=generator)
    return module.eval()


def ours(layout: Layout, theirs: nn.Module, **numerics: Any) -> ResNet:
    """Our network with the weights of theirs, which has `layout`."""
    tensors, architecture, _ = to_ours(layout, theirs.state_dict(), Path("theirs.pth"), **numerics)
    network = on_meta(architecture)
    bundle.check_fit(network, tensors, "ours")
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def difference(ours: nn.Module, theirs: nn.Module, size: int, count: int = 2) -> float:
    """The largest between any two logits, which are neither all equal nor large, in parts of what
    rounding explains."""
    batch = images(size, count)
    expected = theirs(batch)
    expected = getattr(expected, "logits", expected)
    assert 1e-3 < expected.std() < 100
    assert not expected[0].allclose(expected[1], atol=1e-3)
    return rounding.parts(ours(batch), expected, ours)
