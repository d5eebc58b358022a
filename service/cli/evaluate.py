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
from service.cli.options import FILE, PATH, engine_flags, fail_in_one_line, part_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.bundle import Bundle
    from models.data.datasets import Corrupt
    from models.evaluation.evaluate import Evaluation, Infer

# The least images to read at a time.
BATCH = 64


@click.command()
@click.option(
    "--model",
    "spec",
    metavar="SPEC",
    default=DEFAULT_SPEC,
    shell_complete=completers.spec,
    help="Model to evaluate.",
)
@engine_flags
@click.option(
    "--crops",
    type=click.Choice(["center", "ten"]),
    default="center",
    help="ten: average over the four corners, the centre and their mirror images.",
)
@click.option(
    "--corrupt",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    help="What to do about unreadable images.",
)
@click.option("--confusion", type=FILE, help="Draw the confusion matrix to this .png.")
@click.option("--reliability", type=FILE, help="Draw the reliability diagram to this .png.")
@click.option(
    "--fit-temperature",
    "out",
    type=FILE,
    metavar="OUT.safetensors",
    help="Write the bundle with a temperature fitted on DATA.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("data", type=PATH)
@fail_in_one_line
def evaluate(
    spec: str,
    crops: str,
    corrupt: Corrupt,
    confusion: Path | None,
    reliability: Path | None,
    out: Path | None,
    as_json: bool,
    data: Path,
    **flags: str | None,
) -> None:
    """Measures accuracy and calibration on DATA, a folder or tar archive of CLASS/FILE images.

    Images go through the engine that serves; classes are matched with the model's labels. Fit a
    temperature (Guo 2017) on images that the model was not trained on, and evaluate it on others.
    """
    from models.data.streamed import stream
    from models.evaluation import evaluate as evaluation
    from models.evaluation import plots, ten_crop
    from service.repository import offline
    from service.runtime import cpus

    for picture in filter(None, (confusion, reliability)):
        plots.check(picture)
    if out and crops == "ten":
        raise ValueError("--fit-temperature: only with --crops center, as in serving")
    if out and not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    bundle, warm = offline.open_model(spec, **flags)
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
        # For small images, starting processes takes longer than reading.
        workers=cpus() if seen.size > 64 else 0,
    ).relabelled(bundle.labels)
    answers: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
    with tqdm(total=len(images), desc=bundle.name, unit=" images") as bar:
        measured = evaluation.evaluate(
            infer,
            images,
            progress=bar.update,
            observe=lambda *batch: answers.append(batch) if out else None,
        )
    if images.skipped:
        click.echo(f"left out {_listed(images.skipped)}", err=True)
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
        fitted = run["fitted"]
        click.echo(
            f"wrote {out}: temperature {fitted['temperature']:.4g}; on the images it was fitted "
            f"on, ECE {fitted['ece_before']:.2%} to {fitted['ece']:.2%}, "
            f"NLL {fitted['nll_before']:.4f} to {fitted['nll']:.4f}"
        )


def _fit(
    bundle: Bundle,
    answers: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]],
    run: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Writes the bundle with a temperature fitted on the answers; returns the fit's record."""
    import numpy as np

    from models import bundle as bundles
    from models.evaluation import temperature

    probabilities, targets = map(np.concatenate, zip(*answers, strict=True))
    fit = temperature.calibrate(probabilities, targets, bundle.temperature)
    record = asdict(fit) | {key: run[key] for key in ("data", "engine", "precision")}
    provenance = bundle.provenance | {"temperature": record}
    bundles.write(replace(bundle, temperature=fit.temperature, provenance=provenance), out)
    return record


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
    """With null for NaN, which JSON does not have."""
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


def _listed(names: Sequence[str]) -> str:
    """The number of names and the first few."""
    rest = len(names) - 3
    return f"{len(names)}: {', '.join(names[:3])}" + (f" and {rest} more" if rest > 0 else "")
