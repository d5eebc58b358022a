"""`resnet-serve convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from service.commands.options import Rgb, fail_in_one_line
from service.errors import ConfigError


@click.command()
@click.option("--from", "format", metavar="FORMAT", help="What SRC is: cifar, onnx.")
@click.option("--to", metavar="FORMAT", help="What DST becomes instead of a bundle: onnx.")
@click.option(
    "--with-preprocessing", is_flag=True, help="DST takes uint8 pixels, gives probabilities: onnx."
)
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
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path, dir_okay=False))
@fail_in_one_line
def convert(
    format: str | None,
    to: str | None,
    with_preprocessing: bool,
    src: str,
    dst: Path,
    variant: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    labels: str | None,
    numerics: tuple[str, ...],
    name: str | None,
) -> None:
    """Converts the weights in SRC, a file or a SPEC, to the bundle DST, or to another format."""
    from models import bundle, interchange
    from models.bundle import WeightsMismatch
    from service import catalog

    options: dict[str, Any] = {
        "variant": variant,
        "mean": mean,
        "std": std,
        "labels": labels,
        "numerics": dict(map(_field, numerics)),
        "name": name,
    }
    if format is None and (to is None or any(options.values())):
        raise ConfigError(
            "--from FORMAT says what SRC is; without it, SRC is a SPEC and needs --to"
        )
    if to is not None and to not in interchange.EXPORTERS:
        raise ConfigError(f"--to {to}: one of {', '.join(interchange.EXPORTERS)}")
    if with_preprocessing and to != "onnx":
        raise ConfigError("--with-preprocessing goes with --to onnx")
    try:
        if format is None:
            converted = catalog.load(src).bundle
        else:
            converted = interchange.convert(format, Path(src), **options)
    except WeightsMismatch as error:
        for line in error.difference:
            click.echo(line, err=True)
        raise
    if to is None:
        bundle.write(converted, dst)
    else:
        interchange.EXPORTERS[to](converted, dst, {"with_preprocessing": with_preprocessing})
    spec = converted.input
    layout = converted.provenance.get("layout", "bundle")
    click.echo(
        f"wrote {dst}: {converted.variant or 'a network without a name'}, shortcut option "
        f"{converted.architecture.shortcut}, {len(converted.labels)} classes, "
        f"layout {layout}, mean {spec.mean}, std {spec.std}"
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
