"""Weights that are saved as the parts that training computes them from, put together again.

Pruning, weight normalisation (Salimans 2016, arXiv:1602.07868) and spectral normalisation
(Miyato 2018, arXiv:1802.05957), under the names of `torch.nn.utils` and of its `parametrizations`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.interchange.pytorch.pickles import Refused

MASK = re.compile(r"(.*\.(?:weight|bias))_mask")
# The parts of one weight: what the names of a direction, of its length, and of a spectral norm's
# weight and singular vectors end in.
NORMS = (
    ("weight_v", "weight_g"),
    ("parametrizations.weight.original1", "parametrizations.weight.original0"),
)
SPECTRAL = (
    ("weight_orig", "weight_u", "weight_v"),
    (
        "parametrizations.weight.original",
        "parametrizations.weight.0._u",
        "parametrizations.weight.0._v",
    ),
)


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with the weights that evaluation has, in place of their parts.

    Heads keep their weight normalisation: such a layer usually normalises its input, too.

    Raises:
        Refused: a weight is parametrised in another way.
    """
    done = dict(tensors)
    for name in list(tensors):
        if match := MASK.fullmatch(name):
            whole = f"{match[1]}_orig"
            if whole in done:
                done[match[1]] = done.pop(whole) * done.pop(name)
    for name in list(done):
        for weight, left, right in SPECTRAL:
            module = name.removesuffix(weight)
            if name.endswith(f".{weight}") and {module + left, module + right} <= done.keys():
                value, u, v = (done.pop(module + part) for part in (weight, left, right))
                done[f"{module}weight"] = value / (u @ (value.flatten(1) @ v))
        for weight, length in NORMS:
            module = name.removesuffix(weight)
            if name.endswith(f".{weight}") and module + length in done and done[name].ndim == 4:
                done[f"{module}weight"] = _scaled(done.pop(name), done.pop(module + length))
    for name, value in done.items():
        if ".parametrizations." in name and value.ndim == 4:
            module = name.partition(".parametrizations.")[0]
            raise Refused(
                f"{module} has a parametrisation that is not known here; where the network is at "
                "hand, run torch.nn.utils.parametrize.remove_parametrizations"
                f'(model.{module}, "weight") and save its state_dict() again'
            )
    return done


def _scaled(direction: Tensor, length: Tensor) -> Tensor:
    """A weight of this direction; `length` has one side longer than 1, or none for one norm."""
    others = [axis for axis in range(direction.ndim) if length.ndim == 0 or length.shape[axis] == 1]
    norm: Tensor = torch.linalg.vector_norm(direction.double(), dim=others, keepdim=True)
    whole: Tensor = direction.double() * length.double() / norm
    return whole.float()
