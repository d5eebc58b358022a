"""When images arrive: rates that change, and times drawn from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS_A_DAY = 288
# Bursts last this many seconds on average, have this many times the mean rate, and take this
# share of the time.
BURST_SECONDS, BURST_HEIGHT, BURST_SHARE = 2.0, 3.0, 0.1
BURST_STEP = 0.1
# The rate in the deepest night and at the busiest hour, of the mean.
NIGHT, NOON = 0.4, 1.6


def times(rates: Floats, seconds: float, random: np.random.Generator) -> Floats:
    """Rising times [N] from 0 to `seconds`, independent of each other.

    `rates` [M], a second, hold for equal parts of the time.
    """
    edges = np.linspace(0.0, seconds, len(rates) + 1)
    expected = np.concatenate(([0.0], np.cumsum(rates) * (seconds / len(rates))))
    drawn = random.uniform(0.0, expected[-1], random.poisson(expected[-1]))
    return np.asarray(np.interp(np.sort(drawn), expected, edges), dtype=np.float64)


def steady(rate: float) -> Floats:
    return np.array([rate])


def bursts(rate: float, seconds: float, random: np.random.Generator) -> Floats:
    """Mostly a little below the mean `rate`, at times far above it."""
    low = rate * (1 - BURST_SHARE * BURST_HEIGHT) / (1 - BURST_SHARE)
    rates = np.full(max(1, round(seconds / BURST_STEP)), low)
    calm = BURST_SECONDS * (1 - BURST_SHARE) / BURST_SHARE
    start = random.exponential(calm)
    while start < seconds:
        end = start + random.exponential(BURST_SECONDS)
        rates[round(start / BURST_STEP) : round(end / BURST_STEP)] = rate * BURST_HEIGHT
        start = end + random.exponential(calm)
    return rates


def diurnal(rate: float) -> Floats:
    """A day from midnight to midnight, of the mean `rate`, however many seconds it shall take."""
    middle, swing = (NOON + NIGHT) / 2, (NOON - NIGHT) / 2
    phase = (np.arange(STEPS_A_DAY) + 0.5) / STEPS_A_DAY * 2 * np.pi
    return np.asarray(rate * (middle - swing * np.cos(phase)), dtype=np.float64)


def trace(path: Path, rate: float) -> Floats:
    """A file's numbers, one a line, scaled to the mean `rate`.

    Raises:
        SystemExit: it has none, or something else.
    """
    try:
        found = np.array([float(line) for line in path.read_text("utf-8").split()])
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from None
    if not len(found) or not np.isfinite(found).all() or found.min() < 0 or found.sum() == 0:
        raise SystemExit(f"{path}: must hold rates, one number a line, not all of them 0")
    return np.asarray(found * (rate / found.mean()), dtype=np.float64)
