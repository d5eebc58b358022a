"""The tensors of Keras's layers under our names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from models.architecture import EXPANSION
from models.interchange.imported import float_tensor
from models.interchange.keras.file import Arrays

LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# Of channels that zeros fill up: a damaged file must not fill the memory.
MOST_GROWTH = 4
# A norm that gives nothing for nothing.
IDENTITY = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def layer_tensors(name: str, arrays: Arrays) -> dict[str, Tensor]:
    """The tensors of a convolution or a norm; a norm may lack a scale or an offset."""
    if "moving_mean" in arrays:
        mean = arrays["moving_mean"]
        arrays = {"gamma": np.ones_like(mean), "beta": np.zeros_like(mean), **arrays}
    elif "kernel" in arrays:
        # From [H, W, in, out].
        arrays = {**arrays, "kernel": arrays["kernel"].transpose(3, 2, 0, 1)}
    return {f"{name}.{LEAVES[key]}": float_tensor(value) for key, value in arrays.items()}


def fill_biases(tensors: dict[str, Tensor]) -> None:
    """Adds zeros as the biases that some convolutions of a role have, and others have not."""
    roles = {
        name.removesuffix(".weight"): name.split(".", 3)[-1]
        for name, tensor in tensors.items()
        if tensor.ndim == 4
    }
    biased = {role for name, role in roles.items() if f"{name}.bias" in tensors}
    for name, role in roles.items():
        if role in biased and f"{name}.bias" not in tensors:
            tensors[f"{name}.bias"] = torch.zeros(len(tensors[f"{name}.weight"]))


def even_out(tensors: dict[str, Tensor], *, preact: bool) -> list[str]:
    """Fills the inner convolutions of bottlenecks up with zeros where they are narrower than in
    other stages: an `Architecture` has one `width` for all. Returns a note on each such stage.

    Keras's CIFAR-10 example (v2) is so: its first stage expands by 4, the others by 2.
    """
    blocks = sorted({name.rsplit(".", 2)[0] for name in tensors if name.endswith(".conv3.weight")})
    inner = {block: len(tensors[f"{block}.conv1.weight"]) for block in blocks}
    planes = {b: len(tensors[f"{b}.conv3.weight"]) / EXPANSION["bottleneck"] for b in blocks}
    width = max((inner[block] / planes[block] for block in blocks), default=1.0)
    notes: dict[str, str] = {}
    for block in blocks:
        wanted = round(planes[block] * width)
        if wanted == inner[block] or wanted > MOST_GROWTH * inner[block]:
            continue
        _widen(tensors, block, wanted - inner[block], preact=preact)
        stage = int(block.split(".")[1]) + 1
        notes[block.split(".")[1]] = (
            f"the inner convolutions of stage {stage} are {inner[block]} channels wide; zeros fill "
            f"them up to {wanted}, as wide as other stages are for their outputs"
        )
    return list(notes.values())


def _widen(tensors: dict[str, Tensor], block: str, more: int, *, preact: bool) -> None:
    """Adds channels behind a bottleneck's first two convolutions; they remain zero."""
    for number in (1, 2):
        norm = f"{block}.bn{number + preact}"
        ends: Mapping[str, float] = {
            f"{block}.conv{number}.weight": 0.0,
            f"{block}.conv{number}.bias": 0.0,
            **{f"{norm}.{leaf}": value for leaf, value in IDENTITY.items()},
        }
        for name, value in ends.items():
            if name in tensors:
                tensors[name] = _grown(tensors[name], 0, more, value)
        name = f"{block}.conv{number + 1}.weight"
        tensors[name] = _grown(tensors[name], 1, more, 0.0)


def _grown(tensor: Tensor, axis: int, more: int, value: float) -> Tensor:
    shape = list(tensor.shape)
    shape[axis] = more
    return torch.cat([tensor, torch.full(shape, value)], axis)
