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
from service.cli.options import FILE, Field, Lengths, PerChannel, Whole, code_flag, fail_in_one_line
from service.config import choices
from service.errors import ConfigError

if TYPE_CHECKING:
    from models.bundle import Bundle

# Options that are fields of an input specification.
INPUT = ("channels", "mean", "std", "size", "resize", "crop", "interpolation", "fill")
# Formats whose files may hold several networks: by the names of tensors, by entries.
PREFIXED = ("cifar", "huggingface", "timm", "torch_resnet", "torchvision")
KEYED = ("flax", "onnx", *PREFIXED)
PREPARED = (
    click.option(
        "--channels",
        metavar="ORDER",
        shell_complete=completers.channels,
        help="Order of the network's input channels: rgb, bgr, grey or rgba.",
    ),
    click.option(
        "--mean",
        type=PerChannel(),
        help="Mean of each channel, in the order of --channels, of values from 0 to 1.",
    ),
    click.option("--std", type=PerChannel(), help="Standard deviation of each channel, likewise."),
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
    click.option("--fill", type=Whole(), help="With --crop letterbox: colour beside the image."),
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
@click.option("--key", help="Entry of SRC that holds the weights, if several do: model_ema.")
@click.option("--prefix", help="What the names of the network's tensors in SRC begin with.")
@click.option(
    "--outputs",
    metavar="KIND",
    shell_complete=completers.outputs,
    help="exclusive classes (softmax) or independent ones (sigmoid).",
)
@click.option(
    "--labels",
    shell_complete=completers.labels,
    help="cifar10, cifar100, imagenet1k, or a file with one label per line.",
)
@preparation
@click.option(
    "--set",
    "numerics",
    type=Field(),
    multiple=True,
    help="Field of the network that its weights do not tell: pool, stem_stride, stride_at, "
    "padding, antialias, dilation, eps and others, as in --set pool=none.",
)
@click.option(
    "--variant",
    shell_complete=completers.variant,
    help="Network that SRC must contain; by default whatever it contains.",
)
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
@click.option("--name", help="Name of the model.  [default: the name in SRC, or its file name]")
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
@code_flag
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("src", shell_complete=completers.spec)
@click.argument("dst", type=FILE)
@fail_in_one_line
def convert(
    format: str | None,
    to: str | None,
    with_preprocessing: bool,
    allow_code: list[str] | None,
    src: str,
    dst: Path,
    **options: Any,
) -> None:
    """Converts the weights in SRC to the bundle DST.

    With --from, SRC is a file of that library. Otherwise it is a SPEC, as for `serve --model`: a
    bundle, an ONNX file, torchvision:VARIANT, onnx-zoo:NAME or hf:OWNER/NAME. With --to, DST is a
    file for another library.

    What neither SRC nor an option says is asked for, or assumed and listed as the options that
    would say it. If the network differs from what --check says, nothing is written, the exit status
    is 1, and the options that would fit are named.
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
        if format:
            converted = _foreign(format, Path(src), **options)
        else:
            converted = _own(src, allow_code, **options)
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
    for flag, formats_with in (("prefix", PREFIXED), ("key", KEYED)):
        if options[flag] and format and format not in formats_with:
            raise ConfigError(
                f"--{flag}: has no effect with --from {format}; only with {', '.join(formats_with)}"
            )


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


def _own(src: str, allow: list[str] | None, *, strict: bool, **options: Any) -> Bundle:
    from models.interchange import assumptions
    from service.repository import catalog

    if used := [name for name, value in options.items() if value]:
        flag = {"numerics": "set"}.get(used[0], used[0])
        raise ConfigError(f"--{flag}: only with --from, for the file that {src} was made of")
    loaded = catalog.load(src, allow=allow).bundle
    if strict and (assumed := loaded.provenance.get("assumed")):
        raise ConfigError(
            f"{src}: was made with assumptions, which --strict refuses: "
            f"{assumptions.as_options(assumed)}"
        )
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
    """The network and its input, what is assumed, the notes, and the check: each on its line.

    Nothing is said twice: the first line has what is not assumed.
    """
    from models.interchange import assumptions

    assumed = described["assumed"]
    known = {name: value for name, value in described["input"].items() if name not in assumed}
    count, kind = described["classes"], "independent " * (described["outputs"] == "independent")
    parts = (
        described["variant"] or "unnamed network",
        f"shortcut option {described['shortcut']}",
        f"{count} {kind}class{'es' * (count > 1)}" if count else "no head",
        f"layout {described['layout']}",
        assumptions.in_words(known),
    )
    lines = [f"wrote {described['wrote']}: {', '.join(part for part in parts if part)}"]
    if assumed:
        lines.append(f"assumed: {assumptions.as_options(assumed)}")
    lines += [f"note: {note}" for note in described["notes"]]
    if checked := described.get("checked"):
        lines.append(
            f"checked with {', '.join(checked['pairs'])}: largest difference "
            f"{checked['difference']:.2g}, {checked['relative']:.2g} of the largest value"
        )
    return lines
