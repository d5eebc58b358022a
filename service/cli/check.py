"""`resnet-serve check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli import completers
from service.cli.options import PATH, code_flag, fail_in_one_line
from service.errors import ConfigError

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.interchange.reference import Pair

DIFFERS = 1  # exit status


@click.command()
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    help="Largest difference, relative to the largest reference value.  [default: 0.0001]",
)
@code_flag
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("model", metavar="MODEL", shell_complete=completers.spec)
@click.argument("pairs", metavar="[PAIR]...", type=PATH, nargs=-1)
@fail_in_one_line
def check(
    model: str,
    pairs: tuple[Path, ...],
    tolerance: float | None,
    allow_code: list[str] | None,
    as_json: bool,
) -> None:
    """Compares MODEL with what its network computed elsewhere.

    MODEL is a SPEC, as for `serve --model`. A PAIR is a file with an input and its output (.npz,
    .pt, .safetensors), or two files INPUT OUTPUT (.npy, .pt, .pb, .json, .csv; INPUT may be an
    image), or a folder or tar archive that holds input_0.pb and output_0.pb. Inputs are
    [N, C, H, W] or [N, H, W, C]: float as the network sees them, or uint8 pixels. Outputs are
    logits or probabilities of the network alone, without mirrored views. Models of the ONNX model
    zoo, and archives of it, bring their own.

    The exit status is 0 if the model agrees with all pairs, 1 if it differs. If it differs, the
    alternatives that weights do not reveal are tried, and those that fit are named as options of
    `convert`.
    """
    from models.interchange import comparison, reference
    from models.interchange.convert import Differs

    read = reference.read(pairs)
    try:
        bundle = _loaded(model, allow_code)
    except Differs as error:  # from the test data beside it
        click.echo(str(error))
        raise click.exceptions.Exit(DIFFERS) from None
    if not (read := read or _own(model)):
        raise ConfigError(f"{model}: name at least one PAIR; {reference.GRAMMAR}")
    if not judge(bundle, read, tolerance or comparison.TOLERANCE, model, as_json=as_json):
        raise click.exceptions.Exit(DIFFERS)


def judge(
    bundle: Bundle, pairs: list[Pair], tolerance: float, name: str, *, as_json: bool = False
) -> bool:
    """Prints how a bundle compares with pairs; whether it agrees with all."""
    from models.interchange import alternatives, comparison

    found = [comparison.compare(bundle, pair, tolerance) for pair in pairs]
    agrees = all(each.agrees for each in found)
    blind = any(each.blind for each in found)
    others = None if agrees or blind else alternatives.search(bundle, pairs, tolerance)
    if as_json:
        described = {
            "model": name,
            "agrees": agrees,
            "tolerance": tolerance,
            "pairs": [each.as_json() for each in found],
            "notes": comparison.notes_of(found),
            "fits": [fit.as_json() for fit in others.fits] if others else [],
            "tried": others.tried if others else 0,
        }
        click.echo(json.dumps(described, indent=2))
        return agrees
    for each in found:
        click.echo(f"{name} {each.in_words()}")
    for note in comparison.notes_of(found):
        click.echo(f"note: {note}")
    if others:
        click.echo(others.in_words())
    return agrees


def _is_archive(model: str) -> bool:
    """Whether it is a folder or archive with an ONNX graph, and perhaps with test data."""
    from models.interchange import unpacking

    path = Path(model)
    return unpacking.is_archive(path) or (path.is_dir() and any(path.rglob("*.onnx")))


def _loaded(model: str, allow: list[str] | None) -> Bundle:
    from models.interchange import assumptions, convert
    from service.repository import catalog

    if not _is_archive(model):
        return catalog.load(model, allow=allow).bundle
    try:
        return convert.convert("onnx", Path(model))
    except assumptions.InputUnknown as error:
        advice = "`resnet-serve convert --from onnx` makes a bundle, and does this check"
        raise ConfigError(f"{error}; {advice}") from None


def _own(model: str) -> list[Pair]:
    """The pairs that come with a model."""
    from models.interchange import hub, reference, unpacking
    from service.config import loading

    kind, _, name = model.partition(":")
    if kind == "onnx-zoo":
        return hub.zoo_test_data(name, loading.load().cache_dir / "onnx-zoo")
    if not _is_archive(model):
        return []
    with unpacking.unpacked(Path(model)) as folder:
        return reference.within(folder, shown=Path(model))
