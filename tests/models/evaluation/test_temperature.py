"""Temperatures and their intervals against those that answers were made with, and a search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.data.label_list import Targets
from models.evaluation import temperature
from models.evaluation.confidence import independent_reliability, reliability
from models.evaluation.independent import cross_entropy
from models.evaluation.temperature import (
    FEWEST,
    Undetermined,
    calibrate,
    check_count,
    fit,
    softmax,
)

Answers = tuple[NDArray[np.float32], NDArray[np.int64]]


def drawn(
    true: float, count: int = 20_000, classes: int = 5, scale: float = 2.0, seed: int = 0
) -> Answers:
    """Logits, and classes drawn with the probabilities that they give at temperature `true`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, scale, (count, classes)).astype(np.float32)
    chances = softmax(logits, true).cumsum(axis=1)
    return logits, (random.random((count, 1)) > chances[:, :-1]).sum(axis=1)


def drawn_labels(
    true: float, count: int = 2000, labels: int = 4, copies: int = 1, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The same with independent labels, each repeated: copies tell nothing new."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, labels)).astype(np.float32)
    present = random.random((count, labels)) < 1 / (1 + np.exp(-logits / true))
    return np.repeat(logits, copies, axis=1), np.repeat(present, copies, axis=1)


def nll(logits: NDArray[np.float32], targets: NDArray[np.int64], at: float) -> float:
    return float(F.cross_entropy(torch.from_numpy(logits).double() / at, torch.from_numpy(targets)))


@pytest.mark.parametrize("true", [0.5, 1.0, 1.7, 4.0])
def test_the_temperature_that_made_the_classes_is_found(true: float) -> None:
    logits, targets = drawn(true)
    found, (least, most) = fit(logits, targets)
    assert found == pytest.approx(true, rel=0.05)
    assert least < found < most < 1.1 * least


@pytest.mark.parametrize(("true", "scale"), [(1.0, 1.0), (1.3, 2.0), (2.0, 20.0), (0.9, 3.0)])
def test_no_temperature_nearby_makes_the_classes_likelier(true: float, scale: float) -> None:
    logits, targets = drawn(true, 300, scale=scale)
    found, _ = fit(logits, targets)
    assert temperature.LOW < found < temperature.HIGH
    best = nll(logits, targets, found)
    for factor in (0.5, 0.99, 0.9999, 1.0001, 1.01, 2):
        assert best <= nll(logits, targets, found * factor)


def test_a_constant_for_each_image_changes_nothing() -> None:
    logits, targets = drawn(1.5, 500)
    moved = logits + np.random.default_rng(1).normal(0, 20, (500, 1)).astype(np.float32)
    assert fit(moved, targets)[0] == pytest.approx(fit(logits, targets)[0], rel=1e-4)


def test_parts_of_the_images_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = drawn(1.5, 500)
    whole = fit(logits, targets)
    monkeypatch.setattr(temperature, "ROWS", 7)
    parts = fit(logits, targets)
    assert parts.temperature == pytest.approx(whole.temperature, rel=1e-9)
    assert parts.interval == pytest.approx(whole.interval, rel=1e-9)


def covered(sets: list[tuple[NDArray[np.float32], Targets]], true: float) -> float:
    """How often the interval holds the temperature that made the targets."""
    intervals = [fit(logits, targets).interval for logits, targets in sets]
    return sum(least <= true <= most for least, most in intervals) / len(sets)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    sets: list[tuple[NDArray[np.float32], Targets]] = [
        drawn(1.5, 200, seed=seed) for seed in range(150)
    ]
    assert 0.9 <= covered(sets, 1.5) < 1


def test_labels_that_depend_on_each_other_do_not_narrow_it() -> None:
    single, copied = (
        [drawn_labels(1.5, 200, copies=copies, seed=seed) for seed in range(150)]
        for copies in (1, 9)
    )
    assert 0.9 <= covered(list(single), 1.5) < 1
    assert 0.9 <= covered(list(copied), 1.5) < 1
    one, nine = (fit(*sets[0]).interval for sets in (single, copied))
    assert nine == pytest.approx(one, rel=0.1)


def refusal(logits: NDArray[np.float32], targets: Targets) -> str:
    with pytest.raises(Undetermined, match=r"\A[^\n]+\Z") as caught:
        fit(logits, targets)
    return str(caught.value)


def test_without_a_minimum_within_the_bounds_there_is_no_temperature() -> None:
    logits, targets = drawn(1.0, 1000)
    right = refusal(logits, logits.argmax(axis=1))
    assert "1000 images favour 0.05 or less, since nearly all predictions are right" in right
    wrong = refusal(logits, logits.argmin(axis=1))
    assert "1000 images favour 20 or more, since the predictions say nearly nothing" in wrong
    assert "the logits of all 1000 images are equal" in refusal(logits * 0, targets)


def test_few_images_are_refused_and_the_number_that_would_do_is_said() -> None:
    logits, targets = drawn(1.0, 2000, scale=20.0)
    for count in (1, 10, FEWEST - 1):
        words = f"too few images to fit a temperature: {count}; at least {FEWEST} are needed"
        assert refusal(logits[:count], targets[:count]) == words
    line = refusal(logits[:60], targets[:60])
    assert line.startswith("too few images to fit a temperature: 60 determine it only to 0.")
    needed = int(line.split("about ")[1].split()[0].replace(",", ""))
    assert 60 < needed <= 2000
    estimate = fit(*drawn(1.0, 3 * needed, scale=20.0))
    assert estimate.interval[1] < temperature.WIDEST * estimate.interval[0]
    check_count(FEWEST)
    with pytest.raises(Undetermined, match="needed, or do without"):
        check_count(FEWEST - 1, ", or do without")


@pytest.mark.parametrize("true", [0.5, 1.7])
def test_independent_labels_are_fitted_by_their_cross_entropy(true: float) -> None:
    logits, present = drawn_labels(true, 5000)
    found, _ = fit(logits, present)
    assert found == pytest.approx(true, rel=0.05)

    def loss(at: float) -> float:
        scaled, labels = torch.from_numpy(logits).double() / at, torch.from_numpy(present).double()
        return float(F.binary_cross_entropy_with_logits(scaled, labels))

    assert all(loss(found) <= loss(found * factor) for factor in (0.5, 0.999, 1.001, 2))


def test_independent_probabilities_are_calibrated_and_the_figures_are_theirs() -> None:
    logits, present = drawn_labels(2.0, 5000)
    before, after = (1 / (1 + np.exp(-logits / at)) for at in (1.0, np.float32(2.0)))
    found = calibrate(before, present)
    assert found.temperature == pytest.approx(2.0, rel=0.05)
    assert found.interval[0] < found.temperature < found.interval[1]
    assert found.images == 5000
    assert found.ece_before == independent_reliability(before, present).ece > 0.05
    assert found.ece < 0.02
    assert found.nll_before == cross_entropy(before, present)
    assert found.nll < found.nll_before
    again = calibrate(after, present, temperature=2.0)
    assert again.temperature == pytest.approx(found.temperature, rel=1e-3)
    certain = np.where(before > 0.99, np.float32(1), before)
    assert calibrate(certain, present).temperature > found.temperature, "1 counts as nearly 1"


@pytest.mark.parametrize(
    ("logits", "targets", "words"),
    [
        (np.zeros((0, 3)), [], "no images"),
        (np.zeros((2, 3)), [0], "do not fit"),
        (np.zeros(3), [0, 0, 0], "do not fit"),
        (np.zeros((1, 3)), [[True, False]], "do not fit"),
        (np.zeros((1, 3)), [3], "from 0 to 2"),
        (np.zeros((1, 3)), [-1], "from 0 to 2"),
        (np.array([[0, np.nan]]), [0], "not finite"),
        (np.array([[0, -np.inf]]), [0], "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    logits: NDArray[np.float64], targets: list[object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        fit(logits.astype(np.float32), np.array(targets))


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
    assert again.temperature == pytest.approx(fit(logits, targets)[0], rel=1e-4)


def test_probabilities_that_underflowed_can_be_calibrated() -> None:
    logits, targets = drawn(15.0, 2000, scale=40.0)
    probabilities = softmax(logits)
    assert (probabilities == 0).any()
    assert calibrate(probabilities, targets).ece < 0.5 * reliability(probabilities, targets).ece
