"""The optimizer of a recipe: which parameters it moves, at which rate and with which decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from models.resnet import ResNet
from models.training.recipe import Recipe

NORMS = (nn.BatchNorm2d,)


def make_optimizer(network: ResNet, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of the parameters that require gradients.

    Parameters of equal rate and decay are one group, whose "factor" is that of its learning rate;
    see `set_rate`. "adamw" decays weights apart from the gradient (Loshchilov and Hutter,
    arXiv:1711.05101), with `momentum` as its first beta and 0.999 as its second.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter, factor, decay in _settings(network, recipe):
        groups.setdefault((factor, decay), []).append(parameter)
    made: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "factor": factor}
        for (factor, decay), parameters in groups.items()
    ]
    rate = recipe.learning_rate
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(made, lr=rate, betas=(recipe.momentum, 0.999), fused=True)
    return torch.optim.SGD(
        made, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of each group to its factor times `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def clip_gradients(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, norm: float
) -> None:
    """Shortens the gradient of all parameters together to the Euclidean `norm`, if it is longer
    (Pascanu et al., arXiv:1211.5063, section 3.2).

    All processes have the whole batch's gradient by then, and so the same norm.
    """
    scaler.unscale_(optimizer)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    nn.utils.clip_grad_norm_(parameters, norm)


def _settings(network: ResNet, recipe: Recipe) -> Iterable[tuple[nn.Parameter, float, float]]:
    """Each trained parameter, the factor of its learning rate, and its weight decay."""
    modules = list(network.modules())
    weights = {m.weight for m in modules if isinstance(m, nn.Conv2d | nn.Linear)}
    biases = {m.bias for m in modules if isinstance(m, NORMS)}
    head = set(network.head.parameters())
    for parameter in network.parameters():
        if not parameter.requires_grad:
            continue
        decays = recipe.decays == "all" or parameter in weights
        factor, decay = 1.0, recipe.weight_decay if decays else 0.0
        if parameter in biases:
            factor, decay = recipe.bias_rate, decay / recipe.bias_rate
        yield parameter, factor if parameter in head else factor * recipe.body_rate, decay
