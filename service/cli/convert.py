"""`resnet-serve convert`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.interchange import formats
from models.suggestions import hint
from service.cli import completers, outputs
from service.cli.check import DIFFERS, judge
from service.cli.options import FILE, Field, code_flag, fail_in_one_line
from service.cli.preparation import INPUT, preparation
from service.cli.progress import bar
from service.config import choices
from service.errors import ConfigError

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.storage import Storage
    from models.views import Views

# Formats whose files may hold several networks: by the names of tensors, by entries.
PREFIXED = ("cifar", "huggingface", "timm", "torch_resnet", "torchvision")
KEYED = ("flax", "onnx", *PREFIXED)


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
@preparation()
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
@outputs.form_flags("those of SRC", None)
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
@outputs.overwrite_flag
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

    What neither SRC nor an option says is asked for, or assumed and printed as options. If the
    network does not compute what --check says, nothing is written, the exit status is 1, and the
    options that would fit are printed.
    """
    from models import bundle
    from models.interchange import comparison, reference
    from models.interchange import convert as interchange

    _check_words(format, to, options, with_preprocessing=with_preprocessing)
    outputs.check(dst, overwrite=options.pop("overwrite"))
    files, as_json = options.pop("pair"), options.pop("as_json")
    views, storage = options.pop("views"), options.pop("storage")
    pairs = [reference.two(*files)] if files else []
    with bar(total=2, desc=f"reading {src}", unit=" steps", leave=False) as steps:
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
        notes: list[str] = []
        converted = _with(converted, views, storage, notes)
        if to:
            exported = {"with_preprocessing": True} if with_preprocessing else {}
            interchange.export_to(to, converted, dst, **exported)
            if to != "onnx" and converted.views == "mirrored":
                notes.append(f"{to} has the network alone: average the mirror images there")
        else:
            bundle.write(converted, dst)
        steps.update()
    described = _described(converted, dst, to)
    described["notes"] = [*described["notes"], *notes]
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    for line in _lines(described):
        click.echo(line)


def _check_words(
    format: str | None, to: str | None, options: dict[str, Any], *, with_preprocessing: bool
) -> None:
    """Refuses words that name nothing, with the nearest that does."""
    if moved := [name for name, _ in options["numerics"] if name in INPUT]:
        raise ConfigError(f"--set {moved[0]}: it is not a field of the network; use --{moved[0]}")
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
    if options["storage"] and to:
        raise ConfigError(f"--storage: has no effect with --to {to}; only where DST is a bundle")
    if options["views"] and to and to != "onnx":
        raise ConfigError(f"--views: has no effect with --to {to}, which has the network alone")
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


def _with(
    converted: Bundle, views: Views | None, storage: Storage | None, notes: list[str]
) -> Bundle:
    """With what --views and --storage say; `notes` gets what follows from that."""
    from models import storage as stored
    from models import views as seen

    if views and views != converted.views:
        measured, fitted = converted.metrics, converted.temperature != 1.0
        converted = seen.seen_as(converted, views)
        if measured and not converted.metrics:
            notes.append(f"measured with other views: {', '.join(measured)}; run evaluate for DST")
        if fitted:
            notes.append("the temperature was fitted with other views; fit it again")
    if storage and storage != converted.storage:
        if storage == "fp16" and converted.metrics:
            notes.append(f"measured before rounding: {', '.join(converted.metrics)}")
        converted = replace(converted, storage=storage)
    if storage == "fp16" and (names := stored.kept(converted.tensors)):
        notes.append(f"kept in 32 bits, beyond the range of 16: {', '.join(names)}")
    return converted


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
        "views": converted.views,
        "storage": converted.storage,
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
        "mirrored views" if described["views"] == "mirrored" else "",
        "weights in 16 bits" if described["storage"] == "fp16" else "",
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
