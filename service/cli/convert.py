"""`resnet-serve convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.interchange import formats
from models.suggestions import hint
from service.cli import completers
from service.cli.check import DIFFERS, judge
from service.cli.options import FILE, Field, Lengths, PerChannel, Whole, fail_in_one_line
from service.config import choices
from service.errors import ConfigError

if TYPE_CHECKING:
    from models.bundle import Bundle

# Options that are fields of an input specification.
INPUT = ("size", "resize", "crop", "interpolation", "channels", "fill", "mean", "std")
PREPARED = (
    click.option("--size", type=Lengths(), help="Sides in pixels of the network's input."),
    click.option(
        "--resize", type=Lengths(), help="Sides in pixels that images are resized to before --crop."
    ),
    click.option(
        "--crop",
        metavar="CROP",
        shell_complete=completers.crop,
        help="center, center_floor, center_truncate, before_resize, squash or letterbox.",
    ),
    click.option(
        "--interpolation",
        metavar="NAME",
        shell_complete=completers.interpolation,
        help="nearest, bilinear, bicubic or lanczos.",
    ),
    click.option(
        "--channels",
        metavar="ORDER",
        shell_complete=completers.channels,
        help="What the network sees: rgb, bgr, grey or rgba.",
    ),
    click.option("--fill", type=Whole(), help="With --crop letterbox: colour beside the image."),
    click.option(
        "--mean",
        type=PerChannel(),
        help="Mean of each channel, for values in [0, 1], as --channels.",
    ),
    click.option(
        "--std", type=PerChannel(), help="Standard deviation of each channel, for values in [0, 1]."
    ),
)


def preparation(command: Any) -> Any:
    """Adds the options that say how images are prepared."""
    for option in reversed(PREPARED):
        command = option(command)
    return command


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
@preparation
@click.option(
    "--labels",
    shell_complete=completers.labels,
    help="cifar10, cifar100, imagenet1k, or a file with one label per line.",
)
@click.option(
    "--outputs",
    metavar="KIND",
    shell_complete=completers.outputs,
    help="exclusive classes (softmax) or independent ones (sigmoid).",
)
@click.option(
    "--set",
    "numerics",
    type=Field(),
    multiple=True,
    help="What SRC cannot tell, if it is not the default of FORMAT: --set stride_at=1x1.",
)
@click.option("--prefix", help="What the names of the network's tensors in SRC begin with.")
@click.option(
    "--key",
    help="Entry of SRC that holds the weights, as in model_ema; of an ONNX file, the output.",
)
@click.option("--name", help="Name of the model.  [default: the name in SRC, or its file name]")
@click.option(
    "--strict", is_flag=True, help="Refuse to assume what SRC and the options leave open."
)
@click.option(
    "--check",
    "pair",
    type=FILE,
    nargs=2,
    metavar="INPUT OUTPUT",
    help="Files with images and what the network computed of them; DST is only written if "
    "it computes the same. See `resnet-serve check`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    bundle, an ONNX file, torchvision:VARIANT, onnx-zoo:NAME or hf:OWNER/NAME. With --to, DST is a
    file for another library.

    What neither SRC nor an option says is assumed and listed, or asked for. If the network differs
    from what --check says, nothing is written, and the options that would fit are named; the exit
    status is then 1.
    """
    from tqdm import tqdm

    from models import bundle
    from models.interchange import comparison, reference
    from models.interchange import convert as interchange

    _check_words(format, to, options, with_preprocessing=with_preprocessing)
    files, as_json = options.pop("pair"), options.pop("as_json")
    pairs = [reference.two(*files)] if files else []
    # On a terminal, for files that take seconds.
    with tqdm(total=2, desc=f"reading {src}", disable=None, leave=False) as steps:
        converted = _foreign(format, Path(src), **options) if format else _own(src, **options)
        steps.update()
        steps.set_description(f"writing {dst}")
        if pairs:
            found = [comparison.compare(converted, pair) for pair in pairs]
            if not all(each.agrees for each in found):
                judge(converted, pairs, comparison.TOLERANCE, src, as_json=as_json)
                click.echo(f"{dst} is not written", err=True)
                raise click.exceptions.Exit(DIFFERS)
            converted.provenance["checked"] = comparison.record(found)
        if to:
            exported = {"with_preprocessing": True} if with_preprocessing else {}
            interchange.export_to(to, converted, dst, **exported)
        else:
            bundle.write(converted, dst)
        steps.update()
    described = _described(converted, dst, to)
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    for line in _lines(described):
        click.echo(line)


