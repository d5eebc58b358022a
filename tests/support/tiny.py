"""Networks small enough to compute everything twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models import bundling, labels
from models.architecture import Architecture
from models.bundle import Bundle
from models.preprocess import CIFAR, IMAGENET
from models.resnet import ResNet

M = TypeVar("M", bound=nn.Module)

ARCHITECTURE = Architecture(
    block="basic", blocks=(1, 1), planes=(4, 8), stem="small", num_classes=10
)
# 8x8 pixels.
INPUT = replace(CIFAR, size=8, resize=8)


def architecture(**changes: Any) -> Architecture:
    """`ARCHITECTURE` with fields changed; typed loosely, as a user's YAML is."""
    return replace(ARCHITECTURE, **changes)


def randomised(module: M, seed: int = 0) -> M:
    """`module` with every weight, bias and statistic random, so that none can hide."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(std=0.3, generator=generator)
    return module


def network(seed: int = 0, **changes: Any) -> ResNet:
    """A tiny random network in evaluation mode."""
    return randomised(ResNet(architecture(**changes)), seed).eval()


def described(**changes: Any) -> dict[str, Any]:
    """The fields of a `Bundle` that its network does not have."""
    fields: dict[str, Any] = {
        "name": "tiny-cifar10",
        "input": replace(IMAGENET, interpolation="bicubic", size=200),
        "labels": ("Müsli", *labels.read("cifar10")[1:]),
        "provenance": {"source": "a test", "recipe": {"epochs": 3}, "notes": [1, None, "ü"]},
        "metrics": {"cifar10-test": {"top1": 0.1 + 0.2, "images": 10_000}},
    }
    return {**fields, **changes}


def made_bundle(**changes: Any) -> Bundle:
    """A bundle of `network()`; `changes` are fields of `described`."""
    return bundling.from_network(network(), **described(**changes))


def same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Whether names, types, shapes and every bit are equal."""

    def bits(tensor: Tensor) -> tuple[object, ...]:
        return (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())

    return {k: bits(v) for k, v in ours.items()} == {k: bits(v) for k, v in theirs.items()}
