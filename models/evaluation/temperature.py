"""Temperature scaling, which calibrates a network's confidence (Guo 2017, arXiv:1706.04599).

A temperature is fitted only where the images determine it: its interval of 95 % confidence is part
of the result, and must be narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.label_list import Targets
from models.evaluation.confidence import Reliability, independent_reliability, reliability
from models.evaluation.evaluate import LEAST, single
from models.evaluation.independent import LEAST as LEAST_STATED
from models.evaluation.independent import cross_entropy

LOW, HIGH = 0.05, 20.0
FEWEST = 50  # Images. The interval of fewer is itself a guess.
# The most that the interval's upper end may be times its lower end: known to a factor of two each
# way. The likelihood of further images then loses about 1 / (2 FEWEST) nats at most.
WIDEST = 4.0
CRITICAL = 3.8415  # Of chi-squared with one degree of freedom, at 95 %.
ROWS = 4096  # At a time, in float64.
TOLERANCE = 1e-7  # Of the inverse temperature.
END_TOLERANCE = 1e-3  # Of the ends of its interval.


class Undetermined(ValueError):
    """The images do not determine a temperature; the message says why and what would help."""


class Estimate(NamedTuple):
    """A temperature, and the lower and upper end of its interval of 95 % confidence."""

    temperature: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A temperature, the `interval` of 95 % confidence, and its effect on the images it was fitted
    on: their expected calibration error, and the mean negative log-likelihood in nats of their
    classes, or of their independent labels."""

    temperature: float
    interval: tuple[float, float]
    images: int
    ece_before: float
    ece: float
    nll_before: float
    nll: float


class _Sums(NamedTuple):
    """Over images: the negative log-likelihood, its first and second derivative with respect to
    the inverse temperature, and the squares of each image's first derivative."""

    nll: float
    slope: float
    curvature: float
    squares: float


def check_count(images: int, remedy: str = "") -> None:
    """Raises Undetermined if no temperature is ever fitted on so few images."""
    if images < FEWEST:
        raise Undetermined(
            f"too few images to fit a temperature: {images}; at least {FEWEST} are needed{remedy}"
        )


def calibrate(
    probabilities: NDArray[np.float32], targets: Targets, temperature: float = 1.0
) -> Fitted:
    """The temperature fitted on probabilities [N, K] that were computed at `temperature`.

    Targets are classes int64 [N], and the probabilities exclusive; or labels bool [N, K], and the
    probabilities independent.

    Raises:
        ValueError: see `fit`.
    """
    scale = np.float32(temperature)
    if targets.ndim == 2:
        present = targets.astype(np.bool_, copy=False)
        logits = _logits(probabilities) * scale
        estimate = fit(logits, present)
        after = _sigmoid(logits / np.float32(estimate.temperature))
        before_bins, bins = (independent_reliability(p, present) for p in (probabilities, after))
        nll_before, nll = (cross_entropy(p, present) for p in (probabilities, after))
    else:
        classes = single(targets)
        # Logits up to a constant; underflowed probabilities count as the smallest float.
        logits = np.log(np.maximum(probabilities, np.float32(LEAST))) * scale
        estimate = fit(logits, classes)
        after = softmax(logits, estimate.temperature)
        before_bins, bins = (reliability(p, classes) for p in (probabilities, after))
        nll_before, nll = (_nll(p, classes) for p in (probabilities, after))
    return _fitted(estimate, len(targets), (before_bins, bins), (nll_before, nll))


def _fitted(
    estimate: Estimate,
    images: int,
    bins: tuple[Reliability, Reliability],
    nll: tuple[float, float],
) -> Fitted:
    return Fitted(*estimate, images, bins[0].ece, bins[1].ece, *nll)


def fit(logits: NDArray[np.float32], targets: Targets) -> Estimate:
    """The temperature from 0.05 to 20 that maximises the likelihood of `targets` under `logits`
    [N, K] (Guo 2017, section 4.2).

    Targets are the classes of the images, int64 [N], under the softmax; or bool [N, K], the labels
    that each has, under the sigmoid. For the softmax, a constant per image does not matter, so
    logarithms of probabilities serve as logits.

    The negative log-likelihood is convex in the inverse temperature. Newton's method finds its
    minimum, safeguarded by bisection. The interval is that of the profile likelihood, scaled by the
    variance between images (Chandler and Bate 2007, Biometrika 94, section 3): the labels of an
    image depend on each other, and a temperature alone does not make a network's confidence true.

    Raises:
        Undetermined: there are fewer than `FEWEST` images, the minimum is beyond the bounds, for
            instance when all predictions are right, or the interval is too wide.
        ValueError: there are no images, shapes do not match, a logit is not finite, or a class is
            not one of the K.
    """
    _check(logits, targets)
    count = len(logits)
    check_count(count)
    low, high = 1 / HIGH, 1 / LOW
    first, last = (_sums(logits, targets, inverse).slope for inverse in (low, high))
    if first >= 0 or last <= 0:
        raise Undetermined(_beyond(count, first, last))
    inverse = 1.0
    while high - low > TOLERANCE * low:
        sums = _sums(logits, targets, inverse)
        low, high = (inverse, high) if sums.slope < 0 else (low, inverse)
        step = inverse - sums.slope / sums.curvature if sums.curvature > 0 else math.inf
        if abs(step - inverse) <= TOLERANCE * inverse:
            break
        # Newton's method does not converge from outside the bracket, or from its edge.
        inverse = step if low < step < high else (low + high) / 2
    return Estimate(1 / inverse, _interval(logits, targets, inverse))


