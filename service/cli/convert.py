"""`resnet-serve convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.interchange import formats
from models.suggestions import hint
from service.cli import completers
from service.cli.options import FILE, Field, Rgb, fail_in_one_line
from service.errors import ConfigError

if TYPE_CHECKING:
    from models.bundle import Bundle


@click.command()
@click.option(
    "--from",
    "format",
    metavar="FORMAT",
    shell_complete=completers.read_format,
    help=f"Library that wrote SRC: {', '.join(formats.READ)}.",
)
@click.option(
    "--to",
    metavar="FORMAT",
    shell_complete=completers.written_format,
    help=f"Library to write DST for: {', '.join(formats.WRITTEN)}.",
)
@click.option(
    "--with-preprocessing",
    is_flag=True,
    help="With --to onnx: DST takes uint8 pixels and returns probabilities.",
)
@click.option(
    "--variant",
    shell_complete=completers.variant,
    help="Network that SRC must contain; by default whatever it contains.",
)
@click.option("--mean", type=Rgb(), help="Mean of each channel, for values in [0, 1].")
@click.option("--std", type=Rgb(), help="Standard deviation of each channel, for values in [0, 1].")
@click.option(
    "--labels",
    shell_complete=completers.labels,
    help="cifar10, cifar100, imagenet1k, or a file with one label per line.",
)
@click.option(
    "--set",
    "numerics",
    type=Field(),
    multiple=True,
    help="What SRC cannot tell, if it is not the default of FORMAT: --set stride_at=1x1.",
)
@click.option("--name", help="Name of the model.  [default: the name in SRC, or its file name]")
@click.argument("src", shell_complete=completers.spec)
@click.argument("dst", type=FILE)
@fail_in_one_line
def convert(
    format: str | None,
    to: str | None,
    with_preprocessing: bool,
    src: str,
    dst: Path,
    **options: Any,
) -> None:
    """Converts the weights in SRC to the bundle DST.

    With --from, SRC is a file of that library. Otherwise it is a SPEC, as for `serve --model`: a
    bundle, an ONNX file, torchvision:VARIANT or hf:OWNER/NAME. With --to, DST is a file for another
    library.
    """
    from tqdm import tqdm

    from models import bundle
    from models.interchange import convert as interchange

    if to is not None and to not in formats.WRITTEN:
        raise ConfigError(f"--to {to}: {hint(to, formats.WRITTEN)}")
    if format is not None and format not in formats.READ:
        raise ConfigError(f"--from {format}: {hint(format, formats.READ)}")
    if with_preprocessing and to != "onnx":
        raise ConfigError("--with-preprocessing: only with --to onnx")
    # On a terminal, for files that take seconds.
    with tqdm(total=2, desc=f"reading {src}", disable=None, leave=False) as steps:
        converted = _foreign(format, Path(src), **options) if format else _own(src, **options)
        steps.update()
        steps.set_description(f"writing {dst}")
        if to:
            options = {"with_preprocessing": True} if with_preprocessing else {}
            interchange.export_to(to, converted, dst, **options)
        else:
            bundle.write(converted, dst)
        steps.update()
    spec = converted.input
    click.echo(
        f"wrote {dst}: {converted.variant or 'unnamed network'}, shortcut option "
        f"{converted.architecture.shortcut}, {len(converted.labels)} classes, "
        f"layout {to or converted.provenance.get('layout', 'bundle')}, mean {spec.mean}, "
        f"std {spec.std}"
    )


def _foreign(
    format: str, src: Path, numerics: tuple[tuple[str, Any], ...], **options: Any
) -> Bundle:
    from models.bundle import WeightsMismatch
    from models.interchange import convert as interchange
    from models.interchange.imported import INPUT, Said

    given = {name: options.pop(name) for name in INPUT if name in options}
    prepared = {name: value for name, value in given.items() if value is not None}
    said = Said(input=prepared, numerics=dict(numerics), **options)
    try:
        return interchange.convert(format, src, said)
    except WeightsMismatch as error:
        for line in error.difference:
            click.echo(line, err=True)
        raise


def _own(src: str, **options: Any) -> Bundle:
    from service.repository import catalog

    if used := [name for name, value in options.items() if value]:
        flag = {"numerics": "set"}.get(used[0], used[0])
        raise ConfigError(f"--{flag}: only with --from; a SPEC determines it")
    return catalog.load(src).bundle
