"""Calibration: a network's confidence compared with its accuracy (Guo 2017, arXiv:1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Images by the confidence of their prediction, in B bins (b / B, (b + 1) / B].

    For each bin, `counts` int64 [B] of images and `right` int64 [B] of correct predictions, and
    `confidences` float64 [B], the sum of the predictions' probabilities. For independent labels,
    each pair of an image and a label is an image here, and "right" where the image has the label.
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
        """The accuracy in each bin, float64 [B]; NaN for an empty bin."""
        return self._per_image(self.right)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The mean confidence in each bin, float64 [B]; NaN for an empty bin."""
        return self._per_image(self.confidences)

    @property
    def ece(self) -> float:
        """The expected calibration error: the difference between accuracy and confidence of the
        bins, averaged over all images (Guo 2017, section 2, equation 3)."""
        return float(np.abs(self.right - self.confidences).sum() / self.counts.sum())

    def _per_image(self, sums: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
        empty = np.full(len(self.counts), np.nan)
        means: NDArray[np.float64] = np.divide(sums, self.counts, out=empty, where=self.counts > 0)
        return means


def independent_reliability(
    probabilities: NDArray[np.float32], present: NDArray[np.bool_], bins: int = BINS
) -> Reliability:
    """The bins of all `probabilities` [N, K], for images that have the labels `present` [N, K]."""
    return _binned(probabilities.ravel(), present.ravel(), bins)


def reliability(
    probabilities: NDArray[np.float32], targets: NDArray[np.int64], bins: int = BINS
) -> Reliability:
    """The bins of predictions with `probabilities` [N, K], for images of classes `targets` [N]."""
    return _binned(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets, bins)


def _binned(values: NDArray[np.float32], right: NDArray[np.bool_], bins: int) -> Reliability:
    confidences = values.astype(np.float64)
    # Bins include their upper edge.
    places = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    return Reliability(
        np.bincount(places, minlength=bins).astype(np.int64),
        np.bincount(places[right], minlength=bins).astype(np.int64),
        np.bincount(places, weights=confidences, minlength=bins).astype(np.float64),
    )