def _check(logits: NDArray[np.float32], targets: Targets) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape[: targets.ndim]:
        raise ValueError(f"logits {logits.shape} do not fit targets {targets.shape}")
    if not logits.size:
        raise ValueError("there are no images to fit a temperature on")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    if targets.ndim == 1 and (targets.min() < 0 or targets.max() >= logits.shape[1]):
        raise ValueError(f"targets must be from 0 to {logits.shape[1] - 1}")


def _beyond(count: int, first: float, last: float) -> str:
    """Why there is no minimum within the bounds."""
    if first == last == 0:
        return f"no temperature can be fitted: the logits of all {count} images are equal"
    if last <= 0:
        return (
            f"no temperature can be fitted: {count} images favour {LOW:g} or less, since nearly "
            "all predictions are right; it needs more images, or harder ones"
        )
    return (
        f"no temperature can be fitted: {count} images favour {HIGH:g} or more, since the "
        "predictions say nearly nothing about the classes; check the labels and their order"
    )


def _interval(logits: NDArray[np.float32], targets: Targets, inverse: float) -> tuple[float, float]:
    """The temperatures that the images do not exclude, given the likeliest.

    Raises:
        Undetermined: the interval is too wide.
    """
    count, best = len(logits), _sums(logits, targets, inverse)
    # Never narrower than the likelihood alone would have it.
    scale = max(1.0, best.squares / best.curvature)
    limit = best.nll + scale * CRITICAL / 2

    def end(bound: float) -> float:
        """Where the likelihood crosses the limit between the minimum and `bound`, or `bound`."""
        inside, outside = math.log(inverse), math.log(bound)
        if _sums(logits, targets, bound).nll <= limit:
            return bound
        while abs(outside - inside) > END_TOLERANCE:
            middle = (inside + outside) / 2
            within = _sums(logits, targets, math.exp(middle)).nll <= limit
            inside, outside = (middle, outside) if within else (inside, middle)
        return math.exp(outside)

    least, most = 1 / end(1 / LOW), 1 / end(1 / HIGH)
    if most > WIDEST * least or least <= LOW or most >= HIGH:
        # The width falls with the square root of the number of images.
        half = math.sqrt(scale * CRITICAL / best.curvature) / inverse
        needed = max(count * (2 * half / math.log(WIDEST)) ** 2, 1.2 * count)
        raise Undetermined(
            f"too few images to fit a temperature: {count} determine it only to {least:.2g} to "
            f"{most:.2g}; about {_rounded_up(needed):,} are needed"
        )
    return least, most


def _rounded_up(count: float) -> int:
    """To two digits."""
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return int(math.ceil(count / unit) * unit)


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities float32 [N, K] of `logits` [N, K] divided by `temperature`."""
    scaled = (logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature)
    exponents: NDArray[np.float32] = np.exp(scaled, dtype=np.float32)
    normalised: NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True)
    return normalised


def _logits(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits of independent probabilities; those that rounded to 0 or 1 count as next to it."""
    least = np.float32(LEAST_STATED)
    odds: NDArray[np.float32] = np.log(np.maximum(probabilities, least)) - np.log(
        np.maximum(np.float32(1) - probabilities, least)
    )
    return odds


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # Beyond 80, float32 has no other probabilities.
    probabilities = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    return probabilities.astype(np.float32, copy=False)


def _nll(probabilities: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    likelihoods = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return float(-np.log(np.maximum(likelihoods, LEAST)).mean())


def _sums(logits: NDArray[np.float32], targets: Targets, inverse: float) -> _Sums:
    terms = _independent if targets.ndim == 2 else _exclusive
    totals = np.zeros(4)
    for start in range(0, len(logits), ROWS):
        part = slice(start, start + ROWS)
        nll, slope, curvature = terms(logits[part].astype(np.float64), targets[part], inverse)
        totals += nll.sum(), slope.sum(), curvature.sum(), (slope**2).sum()
    return _Sums(*totals.tolist())


def _exclusive(
    rows: NDArray[np.float64], targets: Targets, inverse: float
) -> tuple[NDArray[np.float64], ...]:
    """For each image, the negative log-likelihood and its derivatives: the expected minus the true
    logit, and the logits' variance."""
    rows -= rows.max(axis=1, keepdims=True)
    weights = np.exp(inverse * rows)
    sums = weights.sum(axis=1)
    weights /= sums[:, None]
    expected = (weights * rows).sum(axis=1)
    true = rows[np.arange(len(rows)), targets]
    variance = (weights * (rows - expected[:, None]) ** 2).sum(axis=1)
    return np.log(sums) - inverse * true, expected - true, variance


def _independent(
    rows: NDArray[np.float64], targets: Targets, inverse: float
) -> tuple[NDArray[np.float64], ...]:
    """The same for independent labels, summed over them."""
    scaled = inverse * rows
    chances = 0.5 * (1 + np.tanh(scaled / 2))
    nll = np.logaddexp(0, scaled) - scaled * targets
    slope = rows * (chances - targets)
    curvature = rows**2 * chances * (1 - chances)
    return nll.sum(axis=1), slope.sum(axis=1), curvature.sum(axis=1)
