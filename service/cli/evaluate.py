"""`resnet-serve evaluate`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from models.builtin import DEFAULT_SPEC
from service.cli import completers
from service.cli.options import engine_flags, fail_in_one_line, part_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.bundle import Bundle
    from models.data.datasets import Corrupt
    from models.evaluation.evaluate import Evaluation, Infer

# Images read at a time, at least.
BATCH = 64


@click.command()
@click.option(
    "--model", "spec", default=DEFAULT_SPEC, show_default=True, shell_complete=completers.spec
)
@engine_flags
@click.option(
    "--crops",
    type=click.Choice(["center", "ten"]),
    default="center",
    show_default=True,
    help="ten: the mean answer to four corners, the centre and their mirrors.",
)
@click.option(
    "--corrupt",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do with unreadable images.",
)
@click.option("--confusion", type=click.Path(path_type=Path, dir_okay=False), help="A .png.")
@click.option("--reliability", type=click.Path(path_type=Path, dir_okay=False), help="A .png.")
@click.option(
    "--fit-temperature",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OUT.safetensors",
    help="Write the bundle with the temperature that calibrates it on DATA.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("data", type=click.Path(path_type=Path))
@fail_in_one_line
def evaluate(
    spec: str,
    device: str | None,
    engine: str | None,
    precision: str | None,
    crops: str,
    corrupt: Corrupt,
    confusion: Path | None,
    reliability: Path | None,
    out: Path | None,
    as_json: bool,
    data: Path,
) -> None:
    """Accuracy and calibration on DATA, a folder or tar archive of CLASS/FILE images.

    Images go through the engine that serves; classes are matched with the model's labels.
    A temperature (Guo 2017) should be fitted on images that the model was not trained on, and
    judged on yet others.
    """
    from models.data.streamed import stream
    from models.evaluation import evaluate as evaluation
    from models.evaluation import plots, ten_crop
    from service.repository import offline
    from service.runtime import cpus

    for picture in filter(None, (confusion, reliability)):
        plots.check(picture)
    if out and crops == "ten":
        raise ValueError("--fit-temperature: only with --crops center, which is what is served")
    if out and not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    bundle, warm = offline.open_model(spec, device=device, engine=engine, precision=precision)
    infer: Infer = warm.infer
    seen = bundle.input
    if crops == "ten":
        infer, seen = ten_crop.averaged(infer, seen.size), ten_crop.whole(seen)
    step = max(BATCH, warm.buckets.largest)
    images = stream(
        data,
        seen,
        batch_size=step,
        split=part_of(data, "test"),
        corrupt=corrupt,
        # Starting processes takes longer than reading small images.
        workers=cpus() if seen.size > 64 else 0,
    ).relabelled(bundle.labels)
    answers: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
    with tqdm(total=len(images), desc=bundle.name, unit=" images") as bar:
        measured = evaluation.evaluate(
            infer,
            images,
            progress=bar.update,
            observe=lambda *both: answers.append(both) if out else None,
        )
    if images.skipped:
        click.echo(f"left out {_some(images.skipped)}", err=True)
    title = f"{bundle.name} on {images.source}"
    if confusion:
        heading = f"{title}: top-1 {measured.top1:.2%} of {measured.images:,} images"
        plots.draw_confusion(measured.confusion, bundle.labels, confusion, heading)
    if reliability:
        plots.draw_reliability(measured.reliability, reliability, title)
    run: dict[str, Any] = {
        "model": bundle.name,
        "data": images.source,
        "crops": crops,
        "engine": warm.engine.name,
        "precision": warm.engine.precision,
        "temperature": bundle.temperature,
        "skipped": images.skipped,
    }
    if out:
        run["fitted"] = _fit(bundle, answers, run, out)
    if as_json:
        click.echo(json.dumps(_described(measured, bundle.labels) | run, ensure_ascii=False))
        return
    click.echo("\n".join(_lines(measured, bundle.labels, run)))
    if out:
        click.echo(_told(run["fitted"], out))


def _fit(
    bundle: Bundle,
    answers: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]],
    run: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Writes the bundle with the temperature fitted on the answers; what it says of the fit."""
    import numpy as np

    from models import bundle as bundles
    from models.evaluation import temperature

    probabilities, targets = (np.concatenate(each) for each in zip(*answers, strict=True))
    found = temperature.calibrate(probabilities, targets, bundle.temperature)
    told = asdict(found) | {key: run[key] for key in ("data", "engine", "precision")}
    provenance = bundle.provenance | {"temperature": told}
    fitted = replace(bundle, temperature=found.temperature, provenance=provenance)
    bundles.write(fitted, out)
    return told


def _told(fitted: dict[str, Any], out: Path) -> str:
    return (
        f"wrote {out}: temperature {fitted['temperature']:.4g}; on the images it was fitted on, "
        f"ECE {fitted['ece_before']:.2%} to {fitted['ece']:.2%}, "
        f"NLL {fitted['nll_before']:.4f} to {fitted['nll']:.4f}"
    )


def _described(measured: Evaluation, labels: Sequence[str]) -> dict[str, Any]:
    counts = measured.confusion.sum(axis=1).tolist()
    rows = zip(labels, _known(measured.per_class), counts, strict=True)
    bins = measured.reliability
    return {
        "top1": measured.top1,
        "top5": measured.top5,
        "images": measured.images,
        "nll": measured.nll,
        "ece": measured.ece,
        "per_class": [
            {"label": label, "accuracy": accuracy, "images": images}
            for label, accuracy, images in rows
        ],
        "confusion": measured.confusion.tolist(),
        "reliability": {
            "images": bins.counts.tolist(),
            "accuracy": _known(bins.accuracy),
            "confidence": _known(bins.confidence),
        },
    }


def _known(values: NDArray[np.float64]) -> list[float | None]:
    """With null, which JSON has, for NaN, which it has not."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _lines(measured: Evaluation, labels: Sequence[str], run: dict[str, Any]) -> list[str]:
    from models.evaluation.confusion import commonest, worst

    counts = measured.confusion.sum(axis=1)
    lines = [
        f"{run['model']} on {run['data']}: {measured.images:,} images "
        f"({run['engine']}, {run['precision']}, {run['crops']} crops)",
        f"  top-1  {measured.top1:8.2%}",
        f"  top-5  {measured.top5:8.2%}",
        f"  ECE    {measured.ece:8.2%}   {len(measured.reliability.counts)} bins",
        f"  NLL    {measured.nll:8.4f}",
    ]
    names = {index: labels[index] for index in worst(measured.per_class)}
    mistakes = [
        (f"{labels[target]} as {labels[answer]}", images, counts[target])
        for target, answer, images in commonest(measured.confusion)
    ]
    width = max(map(len, [*names.values(), *(text for text, _, _ in mistakes)]))
    for index, name in names.items():
        accuracy = measured.per_class[index]
        lines.append(f"  worst  {name:<{width}}  {accuracy:7.2%} of {counts[index]}")
    for text, images, count in mistakes:
        lines.append(f"  taken  {text:<{width}}  {images:7} of {count}")
    return lines


def _some(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    rest = len(names) - 3
    return f"{len(names)}: {', '.join(names[:3])}" + (f" and {rest} more" if rest > 0 else "")
