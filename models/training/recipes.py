"""Training recipes as data: one row each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train.

    `learning_rate` is the schedule's peak. `warm_up` is the fraction of all steps over which it
    rises linearly to the peak, before it falls to zero along a cosine. `weight_decay` applies to
    the weights of convolutions and linear layers only. `crop_padding` is in pixels.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    nesterov: bool
    weight_decay: float
    warm_up: float
    label_smoothing: float
    crop_padding: int


RECIPES = {
    # One cycle (Smith and Topin, arXiv:1708.07120), for a small network in minutes on a CPU.
    "quick": Recipe(
        epochs=15,
        batch_size=128,
        learning_rate=0.2,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        warm_up=0.2,
        label_smoothing=0.0,
        crop_padding=4,
    ),
}
