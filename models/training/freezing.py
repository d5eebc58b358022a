"""Parts of a network that training leaves as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from models.resnet import ResNet
from models.training.recipe import Freeze, Recipe

Still = list[nn.Module]


def frozen_parts(network: ResNet, freeze: Freeze) -> Still:
    """The parts from the input up to and including the one named; "backbone" is all but the head.

    Raises:
        ValueError: the network has no such stage.
    """
    if freeze == "none":
        return []
    count = len(network.stages)
    stages = count if freeze == "backbone" else 0 if freeze == "stem" else int(freeze[-1])
    if stages > count:
        raise ValueError(f"freeze: there is no {freeze}; this network has {count} stages")
    parts = [network.input_norm, network.stem, *list(network.stages)[:stages]]
    return [*parts, network.norm] if freeze == "backbone" else parts


@contextmanager
def freezing(network: ResNet, recipe: Recipe) -> Iterator[Still]:
    """Freezes what the recipe says within the context, and yields it; see `train_mode`.

    Without parameters that require gradients, nothing is computed backward through the parts at
    the input. A "frozen" norm keeps its statistics, scale and offset (He 2015, appendix A: a
    linear activation with constant offsets and scales).

    Raises:
        ValueError: see `frozen_parts`.
    """
    still = frozen_parts(network, recipe.freeze)
    if recipe.norm == "frozen":
        still += [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    parameters = {p for module in still for p in module.parameters() if p.requires_grad}
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield still
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def train_mode(network: ResNet, still: Still) -> None:
    """Puts `network` into training mode, all but what is frozen: that keeps its statistics, and
    drops nothing out."""
    network.train()
    for module in still:
        module.eval()
