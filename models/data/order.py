"""Which images each batch of an epoch holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.data.augment import Augmentation
from models.data.seeds import mix

# Normalisation needs the statistics of several images.
FEWEST = 2


class Drawn(NamedTuple):
    """A batch, or a whole epoch: `indices` int64 [n] of its images, and how often each came
    before in the epoch, `repeats` int64 [n]."""

    indices: Tensor
    repeats: Tensor


def per_epoch(count: int, batch_size: int, *, keep: bool = False) -> int:
    """The number of batches of an epoch; with `keep` also the last one, if incomplete.

    A last batch of a single image is left out in either case.
    """
    return count // batch_size + (keep and count % batch_size >= FEWEST)


def batches_of(epoch: Drawn, start: int, batch_size: int, *, keep: bool = False) -> Iterator[Drawn]:
    """Each batch of an epoch, from batch `start` on."""
    for number in range(start, per_epoch(len(epoch.indices), batch_size, keep=keep)):
        rows = slice(number * batch_size, (number + 1) * batch_size)
        yield Drawn(epoch.indices[rows], epoch.repeats[rows])


def shuffled(count: int, seed: int, epoch: int) -> Drawn:
    """Each of `count` images once, at random."""
    order = torch.randperm(count, generator=_generator(seed, epoch))
    return Drawn(order, torch.zeros_like(order))


def balanced(targets: Tensor, seed: int, epoch: int) -> Drawn:
    """As many images as there are targets, int64 [N], drawn with replacement: first a class that
    has images, each equally likely, then one of its images."""
    targets = targets.cpu()
    by_class, counts = targets.argsort(stable=True), torch.bincount(targets)
    starts, present = counts.cumsum(0) - counts, counts.nonzero().squeeze(1)
    generator = _generator(seed, epoch)
    chosen = present[torch.randint(len(present), (len(targets),), generator=generator)]
    within = torch.rand(len(targets), dtype=torch.float64, generator=generator) * counts[chosen]
    order = by_class[starts[chosen] + within.long()]
    return Drawn(order, _repeats(order))


def drawn(
    targets: Tensor,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    start: int,
    batch_size: int,
) -> Iterator[Drawn]:
    """The batches of an epoch of images with these targets, int64 [N], from batch `start` on."""
    if augmentation.balance == "sampling":
        whole = balanced(targets, seed, epoch)
    else:
        whole = shuffled(len(targets), seed, epoch)
    return batches_of(whole, start, batch_size, keep=augmentation.keeps_last)


def image_seed(seed: int, epoch: int, index: int, repeat: int = 0) -> int:
    """The seed of what is random in an image's `repeat`-th other copy in an epoch."""
    again = (repeat,) if repeat else ()
    return mix("crop", seed, epoch, index, *again)


def _generator(seed: int, epoch: int) -> torch.Generator:
    # A CPU's order is the same on every machine.
    return torch.Generator().manual_seed(mix("order", seed, epoch))


def _repeats(order: Tensor) -> Tensor:
    """How often each element came before."""
    values = order.numpy()
    by_value = values.argsort(kind="stable")
    _, firsts, counts = np.unique(values[by_value], return_index=True, return_counts=True)
    repeats = np.empty_like(values)
    repeats[by_value] = np.arange(len(values)) - np.repeat(firsts, counts)
    return torch.from_numpy(repeats)
