"""Options of `train` that would have no effect: refused, so that the record of a run is true."""

from __future__ import annotations

from typing import Any

from models.training.recipes import Recipe


def check_given(options: dict[str, Any], recipe: Recipe, changes: dict[str, Any]) -> None:
    """Refuses options that would have no effect, whatever the data; `changes` are those of --set.

    Raises:
        ValueError: the message names the option.
    """
    if options["crop_padding"] is not None and recipe.crops != "padded":
        raise ValueError(
            f"--crop-padding has no effect on {recipe.crops} crops, which the recipe asks for; "
            "leave it out"
        )
    if options["decays"] and not recipe.weight_decay:
        raise ValueError("--decays has no effect: the weight decay is 0")
    if options["dropout"] is not None and "dropout" in changes:
        raise ValueError("--dropout or --set dropout=, not both")
    if recipe.nesterov and not recipe.momentum:
        raise ValueError("Nesterov momentum needs a momentum; --momentum above 0 or --no-nesterov")
