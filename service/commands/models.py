"""`resnet-serve models`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from service.commands.options import fail_in_one_line

COLUMNS = ("name", "parameters", "layers", "depth", "macs", "input", "classes")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@fail_in_one_line
def models(name: str | None, as_json: bool) -> None:
    """Every named network, or one: what it costs and what it sees.

    NAME may be the SPEC of weights too, such as a bundle's path: what they are, and their card.
    Parameters and multiply-accumulates (MACs) are those of option B shortcuts and of the usual
    number of classes; wide networks exist for any width, as in wide_resnet28_7.
    """
    from models import variants

    if name is not None and (":" in name or Path(name).is_file()):
        _show(name, as_json=as_json)
        return
    names = [name] if name else list(variants.names())
    quiet = name is not None or not sys.stderr.isatty()
    rows = [_row(each) for each in tqdm(names, unit=" networks", leave=False, disable=quiet)]
    if as_json:
        click.echo(json.dumps(rows[0] if name else rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    click.echo(f"{'name':<{width}}  parameters  layers  depth     MACs  input  classes")
    for row in rows:
        click.echo(
            f"{row['name']:<{width}}  {row['parameters']:>10,}  {row['layers']:>6}  "
            f"{row['depth']:>5}  {_scaled(row['macs']):>7}  {row['input']:>5}  {row['classes']:>7}"
        )


def _show(spec: str, *, as_json: bool) -> None:
    from service import catalog

    loaded = catalog.load(spec)
    bundle = loaded.bundle
    facts = {
        "name": bundle.name,
        "architecture": bundle.variant or "custom",
        "classes": len(bundle.labels),
        "input": bundle.input.size,
        "sha256": loaded.sha256,
        "temperature": bundle.temperature,
        "metrics": bundle.metrics,
    }
    if as_json:
        click.echo(
            json.dumps(facts | {"provenance": bundle.provenance, "card": bundle.card}, indent=2)
        )
        return
    for key, value in facts.items():
        click.echo(f"{key:<12}  {json.dumps(value) if isinstance(value, dict) else value}")
    if bundle.card:
        click.echo(f"\n{bundle.card.rstrip()}")


def _row(name: str) -> dict[str, Any]:
    from models import summary, variants

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
