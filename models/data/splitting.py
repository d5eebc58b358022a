"""Dividing a set into images for training and for validation, class by class."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.collection import Collection, Images, InMemory
from models.data.listing import Listing
from models.data.seeds import mix

Rows = NDArray[np.int64]
# Copies are looked for if at most so many bytes are in files of equal sizes.
MOST_HASHED = 2**30


def split(collection: Collection, part: float, seed: int = 0) -> tuple[Collection, Collection]:
    """The images for training, and those for validation: a share of all below 1, or their number.

    Each class has its share in both. A class of two or more images has at least one in both: a
    share is raised to that, a smaller number gives some classes none. Copies of a file, byte by
    byte, are on one side; then there may be fewer validation images than asked for. Copies are not
    looked for in compressed archives, or where files of equal sizes have more than `MOST_HASHED`
    bytes. Images with several labels are drawn without regard to them.

    Equal sets and seeds give equal parts; the seed is not that of training, so that all trainings
    are measured on the same images.

    Raises:
        ValueError: the share is not above 0 and below 1, or the number is less than 1 or leaves a
            class without images for training; the message says how many there may be. Or there are
            only copies.
    """
    validation, training = rows(collection, part, seed)
    if not len(validation):
        raise ValueError(
            f"{collection.path}: no image can be held out: copies of an image stay together, and "
            "these are almost all copies; remove them"
        )
    return collection.part(training), collection.part(validation)


def rows(collection: Collection, part: float, seed: int = 0) -> tuple[Rows, Rows]:
    """The rows of the images for validation and for training, int64, ascending; see `split`.

    Raises:
        ValueError: see `split`.
    """
    if not part > 0 or (part > 1 and part != int(part)):
        raise ValueError(f"{collection.path}: a share below 1 or a number of images, not {part}")
    classes = collection.targets if collection.exclusive else np.zeros(len(collection))
    classes = classes.astype(np.int64)
    generator = torch.Generator().manual_seed(mix("split", seed))
    order = torch.randperm(len(collection), generator=generator).numpy()
    counts = np.bincount(classes)
    priority = torch.randperm(len(counts), generator=generator).numpy()
    wanted = _quotas(collection, counts, part, priority)
    taken = _taken(classes, _copies(collection.images), order, wanted)
    return np.flatnonzero(taken), np.flatnonzero(~taken)


def _quotas(collection: Collection, counts: Rows, part: float, priority: Rows) -> Rows:
    """How many images of each class are for validation."""
    total, most = int(counts.sum()), np.maximum(counts - 1, 0)
    least = np.minimum(most, 1)
    share = np.clip(round(part * total), least.sum(), most.sum())
    number = int(share if part < 1 else part)
    if number > most.sum() or number < 1:
        raise ValueError(
            f"{collection.path}: of {total} images {number} cannot be held out, but at most "
            f"{most.sum()}: training keeps one of each class"
        )
    if number < least.sum():
        least = np.zeros_like(least)
    # Among equal classes, chance and not the alphabet decides.
    ideal = number * counts / total + priority * 1e-9
    quotas = np.clip(np.floor(ideal).astype(np.int64), least, most)
    while missing := number - int(quotas.sum()):
        step = 1 if missing > 0 else -1
        possible = quotas < most if step > 0 else quotas > least
        quotas[np.argmax(np.where(possible, step * (ideal - quotas), -np.inf))] += step
    return quotas


def _taken(classes: Rows, copies: Rows, order: Rows, quotas: Rows) -> NDArray[np.bool_]:
    """The images for validation, bool [N]: the first of each class in `order`, but copies
    together."""
    taken = np.zeros(len(classes), dtype=np.bool_)
    together: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.bincount(copies, minlength=len(copies))[copies] > 1).tolist():
        together.setdefault(int(copies[row]), []).append(row)
    left, numbers = quotas.tolist(), classes.tolist()
    for row in order.tolist():
        number = numbers[row]
        if not left[number] or taken[row]:
            continue
        group = together.get(int(copies[row]), [row])
        # Those with different labels stay in training.
        if len(group) <= left[number] and all(numbers[each] == number for each in group):
            taken[group] = True
            left[number] -= len(group)
    return taken


def _copies(images: Images) -> Rows:
    """For each image the first one with the same bytes, int64 [N]; itself if not looked for."""
    first = np.arange(len(images))
    read: Callable[[int], bytes]
    if isinstance(images, InMemory):
        sizes, read = np.full(len(images), images.pixels[:1].nbytes), images.encoded
    elif isinstance(images, Listing) and images.store is not None:
        sizes, read = images.store.sizes(), images.encoded
    else:
        return first
    _, inverse, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    alike = np.flatnonzero((counts[inverse] > 1) & (sizes > 0))
    if sizes[alike].sum() > MOST_HASHED:
        return first
    known: dict[bytes, int] = {}
    for row in alike.tolist():
        try:
            digest = hashlib.blake2b(read(row), digest_size=16).digest()
        except (OSError, ValueError):
            continue  # Reading it for training will raise the error.
        first[row] = known.setdefault(digest, row)
    return first
