"""How far a network's confidence is from how often it is right (Guo 2017, arXiv:1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Images by the confidence of their answer, in bins (b / B, (b + 1) / B] of equal width.

    For each of the B bins: `counts` int64 [B] of images, `right` int64 [B] of those whose class is
    the answer, and `confidences` float64 [B], the sum of the answers' probabilities.
    """

    counts: NDArray[np.int64]
    right: NDArray[np.int64]
    confidences: NDArray[np.float64]

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.counts + other.counts,
            self.right + other.right,
            self.confidences + other.confidences,
        )

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """The share of each bin's answers that are right, float64 [B]; NaN where it is empty."""
        return self._per_image(self.right)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The mean confidence in each bin, float64 [B]; NaN where it is empty."""
        return self._per_image(self.confidences)

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean over all images of the difference between
        accuracy and confidence in an image's bin (Guo 2017, section 2, equation 3)."""
        return float(np.abs(self.right - self.confidences).sum() / self.counts.sum())

    def _per_image(self, sums: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
        empty = np.full(len(self.counts), np.nan)
        means: NDArray[np.float64] = np.divide(sums, self.counts, out=empty, where=self.counts > 0)
        return means


def reliability(
    probabilities: NDArray[np.float32], targets: NDArray[np.int64], bins: int = BINS
) -> Reliability:
    """The bins of answers [N, K] to images of the classes [N]."""
    answers = probabilities.argmax(axis=1)
    confidences = probabilities.max(axis=1).astype(np.float64)
    # A bin's upper edge belongs to it.
    places = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    return Reliability(
        np.bincount(places, minlength=bins).astype(np.int64),
        np.bincount(places[answers == targets], minlength=bins).astype(np.int64),
        np.bincount(places, weights=confidences, minlength=bins).astype(np.float64),
    )
