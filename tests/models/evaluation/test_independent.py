"""Figures of independent labels, against counts made by hand and image by image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.data.label_list import Targets
from models.evaluation.evaluate import Infer
from models.evaluation.independent import (
    average_precision,
    cross_entropy,
    evaluate,
    measured,
    spread,
)

# Four images, three labels; nobody has the third.
PROBABILITIES = np.array(
    [[0.9, 0.2, 0.1], [0.4, 0.5, 0.6], [0.7, 0.8, 0.1], [0.2, 0.6, 0.3]], dtype=np.float32
)
PRESENT = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=np.bool_)


def looked_up(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return PROBABILITIES[[int(image[0, 0, 0]) for image in images]]


def numbered(targets: Targets, batch_size: int = 3) -> list[tuple[NDArray[np.uint8], Targets]]:
    images = np.arange(len(targets), dtype=np.uint8).reshape(-1, 1, 1, 1)
    starts = range(0, len(targets), batch_size)
    return [(images[at : at + batch_size], targets[at : at + batch_size]) for at in starts]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_the_figures_are_what_a_person_counts(batch_size: int) -> None:
    found = evaluate(looked_up, numbered(PRESENT, batch_size))
    assert found.images == 4
    assert found.present.tolist() == [2, 2, 0]
    assert found.accuracy.tolist() == [2 / 4, 3 / 4, 3 / 4], "0.5 counts as present"
    assert found.mean_accuracy == pytest.approx(2 / 3)
    assert found.exact == 1 / 4
    # The first label ranks 0 2 1 3: precision 1/1 and 2/3. The second 2 3 1 0: 1/1 and 2/3.
    np.testing.assert_allclose(found.precision, [5 / 6, 5 / 6, np.nan])
    assert found.mean_precision == pytest.approx(5 / 6), "over labels that an image has"
    assert found.top1 is None
    assert found.reliability.counts.sum() == 12
    assert found.reliability.right.sum() == PRESENT.sum()


def test_images_of_one_class_each_have_a_top1() -> None:
    steps: list[int] = []
    found = evaluate(looked_up, numbered(np.array([0, 2, 0, 1])), progress=steps.append)
    assert found.top1 == 3 / 4
    assert found.present.tolist() == [2, 1, 1]
    assert steps == [3, 1]


def slow_precision(scores: NDArray[np.float32], present: NDArray[np.bool_]) -> float:
    """By every threshold, from the definition."""
    total, before = 0.0, 0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        hits = int(present[chosen].sum())
        total += (hits - before) * hits / chosen.sum()
        before = hits
    return float(total / present.sum())


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_its_definition_with_ties_in_any_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = (random.integers(0, 8, 60) / 8).astype(np.float32)
    present = random.random(60) < 0.3
    expected = slow_precision(scores, present)
    order = random.permutation(60)
    assert average_precision(scores, present) == pytest.approx(expected, rel=1e-12)
    assert average_precision(scores[order], present[order]) == pytest.approx(expected, rel=1e-12)


def test_average_precision_at_its_limits() -> None:
    scores = np.array([0.9, 0.8, 0.1], dtype=np.float32)
    assert average_precision(scores, np.array([True, True, False])) == 1
    assert average_precision(scores, np.array([False, False, True])) == pytest.approx(1 / 3)
    assert np.isnan(average_precision(scores, np.zeros(3, dtype=np.bool_)))
    alone = measured(PROBABILITIES, np.zeros((4, 3), dtype=np.bool_))
    assert alone.mean_precision is None


def test_cross_entropy_is_torchs_and_stays_finite() -> None:
    probabilities, targets = torch.from_numpy(PROBABILITIES).double(), torch.from_numpy(PRESENT)
    expected = float(F.binary_cross_entropy(probabilities, targets.double()))
    assert cross_entropy(PROBABILITIES, PRESENT) == pytest.approx(expected, rel=1e-6)
    wrong = np.array([[0.0, 1.0]], dtype=np.float32), np.array([[True, False]])
    assert cross_entropy(*wrong) == pytest.approx(25 * np.log(2))


def test_labels_other_than_the_networks_are_refused() -> None:
    assert spread(np.array([1, 0]), 2).tolist() == [[False, True], [True, False]]
    for targets in (np.array([2]), np.array([-1]), np.zeros((1, 3), dtype=np.bool_)):
        with pytest.raises(ValueError, match="are not the network's 2"):
            spread(targets, 2)
    never: Infer = looked_up
    with pytest.raises(ValueError, match="no images"):
        evaluate(never, [])
