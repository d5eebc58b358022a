"""Top-1 errors published by the papers and torch-resnet, to compare results with."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

DataSet = Literal["CIFAR-10", "CIFAR-100", "ImageNet"]
Precision = Literal["", "mixed", "full"]
MeasuredEpoch = Literal["", "last", "best"]


@dataclass(frozen=True, slots=True)
class Published:
    """`error`: percentage of the test images of `data`; a mean if there is a `deviation`.

    `shortcut`, `dropout`, `zero_init_residual`: see `Architecture` and `Recipe`.
    `precision`, `epoch`: whether the source trained in "mixed" or in "full" precision, and measured
        its "last" epoch or the one "best" on the test images; "" where it does not say.
    """

    variant: str
    shortcut: str
    data: DataSet
    error: float
    deviation: float | None
    source: str
    dropout: float = 0.0
    zero_init_residual: bool = False
    precision: Precision = ""
    epoch: MeasuredEpoch = ""

    @property
    def by_torch_resnet(self) -> bool:
        return self.source.startswith("torch-resnet")


def _rows() -> Iterator[Published]:
    # Without failed runs and without ten-crop results.
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield Published(
                variant=row["variant"],
                shortcut=row["shortcut"],
                data=cast("DataSet", row["data"]),
                error=float(row["error"]),
                deviation=float(row["deviation"]) if row["deviation"] else None,
                source=row["source"],
                dropout=float(row["dropout"] or 0),
                zero_init_residual=row["zero_init_residual"] == "yes",
                precision=cast("Precision", row["precision"]),
                epoch=cast("MeasuredEpoch", row["epoch"]),
            )


PUBLISHED = tuple(_rows())


def find(
    variant: str,
    data: str,
    *,
    shortcut: str,
    dropout: float,
    by_torch_resnet: bool,
    zero_init_residual: bool = False,
    precision: Precision = "",
) -> list[Published]:
    """The results for a network and data set.

    Those with other shortcuts, or in another precision, only if none has these; those with
    branches that do not begin at zero only if none has such.
    """
    rows = [
        row
        for row in PUBLISHED
        if (row.variant, row.data, row.dropout) == (variant, data, dropout)
        and row.by_torch_resnet == by_torch_resnet
        and (zero_init_residual or not row.zero_init_residual)
    ]
    wanted = {
        "zero_init_residual": zero_init_residual,
        "shortcut": shortcut,
        "precision": precision,
    }
    for name, value in wanted.items():
        rows = [row for row in rows if getattr(row, name) == value] or rows
    return rows
