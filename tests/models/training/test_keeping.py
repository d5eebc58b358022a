"""The best epoch is the most accurate, and of equals the one with the lowest loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.training.keeping import Keeper, Outcome, Validation
from models.training.parallel import ALONE
from models.training.recipes import RECIPES
from tests.support import tiny

NETWORK = tiny.network()


def keeper(scores: list[tuple[float, float]], **changes: Any) -> Keeper:
    recipe = replace(RECIPES["quick"], **{"keep": "best", **changes})
    made = Keeper(recipe, ALONE)
    for epoch, score in enumerate(scores, 1):
        made.offer(epoch, Validation(*score), NETWORK)
    return made


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1), (0.6, 2)], 2),
        ([(0.6, 1), (0.5, 0.1)], 1),
        ([(0.6, 2), (0.6, 1)], 2),
        ([(0.6, 1), (0.6, 1)], 1),
        ([(0.6, 1), (0.6, float("nan"))], 1),
    ],
)
def test_accuracy_decides_and_then_the_loss(scores: list[tuple[float, float]], best: int) -> None:
    found = keeper(scores).outcome(stopped_early=False)
    assert (found.epoch, found.epochs) == (best, 2)
    assert found.validation == Validation(*scores[best - 1])


@pytest.mark.parametrize(
    ("images", "accuracy", "best"),
    [
        (0, 0.91, 1),  # Unknown.
        (100, 0.9299, 0),  # The start's standard error is 3 %.
        (100, 0.9301, 1),
        (10_000, 0.91, 1),
    ],
)
def test_a_start_gives_way_for_more_than_its_standard_error(
    images: int, accuracy: float, best: int
) -> None:
    kept = keeper([])
    kept.offer(0, Validation(0.9, 0.5, images), NETWORK)
    kept.offer(1, Validation(accuracy, 0.1, images), NETWORK)
    assert kept.outcome(stopped_early=False).epoch == best


@pytest.mark.parametrize(
    ("patience", "scores", "exhausted"),
    [
        (0, [(0.5, 1)] * 9, False),
        (2, [(0.5, 1)] * 2, False),
        (2, [(0.5, 1)] * 3, True),
        (2, [(0.5, 1), (0.5, 1), (0.6, 1)], False),
    ],
)
def test_patience_counts_epochs_since_the_best(
    patience: int, scores: list[tuple[float, float]], exhausted: bool
) -> None:
    assert keeper(scores, patience=patience).exhausted is exhausted


def test_the_last_is_kept_without_a_copy_of_the_best() -> None:
    kept = keeper([(0.9, 1), (0.5, 1)], keep="last")
    assert kept.tensors is None
    assert kept.outcome(stopped_early=False) == Outcome(2, 2, validation=Validation(0.5, 1))


def test_what_is_kept_does_not_change_with_the_network() -> None:
    network = tiny.network()
    kept = Keeper(replace(RECIPES["quick"], keep="best"), ALONE)
    kept.offer(1, Validation(0.5, 1), network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert kept.tensors is not None
    assert tiny.same_bits(kept.tensors, tiny.network().state_dict())
