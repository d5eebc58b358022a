"""Rare classes weigh more in the loss, so that all classes weigh alike."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from models.training.balance import class_weights, weighted_targets

COUNTS = np.array([40, 20, 8, 0])


def test_classes_weigh_alike_and_the_mean_over_images_is_one() -> None:
    weights = class_weights(COUNTS).numpy()
    np.testing.assert_allclose(weights * COUNTS, [68 / 3, 68 / 3, 68 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose((weights * COUNTS).sum() / COUNTS.sum(), 1, rtol=1e-6)


def loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    weighted = weighted_targets(targets, class_weights(COUNTS), smoothing)
    return F.cross_entropy(logits, weighted, reduction="none")


def test_an_images_smoothed_loss_weighs_as_its_class() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    plain = F.cross_entropy(logits, targets, label_smoothing=0.2, reduction="none")
    expected = class_weights(COUNTS)[targets] * plain
    torch.testing.assert_close(loss(logits, targets, 0.2), expected)


def test_a_mixed_image_has_the_weighted_losses_of_both() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    first, second = torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0])
    mixed = 0.3 * F.one_hot(first, 4) + 0.7 * F.one_hot(second, 4)
    expected = 0.3 * loss(logits, first, 0.2) + 0.7 * loss(logits, second, 0.2)
    torch.testing.assert_close(loss(logits, mixed, 0.2), expected)
