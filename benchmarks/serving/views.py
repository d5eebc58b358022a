"""What a bundle's views and storage cost: speed, size and accuracy, measured in turns.

    python -m benchmarks.serving.views --model builtin:resnet10-cifar10 --data cifar10-test.tar \
        --output views.json

The engine is the default one for the CPU, without HTTP. Each round computes the same images plain
and mirrored, one after the other, so that a busy machine slows both down; the ratio is of their CPU
time, and its median over the rounds is given.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import click

from models import bundle as bundles
from models import hardware
from models.bundle import Bundle
from models.evaluation.evaluate import batches, evaluate
from models.storage import Storage
from models.views import Views, seen_as
from service.cli.options import read_dataset
from service.engines.engine import Warm
from service.engines.jpeg import Image
from service.repository import catalog, offline

COUNT = 256


def timed(warm: Warm, images: Sequence[Image], batch: int) -> tuple[float, float]:
    """Seconds and CPU seconds of all images in such batches."""
    began, spent = time.perf_counter(), time.process_time()
    for start in range(0, len(images), batch):
        warm.launch(images[start : start + batch])()
    return time.perf_counter() - began, time.process_time() - spent


def speeds(warms: dict[str, Warm], images: Sequence[Image], batch: int, rounds: int) -> Any:
    """Of each kind of views, the best images/s; and the median ratio of CPU time."""
    taken: dict[str, list[tuple[float, float]]] = {views: [] for views in warms}
    for _ in range(rounds):
        for views, warm in warms.items():
            taken[views].append(timed(warm, images, batch))
    ratios = [
        mirrored[1] / plain[1]
        for plain, mirrored in zip(taken["plain"], taken["mirrored"], strict=True)
    ]
    best = {views: round(len(images) / min(each)[0]) for views, each in taken.items()}
    return {"batch": batch, **best, "cpu_ratio": round(statistics.median(ratios), 2)}


def size_of(bundle: Bundle) -> int:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        bundles.write(bundle, path)
        return path.stat().st_size


@click.command()
@click.option("--model", "spec", default="builtin:resnet10-cifar10")
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--rounds", default=7)
@click.option("--output", type=click.Path(path_type=Path))
def main(spec: str, data: Path, rounds: int, output: Path | None) -> None:
    bundle = catalog.load(spec).bundle
    dataset = read_dataset(data, bundle.input).relabelled(bundle.labels)
    rows: list[dict[str, Any]] = []
    warms: dict[str, Warm] = {}
    for views in get_args(Views):
        for storage in get_args(Storage):
            made = replace(seen_as(bundle, views), storage=storage)
            warm = offline.warm(made)
            found = evaluate(warm.infer, batches(dataset, 256))
            figures = {name: getattr(found, name) for name in ("top1", "nll", "ece")}
            rows.append({"views": views, "storage": storage, "bytes": size_of(made), **figures})
            warms.setdefault(views, warm)
    images = list(dataset.images[:COUNT])
    largest = min(warm.buckets.largest for warm in warms.values())
    engine = warms["plain"].engine
    report = {
        "model": bundle.name,
        "data": data.name,
        "processor": hardware.name("cpu"),
        "engine": engine.name,
        "precision": engine.precision,
        "images": len(dataset.images),
        "bundles": rows,
        "speed": [speeds(warms, images, batch, rounds) for batch in (1, largest)],
    }
    text = json.dumps(report, indent=2)
    click.echo(text)
    if output:
        output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
