"""The network for CUDA, folded; in float32 on the CPU it computes what the network does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.folding import fold
from models.operations import record
from service.engines.fused import FoldedNetwork
from tests.support import rounding, tiny

NETWORKS: list[dict[str, Any]] = [
    {},
    {"shortcut": "A", "shortcut_padding": "end", "dropout": 0.5},
    {"shortcut": "A", "preact": True},
    {"block": "bottleneck", "shortcut": "C", "stride_at": "1x1", "stem": "imagenet"},
    {"preact": True, "shortcut": "conv", "input_norm": True},
    {"preact": True, "preact_stem": "activated", "preact_shortcut": "activated"},
    {"preact": True, "preact_stem": "activated_once", "preact_shortcut": "raw"},
    {"preact": True, "preact_shortcut": "entry", "final_norm": False, "block": "bottleneck"},
    {"stem": "imagenet", "padding": "same", "stem_padding": "same", "pool_padding": "same"},
    {"stem": "imagenet", "pool_padding": "zero", "biases": ("stem", "conv1", "conv2")},
    {"stem": "imagenet", "pool_padding": "zero", "preact": True, "biases": ("stem", "shortcut")},
    {"stem": "imagenet", "pool_padding": "ceil", "eps": 0.01, "shortcut_norm": False},
    {"block": "bottleneck", "biases": ("conv1", "conv2", "conv3", "shortcut"), "width": 2},
    {"stride_block": "last", "blocks": (2, 2), "block": "bottleneck"},
]


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_folding_changes_no_result(changes: dict[str, Any]) -> None:
    network = tiny.network(**changes)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    steps = fold(record(network, (network.architecture.in_channels, 32, 32)))
    with torch.inference_mode():
        maps = FoldedNetwork(steps, "cpu", torch.float32)(images)
        rounding.assert_near(maps, network.maps(images), network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
