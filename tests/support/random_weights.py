"""Random weights, biases and statistics for networks of other libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tests.support import rounding

AROUND_ONE = {"scale", "gamma", "var", "moving_variance"}


def randomised(leaf: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """Float32 values for a parameter called `leaf`, none of them trivial."""
    if leaf in AROUND_ONE:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    deviation = np.prod(shape[:-1]) ** -0.5 if leaf == "kernel" else 0.3
    return random.normal(0, deviation, shape).astype(np.float32)


def far(ours: NDArray[Any], theirs: NDArray[Any], network: nn.Module) -> float:
    """The largest difference of two sets of logits, in parts of what rounding explains."""
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    # Images that all give the same would show nothing.
    assert np.ptp(theirs, axis=0).max() > 1e-3 * np.abs(theirs).max()
    return rounding.parts(ours, theirs, network)
