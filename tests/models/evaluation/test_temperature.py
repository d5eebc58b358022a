"""Temperatures against those that answers were made with, and against a search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.evaluation import temperature
from models.evaluation.confidence import reliability
from models.evaluation.temperature import calibrate, fit, softmax

Answers = tuple[NDArray[np.float32], NDArray[np.int64]]


def drawn(true: float, count: int = 20_000, classes: int = 5, scale: float = 2.0) -> Answers:
    """Logits, and classes drawn with the probabilities that they give at temperature `true`."""
    random = np.random.default_rng(0)
    logits = random.normal(0, scale, (count, classes)).astype(np.float32)
    chances = softmax(logits, true).cumsum(axis=1)
    return logits, (random.random((count, 1)) > chances[:, :-1]).sum(axis=1)


def nll(logits: NDArray[np.float32], targets: NDArray[np.int64], at: float) -> float:
    return float(F.cross_entropy(torch.from_numpy(logits).double() / at, torch.from_numpy(targets)))


@pytest.mark.parametrize("true", [0.5, 1.0, 1.7, 4.0])
def test_the_temperature_that_made_the_classes_is_found(true: float) -> None:
    logits, targets = drawn(true)
    assert fit(logits, targets) == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(("true", "scale"), [(1.0, 0.3), (1.3, 2.0), (2.0, 100.0), (0.9, 3.0)])
def test_no_temperature_nearby_makes_the_classes_likelier(true: float, scale: float) -> None:
    logits, targets = drawn(true, 300, scale=scale)
    found = fit(logits, targets)
    assert temperature.LOW < found < temperature.HIGH
    best = nll(logits, targets, found)
    for factor in (0.5, 0.99, 0.9999, 1.0001, 1.01, 2):
        assert best <= nll(logits, targets, found * factor)


def test_a_constant_for_each_image_changes_nothing() -> None:
    logits, targets = drawn(1.5, 500)
    moved = logits + np.random.default_rng(1).normal(0, 20, (500, 1)).astype(np.float32)
    assert fit(moved, targets) == pytest.approx(fit(logits, targets), rel=1e-4)


def test_parts_of_the_images_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = drawn(1.5, 500)
    whole = fit(logits, targets)
    monkeypatch.setattr(temperature, "ROWS", 7)
    assert fit(logits, targets) == pytest.approx(whole, rel=1e-9)


def test_where_there_is_no_minimum_it_is_the_bound() -> None:
    logits = np.array([[5, 0, 0], [0, 5, 0]], dtype=np.float32)
    assert fit(logits, np.array([0, 1])) == temperature.LOW, "all right"
    assert fit(logits, np.array([1, 0])) == temperature.HIGH, "all wrong"
    assert fit(np.ones((4, 3), np.float32), np.array([0, 1, 2, 0])) == 1, "nothing to scale"


@pytest.mark.parametrize(
    ("logits", "targets", "words"),
    [
        (np.zeros((0, 3)), [], "no images"),
        (np.zeros((2, 3)), [0], "do not fit"),
        (np.zeros(3), [0, 0, 0], "do not fit"),
        (np.zeros((1, 3)), [3], "from 0 to 2"),
        (np.zeros((1, 3)), [-1], "from 0 to 2"),
        (np.array([[0, np.nan]]), [0], "not finite"),
        (np.array([[0, -np.inf]]), [0], "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    logits: NDArray[np.float64], targets: list[int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        fit(logits.astype(np.float32), np.array(targets, dtype=np.int64))


def test_softmax_is_that_of_the_divided_logits() -> None:
    logits, _ = drawn(1, 50, scale=200)
    expected = (torch.from_numpy(logits).double() / 2.5).softmax(1).numpy()
    found = softmax(logits, 2.5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_answers_are_calibrated_and_the_figures_are_those_of_the_answers() -> None:
    logits, targets = drawn(2.0)
    found = calibrate(softmax(logits), targets)
    assert found.temperature == pytest.approx(2.0, rel=0.05)
    assert found.images == len(targets)
    assert found.ece_before == reliability(softmax(logits), targets).ece
    assert found.ece < 0.02
    assert found.ece_before > 0.1
    assert found.nll_before == pytest.approx(nll(logits, targets, 1), rel=1e-5)
    assert found.nll == pytest.approx(nll(logits, targets, found.temperature), rel=1e-5)


def test_what_was_calibrated_once_is_calibrated_further() -> None:
    logits, targets = drawn(2.0)
    again = calibrate(softmax(logits, 5.0), targets, temperature=5.0)
    assert again.temperature == pytest.approx(fit(logits, targets), rel=1e-4)


def test_probabilities_that_underflowed_can_be_calibrated() -> None:
    logits, targets = drawn(15.0, 2000, scale=40.0)
    probabilities = softmax(logits)
    assert (probabilities == 0).any()
    assert calibrate(probabilities, targets).ece < 0.5 * reliability(probabilities, targets).ece
