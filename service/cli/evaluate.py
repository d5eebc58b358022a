"""`resnet-serve evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.builtin import DEFAULT_SPEC
from service.cli import completers, figures, outputs
from service.cli.options import (
    FILE,
    PATH,
    code_flag,
    engine_flags,
    exact_flag,
    fail_in_one_line,
    part_of,
)
from service.cli.progress import bar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.bundle import Bundle
    from models.data.datasets import Corrupt
    from models.data.label_list import Targets
    from models.data.streamed import Stream
    from models.evaluation.evaluate import Evaluation, Infer
    from models.evaluation.independent import Labelling
    from models.preprocess import InputSpec
    from service.engines.engine import Warm

    Answers = list[tuple[NDArray[np.float32], Targets]]

# The least images to read at a time.
BATCH = 64
LISTS = "docs/training.md"


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
@code_flag
@exact_flag
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
@click.option(
    "--confusion", type=FILE, help="Draw the confusion matrix to this .png; for exclusive classes."
)
@click.option("--reliability", type=FILE, help="Draw the reliability diagram to this .png.")
@click.option(
    "--fit-temperature",
    "out",
    type=FILE,
    metavar="OUT.safetensors",
    help="Write the bundle with a temperature fitted on DATA.",
)
@outputs.overwrite_flag
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
    **flags: Any,
) -> None:
    """Measures accuracy and calibration on DATA, a folder, zip or tar archive of CLASS/FILE images,
    a CSV list of images with any number of labels each (file,labels with labels split by ;), or
    another set that training reads.

    Images go through the engine that serves; classes are matched with the model's labels. Fit a
    temperature (Guo 2017) on images that the model was not trained on, and evaluate it on others.
    """
    from models.evaluation import evaluate as evaluation
    from models.evaluation import independent, plots, temperature, ten_crop
    from service.repository import catalog, offline

    for picture in filter(None, (confusion, reliability)):
        plots.check(picture)
    if out and crops == "ten":
        raise ValueError("--fit-temperature: only with --crops center, as in serving")
    outputs.check(confusion, reliability, out, overwrite=flags.pop("overwrite"))
    bundle = catalog.load(spec, allow=flags["allow_code"]).bundle
    exact = flags.pop("exact")
    is_independent = bundle.outputs == "independent"
    _check(bundle, spec, confusion)
    if crops == "ten" and bundle.views == "mirrored":
        raise ValueError(
            "--crops ten: five crops are mirror images, which the model averages in any case; "
            f"`resnet-serve convert --views plain {spec} OUT.safetensors` makes one that does not"
        )
    seen = ten_crop.whole(bundle.input) if crops == "ten" else bundle.input
    warm = offline.warm(bundle, **flags)
    infer: Infer = ten_crop.averaged(warm.infer, bundle.input) if crops == "ten" else warm.infer
    images = _open(data, seen, bundle, warm, corrupt, exact=exact)
    if out:
        temperature.check_count(len(images))
    answers: Answers = []
    measured: Evaluation | Labelling
    with bar(total=len(images), desc=bundle.name, unit=" images") as shown:
        measured = (independent.evaluate if is_independent else evaluation.evaluate)(
            infer,
            images,
            progress=shown.update,
            observe=lambda *batch: answers.append(batch) if out else None,
        )
    if images.skipped:
        click.echo(f"left out {_listed(images.skipped)}", err=True)
    title = f"{bundle.name} on {images.source}"
    if confusion and isinstance(measured, evaluation.Evaluation):
        heading = f"{title}: top-1 {measured.top1:.2%} of {measured.images:,} images"
        plots.draw_confusion(measured.confusion, bundle.labels, confusion, heading)
    if reliability:
        plots.draw_reliability(measured.reliability, reliability, title, independent=is_independent)
    run: dict[str, Any] = {
        "model": bundle.name,
        "data": images.source,
        "outputs": bundle.outputs,
        "crops": crops,
        "views": bundle.views,
        "exact_decode": exact,
        "engine": warm.engine.name,
        "precision": warm.engine.precision,
        "temperature": bundle.temperature,
        "skipped": images.skipped,
    }
    if out:
        run["fitted"] = _fit(bundle, answers, run, out)
    if as_json:
        click.echo(json.dumps(figures.described(measured, bundle.labels) | run, ensure_ascii=False))
        return
    click.echo("\n".join(figures.as_text(measured, bundle.labels, run)))
    if out:
        fitted, (least, most) = run["fitted"], run["fitted"]["interval"]
        click.echo(
            f"wrote {out}: temperature {fitted['temperature']:.4g} (95 % confidence: {least:.3g} "
            f"to {most:.3g}, {fitted['images']:,} images); on the images it was fitted on, "
            f"ECE {fitted['ece_before']:.2%} to {fitted['ece']:.2%}, "
            f"NLL {fitted['nll_before']:.4f} to {fitted['nll']:.4f}"
        )


def _check(bundle: Bundle, spec: str, confusion: Path | None) -> None:
    """Raises ValueError if there is nothing to measure, or no confusion matrix of it."""
    if not bundle.labels:
        raise ValueError(
            f"{bundle.name} has no head: it answers with features, not classes, so there is no "
            f"accuracy; resnet-serve train --weights {spec} --data DATA OUT.safetensors adds one"
        )
    if confusion and bundle.outputs == "independent":
        raise ValueError(
            f"--confusion: the labels of {bundle.name} are independent; an image may have several, "
            "so there is no confusion matrix; leave it out"
        )


def _open(
    data: Path, seen: InputSpec, bundle: Bundle, warm: Warm, corrupt: Corrupt, *, exact: bool
) -> Stream:
    """The images, with their classes as the model numbers them.

    Raises:
        ValueError: see `models.data.streamed.stream`; or the model's classes are others, or
            exclusive where the images' are not.
    """
    from models.data.streamed import stream
    from service.runtime import cpus

    images = stream(
        data,
        seen,
        batch_size=max(BATCH, warm.buckets.largest),
        split=part_of(data, "test"),
        corrupt=corrupt,
        exact=exact,
        # For small images, starting processes takes longer than reading.
        workers=cpus() if max(seen.height, seen.width) > 64 else 0,
    )
    if not images.exclusive and bundle.outputs == "exclusive":
        raise ValueError(
            f"{data}: some of its images have several labels or none, but {bundle.name} gives "
            "each image exactly one class; list each image with one label"
        )
    try:
        return images.relabelled(bundle.labels)
    except ValueError as error:
        if bundle.outputs == "exclusive":
            raise
        raise ValueError(f"{error}; a CSV list can have images without labels: {LISTS}") from None


def _fit(bundle: Bundle, answers: Answers, run: dict[str, Any], out: Path) -> dict[str, Any]:
    """Writes the bundle with a temperature fitted on the answers; returns the fit's record."""
    import numpy as np

    from models import bundle as bundles
    from models.evaluation import temperature
    from models.evaluation.independent import spread

    probabilities = np.concatenate([rows for rows, _ in answers])
    targets: Targets = np.concatenate([labels for _, labels in answers])
    if bundle.outputs == "independent":
        targets = spread(targets, len(bundle.labels))
    fit = temperature.calibrate(probabilities, targets, bundle.temperature)
    record = asdict(fit) | {key: run[key] for key in ("data", "engine", "precision")}
    provenance = bundle.provenance | {"temperature": record}
    bundles.write(replace(bundle, temperature=fit.temperature, provenance=provenance), out)
    return record


def _listed(names: Sequence[str]) -> str:
    """The number of names and the first few."""
    rest = len(names) - 3
    return f"{len(names)}: {', '.join(names[:3])}" + (f" and {rest} more" if rest > 0 else "")
