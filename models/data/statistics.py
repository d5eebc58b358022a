"""The mean and standard deviation of a set's images, to normalise them by."""

from __future__ import annotations

import numpy as np
import torch

from models.data.collection import Collection
from models.data.datasets import Corrupt
from models.data.seeds import mix
from models.data.streamed import Stream
from models.preprocess import InputSpec, PerChannel

MOST_IMAGES = 4096
BATCH = 64


def statistics(
    collection: Collection, spec: InputSpec, *, corrupt: Corrupt = "fail", workers: int = 0
) -> tuple[PerChannel, PerChannel]:
    """Mean and standard deviation over all pixels of each channel, of values from 0 to 1, in the
    order of `spec.channels`; of images as `spec` resizes and crops them.

    Takes at most `MOST_IMAGES`, drawn at random, the same each time. A channel that never varies,
    such as the alpha of opaque images, has a deviation of 1. `workers`: processes that read.

    Raises:
        ValueError: an image cannot be read, or with "skip" none can; the message names it.
    """
    if len(collection) > MOST_IMAGES:
        generator = torch.Generator().manual_seed(mix("statistics"))
        rows = torch.randperm(len(collection), generator=generator)[:MOST_IMAGES].numpy()
        collection = collection.part(np.sort(rows))
    images = Stream(collection, spec, batch_size=BATCH, corrupt=corrupt, workers=workers)
    count, total, squares = 0, np.zeros(spec.shape[2]), np.zeros(spec.shape[2])
    for pixels, _ in images:
        values = pixels.reshape(-1, spec.shape[2]).astype(np.float64) / 255
        count += len(values)
        total += values.sum(0)
        squares += np.square(values).sum(0)
    if not count:
        raise ValueError(f"{collection.path}: none of its images can be read")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std[std < 1e-6] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
