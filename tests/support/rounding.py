"""How far apart two correct computations of one thing may come out.

No two machines, libraries or layouts in memory add in the same order, so tests compare within what
rounding explains, and never within a number that one machine happened to meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Array = Tensor | NDArray[np.float32] | NDArray[np.float64] | list[float]


def unit(precision: str) -> float:
    """The most that one rounding changes a number, relative to it: half of machine epsilon."""
    return float(torch.finfo(DTYPES[precision]).eps) / 2


def of_sums(lengths: Iterable[int], precision: str = "fp32") -> float:
    """The relative error of sums of products, `lengths` of them after one another.

    Each of n terms is rounded once, in float32 whatever the precision, and the sum once more where
    it is stored. Rounding errors have either sign and know nothing of each other, so they add up
    like a random walk: to at most k * u * sqrt(how many), with probability 1 - 2 exp(-k*k / 2) for
    unit roundoff u (Higham and Mary, "A new approach to probabilistic rounding error analysis",
    SIAM J. Sci. Comput. 41, 2019, theorem 2.4). k = 6: one value in 30 million lies outside.
    """
    terms = list(lengths)
    stored = 0.0 if precision == "fp32" else unit(precision) * math.sqrt(len(terms))
    return 6 * (unit("fp32") * math.sqrt(sum(terms) + len(terms)) + stored)


def sums(layers: nn.Module | Mapping[str, Tensor]) -> list[int]:
    """How many products each convolution and matrix adds up for one value."""
    tensors = layers.state_dict() if isinstance(layers, nn.Module) else layers
    return [weight[0].numel() for weight in tensors.values() if weight.ndim > 1]


def relative(layers: nn.Module | Mapping[str, Tensor], precision: str = "fp32") -> float:
    """Of the values that a network gives, to the largest of them: its layers follow one another,
    and norms keep the scale between them."""
    return of_sums(sums(layers), precision)


def parts(
    found: Array,
    expected: Array,
    layers: nn.Module | Mapping[str, Tensor],
    precision: str = "fp32",
    scale: float | None = None,
) -> float:
    """The largest difference, in parts of what rounding explains: 1 or less where both are right.

    Of features, maps or logits: `layers` are those of the network that gave them. `scale`: of what
    was added up; None: the largest value itself.
    """
    wanted = _float64(expected)
    allowed = relative(layers, precision) * (scale or np.abs(wanted).max())
    return float(np.abs(_float64(found) - wanted).max() / allowed)


def assert_near(
    found: Array,
    expected: Array,
    layers: nn.Module | Mapping[str, Tensor],
    precision: str = "fp32",
    scale: float | None = None,
) -> None:
    """That `parts` is at most 1."""
    assert parts(found, expected, layers, precision, scale) <= 1


def of_probabilities(
    expected: Array, layers: nn.Module | Mapping[str, Tensor], precision: str = "fp32"
) -> float:
    """How far rounding moves probabilities of all classes, along the last axis of `expected`.

    A softmax moves by at most half of what its logits move by, and the logarithms of what it gives
    tell how large those were, but for a constant. The softmax itself adds up as many exponentials
    as there are classes.
    """
    wanted = _float64(expected)
    logits = np.log(np.maximum(wanted, np.finfo(np.float32).tiny))
    moved = relative(layers, precision) * np.ptp(logits, axis=-1).max() / 2
    return float(moved + of_sums([wanted.shape[-1]]))


def assert_probabilities_near(
    found: Array,
    expected: Array,
    layers: nn.Module | Mapping[str, Tensor],
    precision: str = "fp32",
) -> None:
    """Of all classes, along the last axis."""
    allowed = of_probabilities(expected, layers, precision)
    np.testing.assert_allclose(_float64(found), _float64(expected), rtol=0, atol=allowed)


def _float64(values: Array) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
