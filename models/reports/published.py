"""Top-1 errors published by the papers and torch-resnet, to compare results with."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

DataSet = Literal["CIFAR-10", "CIFAR-100", "ImageNet"]


@dataclass(frozen=True, slots=True)
class Published:
    """`error`: percentage of the test images of `data`; a mean if there is a `deviation`.

    `shortcut`, `dropout`: see `Architecture`.
    """

    variant: str
    shortcut: str
    data: DataSet
    error: float
    deviation: float | None
    source: str
    dropout: float = 0.0

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
            )


PUBLISHED = tuple(_rows())


def find(
    variant: str, shortcut: str, data: str, dropout: float, *, by_torch_resnet: bool
) -> list[Published]:
    """The results for a network and data set; those with other shortcuts only if none has this."""
    rows = [
        row
        for row in PUBLISHED
        if (row.variant, row.data, row.dropout) == (variant, data, dropout)
        and row.by_torch_resnet == by_torch_resnet
    ]
    return [row for row in rows if row.shortcut == shortcut] or rows
