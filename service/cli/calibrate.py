"""`resnet-serve calibrate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.builtin import DEFAULT_SPEC
from service.cli import completers, outputs
from service.cli.options import FILE, PATH, code_flag, fail_in_one_line, read_dataset
from service.cli.progress import bar

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.data.datasets import Dataset


# What the bundle records, and what the text calls it.
AGREEMENT = {"exclusive": "top1_agreement", "independent": "labels_agreement"}
KEPT = {"exclusive": "their class", "independent": "all their labels"}


@click.command()
@click.option(
    "--model",
    "spec",
    metavar="SPEC",
    default=DEFAULT_SPEC,
    shell_complete=completers.spec,
    help="Model to calibrate.",
)
@click.option(
    "--images", type=click.IntRange(1), default=512, help="Number of images that set the ranges."
)
@code_flag
@outputs.overwrite_flag
@click.argument("data", type=PATH)
@click.argument("out", type=FILE)
@fail_in_one_line
def calibrate(
    spec: str,
    images: int,
    allow_code: list[str] | None,
    overwrite: bool,
    data: Path,
    out: Path,
) -> None:
    """Writes a bundle that can be served with `--precision int8`.

    DATA is a folder or archive of CLASS/FILE images like those to be served. An evenly spaced
    part of them sets the ranges of the activations; the 8-bit predictions for all of them are
    compared with those in fp32. The bundle records the results.
    """
    from models import bundle as bundles
    from service.engines.quantisation import ranges
    from service.repository import catalog

    outputs.check(out, overwrite=overwrite)
    bundle = catalog.load(spec, allow=allow_code).bundle
    if not bundle.labels:
        raise ValueError(
            f"{bundle.name} has no head: its answers in 8 bits cannot be compared with those in "
            "fp32; serve it with another precision"
        )
    dataset = read_dataset(data, bundle.input)
    step = max(1, len(dataset.images) // images)
    chosen = list(dataset.images[::step][:images])
    with bar(total=len(chosen), desc="calibrating", unit=" images") as shown:
        activations = ranges(bundle, chosen, shown.update)
    calibration = {"ranges": activations, "images": len(chosen), "source": data.name}
    calibrated = replace(bundle, calibration=calibration)
    compared = _compare(calibrated, dataset)
    bundles.write(replace(calibrated, calibration=calibration | compared), out)
    accuracy = compared.get("top1_int8")
    click.echo(
        f"{out}: of {compared['compared']} images {compared[AGREEMENT[bundle.outputs]]:.2%} keep "
        f"{KEPT[bundle.outputs]}, probabilities differ by {compared['mean_difference']:.2g} on "
        "average" + (f"; top-1 {compared['top1_fp32']:.2%} to {accuracy:.2%}" if accuracy else "")
    )


def _compare(bundle: Bundle, dataset: Dataset) -> dict[str, Any]:
    """How the 8-bit predictions differ, and both accuracies if the model knows the classes."""
    import numpy as np

    from models.evaluation.independent import THRESHOLD
    from service.repository import offline

    both = []
    for precision in ("fp32", "int8"):
        warm = offline.warm(bundle, engine="openvino", precision=precision)
        if warm.engine.precision != precision:
            raise ValueError(
                f"{bundle.name} cannot be computed in {precision}, see the warning above; serve it "
                "with another precision"
            )
        with bar(total=len(dataset.images), desc=precision, unit=" images") as shown:
            parts = []
            for start in range(0, len(dataset.images), 256):
                part = dataset.images[start : start + 256]
                parts.append(warm.infer(list(part)))
                shown.update(len(part))
        both.append(np.concatenate(parts))
    exact, quantised = both
    comparison: dict[str, Any] = {
        "compared": len(dataset.images),
        "mean_difference": float(np.abs(exact - quantised).max(1).mean()),
    }
    if bundle.outputs == "independent":
        same = ((exact >= THRESHOLD) == (quantised >= THRESHOLD)).all(1)
        return comparison | {AGREEMENT["independent"]: float(same.mean())}
    comparison[AGREEMENT["exclusive"]] = float((exact.argmax(1) == quantised.argmax(1)).mean())
    if dataset.targets.ndim == 1 and set(dataset.classes) <= set(bundle.labels):
        targets = dataset.relabelled(bundle.labels).targets
        for name, probabilities in zip(("fp32", "int8"), both, strict=True):
            comparison[f"top1_{name}"] = float((probabilities.argmax(1) == targets).mean())
    return comparison
