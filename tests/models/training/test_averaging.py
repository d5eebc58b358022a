"""Averages are those of the papers, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.resnet import ResNet
from models.training.averaging import Lookahead, MovingAverage, make_average
from models.training.recipes import RECIPES
from tests.support import tiny


def network(seed: int) -> ResNet:
    return tiny.randomised(ResNet(tiny.architecture()), seed)


def test_lookahead_keeps_more_of_itself_as_training_goes_on() -> None:
    look = Lookahead(network(0), 5, 100)
    assert look.kept(0) == 0
    assert look.kept(50) == pytest.approx(0.95**5 / 8)
    assert look.kept(100) == pytest.approx(0.95**5)


def test_slow_weights_and_statistics_move_and_replace_the_fast() -> None:
    before, fast = network(0).state_dict(), network(1)
    wanted = {name: value.clone() for name, value in fast.state_dict().items()}
    look = Lookahead(network(0), 2, 8)
    look.update(fast, 3)
    assert tiny.same_bits(look.network.state_dict(), before), "not yet"
    assert tiny.same_bits(fast.state_dict(), wanted)
    fast.stages[0][0].bn1.num_batches_tracked += 7  # type: ignore[index]
    look.update(fast, 4)
    keep = look.kept(4)
    slow = look.network.state_dict()
    for name, value in slow.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, keep * before[name] + (1 - keep) * wanted[name])
    assert slow["stages.0.0.bn1.num_batches_tracked"] == 7
    assert tiny.same_bits(fast.state_dict(), slow)


def test_a_run_shorter_than_an_interval_is_not_without_effect() -> None:
    fast = network(1)
    look = Lookahead(network(0), 5, 3)
    for step in (1, 2):
        look.update(fast, step)
    assert tiny.same_bits(look.network.state_dict(), network(0).state_dict())
    look.update(fast, 3)
    first, last, slow = (
        each.state_dict()["head.weight"] for each in (network(0), network(1), look.network)
    )
    torch.testing.assert_close(slow, look.kept(3) * first + (1 - look.kept(3)) * last)


def test_a_recipe_has_one_average_or_none() -> None:
    quick = RECIPES["quick"]
    assert make_average(network(0), quick, 9) is None
    assert isinstance(make_average(network(0), replace(quick, ema=0.9), 9), MovingAverage)
    assert isinstance(make_average(network(0), replace(quick, lookahead=5), 9), Lookahead)
    with pytest.raises(ValueError, match="ema and lookahead are two averages"):
        replace(quick, ema=0.9, lookahead=5)


def test_a_moving_average_keeps_its_share() -> None:
    first, second = network(1), network(2)
    average = MovingAverage(network(0), 0.75)
    average.update(first, 1)  # The first weights are no average.
    average.update(second, 2)
    for name, value in average.network.state_dict().items():
        a, b = first.state_dict()[name], second.state_dict()[name]
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * a + 0.25 * b)
