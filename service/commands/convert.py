"""`resnet-serve convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from service.commands.options import Rgb, fail_in_one_line
from service.errors import ConfigError


@click.command()
@click.option("--from", "format", required=True, metavar="FORMAT", help="The ecosystem: cifar.")
@click.option("--variant", help="Checked against what the file holds.")
@click.option("--mean", type=Rgb(), help="r,g,b of values scaled to [0, 1].")
@click.option("--std", type=Rgb(), help="r,g,b of values scaled to [0, 1].")
@click.option("--labels", help="cifar10, cifar100, imagenet1k, or a file with one label a line.")
@click.option(
    "--set",
    "numerics",
    metavar="FIELD=VALUE",
    multiple=True,
    help="What no file reveals, if it is not what FORMAT stands for: --set stride_at=1x1.",
)
@click.option("--name", help="The model's name; default: the file's.")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path, dir_okay=False))
@fail_in_one_line
def convert(
    format: str,
    src: Path,
    dst: Path,
    variant: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    labels: str | None,
    numerics: tuple[str, ...],
    name: str | None,
) -> None:
    """Converts the weights in SRC to the bundle DST."""
    from models import bundle, interchange
    from models.bundle import WeightsMismatch

    try:
        converted = interchange.convert(
            format,
            src,
            variant=variant,
            mean=mean,
            std=std,
            labels=labels,
            numerics=dict(map(_field, numerics)),
            name=name,
        )
    except WeightsMismatch as error:
        for line in error.difference:
            click.echo(line, err=True)
        raise
    bundle.write(converted, dst)
    spec = converted.input
    click.echo(
        f"wrote {dst}: {converted.variant or 'a network without a name'}, shortcut option "
        f"{converted.architecture.shortcut}, {len(converted.labels)} classes, "
        f"layout {converted.provenance['layout']}, mean {spec.mean}, std {spec.std}"
    )


def _field(text: str) -> tuple[str, Any]:
    """A field of an architecture and its value: JSON, or a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: write it as FIELD=VALUE")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value
