"""Weights in parts are put together as evaluation has them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.support import libraries
from tests.support.checkpoints import converted, network, refusal

# Without types in torch, as is the `dim=None` of the older `weight_norm`.
PRUNE: Any = nn.utils.prune.random_unstructured
WEIGHT_NORM: Any = nn.utils.weight_norm


def every(change: Callable[[nn.Conv2d], Any]) -> nn.Module:
    made = copy.deepcopy(network())
    for module in list(made.modules()):
        if isinstance(module, nn.Conv2d):
            change(module)
    return made.eval()


CHANGES: dict[str, Callable[[nn.Conv2d], Any]] = {
    "pruned": lambda m: PRUNE(m, "weight", amount=0.3),
    "weight_norm, older": nn.utils.weight_norm,
    "weight_norm of all, older": lambda m: WEIGHT_NORM(m, dim=None),
    "weight_norm of another side": lambda m: nn.utils.weight_norm(m, dim=1),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm, older": nn.utils.spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CHANGES)
def test_weights_in_parts_are_those_of_evaluation(tmp_path: Path, case: str) -> None:
    theirs = every(CHANGES[case])
    ours = converted(theirs.state_dict(), tmp_path / "r.pth").network()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = theirs(images), ours(images)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_pruned_head_is_read(tmp_path: Path) -> None:
    theirs: Any = copy.deepcopy(network())
    PRUNE(theirs.fc, "weight", amount=0.5)
    PRUNE(theirs.fc, "bias", amount=0.5)
    ours = converted(theirs.state_dict(), tmp_path / "r.pth").network()
    assert libraries.difference(ours, theirs, 64) <= 1


def test_an_unknown_parametrisation_is_refused_with_what_removes_it(tmp_path: Path) -> None:
    theirs: Any = copy.deepcopy(network())
    parametrize.register_parametrization(theirs.layer1[0].conv1, "weight", nn.Tanh())
    assert refusal(theirs.state_dict(), tmp_path / "r.pth") == (
        "layer1.0.conv1 has a parametrisation that is not known here; where the network is at "
        "hand, run torch.nn.utils.parametrize.remove_parametrizations(model.layer1.0.conv1, "
        '"weight") and save its state_dict() again'
    )
