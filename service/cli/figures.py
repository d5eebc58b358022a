"""The figures of an evaluation, as JSON values and as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.evaluation.confidence import Reliability
    from models.evaluation.evaluate import Evaluation
    from models.evaluation.independent import Labelling

# The most labels that the text names.
ROWS = 20
# Of so few classes, five guesses are always right.
FEW = 5


def described(measured: Evaluation | Labelling, labels: Sequence[str]) -> dict[str, Any]:
    """The figures as `--json` prints them."""
    from models.evaluation.evaluate import Evaluation

    if not isinstance(measured, Evaluation):
        return _of_labels(measured, labels)
    counts = measured.confusion.sum(axis=1).tolist()
    rows = zip(labels, _known(measured.per_class), counts, strict=True)
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
        "reliability": _bins(measured.reliability),
    }


def _of_labels(measured: Labelling, labels: Sequence[str]) -> dict[str, Any]:
    from models.evaluation.independent import THRESHOLD

    accuracies, precisions = measured.accuracy.tolist(), _known(measured.precision)
    rows = zip(labels, accuracies, precisions, measured.present.tolist(), strict=True)
    return {
        "threshold": THRESHOLD,
        "mean_average_precision": measured.mean_precision,
        "mean_accuracy": measured.mean_accuracy,
        "exact_match": measured.exact,
        "top1": measured.top1,
        "images": measured.images,
        "nll": measured.nll,
        "ece": measured.ece,
        "per_label": [
            {"label": label, "accuracy": accuracy, "average_precision": precision, "images": images}
            for label, accuracy, precision, images in rows
        ],
        "reliability": _bins(measured.reliability),
    }


def _bins(bins: Reliability) -> dict[str, Any]:
    return {
        "images": bins.counts.tolist(),
        "accuracy": _known(bins.accuracy),
        "confidence": _known(bins.confidence),
    }


def _known(values: NDArray[np.float64]) -> list[float | None]:
    """With null for NaN, which JSON does not have."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def as_text(
    measured: Evaluation | Labelling, labels: Sequence[str], run: dict[str, Any]
) -> list[str]:
    """The figures as lines of text; `run`: what was evaluated, and how."""
    from models.evaluation.confusion import commonest, worst
    from models.evaluation.evaluate import Evaluation

    heading = (
        f"{run['model']} on {run['data']}: {measured.images:,} images "
        f"({run['engine']}, {run['precision']}, {run['crops']} crops"
        f"{', mirrored views' if run['views'] == 'mirrored' else ''})"
    )
    if not isinstance(measured, Evaluation):
        return [heading, *_label_lines(measured, labels)]
    counts = measured.confusion.sum(axis=1)
    lines = [
        heading,
        f"  top-1  {measured.top1:8.2%}",
        *([f"  top-5  {measured.top5:8.2%}"] if len(labels) > FEW else []),
        f"  ECE    {measured.ece:8.2%}   {len(measured.reliability.counts)} bins",
        f"  NLL    {measured.nll:8.4f}",
    ]
    names = {index: labels[index] for index in worst(measured.per_class)}
    mistakes = [
        (f"{labels[target]} as {labels[answer]}", images, counts[target])
        for target, answer, images in commonest(measured.confusion)
    ]
    width = max(map(len, [*names.values(), *(taken for taken, _, _ in mistakes)]))
    for index, name in names.items():
        accuracy = measured.per_class[index]
        lines.append(f"  worst  {name:<{width}}  {accuracy:7.2%} of {counts[index]}")
    for taken, images, count in mistakes:
        lines.append(f"  taken  {taken:<{width}}  {images:7} of {count}")
    return lines


def _label_lines(measured: Labelling, labels: Sequence[str]) -> Iterator[str]:
    """The figures of independent labels, and a table of the labels."""
    import numpy as np

    from models.evaluation.independent import THRESHOLD

    known = int((measured.present > 0).sum())
    if measured.mean_precision is not None:
        of = f"{known} of {len(labels)} labels" if known < len(labels) else f"{known} labels"
        yield f"  mAP      {measured.mean_precision:8.2%}   mean over {of}"
    yield f"  accuracy {measured.mean_accuracy:8.2%}   mean over labels, threshold {THRESHOLD:g}"
    yield f"  exact    {measured.exact:8.2%}   of images have every label right"
    if measured.top1 is not None:
        yield f"  top-1    {measured.top1:8.2%}   each image has one label"
    bins = len(measured.reliability.counts)
    yield f"  ECE      {measured.ece:8.2%}   {bins} bins, over images x labels"
    yield f"  NLL      {measured.nll:8.4f}   mean over images x labels"
    order = np.argsort(measured.precision, kind="stable")[:ROWS]  # NaN last.
    rows = [int(index) for index in order] if len(labels) > ROWS else range(len(labels))
    width = max(5, *(len(labels[index]) for index in rows))
    yield f"  {'label':<{width}} accuracy       AP   images"
    for index in rows:
        precision = measured.precision[index]
        shown = "      -" if math.isnan(precision) else f"{precision:7.2%}"
        yield (
            f"  {labels[index]:<{width}}  {measured.accuracy[index]:7.2%}  {shown}  "
            f"{measured.present[index]:7,}"
        )
    if len(labels) > ROWS:
        yield f"  the {ROWS} of {len(labels)} labels with the lowest AP; --json has all"
