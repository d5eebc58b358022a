"""Every parameter moves at the rate and decays as its recipe says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from models.resnet import ResNet
from models.training.optimizer import clip_gradients, make_optimizer, set_rate
from models.training.recipes import RECIPES
from tests.support import tiny

RECIPE = replace(RECIPES["quick"], momentum=0.0, nesterov=False, weight_decay=0.1)


def moved(**changes: Any) -> dict[str, torch.Tensor]:
    """How far a step at rate 1 moves each parameter whose gradient is 1."""
    network = tiny.randomised(ResNet(tiny.architecture()))
    optimizer = make_optimizer(network, replace(RECIPE, **changes))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rate(optimizer, 1.0)
    optimizer.step()
    return {name: before[name] - p.detach() for name, p in network.named_parameters()}


def test_the_body_moves_by_a_share_of_the_heads_rate() -> None:
    for name, by in moved(body_rate=0.25, weight_decay=0.0).items():
        expected = 1.0 if name.startswith("head") else 0.25
        torch.testing.assert_close(by, torch.full_like(by, expected))


@pytest.mark.parametrize("decays", ["weights", "all"])
def test_norms_biases_get_their_own_rate_and_decay_as_before(decays: str) -> None:
    plain, quick = moved(decays=decays), moved(decays=decays, bias_rate=64.0)
    network = ResNet(tiny.architecture())
    biases = {
        f"{name}.bias" for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)
    }
    assert biases
    for name in plain:
        # Rate times gradient, and rate times decay.
        extra = 63.0 if name in biases else 0.0
        torch.testing.assert_close(quick[name], plain[name] + extra)


def test_adamw_decays_apart_from_the_gradient() -> None:
    """Adam's first step has the same length for any gradient; what is added is the decay alone."""
    plain, decayed = (
        moved(optimizer="adamw", momentum=0.9, decays="all", weight_decay=decay)
        for decay in (0.0, 0.1)
    )
    weights = dict(tiny.randomised(ResNet(tiny.architecture())).named_parameters())
    for name, by in plain.items():
        torch.testing.assert_close(by, torch.ones_like(by), atol=1e-5, rtol=0)
        torch.testing.assert_close(decayed[name] - by, 0.1 * weights[name].detach())


def test_what_is_frozen_by_hand_is_left_out() -> None:
    network = ResNet(tiny.architecture())
    network.stem.requires_grad_(False)
    groups = make_optimizer(network, RECIPE).param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters() if p.requires_grad}


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_gradient_of_all_weights_together_is_clipped(scale: float) -> None:
    network = ResNet(tiny.architecture())
    optimizer = make_optimizer(network, RECIPE)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1.0)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def gradient(norm: float) -> torch.Tensor:
        optimizer.zero_grad()
        scaler.scale(network(x).square().sum()).backward()  # type: ignore[no-untyped-call]
        if norm:
            clip_gradients(optimizer, scaler, norm)
        else:
            scaler.unscale_(optimizer)
        scaler.update()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    whole = gradient(0)
    length = whole.norm().item()
    torch.testing.assert_close(gradient(length / 3), whole / 3)
    torch.testing.assert_close(gradient(length * 3), whole)
