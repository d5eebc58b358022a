"""Setting images aside so that each class keeps its share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.seeds import mix

# Images of a class that can spare one.
SPARING = 3


def stratified(
    targets: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of about `count` random images, and those of the others, both ascending.

    Each class gives its share, rounded, but at least one image if it has three, and never all.
    Equal for all seeds of training.
    """
    generator = torch.Generator().manual_seed(mix("stratified"))
    order = torch.randperm(len(targets), generator=generator).numpy()
    drawn: list[NDArray[np.int64]] = []
    for target in np.unique(targets):
        rows = order[targets[order] == target]
        share = round(len(rows) * count / len(targets))
        least = 1 if len(rows) >= SPARING else 0
        drawn.append(rows[: min(max(share, least), len(rows) - 1)])
    chosen = np.sort(np.concatenate(drawn))
    return chosen, np.setdiff1d(np.arange(len(targets)), chosen)
