"""`resnet-serve models`."""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import builtin, variants
from models.suggestions import hint, nearest
from service.cli import completers
from service.cli.figures import FEW
from service.cli.options import fail_in_one_line
from service.cli.progress import bar
from service.cli.training_output import classes
from service.config.variables import environment

if TYPE_CHECKING:
    from models.bundle import Bundle

COLUMNS = ("name", "parameters", "layers", "depth", "macs", "input", "classes")
# The columns of the table, and those that a narrow terminal omits, in order.
SHOWN = ("name", "parameters", "layers", "depth", "MACs", "input", "classes", "weights")
LESS = ("weights", "layers", "classes", "input", "depth")
PATTERN = frozenset("*?[")
# Figures of a data set, and those that are fractions.
FIGURES = {"top1": "top-1", "top5": "top-5", "nll": "NLL", "ece": "ECE"}
PERCENT = frozenset({"top1", "top5", "ece"})
SOME = 3  # labels shown of a model
# Why the model zoo's files of a kind are not served by name.
WHY = {"quantised": "int8: not read", "caffe2": "preprocessing not published"}


@click.command()
@click.argument("name", required=False, shell_complete=completers.variant)
@click.option("--zoo", is_flag=True, help="List the ResNets of the ONNX model zoo instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@fail_in_one_line
def models(name: str | None, zoo: bool, as_json: bool) -> None:
    """Lists the named networks with their cost and input size, or describes weights.

    NAME is a network, a quoted pattern such as 'wide*', or a family: imagenet, cifar, small, wide
    or preact. If it is the SPEC of weights, such as a bundle's path, their details and card are
    printed. Parameters and multiply-accumulates (MACs) assume option B shortcuts and the usual
    number of classes; wide networks exist in any width, as in wide_resnet28_7.
    """
    if zoo:
        _show_zoo(name, as_json=as_json)
        return
    if name is not None and _is_spec(name):
        _show(name, as_json=as_json)
        return
    chosen = _chosen(name)
    one = (
        name is not None
        and len(chosen) == 1
        and name not in variants.FAMILIES
        and not PATTERN & {*name}
    )
    rows = []
    with bar(hidden=len(chosen) < 2, total=len(chosen), unit=" networks", leave=False) as shown:
        for network in chosen:
            rows.append(_row(network))
            shown.update()
    if as_json:
        click.echo(json.dumps(rows[0] if one else rows, indent=2))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table(rows, width):
        click.echo(line)
    if name is None:
        shipped = ", ".join(f"builtin:{name}" for name in builtin.names())
        click.echo(f"\nShipped with weights: {shipped}")


def _is_spec(name: str) -> bool:
    """Whether it names weights, found or not: a widened network's name may have a dot too."""
    path = Path(name)
    return ":" in name or "/" in name or path.suffix[1:].isalpha() or path.is_file()


def _chosen(name: str | None) -> list[str]:
    """The networks that a name, a pattern or a family selects.

    Raises:
        ValueError: there are none; the message suggests the nearest name.
    """
    if name is None:
        return variants.names()
    if name in variants.FAMILIES:
        return variants.names(family=name)
    if PATTERN & {*name}:
        matches = variants.names(name)
        if not matches:
            raise ValueError(f"no network matches {name!r}; `resnet-serve models` lists all")
        return matches
    try:
        return [variants.variant(name).name]
    except ValueError:
        if near := nearest(name, variants.FAMILIES):
            hint = f"did you mean {near[0]}?"
            raise ValueError(f"no network or family is called {name!r}; {hint}") from None
        raise


def _heading(name: str) -> str:
    data, *kinds = variants.families(name)
    kind = " ".join(["pre-activation"] * ("preact" in kinds) + ["wide"] * ("wide" in kinds))
    seen = {
        "imagenet": "ImageNet",
        "cifar": "CIFAR",
        "small": "small images, the depths of ImageNet's",
    }
    return f"ResNets for {seen[data]}{f', {kind}' if kind else ''}"


def table(rows: list[dict[str, Any]], width: int | None) -> Iterator[str]:
    """The lines of a table by family, at most `width` wide if possible."""
    cells = [
        {
            "name": row["name"],
            "parameters": f"{row['parameters']:,}",
            "layers": f"{row['layers']:,}",
            "depth": f"{row['depth']:,}",
            "MACs": _scaled(row["macs"]),
            "input": str(row["input"]),
            "classes": f"{row['classes']:,}",
            "weights": _weights(row["name"]),
        }
        for row in rows
    ]
    sizes = {
        column: max(len(row[column]) for row in [*cells, {column: column}]) for column in SHOWN
    }
    columns = list(SHOWN)
    for column in LESS:
        if width is not None and sum(sizes[name] + 2 for name in columns) - 2 > width:
            columns.remove(column)

    def line(row: dict[str, str]) -> str:
        parts = [
            f"{row[name]:{'<' if name in ('name', 'weights') else '>'}{sizes[name]}}"
            for name in columns
        ]
        return "  ".join(parts).rstrip()

    header = line(dict(zip(SHOWN, SHOWN, strict=True)))
    if len(rows) == 1:
        yield from (header, line(cells[0]))
        return
    for number, (heading, family) in enumerate(groupby(cells, lambda row: _heading(row["name"]))):
        if number:
            yield ""
        yield _bold(heading)
        yield header
        yield from map(line, family)


def _bold(text: str) -> str:
    # click omits styles if the output is not a terminal.
    return text if environment().get("NO_COLOR") else click.style(text, bold=True)


def _weights(name: str) -> str:
    """The SPECs of a network's weights."""
    from models.interchange import torchvision_weights

    specs = [f"builtin:{model}" for model in builtin.names() if model.partition("-")[0] == name]
    if any(row.variant == name for row in torchvision_weights.WEIGHTS):
        specs.append(f"torchvision:{name}")
    return ", ".join(specs)


def _first(labels: Sequence[str]) -> str:
    """As in `airplane, automobile, bird and 7 more`."""
    more = f" and {len(labels) - SOME:,} more" if len(labels) > SOME else ""
    return ", ".join(labels[:SOME]) + more or "none: the network has no head"


def _measured(source: str, figures: Any, labels: tuple[str, ...]) -> Iterator[str]:
    """The figures of a data set, and its worst classes; whatever a file calls figures."""
    if not isinstance(figures, dict):
        yield f"{'measured':<12}  {source}: {json.dumps(figures)}"
        return
    short = {"top5"} if len(labels) <= FEW else set()
    named = [
        f"{FIGURES.get(name, name)} {value:.2%}"
        if name in PERCENT and isinstance(value, int | float)
        else f"{FIGURES.get(name, name)} {value:.4g}"
        if isinstance(value, float)
        else f"{name} {value}"
        for name, value in figures.items()
        if name not in short and not isinstance(value, dict | list)
    ]
    yield f"{'measured':<12}  {source}: {', '.join(named)}"
    try:
        yield from list(classes(figures, labels)) if "per_class" in figures else ()
    except (KeyError, TypeError, ValueError, IndexError):
        return  # Another program's figures.


def _origin(provenance: Mapping[str, Any]) -> str:
    """As in `resnet50-v1-7.onnx (onnx, ONNX model zoo)`."""
    kind = ", ".join(str(provenance[key]) for key in ("format", "layout") if key in provenance)
    return f"{provenance.get('source', 'unknown')}{f' ({kind})' if kind else ''}"


def _show_zoo(name: str | None, *, as_json: bool) -> None:
    from models.interchange import onnx_zoo

    rows = [row for row in onnx_zoo.as_rows() if name is None or fnmatch.fnmatch(row["name"], name)]
    if not rows:
        known = [row.name for row in onnx_zoo.MODELS]
        raise ValueError(
            f"the ONNX model zoo has no ResNet called {name!r}; {hint(name or '', known)}"
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'name':<22}  {'opset':>5}  {'MB':>5}  {'top-1':>5}  {'top-5':>5}  SHA-256")
    for row in rows:
        top1, top5 = (f"{row[key]:.2f}" if row[key] else "" for key in ("top1", "top5"))
        megabytes, why = f"{row['bytes'] / 1e6:.1f}", WHY.get(row["kind"], "")
        line = (
            f"{row['name']:<22}  {row['opset']:>5}  {megabytes:>5}  {top1:>5}  {top5:>5}  "
            f"{row['sha256'][:16]}  {why}"
        )
        click.echo(line.rstrip())
    click.echo(
        "\nTop-1 and top-5 in percent on ImageNet, as the zoo measured them. The SPEC is\n"
        "onnx-zoo:NAME; `resnet-serve check onnx-zoo:NAME` compares it with the zoo's test data."
    )


def _show(spec: str, *, as_json: bool) -> None:
    from models import storage
    from models.interchange import assumptions
    from service.repository import catalog

    loaded = catalog.find(spec)  # Whoever looks need not run its code.
    bundle = loaded.bundle
    facts = {
        "name": bundle.name,
        "architecture": bundle.variant or "custom",
        "classes": len(bundle.labels),
        **{part: path for part in ("block", "head") if (path := getattr(bundle, part))},
        "outputs": bundle.outputs,
        "input": bundle.input.size,
        "channels": bundle.input.channels,
        **_cost(bundle),
        "views": bundle.views,
        "storage": bundle.storage,
        "sha256": loaded.sha256,
        "temperature": bundle.temperature,
        "metrics": bundle.metrics,
    }
    prepared = {name: value for name, value in asdict(bundle.input).items() if value != ()}
    if as_json:
        more = {"provenance": bundle.provenance, "card": bundle.card, "preprocessing": prepared}
        click.echo(json.dumps({**facts, **more, "labels": list(bundle.labels)}, indent=2))
        return
    if "macs" in facts:
        facts |= {"parameters": f"{facts['parameters']:,}", "macs": _scaled(facts["macs"])}
    facts |= {
        "labels": _first(bundle.labels),
        "preprocessed": assumptions.in_words(prepared),
        "origin": _origin(bundle.provenance),
    }
    if assumed := bundle.provenance.get("assumed"):
        facts["assumed"] = assumptions.as_options(assumed)
    if bundle.storage == "fp16" and (names := storage.kept(bundle.tensors)):
        facts["storage"] = f"fp16, but fp32 for {_first(names)}"
    del facts["metrics"]
    for key, value in facts.items():
        written = json.dumps(value) if isinstance(value, dict | tuple) else value
        click.echo(f"{'MACs' if key == 'macs' else key:<12}  {written}")
    for source, figures in bundle.metrics.items():
        for line in _measured(source, figures, bundle.labels):
            click.echo(line)
    for note in bundle.provenance.get("notes", []):
        click.echo(f"{'note':<12}  {note}")
    if bundle.card:
        click.echo(f"\n{bundle.card.rstrip()}")


def _cost(bundle: Bundle) -> dict[str, int]:
    """As GET /v1/models has it; nothing for a network of the user's own code, which is not run."""
    from models import summary

    if bundle.own_code:
        return {}
    cost = summary.cost(bundle.architecture, bundle.input.size)
    return {
        "parameters": cost.parameters,
        "layers": cost.layers,
        "depth": bundle.depth,
        "macs": cost.macs,
    }


def _row(name: str) -> dict[str, Any]:
    from models import summary

    variant = variants.variant(name)
    size = variant.input.size
    cost = summary.cost(variant.architecture, size)
    values = (
        variant.name,
        cost.parameters,
        cost.layers,
        variant.depth,
        cost.macs,
        size,
        variant.architecture.num_classes,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _scaled(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"
