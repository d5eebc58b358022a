"""One training run from data to bundle."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from models import bundle, variants
from models.bundle import Bundle
from models.classifier import Classifier
from models.training.datasets import Dataset
from models.training.evaluate import accuracy, inference
from models.training.loop import Progress, train
from models.training.recipes import Recipe


def train_bundle(
    variant: str,
    data: Dataset,
    test: Dataset | None,
    recipe: Recipe,
    *,
    name: str,
    seed: int,
    device: str = "cpu",
    compiled: bool = True,
    report: Callable[[Progress], None] = lambda progress: None,
    **overrides: Any,
) -> Bundle:
    """A bundle trained on `data`, and measured on `test` in float32 where there is one.

    `overrides` are fields of `Architecture`; `compiled` is as in `train`. The bundle's provenance
    records the recipe, the seed, the data, the versions and the time it took.

    Raises:
        ValueError: the variant or an override is unknown, or `test` has other classes.
        Diverged: see `train`.
    """
    if test is not None and test.classes != data.classes:
        raise ValueError(f"{test.source} has other classes than {data.source}")
    row = variants.variant(variant)
    torch.manual_seed(seed)
    network = variants.build(variant, num_classes=len(data.classes), **overrides)
    started = time.perf_counter()
    train(
        network, data, row.input, recipe, seed=seed, device=device, compiled=compiled, report=report
    )
    seconds = time.perf_counter() - started
    metrics = {}
    if test is not None:
        classifier = Classifier(network, row.input).to(device)
        measured = accuracy(inference(classifier), test, batch_size=256)
        metrics[test.source] = asdict(measured)
    return bundle.from_network(
        network.cpu(),
        name=name,
        input=row.input,
        labels=data.classes,
        provenance={
            "source": "trained by `resnet-serve train`",
            "data": f"{data.source}: {len(data.images)} images",
            "recipe": asdict(recipe),
            "seed": seed,
            "seconds": round(seconds),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "device": device,
        },
        metrics=metrics,
    )
