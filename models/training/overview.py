"""The recipes as a person reads them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from models import variants
from models.summary import cost
from models.training.published import PUBLISHED, Published
from models.training.recipes import RECIPES, Recipe


def overview() -> str:
    """Each recipe: its paper, schedule, optimizer, augmentation, and the errors it is to give."""
    return "\n\n".join(
        "\n".join([f"{name}: {recipe.paper}", *_described(recipe)])
        for name, recipe in RECIPES.items()
    )


def expected(recipe: Recipe) -> list[Published]:
    """The published results that `recipe` is to give."""
    if not recipe.published:
        return []
    return [row for row in PUBLISHED if row.source.startswith(recipe.published)]


def parameters(row: Published) -> int:
    """Learnable scalars of the network that a published result is of."""
    classes = {"CIFAR-10": 10, "CIFAR-100": 100, "ImageNet": 1000}[row.data]
    named = variants.variant(row.variant)
    changes = {"num_classes": classes, "shortcut": row.shortcut}
    return cost(variants.override(named.architecture, **changes), named.input.size).parameters


def _described(recipe: Recipe) -> Iterator[str]:
    yield _wrapped("schedule", schedule(recipe))
    nesterov = ", Nesterov" if recipe.nesterov else ""
    decaying = {"weights": "convolutions and linear layers", "all": "all parameters"}
    yield _wrapped(
        "optimizer",
        f"SGD, momentum {recipe.momentum:g}{nesterov}, batch {recipe.batch_size}, "
        f"weight decay {recipe.weight_decay:g} of {decaying[recipe.decays]}",
    )
    yield _wrapped("augmentation", augmentation(recipe))
    others = {
        "label smoothing": recipe.label_smoothing,
        "moving average": recipe.ema,
        "dropout": recipe.dropout,
        "shortcut": recipe.shortcut,
    }
    if said := [f"{name} {value}" for name, value in others.items() if value]:
        yield _wrapped("besides", ", ".join(said))
    results = [
        f"{row.variant} ({parameters(row) / 1e6:.2f}M) {row.data} {row.error:.2f} %"
        for row in expected(recipe)
    ]
    if results:
        yield _wrapped("errors", ", ".join(results))


def _wrapped(name: str, text: str) -> str:
    indent = f"  {name:<12} "
    return textwrap.fill(text, 98, initial_indent=indent, subsequent_indent=" " * len(indent))


def schedule(recipe: Recipe) -> str:
    """The schedule in words: "64,000 iterations: 0.01 to 400, 0.1 to 32,000, ..."."""
    words = {"constant": "", "linear": "linearly to ", "cosine": "along a cosine to "}
    parts = [
        f"{words[phase.shape]}{recipe.learning_rate * phase.factor:g} until {phase.until:,g}"
        for phase in recipe.phases
    ]
    return f"{recipe.length:,g} {recipe.unit}: {', '.join(parts)}"


def augmentation(recipe: Recipe) -> str:
    """What happens to images, in words."""
    crops = {
        "padded": f"crops behind {recipe.crop_padding} pixels of {recipe.padding_mode}",
        "resized": "random resized crops",
    }
    said = [crops[recipe.crops], "alternating flips" if recipe.alternate_flip else "flips"]
    said += [f"cutout {recipe.cutout}"] if recipe.cutout else []
    said += [f"mixup {recipe.mixup:g}"] if recipe.mixup else []
    return ", ".join(said)
