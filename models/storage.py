"""Weights as a bundle's file holds them, also in 16 bits; in memory they are float32."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Storage = Literal["fp32", "fp16"]
# The most that rounding may move a weight, in parts of the largest weight of its output channel:
# what rounding moves a float16 by, unless it is out of range. Float16 ends at 65504, and below
# 6e-5 it has fewer than 11 bits.
MOST = 2.0**-11


def stored(tensors: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """The tensors as a file holds them.

    "fp16": weights of convolutions and linear layers as float16. Float32 remain vectors (biases,
    and the parameters and statistics of norms), which take next to no room, and each tensor with an
    output channel that float16 would change by more than `MOST`.
    """
    if storage == "fp32":
        return dict(tensors)
    return {name: _halved(value) for name, value in tensors.items()}


def rounded(tensors: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """The tensors in float32, as they come back from a file. Those that do not change are the same
    objects."""
    if storage == "fp32":
        return dict(tensors)
    return {name: _restored(value, _halved(value)) for name, value in tensors.items()}


def loaded(tensors: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """A file's tensors as they are in memory."""
    if storage == "fp32":
        return dict(tensors)
    return {
        name: value.float() if value.dtype == torch.float16 and value.ndim > 1 else value
        for name, value in tensors.items()
    }


def kept(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights of convolutions and linear layers that "fp16" leaves in float32."""
    return [
        name
        for name, value in tensors.items()
        if value.ndim > 1 and _halved(value).dtype == torch.float32
    ]


def checksum(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the description and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _halved(value: Tensor) -> Tensor:
    if value.ndim < 2 or value.dtype != torch.float32:
        return value
    half = value.half()
    moved = (half.float() - value).abs().flatten(1).amax(1)
    # Not a number moves by NaN, which is not within any limit.
    within = moved <= MOST * value.abs().flatten(1).amax(1)
    return half if within.all() else value


def _restored(value: Tensor, half: Tensor) -> Tensor:
    back = half.to(value.dtype)
    return value if half is value or torch.equal(back, value) else back
