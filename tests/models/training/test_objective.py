"""The loss of a batch is the mean of the losses of its parts, whatever classes weigh."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.balance import class_weights
from models.training.objective import Objective
from tests.support import tiny

PIXELS = torch.randint(0, 256, (8, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte()
TARGETS = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])


@pytest.mark.parametrize("weights", [None, class_weights(np.array([30, 5, 5, *[1] * 7]))])
def test_equal_parts_have_the_mean_loss_of_the_whole(weights: Tensor | None) -> None:
    objective = Objective(tiny.network(), tiny.INPUT, 0.1, weights)
    whole, figures = objective(PIXELS, TARGETS, TARGETS)
    parts = [
        objective(PIXELS[rows], TARGETS[rows], TARGETS[rows])[0] for rows in (slice(4), slice(4, 8))
    ]
    torch.testing.assert_close(sum(parts) / 2, whole)
    logits = objective.network(objective.normalise(PIXELS))
    right = (logits.argmax(1) == TARGETS).float().mean()
    torch.testing.assert_close(figures, torch.stack([whole, right]))
    assert not figures.requires_grad
    losses = F.cross_entropy(logits, TARGETS, label_smoothing=0.1, reduction="none")
    share = 1.0 if weights is None else weights[TARGETS]
    torch.testing.assert_close(whole, (share * losses).mean())


def test_weights_of_classes_are_no_part_of_a_networks_state() -> None:
    plain = Objective(tiny.network(), tiny.INPUT)
    weighted = Objective(tiny.network(), tiny.INPUT, 0.0, torch.ones(10))
    assert plain.state_dict().keys() == weighted.state_dict().keys()
