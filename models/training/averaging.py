"""Averages of the weights over the steps of a training run."""

from __future__ import annotations

import copy
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.resnet import ResNet
from models.training.recipe import Recipe


class Average(Protocol):
    """A network of averaged weights and statistics, which is the result of training."""

    @property
    def network(self) -> ResNet: ...

    def update(self, network: ResNet, step: int) -> None:
        """To be called after each step; `step` is the number of steps done."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def make_average(network: ResNet, recipe: Recipe, steps: int) -> Average | None:
    """The average that a recipe of `steps` steps ends with, if any."""
    if recipe.ema:
        return MovingAverage(network, recipe.ema)
    return Lookahead(network, recipe.lookahead, steps) if recipe.lookahead else None


class MovingAverage:
    """The exponential moving average, which keeps `decay` of itself at each step."""

    def __init__(self, network: ResNet, decay: float) -> None:
        towards = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        averaged = AveragedModel(copy.deepcopy(network), multi_avg_fn=towards, use_buffers=True)
        self._averaged = averaged.requires_grad_(requires_grad=False)

    @property
    def network(self) -> ResNet:
        """See `Average`."""
        return cast("ResNet", self._averaged.module)

    def update(self, network: ResNet, step: int) -> None:
        """See `Average`."""
        self._averaged.update_parameters(network)

    def state_dict(self) -> dict[str, Any]:
        """The state to resume from."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a `state_dict`."""
        self._averaged.load_state_dict(state)


class Lookahead:
    """Slow weights that move towards the network's every few steps, and replace them.

    The idea is of Zhang et al. (arXiv:1907.08610); the share that the slow weights keep of
    themselves rises as in Jordan (arXiv:2404.00498, section 3.4). The statistics of normalisation
    are averaged like weights. The last steps count too, if they are fewer than `every`.
    """

    def __init__(self, network: ResNet, every: int, steps: int) -> None:
        self.network = copy.deepcopy(network).requires_grad_(requires_grad=False)
        self.every, self.steps = every, steps

    def kept(self, step: int) -> float:
        """The share that the slow weights keep of themselves after `step` steps."""
        return float(0.95**5 * (step / self.steps) ** 3)

    @torch.no_grad()
    def update(self, network: ResNet, step: int) -> None:
        """See `Average`; changes `network` too."""
        if step % self.every and step != self.steps:
            return
        slow, fast = self.network.state_dict(), network.state_dict()
        averaged = [name for name in slow if slow[name].is_floating_point()]
        first, second = ([tensors[name] for name in averaged] for tensors in (slow, fast))
        torch._foreach_lerp_(first, second, 1 - self.kept(step))
        torch._foreach_copy_(second, first)
        for name in slow.keys() - averaged:  # Counters of batches.
            slow[name].copy_(fast[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The state to resume from."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Resumes from a `state_dict`."""
        self.network.load_state_dict(state)
