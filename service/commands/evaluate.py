"""`resnet-serve evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from tqdm import tqdm

from service.commands.options import fail_in_one_line, read_dataset


@click.command()
@click.option("--model", "spec", default="builtin:resnet20-cifar10", show_default=True)
@click.option("--device", help="auto, cpu or cuda:N.")
@click.option("--engine", "kind", help="auto, eager, compile or openvino.")
@click.option("--precision", help="auto, fp32, bf16, fp16 or int8.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("data", type=click.Path(path_type=Path))
@fail_in_one_line
def evaluate(
    spec: str,
    device: str | None,
    kind: str | None,
    precision: str | None,
    as_json: bool,
    data: Path,
) -> None:
    """Top-1 and top-5 accuracy on DATA, a folder or tar archive of CLASS/FILE images.

    Images go through the engine that serves; classes are matched with the model's labels.
    """
    from models.training.evaluate import accuracy
    from service import offline

    bundle, warm = offline.open_model(spec, device=device, engine=kind, precision=precision)
    images = read_dataset(data, bundle.input).relabelled(bundle.labels)
    with tqdm(total=len(images.images), unit=" images") as bar:
        measured = accuracy(
            warm.infer, images, batch_size=warm.buckets.largest, progress=bar.update
        )
    if as_json:
        click.echo(
            json.dumps(
                {**asdict(measured), "engine": warm.engine.name, "precision": warm.engine.precision}
            )
        )
    else:
        click.echo(
            f"{bundle.name} on {images.source}: top-1 {measured.top1:.2%}, "
            f"top-5 {measured.top5:.2%} of {measured.images} images "
            f"({warm.engine.name}, {warm.engine.precision})"
        )
