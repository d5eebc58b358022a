"""Tiny networks of ours, one for each thing that a graph must be able to say."""

from __future__ import annotations

from typing import Any

from models.architecture import Architecture
from models.resnet import ResNet
from tests.support import tiny

BASIC: dict[str, Any] = {"block": "basic", "blocks": (1, 2), "planes": (8, 16), "stem": "small"}
DEEP: dict[str, Any] = {
    "block": "bottleneck",
    "blocks": (1, 2),
    "planes": (8, 16),
    "stem": "imagenet",
}
IMAGES = {"small": 16, "imagenet": 64}
NETWORKS: dict[str, dict[str, Any]] = {
    "option A": {**BASIC, "shortcut": "A"},
    "option A at the end": {**BASIC, "shortcut": "A", "shortcut_padding": "end"},
    "option B": BASIC,
    "option C": {**BASIC, "shortcut": "C"},
    "3x3 shortcut": {**BASIC, "shortcut": "conv"},
    "bottleneck": DEEP,
    "v1": {**DEEP, "stride_at": "1x1"},
    "wide": {**DEEP, "width": 2},
    "biases": {**DEEP, "biases": ("stem", "conv1", "conv2", "conv3", "shortcut")},
    "same": {**DEEP, "padding": "same", "stem_padding": "same", "pool_padding": "same"},
    "ceil": {**DEEP, "pool_padding": "ceil"},
    "epsilon": {**DEEP, "eps": 1e-3},
    "pre-activated": {**BASIC, "preact": True},
    "pre-activated bottleneck": {**DEEP, "preact": True},
    "pre-activated wide": {**BASIC, "preact": True, "width": 2},
    "pre-activated option A": {**BASIC, "preact": True, "shortcut": "A"},
    "zero-padded pool": {**DEEP, "preact": True, "pool_padding": "zero"},
    "Keras v2": {
        **DEEP,
        "blocks": (2, 2, 1),
        "planes": (8, 16, 32),
        "preact": True,
        "stride_block": "last",
        "pool_padding": "zero",
        "biases": ("stem", "conv3", "shortcut"),
        "eps": 1.001e-5,
    },
    "MXNet v2": {**DEEP, "preact": True, "input_norm": True, "preact_stem": "activated"},
    "activated": {**BASIC, "preact": True, "preact_stem": "activated"},
    "activated once": {**DEEP, "preact": True, "preact_stem": "activated_once"},
    "activated once, small": {**BASIC, "preact": True, "preact_stem": "activated_once"},
    "no final norm": {**BASIC, "preact": True, "final_norm": False},
    "entry": {
        **BASIC,
        "blocks": (2, 2),
        "preact": True,
        "shortcut": "A",
        "preact_shortcut": "entry",
    },
    "raw": {**BASIC, "blocks": (2, 2), "preact": True, "preact_shortcut": "raw"},
    "activated shortcuts": {
        **BASIC,
        "blocks": (2, 2),
        "preact": True,
        "shortcut": "A",
        "preact_shortcut": "activated",
    },
}


def network(name: str) -> ResNet:
    """One of `NETWORKS` with ten classes and random weights, in evaluation mode."""
    return tiny.randomised(ResNet(Architecture(**NETWORKS[name], num_classes=10))).eval()
