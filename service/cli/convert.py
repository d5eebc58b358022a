"""`resnet-serve convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.interchange import formats
from models.suggestions import hint
from service.cli import completers
from service.cli.options import Field, Rgb, fail_in_one_line
from service.errors import ConfigError

if TYPE_CHECKING:
    from models.bundle import Bundle


@click.command()
@click.option(
    "--from",
    "format",
    metavar="FORMAT",
    shell_complete=completers.read_format,
    help=f"Whose weights SRC has: {', '.join(formats.READ)}.",
)
@click.option(
    "--to",
    metavar="FORMAT",
    shell_complete=completers.written_format,
    help=f"Write DST for another library: {', '.join(formats.WRITTEN)}.",
)
@click.option(
    "--with-preprocessing", is_flag=True, help="DST takes uint8 pixels, gives probabilities: onnx."
)
@click.option(
    "--variant", shell_complete=completers.variant, help="Checked against what the file holds."
)
@click.option("--mean", type=Rgb(), help="r,g,b of values scaled to [0, 1].")
@click.option("--std", type=Rgb(), help="r,g,b of values scaled to [0, 1].")
@click.option(
    "--labels",
    shell_complete=completers.labels,
    help="cifar10, cifar100, imagenet1k, or a file with one label a line.",
)
@click.option(
    "--set",
    "numerics",
    type=Field(),
    multiple=True,
    help="What no file reveals, if it is not what FORMAT stands for: --set stride_at=1x1.",
)
@click.option("--name", help="The model's name; default: the one in SRC, else its file's.")
@click.argument("src", shell_complete=completers.spec)
@click.argument("dst", type=click.Path(path_type=Path, dir_okay=False))
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

    With --from, SRC is a file of that library. Without, it is a SPEC as `serve --model` takes:
    a bundle, an ONNX file, torchvision:VARIANT or hf:OWNER/NAME. With --to, DST is for another
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
        raise ConfigError("--with-preprocessing goes with --to onnx")
    # For files so large that it takes seconds, on a terminal.
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
        f"wrote {dst}: {converted.variant or 'a network without a name'}, shortcut option "
        f"{converted.architecture.shortcut}, {len(converted.labels)} classes, "
        f"layout {to or converted.provenance.get('layout', 'of a bundle')}, mean {spec.mean}, "
        f"std {spec.std}"
    )


def _foreign(
    format: str, src: Path, numerics: tuple[tuple[str, Any], ...], **options: Any
) -> Bundle:
    from models.bundle import WeightsMismatch
    from models.interchange import convert as interchange

    try:
        return interchange.convert(format, src, numerics=dict(numerics), **options)
    except WeightsMismatch as error:
        for line in error.difference:
            click.echo(line, err=True)
        raise


def _own(src: str, **options: Any) -> Bundle:
    from service.repository import catalog

    if given := [name for name, value in options.items() if value]:
        flag = {"numerics": "set"}.get(given[0], given[0])
        raise ConfigError(f"--{flag}: only with --from; a SPEC says it itself")
    return catalog.load(src).bundle
