"""Calibration errors against the paper's definition, image by image."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evaluation.confidence import BINS, independent_reliability, reliability


def answers(count: int, classes: int = 4) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities and classes, with answers that are right less often than they are sure."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(classes, 0.4), count).astype(np.float32)
    targets = np.where(
        random.random(count) < 0.6, probabilities.argmax(1), random.integers(0, classes, count)
    )
    return probabilities, targets


def test_the_error_is_the_papers_sum_over_bins() -> None:
    probabilities, targets = answers(500)
    expected = 0.0
    for m in range(1, BINS + 1):
        inside = [
            (float(row.max()), row.argmax() == target)
            for row, target in zip(probabilities, targets, strict=True)
            if (m - 1) / BINS < row.max() <= m / BINS
        ]
        if inside:
            confidence, accuracy = (np.mean([pair[i] for pair in inside]) for i in (0, 1))
            expected += len(inside) / 500 * abs(accuracy - confidence)
    assert expected > 0.1
    assert reliability(probabilities, targets).ece == pytest.approx(expected, rel=1e-9)


def test_batches_add_up_to_the_whole() -> None:
    probabilities, targets = answers(90)
    whole = reliability(probabilities, targets)
    first, second = (reliability(probabilities[part], targets[part]) for part in PARTS)
    both = first + second
    assert np.array_equal(both.counts, whole.counts)
    assert np.array_equal(both.right, whole.right)
    np.testing.assert_allclose(both.confidences, whole.confidences)
    assert whole.counts.sum() == 90


PARTS = (slice(0, 37), slice(37, None))


def test_an_edge_belongs_to_the_bin_below_and_certainty_to_the_last() -> None:
    rows = np.array([[0.5, 0.5], [0.75, 0.25], [1, 0]], dtype=np.float32)
    found = reliability(rows, np.array([0, 1, 0]), bins=4)
    assert found.counts.tolist() == [0, 1, 1, 1]
    assert found.right.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(found.accuracy, [np.nan, 1, 0, 1])
    np.testing.assert_array_equal(found.confidence, [np.nan, 0.5, 0.75, 1])
    assert found.ece == pytest.approx((0.5 + 0.75 + 0) / 3)


def test_independent_labels_are_binned_by_their_probability() -> None:
    rows = np.array([[0.1, 0.9], [0.6, 1.0]], dtype=np.float32)
    present = np.array([[False, True], [True, False]])
    found = independent_reliability(rows, present, bins=2)
    assert found.counts.tolist() == [1, 3], "each pair of an image and a label"
    assert found.right.tolist() == [0, 2], "those that are present"
    assert found.ece == pytest.approx((0.1 + abs(2 - 2.5)) / 4)


def test_answers_as_sure_as_they_are_right_have_no_error() -> None:
    rows = np.tile(np.array([0.75, 0.25], dtype=np.float32), (4, 1))
    assert reliability(rows, np.array([0, 0, 0, 1])).ece == 0
