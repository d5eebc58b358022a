"""Training learns, repeats itself exactly, and says so when it diverges."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.resnet import ResNet
from models.training.datasets import Dataset
from models.training.loop import Diverged, Progress, schedule, train
from models.training.recipes import RECIPES, Recipe
from tests.models import tiny

RECIPE = replace(
    RECIPES["quick"], epochs=3, batch_size=8, learning_rate=0.05, crop_padding=1, warm_up=0.25
)


def separable(count: int = 40) -> Dataset:
    """Dark images of class 0 and bright ones of class 1, both noisy."""
    random = np.random.default_rng(0)
    targets = np.arange(count) % 2
    images = random.integers(0, 100, (count, 8, 8, 3)) + 150 * targets[:, None, None, None]
    return Dataset(images.astype(np.uint8), targets.astype(np.int64), ("dark", "bright"), "made")


def fresh(seed: int = 0, **changes: Any) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(tiny.architecture(num_classes=2, **changes))


def trained(
    network: ResNet, recipe: Recipe = RECIPE, seed: int = 0, data: Dataset | None = None
) -> list[Progress]:
    reports: list[Progress] = []
    train(
        network,
        data or separable(),
        tiny.INPUT,
        recipe,
        seed=seed,
        compiled=False,
        report=reports.append,
    )
    return reports


def test_the_loss_falls_and_two_classes_are_told_apart() -> None:
    network = fresh()
    assert network.training
    reports = trained(network, replace(RECIPE, epochs=6))
    assert reports[0].loss > 0.5
    assert reports[-1].loss < 0.1
    assert reports[-1].accuracy > 0.95
    assert not network.training


def test_equal_seeds_give_equal_weights_and_others_give_others() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        network = fresh()
        torch.manual_seed(100 + seed)
        trained(network, seed=seed)
        return network.state_dict()

    first = weights(1)
    assert tiny.same_bits(weights(1), first)
    assert not tiny.same_bits(weights(2), first)


def test_each_epoch_is_reported_with_what_it_has_seen() -> None:
    reports = trained(fresh())
    # 40 images make 5 batches an epoch; 20 steps would report within one.
    assert [(at.step, at.steps, at.epoch) for at in reports] == [
        (5, 15, 0),
        (10, 15, 1),
        (15, 15, 2),
    ]
    assert all(at.images_per_second > 0 and 0 <= at.accuracy <= 1 for at in reports)


def test_an_incomplete_last_batch_is_left_out() -> None:
    reports = trained(fresh(), data=separable(47))
    assert [at.step for at in reports] == [5, 10, 15]


def test_a_long_epoch_reports_on_its_way() -> None:
    reports = trained(fresh(), replace(RECIPE, epochs=1, batch_size=2), data=separable(90))
    assert [at.step for at in reports] == [20, 40, 45]


def test_an_absurd_learning_rate_is_called_divergence() -> None:
    with pytest.raises(Diverged, match=r"the loss is not finite at step \d+; lower the learning"):
        trained(fresh(), replace(RECIPE, learning_rate=1e30, epochs=4))


def test_only_convolutions_and_linear_weights_decay() -> None:
    """With no gradient, a parameter shrinks if and only if it decays."""
    images = np.zeros((16, 8, 8, 3), dtype=np.uint8)
    data = Dataset(images, np.zeros(16, dtype=np.int64), ("only",), "made")
    torch.manual_seed(0)
    # One class: the loss and every gradient are 0.
    network = tiny.randomised(ResNet(tiny.architecture(num_classes=1)))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained(network, replace(RECIPE, weight_decay=0.1), data=data)
    shrunk = {
        name for name, p in network.named_parameters() if (p.abs() < before[name].abs()).any()
    }
    decaying = {name for name, p in network.named_parameters() if p.ndim > 1}
    assert shrunk == decaying
    unchanged = {n for n, p in network.named_parameters() if torch.equal(p, before[n])}
    assert unchanged == before.keys() - decaying


def test_label_smoothing_keeps_the_loss_from_zero() -> None:
    reports = trained(fresh(), replace(RECIPE, epochs=6, label_smoothing=0.5))
    assert reports[-1].accuracy > 0.95
    # The least that half-smoothed labels of two classes allow: the entropy of (3/4, 1/4).
    least = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert least < reports[-1].loss < least + 0.1


@pytest.mark.parametrize(
    ("done", "warm_up", "factor"),
    [
        (0.0, 0.2, 0.0),
        (0.05, 0.2, 0.25),
        (0.1, 0.2, 0.5),
        (0.2, 0.2, 1.0),
        (0.6, 0.2, 0.5),
        (0.4, 0.2, 0.5 + math.sqrt(0.125)),
        (1.0, 0.2, 0.0),
        (0.0, 0.0, 1.0),
        (0.5, 0.0, 0.5),
        (0.5, 1.0, 0.5),
    ],
)
def test_the_schedule_rises_in_a_line_and_falls_along_a_cosine(
    done: float, warm_up: float, factor: float
) -> None:
    assert schedule(done, warm_up) == pytest.approx(factor, abs=1e-12)


def test_equal_seeds_give_equal_weights_with_dropout_too() -> None:
    def weights(unrelated: int) -> dict[str, torch.Tensor]:
        network = fresh(dropout=0.5)
        torch.manual_seed(unrelated)
        trained(network, seed=1)
        return network.state_dict()

    assert tiny.same_bits(weights(1), weights(2))


def test_data_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch"):
        trained(fresh(), replace(RECIPE, batch_size=64))
