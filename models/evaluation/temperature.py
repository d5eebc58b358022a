"""Temperature scaling, which calibrates a network's confidence (Guo 2017, arXiv:1706.04599)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.confidence import reliability
from models.evaluation.evaluate import LEAST

LOW, HIGH = 0.05, 20.0
ROWS = 4096  # At a time, in float64.
TOLERANCE = 1e-7  # Of the inverse temperature.


@dataclass(frozen=True, slots=True)
class Fitted:
    """A temperature and its effect on the images it was fitted on: their expected calibration
    error, and the mean negative log-likelihood of their classes in nats."""

    temperature: float
    images: int
    ece_before: float
    ece: float
    nll_before: float
    nll: float


def calibrate(
    probabilities: NDArray[np.float32], targets: NDArray[np.int64], temperature: float = 1.0
) -> Fitted:
    """The temperature fitted on probabilities [N, K] that were computed at `temperature`.

    Raises:
        ValueError: see `fit`.
    """
    # Logits up to a constant; underflowed probabilities count as the smallest float.
    logits = np.log(np.maximum(probabilities, np.float32(LEAST))) * np.float32(temperature)
    fitted = fit(logits, targets)
    after = softmax(logits, fitted)
    return Fitted(
        fitted,
        len(targets),
        reliability(probabilities, targets).ece,
        reliability(after, targets).ece,
        _nll(probabilities, targets),
        _nll(after, targets),
    )


def fit(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """The temperature from 0.05 to 20 that maximises the likelihood of `targets` [N] under
    `logits` [N, K] (Guo 2017, section 4.2).

    A constant per image does not matter, so logarithms of probabilities serve as logits. The
    negative log-likelihood is convex in the inverse temperature. Newton's method finds its
    minimum, safeguarded by bisection. Without a minimum within the bounds, for instance when all
    predictions are right, the result is the bound.

    Raises:
        ValueError: there are no images, shapes do not match, a logit is not finite, or a class is
            not one of the K.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"logits {logits.shape} do not fit targets {targets.shape}")
    if not logits.size:
        raise ValueError("there are no images to fit a temperature on")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError(f"targets must be from 0 to {logits.shape[1] - 1}")
    low, high = 1 / HIGH, 1 / LOW
    first, last = (_slope(logits, targets, inverse)[0] for inverse in (low, high))
    inverse = 1.0
    if first == last == 0:  # All logits are equal: no temperature has an effect.
        return inverse
    if first >= 0:
        return HIGH
    if last <= 0:
        return LOW
    while high - low > TOLERANCE * low:
        slope, curvature = _slope(logits, targets, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        if abs(step - inverse) <= TOLERANCE * inverse:
            break
        # Newton's method does not converge from outside the bracket, or from its edge.
        inverse = step if low < step < high else (low + high) / 2
    return 1 / inverse


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities float32 [N, K] of `logits` [N, K] divided by `temperature`."""
    scaled = (logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature)
    exponents: NDArray[np.float32] = np.exp(scaled, dtype=np.float32)
    normalised: NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True)
    return normalised


def _nll(probabilities: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    likelihoods = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return float(-np.log(np.maximum(likelihoods, LEAST)).mean())


def _slope(
    logits: NDArray[np.float32], targets: NDArray[np.int64], inverse: float
) -> tuple[float, float]:
    """The first and second derivative of the mean negative log-likelihood with respect to the
    inverse temperature: the mean of expected minus true logits, and the logits' mean variance."""
    surplus = variance = 0.0
    for start in range(0, len(logits), ROWS):
        rows = logits[start : start + ROWS].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        weights = np.exp(inverse * rows)
        weights /= weights.sum(axis=1, keepdims=True)
        expected = (weights * rows).sum(axis=1)
        true = rows[np.arange(len(rows)), targets[start : start + ROWS]]
        surplus += float((expected - true).sum())
        variance += float((weights * (rows - expected[:, None]) ** 2).sum())
    return surplus / len(logits), variance / len(logits)
