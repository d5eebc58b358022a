"""Epochs hold every image once, or each class equally often, whatever the number of processes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from models.data.order import balanced, batches_of, image_seed, per_epoch, shuffled
from models.data.seeds import mix


@pytest.mark.parametrize(
    ("count", "batch_size", "dropped", "kept"),
    [(12, 4, 3, 3), (14, 4, 3, 4), (13, 4, 3, 3), (3, 4, 0, 1), (1, 4, 0, 0), (5, 1, 5, 5)],
)
def test_an_epoch_has_whole_batches_and_on_request_the_last(
    count: int, batch_size: int, dropped: int, kept: int
) -> None:
    for keep, number in ((False, dropped), (True, kept)):
        assert per_epoch(count, batch_size, keep=keep) == number
        batches = list(batches_of(shuffled(count, 1, 0), 0, batch_size, keep=keep))
        assert len(batches) == number
        assert list(map(len, (each.indices for each in batches[:dropped]))) == [batch_size] * min(
            dropped, number
        )


def test_every_image_comes_once_in_another_order_each_epoch() -> None:
    orders = [shuffled(20, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert all(sorted(each.indices.tolist()) == list(range(20)) for each in orders)
    assert len({tuple(each.indices.tolist()) for each in orders}) == 3
    assert not any(each.repeats.any() for each in orders)
    whole = torch.cat([batch.indices for batch in batches_of(orders[0], 0, 6, keep=True)])
    assert whole.tolist() == orders[0].indices.tolist()
    (late,) = batches_of(orders[0], 2, 6)
    assert late.indices.tolist() == orders[0].indices[12:18].tolist()


def test_classes_are_drawn_equally_often_and_so_are_their_images() -> None:
    targets = torch.tensor([2] * 5 + [0] * 95 + [4] * 900)
    drawn = balanced(targets, 1, 0)
    assert len(drawn.indices) == 1000
    classes = Counter(targets[drawn.indices].tolist())
    assert classes.keys() == {0, 2, 4}, "a class without images is not drawn"
    assert all(270 < times < 400 for times in classes.values())
    rare = Counter(index for index in drawn.indices.tolist() if index < 5)
    assert rare.keys() == set(range(5))
    assert min(rare.values()) > 40
    again, other = balanced(targets, 1, 0), balanced(targets, 1, 1)
    assert torch.equal(again.indices, drawn.indices)
    assert not torch.equal(other.indices, drawn.indices)


def test_repeats_count_the_copies_before() -> None:
    drawn = balanced(torch.tensor([0, 1, 1, 1]).repeat(10), 3, 0)
    seen: Counter[int] = Counter()
    for index, repeat in zip(drawn.indices.tolist(), drawn.repeats.tolist(), strict=True):
        assert repeat == seen[index]
        seen[index] += 1
    assert max(seen.values()) > 1


def test_a_copy_of_an_image_has_a_seed_of_its_own() -> None:
    assert image_seed(1, 2, 3) == mix("crop", 1, 2, 3)
    assert len({image_seed(1, 2, 3, repeat) for repeat in range(5)}) == 5