def _check_words(
    format: str | None, to: str | None, options: dict[str, Any], *, with_preprocessing: bool
) -> None:
    """Refuses words that name nothing, with the nearest that does."""
    if with_preprocessing and to != "onnx":
        raise ConfigError("--with-preprocessing: only with --to onnx")
    for flag, value, known in (
        ("to", to, formats.WRITTEN),
        ("from", format, formats.READ),
        ("crop", options["crop"], choices.CROPS),
        ("interpolation", options["interpolation"], choices.INTERPOLATIONS),
        ("channels", options["channels"], choices.CHANNELS),
        ("outputs", options["outputs"], choices.OUTPUTS),
    ):
        if value is not None and value not in known:
            raise ConfigError(f"--{flag} {value}: {hint(value, known)}")
    if format == "onnx" and options["prefix"]:
        raise ConfigError("--prefix: an ONNX file is read by its graph, not by names")


def _foreign(
    format: str, src: Path, numerics: tuple[tuple[str, Any], ...], **options: Any
) -> Bundle:
    from models.bundle import WeightsMismatch
    from models.interchange import convert as interchange
    from models.interchange.imported import Said

    given = {name: options.pop(name) for name in INPUT}
    prepared = {name: value for name, value in given.items() if value is not None}
    said = Said(input=prepared, numerics=dict(numerics), **options)
    try:
        return interchange.convert(format, src, said)
    except WeightsMismatch as error:
        for line in error.difference:
            click.echo(line, err=True)
        raise


def _own(src: str, *, strict: bool, **options: Any) -> Bundle:
    from models.interchange import assumptions
    from service.repository import catalog

    if used := [name for name, value in options.items() if value]:
        flag = {"numerics": "set"}.get(used[0], used[0])
        raise ConfigError(f"--{flag}: only with --from; a SPEC determines it")
    loaded = catalog.load(src).bundle
    if strict and (assumed := loaded.provenance.get("assumed")):
        raise ConfigError(f"{src}: assumes {assumptions.in_words(assumed)}; --strict refuses that")
    return loaded


def _described(converted: Bundle, dst: Path, to: str | None) -> dict[str, Any]:
    """What is printed, as JSON values."""
    origin, spec = converted.provenance, converted.input
    described: dict[str, Any] = {
        "wrote": str(dst),
        "name": converted.name,
        "variant": converted.variant,
        "shortcut": converted.architecture.shortcut,
        "classes": len(converted.labels),
        "outputs": converted.outputs,
        "layout": to or origin.get("layout", "bundle"),
        "input": {name: getattr(spec, name) for name in INPUT if getattr(spec, name) != ()},
        "assumed": origin.get("assumed", {}),
        "notes": origin.get("notes", []),
    }
    return described | {name: origin[name] for name in ("checked",) if name in origin}


def _lines(described: dict[str, Any]) -> list[str]:
    """The network and its input, what is assumed, the notes, and the check: each on its line."""
    from models.interchange import assumptions

    prepared = assumptions.in_words(described["input"])
    independent = ", independent outputs" if described["outputs"] == "independent" else ""
    lines = [
        f"wrote {described['wrote']}: {described['variant'] or 'unnamed network'}, shortcut option "
        f"{described['shortcut']}, {described['classes']} classes{independent}, layout "
        f"{described['layout']}, {prepared}"
    ]
    if described["assumed"]:
        lines.append(f"assumed: {assumptions.in_words(described['assumed'])}")
    lines += described["notes"]
    if checked := described.get("checked"):
        lines.append(
            f"checked with {', '.join(checked['pairs'])}: largest difference "
            f"{checked['difference']:.2g}, {checked['relative']:.2g} of the largest value"
        )
    return lines
