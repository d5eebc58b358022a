"""The options of `train` that are fields of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from models.training.recipe import CHOICES, LIMITS, Recipe

# By their headings in the help: the fields of `Recipe` that are options, with their texts.
OPTIMISATION = {
    "optimizer": "SGD with momentum, or AdamW.",
    "batch_size": "Images per step, over all processes.  [default: the recipe's, or fewer where "
    "there are few images]",
    "learning_rate": "Peak learning rate.",
    "body_rate": "With --weights: factor of the learning rate below the head.",
    "bias_rate": "Factor of the learning rate of normalisation's biases.",
    "momentum": "Momentum of SGD, or AdamW's first beta.",
    "nesterov": "Use Nesterov momentum.",
    "weight_decay": "Weight decay.",
    "decays": "Decay only the weights of convolutions and linear layers, or all parameters.",
    "clip": "Clip the gradient to this norm; 0: do not.",
    "label_smoothing": "Probability that label smoothing spreads over all classes.",
    "balance": "Make up for rare classes by weights in the loss, or by sampling them more often.",
    "ema": "Decay of the exponential moving average of the weights; 0: none.",
    "lookahead": "Steps between the averages of Lookahead; 0: none.",
    "keep": "Keep the last epoch's network, or the best on the validation images.",
    "patience": "Stop after this many epochs without a better one on the validation images; 0: "
    "never.",
    "last_batch": "Drop an epoch's incomplete last batch, or train on it.",
}
AUGMENTATION = {
    "flip": "Mirror images half the time; not for text and digits.",
    "crop_padding": "Padding before a random crop. Images above 64 pixels get random resized crops "
    "without this option.",
    "scale": "Crop random parts of the image: least and greatest fraction of its area.",
    "shorter_side": "Crop from images resized to a random shorter side: least and greatest.",
    "train_size": "Shorter side of training images; 0: that of the network's input.",
    "jitter": "Strength of random changes of brightness, contrast and saturation; 0: none.",
    "lighting": "Standard deviation of AlexNet's colour noise; 0: none.",
    "auto_augment": "RandAugment or TrivialAugment.",
    "erasing": "Probability of random erasing; 0: none.",
    "cutout": "Side of the square that cutout greys out; 0: none.",
    "mixup": "Alpha of mixup's beta distribution; 0: none.",
    "cutmix": "Alpha of CutMix's beta distribution; 0: none.",
}
STRUCTURE = {
    "freeze": "With --weights: keep the network up to this part as it is; backbone: all but the "
    "head.",
    "norm": "Normalise by each batch's statistics, or by those of --weights, which then stay "
    "fixed.",
    "dropout": "Dropout between the convolutions of a basic block.",
    "stride_at": "Convolution of a bottleneck block that strides.",
    "stem_init": "Start the stem with random filters, or with ones that whiten patches.",
    "zero_init_residual": "Start each residual branch at zero.",
}
FIELDS = {**STRUCTURE, **OPTIMISATION, **AUGMENTATION}
METAVARS = {
    "crop_padding": "PIXELS",
    "cutout": "PIXELS",
    "train_size": "PIXELS",
    "mixup": "ALPHA",
    "cutmix": "ALPHA",
    "ema": "DECAY",
    "lookahead": "STEPS",
    "patience": "EPOCHS",
    "batch_size": "N",
    "learning_rate": "RATE",
    "body_rate": "FACTOR",
    "bias_rate": "FACTOR",
    "scale": "LEAST,MOST",
    "shorter_side": "LEAST,MOST",
}
# Rates and their factors.
ABOVE_ZERO = ("learning_rate", "body_rate", "bias_rate")


class Span(click.ParamType[tuple[Any, Any]]):
    """The ends of a range of numbers of a `kind`, as in 0.3,1."""

    name = "least,most"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, Any]:
        try:
            least, most = (self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not two numbers, as in LEAST,MOST", param, ctx)
        if not 0 < least <= most:
            self.fail(f"{value!r} are not two numbers above 0 in order", param, ctx)
        return least, most


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each of FIELDS; without it the recipe keeps its value."""
    for name, text in reversed(FIELDS.items()):
        flag, kind = name.replace("_", "-"), get_type_hints(Recipe)[name]
        declared = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
        command = click.option(
            declared, type=_type(name, kind), default=None, metavar=METAVARS.get(name), help=text
        )(command)
    return command


def _type(name: str, kind: Any) -> click.ParamType[Any] | None:
    """The type of an option for a field of a type; None for a switch."""
    if kind is bool:
        return None
    if get_origin(kind) is tuple:
        return Span(get_args(kind)[0])
    if get_origin(kind) is Literal or str in get_args(kind):
        return click.Choice([choice for choice in CHOICES[name] if choice is not None])
    number = next(each for each in (*get_args(kind), kind) if each is not NoneType)
    # The architecture limits dropout; a recipe may leave it open.
    limits = {name: (low, high) for name, low, high in LIMITS} | {"dropout": (0, 1)}
    low, high = (int(limit) if limit < math.inf else None for limit in limits[name])
    return (click.IntRange if number is int else click.FloatRange)(
        low, high, min_open=name in ABOVE_ZERO, max_open=high is not None
    )
