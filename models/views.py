"""Predictions from several views of an image: the image alone, or with its mirror image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.bundle import Bundle

Views = Literal["plain", "mirrored"]
# Passes through the network for each image.
PASSES: dict[Views, int] = {"plain": 1, "mirrored": 2}
# Where a bundle's provenance keeps the metrics of other views.
ELSEWHERE = "measured"


def averaged(maps: Callable[[Tensor], Tensor], views: Views) -> Callable[[Tensor], Tensor]:
    """`maps`, from images [N, C, H, W] to feature maps [N, F, h, w], over the views of an image.

    "mirrored": the mean of the image's maps and of its mirror image's, mirrored back. Pooling is
    linear, so features are the mean of both views' features; with a linear head, logits are the
    mean of both views' logits, as in He 2015 (arXiv:1512.03385, section 3.4), and activation maps
    the mean of both maps. It computes 2N images, whatever computes `maps`.
    """
    if views == "plain":
        return maps

    def both(images: Tensor) -> Tensor:
        straight, mirrored = maps(torch.cat((images, images.flip(3)))).chunk(2)
        # Halved first: in 16 bits, the sum could overflow.
        return straight / 2 + mirrored.flip(3) / 2

    return both


def seen_as(bundle: Bundle, views: Views) -> Bundle:
    """The same bundle with other views.

    Its metrics are those that were measured with these views, if any; the others are kept in its
    provenance. Its temperature remains.
    """
    if views == bundle.views:
        return bundle
    measured = dict(bundle.provenance.get(ELSEWHERE, {}))
    if bundle.metrics:
        measured[bundle.views] = bundle.metrics
    metrics = measured.pop(views, {})
    provenance = {name: value for name, value in bundle.provenance.items() if name != ELSEWHERE}
    if measured:
        provenance[ELSEWHERE] = measured
    return replace(bundle, views=views, metrics=metrics, provenance=provenance)
