"""A network's head as data: the widths of its linear layers, and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.architecture import head_names
from models.modes import evaluating
from models.resnet import HeadFactory

# In evaluation mode and on features [N, C], these do nothing.
IDLE = (nn.Dropout, nn.Identity, nn.Flatten)


@dataclass(frozen=True, slots=True)
class Layers:
    """`num_classes` and `head` as in `Architecture`; `tensors`: named as in the state dict of a
    network with that head."""

    num_classes: int
    head: tuple[int, ...]
    tensors: dict[str, Tensor]


def as_layers(module: nn.Module, channels: int) -> Layers | None:
    """A head on so many features as linear layers with a ReLU between any two, if it computes that.

    It may be a Linear, an Identity, or a Sequential, also nested, of Linear, ReLU, Dropout,
    Flatten and Identity. A layer without a bias gets one of zeros.
    """
    linear: list[nn.Linear] = []
    activated = True
    for part in _parts(module):
        if type(part) is nn.Linear and (activated or not linear):
            linear.append(part)
            activated = False
        elif type(part) is nn.ReLU and linear and not activated:
            activated = True
        elif type(part) not in IDLE or (isinstance(part, nn.Flatten) and not _flattens(part)):
            return None
    if not linear:
        return Layers(0, (), {})
    inputs = [channels, *(layer.out_features for layer in linear[:-1])]
    if activated or [layer.in_features for layer in linear] != inputs:
        return None
    tensors: dict[str, Tensor] = {}
    for name, layer in zip(head_names(len(linear)), linear, strict=True):
        bias = layer.bias if layer.bias is not None else torch.zeros_like(layer.weight[:, 0])
        tensors |= {f"{name}.weight": layer.weight, f"{name}.bias": bias}
    return Layers(linear[-1].out_features, tuple(inputs[1:]), tensors)


def factory(module: nn.Module) -> HeadFactory:
    """The class of a head of one's own, which makes another of channels and classes.

    Raises:
        ValueError: it is one of torch's.
    """
    kind = type(module)
    if kind.__module__.startswith("torch."):
        parts = ", ".join(_called(type(part)) for part in _parts(module))
        raise ValueError(
            f"a bundle cannot describe this head ({parts}): it may be linear layers with a ReLU "
            "between any two, which give logits; make any other a class of your own, called with "
            "(channels, num_classes)"
        )
    return cast("HeadFactory", kind)


def classes(module: nn.Module, channels: int) -> int:
    """The number of classes that a head on so many features answers with.

    Raises:
        ValueError: it does not take features [N, C] to logits [N, K].
    """
    weight = next(module.parameters(), torch.zeros(()))
    try:
        with torch.no_grad(), evaluating(module):
            logits = module(weight.new_zeros(2, channels))
        if logits.ndim == 2 and len(logits) == 2:
            return int(logits.shape[1])
        reason = f"it gives {list(logits.shape)}"
    except Exception as error:  # noqa: BLE001 - whatever the user's head raises
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(f"a head must take features [N, {channels}] to logits [N, classes]: {reason}")


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for part in module:
            yield from _parts(part)
    else:
        yield module


def _called(kind: type[nn.Module]) -> str:
    """Its name; with the module, unless that is torch.nn: quantised layers have the same names."""
    usual = kind.__module__.startswith("torch.nn.modules.")
    return kind.__name__ if usual else f"{kind.__module__}.{kind.__name__}"


def _flattens(module: nn.Flatten) -> bool:
    return module.start_dim == 1 and module.end_dim in (-1, 1)
