"""Gradient checkpointing: the same result with less memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from models.resnet import ResNet
from tests.support import tiny

# torch's compiler still uses what it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")
FAMILIES = [("basic", False), ("bottleneck", False), ("basic", True), ("bottleneck", True)]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pair(**changes: Any) -> tuple[ResNet, ResNet]:
    """Equal networks in training, of which the second checkpoints its blocks."""
    plain = tiny.network(**{"blocks": (2, 2), **changes}).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.checkpoint_blocks()
    return plain, checkpointed


def trained(network: ResNet, *, compiled: bool = False) -> dict[str, Tensor]:
    """The output, the gradients and the state after a step's forward and backward pass."""
    torch.manual_seed(0)
    forward: Any = torch.compile(network, backend="aot_eager", fullgraph=True)
    y = (forward if compiled else network)(X)
    y.square().mean().backward()
    gradients = {f"grad {n}": p.grad for n, p in network.named_parameters() if p.grad is not None}
    return {"y": y.detach(), **gradients, **network.state_dict()}


@pytest.mark.parametrize(("block", "preact"), FAMILIES)
def test_checkpointing_changes_no_bit_and_updates_statistics_once(block: Any, preact: bool) -> None:
    dropout = 0.3 if block == "basic" else 0.0
    plain, checkpointed = pair(block=block, preact=preact, dropout=dropout)
    result = trained(plain)
    assert tiny.same_bits(trained(checkpointed), result)
    assert result["stages.0.0.bn1.num_batches_tracked"] == 1


def test_frozen_norms_keep_their_statistics() -> None:
    plain, checkpointed = pair()
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    assert tiny.same_bits(trained(checkpointed.eval()), trained(plain.eval()))
    assert tiny.same_bits(checkpointed.state_dict(), before)


def test_checkpointing_keeps_a_third_of_the_values_or_less() -> None:
    def kept(network: ResNet) -> int:
        sizes: list[int] = []

        def count(value: Tensor) -> Tensor:
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            network(X)
        return sum(sizes)

    plain, checkpointed = pair()
    full = kept(plain)
    assert kept(checkpointed) < full / 3
    checkpointed.checkpoint_blocks(False)
    assert kept(checkpointed) == full


def test_checkpointing_ends_with_the_computation_of_gradients_and_travels_with_copies() -> None:
    plain, checkpointed = pair()
    with torch.no_grad():
        assert torch.equal(checkpointed.eval()(X), plain.eval()(X))
    assert torch.equal(torch.fx.symbolic_trace(checkpointed)(X), plain(X))
    assert all(stage.checkpoints for stage in copy.deepcopy(checkpointed).stages)


def test_a_compiled_network_checkpoints_too() -> None:
    plain, checkpointed = pair(blocks=(1,), planes=(4,))
    expected = trained(plain)
    found = trained(checkpointed, compiled=True)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
