"""Completions for shells. Nothing here imports torch or NumPy, so they are quick."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from models import builtin, variants
from models import labels as label_sets
from models.interchange import formats
from service.config import choices

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


def matching(names: Iterable[str], incomplete: str) -> list[CompletionItem[str]]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def one_of(names: Callable[[], Iterable[str]]) -> Complete:
    """Completes to one of `names`."""
    return lambda context, parameter, incomplete: matching(names(), incomplete)


def spec(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Completes SPECs part by part, and files."""
    kind, colon, _ = incomplete.partition(":")
    specs: Iterable[str] = formats.SPEC_KINDS
    if kind in AFTER and colon:
        specs = (f"{kind}:{name}" for name in AFTER[kind]())
    return matching(specs, incomplete) or [CompletionItem(incomplete, type="file")]


def _published() -> Iterable[str]:
    from models.interchange import torchvision_weights

    for row in torchvision_weights.WEIGHTS:
        yield row.variant
        yield f"{row.variant}:{row.weights}"


def _zoo() -> Iterable[str]:
    from models.interchange import onnx_zoo

    return onnx_zoo.names()


def _recipes() -> Iterable[str]:
    from models.training.recipes import RECIPES

    return RECIPES


AFTER: dict[str, Callable[[], Iterable[str]]] = {
    "builtin": builtin.names,
    "onnx-zoo": _zoo,
    "random": variants.names,
    "torchvision": lambda: dict.fromkeys(_published()),
}
variant = one_of(variants.names)
recipe = one_of(_recipes)
device = one_of(lambda: choices.DEVICES)
served_device = one_of(lambda: choices.SERVED_DEVICES)
engine = one_of(lambda: choices.ENGINES)
precision = one_of(lambda: choices.PRECISIONS)
read_format = one_of(lambda: formats.READ)
crop = one_of(lambda: choices.CROPS)
interpolation = one_of(lambda: choices.INTERPOLATIONS)
channels = one_of(lambda: choices.CHANNELS)
outputs = one_of(lambda: choices.OUTPUTS)
written_format = one_of(lambda: formats.WRITTEN)


def labels(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Completes known sets of labels, and files."""
    return matching(label_sets.NAMES, incomplete) or [CompletionItem(incomplete, type="file")]
