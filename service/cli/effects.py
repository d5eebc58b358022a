"""Options of `train` that would have no effect: refused, so that the record of a run is true."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from models.training.recipes import Recipe

if TYPE_CHECKING:
    from models.data.source import Source
    from models.preprocess import InputSpec
    from models.training.parallel import World


def check_given(options: dict[str, Any], recipe: Recipe, changes: dict[str, Any]) -> None:
    """Refuses options that would have no effect, whatever the data; `changes` are those of --set.

    Raises:
        ValueError: the message names the option.
    """
    if options["decays"] and not recipe.weight_decay:
        raise ValueError("--decays has no effect: the weight decay is 0")
    if options["dropout"] is not None and "dropout" in changes:
        raise ValueError("--dropout or --set dropout=, not both")
    if recipe.nesterov and not recipe.momentum:
        raise ValueError("Nesterov momentum needs a momentum; --momentum above 0 or --no-nesterov")


def as_applied(
    recipe: Recipe, source: Source, spec: InputSpec, padding: int | None, world: World
) -> Recipe:
    """The recipe with the crops that the source makes; `padding` is --crop-padding.

    Raises:
        ValueError: --crop-padding has no effect on these crops.
    """
    crops = source.applied["crops"]
    if crops == "resized" and padding is not None:
        raise ValueError(
            "--crop-padding has no effect on random resized crops, which the recipe or images of "
            f"{spec.height} pixels ask for; leave it out"
        )
    if crops != recipe.crops and world.leads:
        click.echo(
            f"{source.source}: random resized crops to {spec.height} pixels, in place of the "
            "recipe's padded crops",
            err=True,
        )
    return replace(recipe, crops=crops)
