"""The recipes as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from models import variants
from models.reports.published import PUBLISHED, Published
from models.summary import cost
from models.training.recipes import RECIPES, Recipe

CLASSES = {"CIFAR-10": 10, "CIFAR-100": 100, "ImageNet": 1000}


def overview() -> str:
    """Each recipe's paper, schedule, optimizer, augmentation, and the errors to reproduce."""
    return "\n\n".join(
        "\n".join([f"{name}: {recipe.paper}", *_described(recipe)])
        for name, recipe in RECIPES.items()
    )


def expected(recipe: Recipe) -> list[Published]:
    """The published results that `recipe` should reproduce."""
    if not recipe.published:
        return []
    dropout = recipe.dropout or 0.0
    rows = [row for row in PUBLISHED if row.source.startswith(recipe.published)]
    return [row for row in rows if row.dropout == dropout]


def parameters(row: Published) -> int:
    """The number of learnable scalars of a published result's network."""
    named = variants.variant(row.variant)
    changes = {"num_classes": CLASSES[row.data], "shortcut": row.shortcut}
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
    if settings := [f"{name} {value}" for name, value in others.items() if value]:
        yield _wrapped("besides", ", ".join(settings))
    yield from _errors(expected(recipe))


def _errors(rows: list[Published]) -> Iterator[str]:
    """A table with a row for each network and a column for each data set."""
    sets = [name for name in CLASSES if name in {row.data for row in rows}]
    if not rows:
        return
    yield f"  {'published error':<34} {'parameters':>10} " + " ".join(f"{s:>10}" for s in sets)
    networks: dict[tuple[str, float], list[Published]] = {}
    for row in rows:
        networks.setdefault((row.variant, row.dropout), []).append(row)
    for (name, _), results in networks.items():
        errors = {row.data: f"{row.error:.2f} %" for row in results}
        columns = " ".join(f"{errors.get(data_set, ''):>10}" for data_set in sets)
        yield f"    {name:<32} {parameters(results[0]) / 1e6:>9.2f}M {columns}".rstrip()


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
    """The augmentation in words."""
    crops = {
        "padded": f"crops behind {recipe.crop_padding} pixels of {recipe.padding_mode}",
        "resized": "random resized crops",
        "scaled": "crops at {} to {} pixels".format(*recipe.shorter_side),
    }
    flips = ["alternating flips" if recipe.alternate_flip else "flips"] if recipe.flip else []
    steps = [crops[recipe.crops], *flips]
    steps += [f"cutout {recipe.cutout}"] if recipe.cutout else []
    for name in ("jitter", "lighting", "erasing", "mixup", "cutmix"):
        steps += [f"{name} {value:g}"] if (value := getattr(recipe, name)) else []
    automatic = {"rand": "RandAugment", "trivial": "TrivialAugment"}
    steps += [automatic[recipe.auto_augment]] if recipe.auto_augment in automatic else []
    return ", ".join(steps)
