"""The recipe as the options of `train` change it and the data let it be; options that would have
no effect are refused, so that the record of a run is true."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models.training.recipe import Recipe
from service.cli.recipe_flags import FIELDS

if TYPE_CHECKING:
    from models.data.source import Source
    from models.preprocess import InputSpec
    from service.cli.training_output import Teller

# Pixels a side; larger images are photographs, for which a shift by a few pixels is nothing.
LARGEST_SHIFTED = 64
# Options that say how images are cropped, and the crops that they are of.
CROPS = {"crop_padding": "padded", "scale": "resized", "shorter_side": "scaled"}


def replaced(
    recipe: Recipe, epochs: float | None, iterations: int | None, **options: Any
) -> Recipe:
    """The recipe with the fields that are given.

    Raises:
        ValueError: two options are against each other, or a value is invalid.
    """
    if epochs is not None and iterations is not None:
        raise ValueError("--epochs or --iterations, not both")
    if epochs is not None:
        recipe = recipe.lasting("epochs", epochs)
    if iterations is not None:
        recipe = recipe.lasting("iterations", iterations)
    changes = {name: options[name] for name in FIELDS if options[name] is not None}
    crops = {kind for name, kind in CROPS.items() if name in changes and kind != "padded"}
    if len(crops) > 1:
        raise ValueError("--scale or --shorter-side, not both: each is a way to crop")
    if crops:
        changes["crops"] = crops.pop()
    if changes.get("flip") is False:
        changes["alternate_flip"] = False
    return replace(recipe, **changes)


def check_given(
    options: dict[str, Any],
    recipe: Recipe,
    changes: dict[str, Any],
    block: str,
    *,
    starts: bool,
) -> None:
    """Refuses options that would have no effect, whatever the data; `changes` are those of --set,
    `block` is the network's kind, and a run `starts` from weights or not.

    Raises:
        ValueError: the message names the option.
    """
    given = {name for name in FIELDS if options[name] is not None}
    for name in given & changes.keys():
        raise ValueError(f"{_flag(name)} or --set {name}=, not both")
    if recipe.optimizer == "sgd" and recipe.nesterov and not recipe.momentum:
        raise ValueError("Nesterov momentum needs a momentum; --momentum above 0 or --no-nesterov")
    for names, useless, reason in (
        (("decays",), not recipe.weight_decay, "the weight decay is 0"),
        (("nesterov",), recipe.optimizer == "adamw", "AdamW has no Nesterov momentum"),
        (("freeze", "norm", "body_rate"), not starts, "there are no --weights to keep"),
        (("stem_init", "zero_init_residual"), starts, "--weights are not initialised"),
        (("body_rate", "bias_rate", "norm"), recipe.freeze == "backbone", "the body is frozen"),
        (("stride_at",), starts, "--weights have their own strides"),
        (("stride_at",), block == "basic", "basic blocks have no choice where to stride"),
        (("bias_rate",), recipe.norm == "frozen", "normalisation is frozen"),
        (("crop_padding",), recipe.crops != "padded", f"crops are {recipe.crops}"),
    ):
        for name in names:
            if useless and name in given:
                raise ValueError(f"{_flag(name)} has no effect: {reason}; leave it out")


def validates(recipe: Recipe) -> bool:
    """Whether a recipe needs validation images."""
    return recipe.keep == "best" or recipe.patience > 0


def without_validation(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    """The recipe where there are no validation images.

    Raises:
        ValueError: --keep best or --patience needs them.
    """
    for name in ("keep", "patience"):
        if options[name] not in (None, "last", 0):
            raise ValueError(f"{_flag(name)} {options[name]} needs images: --validation")
    return replace(recipe, keep="last", patience=0)


def cropped(recipe: Recipe, spec: InputSpec, options: dict[str, Any], teller: Teller) -> Recipe:
    """The recipe with random resized crops where images are too large to be shifted by pixels."""
    side = max(spec.height, spec.width)
    if recipe.crops != "padded" or options["crop_padding"] is not None or side <= LARGEST_SHIFTED:
        return recipe
    teller.warn(f"random resized crops, as images of {side} pixels are too large for padded ones")
    return replace(recipe, crops="resized")


def sized(
    recipe: Recipe, source: Source, options: dict[str, Any], parts: int, teller: Teller
) -> Recipe:
    """The recipe with batches for the number of images, unless --batch-size says otherwise;
    without --learning-rate, the rate is in proportion. Batches are computed in `parts`.

    A recipe that may end early lasts longer for few images, unless its length is given.

    Raises:
        ValueError: --batch-size is more than there are images.
    """
    from models.training.sizing import fitting_batch, long_enough, with_batch

    images, before = len(source), recipe.batch_size
    if options["batch_size"] is None:
        recipe = with_batch(recipe, fitting_batch(images, before, parts))
    elif before > images:
        raise ValueError(
            f"--batch-size {before}: {images} images to train on are fewer than one batch of "
            f"{before}; leave it out for batches of {fitting_batch(images, before, parts)}"
        )
    if options["learning_rate"] is not None:
        recipe = replace(recipe, learning_rate=options["learning_rate"])
    said = []
    if recipe.batch_size != before:
        said.append(f"batches of {recipe.batch_size} in place of {before}")
        said.append(f"learning rate {recipe.learning_rate:.3g}")
    length = recipe.length
    if recipe.patience and options["epochs"] is None and options["iterations"] is None:
        patience = recipe.patience
        recipe = long_enough(recipe, images)
        if options["patience"] is not None:
            recipe = replace(recipe, patience=patience)
    if recipe.length != length:
        said.append(f"{recipe.length:g} epochs in place of {length:g}")
    if said:
        teller.warn(f"{images} images to train on: {', '.join(said)}")
    return recipe


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
