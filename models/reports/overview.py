"""The recipes as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from models import variants
from models.reports.published import PUBLISHED, Published
from models.summary import cost
from models.training.recipe import Recipe
from models.training.recipes import RECIPES

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
    own = (recipe.dropout or 0.0, recipe.zero_init_residual)
    rows = [row for row in PUBLISHED if row.source.startswith(recipe.published)]
    return [row for row in rows if (row.dropout, row.zero_init_residual) == own]


def parameters(row: Published) -> int:
    """The number of learnable scalars of a published result's network."""
    named = variants.variant(row.variant)
    changes = {"num_classes": CLASSES[row.data], "shortcut": row.shortcut}
    return cost(variants.override(named.architecture, **changes), named.input.size).parameters


def _described(recipe: Recipe) -> Iterator[str]:
    yield _wrapped("schedule", schedule(recipe))
    yield _wrapped("optimizer", optimizer(recipe))
    yield _wrapped("augmentation", augmentation(recipe))
    if settings := besides(recipe):
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


def optimizer(recipe: Recipe) -> str:
    """The optimizer in words."""
    kind = "AdamW" if recipe.optimizer == "adamw" else f"SGD, momentum {recipe.momentum:g}"
    decaying = {"weights": "convolutions and linear layers", "all": "all parameters"}
    steps = [kind, *(["Nesterov"] if recipe.nesterov and recipe.optimizer == "sgd" else [])]
    steps += [f"batch {recipe.batch_size}"]
    steps += [f"weight decay {recipe.weight_decay:g} of {decaying[recipe.decays]}"]
    steps += [f"gradients of at most norm {recipe.clip:g}"] if recipe.clip else []
    steps += [f"{recipe.body_rate:g} times the rate below the head"] * (recipe.body_rate != 1)
    rate = f"{recipe.bias_rate:g} times the rate for the biases of normalisation"
    steps += [rate] if recipe.bias_rate != 1 else []
    steps += [f"Lookahead every {recipe.lookahead} steps"] if recipe.lookahead else []
    return ", ".join(steps)


def augmentation(recipe: Recipe) -> str:
    """The augmentation in words."""
    low, high = (100 * share for share in recipe.scale)
    padding = {"zeros": "zeros", "reflect": "reflection"}
    crops = {
        "padded": f"crops behind {recipe.crop_padding} pixels of {padding[recipe.padding_mode]}",
        "resized": f"random resized crops of {low:g} to {high:g} % of the area",
        "scaled": "crops after resizing the shorter side to "
        f"{recipe.shorter_side[0]} to {recipe.shorter_side[1]} pixels",
    }
    flips = "alternating flips" if recipe.alternate_flip else "flips"
    automatic = {"rand": "RandAugment", "trivial": "TrivialAugment"}
    steps = [crops[recipe.crops], flips if recipe.flip else "no flips"]
    steps += [f"images of {recipe.train_size} pixels"] if recipe.train_size else []
    steps += [f"colour jitter {recipe.jitter:g}"] if recipe.jitter else []
    steps += [f"AlexNet's colour noise {recipe.lighting:g}"] if recipe.lighting else []
    steps += [automatic[recipe.auto_augment]] if recipe.auto_augment != "none" else []
    steps += [f"random erasing {recipe.erasing:g}"] if recipe.erasing else []
    steps += [f"cutout {recipe.cutout}"] if recipe.cutout else []
    steps += [f"mixup {recipe.mixup:g}"] if recipe.mixup else []
    steps += [f"CutMix {recipe.cutmix:g}"] if recipe.cutmix else []
    return ", ".join(steps)


def besides(recipe: Recipe) -> list[str]:
    """What else is not as usual, in words."""

    def numbers(values: tuple[float, ...]) -> str:
        return " ".join(f"{value:g}" for value in values)

    balanced = {"loss": "weigh more in the loss", "sampling": "are drawn more often"}
    told = {
        f"label smoothing {recipe.label_smoothing:g}": recipe.label_smoothing,
        f"moving average of the weights {recipe.ema:g}": recipe.ema,
        f"dropout {recipe.dropout or 0:g}": recipe.dropout,
        f"shortcut {recipe.shortcut}": recipe.shortcut,
        f"bottlenecks stride in the {recipe.stride_at} convolution": recipe.stride_at,
        "incomplete last batches are trained on": recipe.last_batch == "keep",
        f"mean {numbers(recipe.mean)}": recipe.mean,
        f"standard deviation {numbers(recipe.std)}": recipe.std,
        f"frozen up to the {recipe.freeze}": recipe.freeze != "none",
        "normalisation by the start's statistics": recipe.norm == "frozen",
        f"rare classes {balanced.get(recipe.balance, '')}": recipe.balance != "none",
        "the epoch best on the validation images is kept": recipe.keep == "best",
        f"ends after {recipe.patience} epochs without a better one": recipe.patience,
        "the stem whitens": recipe.stem_init == "whitened",
        "residual branches begin at zero": recipe.zero_init_residual,
    }
    return [words for words, holds in told.items() if holds]
