"""What shells offer for a word that is being typed; nothing here imports torch or NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from models import builtin, variants
from models.interchange import formats
from service.config import choices

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]
KINDS = ("builtin:", "random:", "torchvision:", "hf:")
LABELS = ("cifar10", "cifar100", "imagenet1k")


def one_of(names: Callable[[], Iterable[str]]) -> Complete:
    """Offers those of `names` that begin as the word does."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        return [CompletionItem(name) for name in names() if name.startswith(incomplete)]

    return complete


def spec(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Offers SPECs, one part after the other, and files."""
    kind, colon, _ = incomplete.partition(":")
    offered = (f"{kind}:{name}" for name in AFTER[kind]()) if kind in AFTER and colon else KINDS
    found = [CompletionItem(each) for each in offered if each.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def _published() -> Iterable[str]:
    from models.interchange import torchvision_weights

    for row in torchvision_weights.WEIGHTS:
        yield row.variant
        yield f"{row.variant}:{row.weights}"


def _recipes() -> Iterable[str]:
    from models.training.recipes import RECIPES

    return RECIPES


AFTER: dict[str, Callable[[], Iterable[str]]] = {
    "builtin": builtin.names,
    "random": variants.names,
    "torchvision": lambda: dict.fromkeys(_published()),
}
variant = one_of(variants.names)
recipe = one_of(_recipes)
device = one_of(lambda: choices.DEVICES)
engine = one_of(lambda: choices.ENGINES)
precision = one_of(lambda: choices.PRECISIONS)
read_format = one_of(lambda: formats.READ)
written_format = one_of(lambda: formats.WRITTEN)


def labels(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Offers known sets of labels, and files."""
    found = [CompletionItem(name) for name in LABELS if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]
