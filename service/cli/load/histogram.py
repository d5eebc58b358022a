"""Latencies counted in log-linear bins, after Tene's HdrHistogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
# Bins per power of two: a bin's midpoint is within 0.05 % of any value in it, three significant
# digits.
BINS, SHIFT = 1024, 10
NANOSECONDS = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """`bins` int64 [B], ascending; `counts` int64 [B], positive; the exact `maximum` in seconds."""

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    maximum: float

    @classmethod
    def of(cls, seconds: ArrayLike) -> Histogram:
        """The histogram of latencies [N] in seconds; negative ones as 0."""
        values = np.maximum(np.asarray(seconds, np.float64), 0.0)
        bins, counts = np.unique(_bins_of(values), return_counts=True)
        return cls(bins, counts.astype(np.int64), float(values.max(initial=0.0)))

    @classmethod
    def from_json(cls, document: Mapping[str, Sequence[float]]) -> Histogram:
        """The inverse of `as_json`."""
        values = np.asarray(document["values_ms"], np.float64) / 1000
        counts = np.asarray(document["counts"], np.int64)
        return cls(_bins_of(values), counts, float(document["maximum_ms"][0]) / 1000)

    def as_json(self) -> dict[str, Any]:
        """The nonempty bins: the midpoint of each, and its count.

        Quantile q is the first value at which the cumulative count reaches q times the total.
        """
        return {
            "values_ms": [float(f"{value * 1000:.6g}") for value in _middles_of(self.bins)],
            "counts": self.counts.tolist(),
            "maximum_ms": [round(self.maximum * 1000, 6)],
        }

    def __add__(self, other: Histogram) -> Histogram:
        """The histogram of both sets of latencies."""
        bins, where = np.unique(np.concatenate((self.bins, other.bins)), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, where, np.concatenate((self.counts, other.counts)))
        return Histogram(bins, counts, max(self.maximum, other.maximum))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def quantiles(self, shares: ArrayLike) -> NDArray[np.float64]:
        """The quantiles [Q], in seconds, at `shares` [Q] from 0 to 1.

        Raises:
            ValueError: the histogram is empty.
        """
        if not self.total:
            raise ValueError("an empty histogram has no quantiles")
        # 0.99 of 100 must not become the hundredth value because of a rounding error.
        ranks = np.ceil(np.asarray(shares, np.float64) * self.total - 1e-9)
        places = np.searchsorted(np.cumsum(self.counts), np.maximum(ranks, 1))
        return np.minimum(_middles_of(self.bins)[places], self.maximum)

    def summary_ms(self) -> dict[str, float]:
        """Milliseconds for p50 to p99.9 and max; empty if the histogram is."""
        if not self.total:
            return {}
        quantiles = self.quantiles(list(QUANTILES.values()))
        named = dict(zip(QUANTILES, quantiles.tolist(), strict=True)) | {"max": self.maximum}
        return {name: round(seconds * 1000, 3) for name, seconds in named.items()}


def _bins_of(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    ticks = np.rint(seconds * NANOSECONDS).astype(np.int64)
    # Each tick below 2 * BINS has its own bin; above that, each power of two has BINS bins.
    exponents = np.maximum(np.frexp(ticks.astype(np.float64))[1].astype(np.int64) - 1 - SHIFT, 0)
    return (exponents << SHIFT) + (ticks >> exponents)


def _middles_of(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    exponents = np.maximum((bins >> SHIFT) - 1, 0)
    lowest = (bins - (exponents << SHIFT)) << exponents
    ticks: NDArray[np.float64] = lowest + ((1 << exponents) - 1) / 2
    return ticks / NANOSECONDS
