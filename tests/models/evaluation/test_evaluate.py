"""What is measured, against counts made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.classifier import Classifier
from models.data.datasets import Dataset
from models.evaluation.evaluate import (
    LEAST,
    Batch,
    batches,
    evaluate,
    inference,
)
from models.preprocess import CIFAR
from tests.support import tiny

# Six images, seven classes; each row's order of classes is in the comment.
PROBABILITIES = np.array(
    [
        [0.70, 0.10, 0.08, 0.05, 0.04, 0.02, 0.01],  # 0 1 2 3 4 | 5 6
        [0.01, 0.02, 0.04, 0.05, 0.08, 0.10, 0.70],  # 6 5 4 3 2 | 1 0
        [0.10, 0.30, 0.20, 0.15, 0.12, 0.11, 0.02],  # 1 2 3 4 5 | 0 6
        [0.10, 0.30, 0.20, 0.15, 0.12, 0.11, 0.02],
        [0.25, 0.25, 0.25, 0.25, 0.00, 0.00, 0.00],  # ties: 0 1 2 3 4 | 5 6
        [0.25, 0.25, 0.25, 0.25, 0.00, 0.00, 0.00],
    ],
    dtype=np.float32,
)
TARGETS = [0, 0, 5, 6, 0, 3]
# First: images 0 and 4. Among five: those, 2 and 5.


def looked_up(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return PROBABILITIES[[int(image[0, 0, 0]) for image in images]]


def numbered(targets: list[int]) -> Dataset:
    images = np.arange(len(targets), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Dataset(images, np.array(targets, dtype=np.int64), tuple("abcdefg"), "made")


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 100])
def test_accuracy_is_what_a_person_counts_in_batches_of_any_size(batch_size: int) -> None:
    steps: list[int] = []
    measured = evaluate(looked_up, batches(numbered(TARGETS), batch_size), progress=steps.append)
    assert (measured.top1, measured.top5, measured.images) == (2 / 6, 4 / 6, 6)
    assert sum(steps) == 6
    assert max(steps) == min(batch_size, 6)


def test_images_with_several_classes_are_refused() -> None:
    several = np.eye(7, dtype=np.bool_)[TARGETS] | np.eye(7, dtype=np.bool_)[0]
    data = replace(numbered(TARGETS), targets=several)
    with pytest.raises(ValueError, match="several labels or none, and the classes are exclusive"):
        evaluate(looked_up, batches(data, 4))


def test_with_five_classes_or_fewer_every_answer_is_among_the_first_five() -> None:
    def three(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.tile(np.array([0.2, 0.5, 0.3], dtype=np.float32), (len(images), 1))

    measured = evaluate(three, batches(numbered([0, 1, 2, 1]), 3))
    assert (measured.top1, measured.top5, measured.images) == (0.5, 1.0, 4)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_confusion_likelihood_and_calibration_are_what_a_person_counts(batch_size: int) -> None:
    measured = evaluate(looked_up, batches(numbered(TARGETS), batch_size))
    assert (measured.top1, measured.top5, measured.images) == (2 / 6, 4 / 6, 6)
    # Classes 0, 0, 5, 6, 0, 3 were answered by 0, 6, 1, 1, 0, 0.
    expected = np.zeros((7, 7), dtype=np.int64)
    for target, answer in zip(TARGETS, [0, 6, 1, 1, 0, 0], strict=True):
        expected[target, answer] += 1
    assert measured.confusion.dtype == np.int64
    assert np.array_equal(measured.confusion, expected)
    np.testing.assert_array_equal(
        measured.per_class, [2 / 3, np.nan, np.nan, 0, np.nan, 0, 0], strict=True
    )
    likelihoods = [0.70, 0.01, 0.11, 0.02, 0.25, 0.25]
    assert measured.nll == pytest.approx(-np.log(likelihoods).mean(), rel=1e-6)
    # Confidences .7 .7 | .3 .3 | .25 .25, of each pair 1, 0 and 1 right.
    assert measured.ece == pytest.approx((0.4 + 0.6 + 0.5) / 6, rel=1e-6)


def test_a_likelihood_of_zero_costs_much_and_does_not_hide_the_others() -> None:
    measured = evaluate(looked_up, batches(numbered([0, 0, 5, 6, 5, 0]), 6))
    likelihoods = [0.70, 0.01, 0.11, 0.02, LEAST, 0.25]
    assert measured.nll == pytest.approx(-np.log(likelihoods).mean(), rel=1e-6)


def test_a_stream_is_taken_one_batch_at_a_time_and_each_can_be_observed() -> None:
    held: list[int] = []
    observed: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []

    def streamed() -> Iterator[Batch]:
        for batch in batches(numbered(TARGETS), 2):
            assert len(held) == len(observed), "the batch before is done with"
            held.append(len(batch[0]))
            yield batch

    evaluate(looked_up, streamed(), observe=lambda *both: observed.append(both))
    assert held == [2, 2, 2]
    assert np.array_equal(np.concatenate([rows for rows, _ in observed]), PROBABILITIES)
    assert np.array_equal(np.concatenate([targets for _, targets in observed]), TARGETS)


def test_nothing_to_evaluate_and_classes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(looked_up, iter(()))
    for target in (7, -1):
        with pytest.raises(ValueError, match="not one of the network's 7 classes"):
            evaluate(looked_up, batches(numbered([0, target]), 2))


def test_inference_is_the_classifiers_forward() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    classifier = Classifier(tiny.network(), CIFAR).eval()
    probabilities = inference(classifier)(list(images))
    assert probabilities.dtype == np.float32
    expected = classifier(torch.from_numpy(images)).detach().numpy()
    assert np.array_equal(probabilities, expected)


def test_inference_keeps_no_gradients() -> None:
    classifier = Classifier(tiny.network(), CIFAR)
    grad_enabled: list[bool] = []
    classifier.network.head.register_forward_hook(
        lambda *_: grad_enabled.append(torch.is_grad_enabled())
    )
    inference(classifier)([np.zeros((8, 8, 3), dtype=np.uint8)])
    assert grad_enabled == [False]
