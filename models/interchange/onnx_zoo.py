"""The ResNets of the ONNX model zoo as data, without torch.

Accuracies are those of the zoo's README, sizes and checksums those of its Git LFS pointers:
github.com/onnx/models, validated/vision/classification/resnet.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from models import files
from models.preprocess import IMAGENET
from models.suggestions import hint

URL = "https://github.com/onnx/models/raw/main/validated/vision/classification/resnet/model"
# The README's formula, and the code beside it: the shorter side becomes 256, the crop's corner is
# w // 2 - 112, h // 2 - 112.
INPUT = replace(IMAGENET, crop="center_floor")
Kind = Literal["gluon", "caffe2", "quantised"]
# Why a kind is not served by name.
REFUSED: dict[Kind, str] = {
    "quantised": "quantised to int8, which is not read; the same network in fp32 is "
    "onnx-zoo:resnet50-v1-12",
    "caffe2": "the zoo does not say how its images are prepared; download {url} and convert it: "
    "`resnet-serve convert --from onnx --channels bgr|rgb --mean ... --std ... {file} DST`",
}


@dataclass(frozen=True, slots=True)
class ZooModel:
    """`size` in bytes and `sha256` of the `.onnx` file; `archive_sha256` of the `.tar.gz` that
    holds it with test data. `top1`, `top5`: the zoo's figures in percent, on ImageNet's
    validation images, if it has any."""

    name: str
    kind: Kind
    opset: int
    size: int
    top1: float | None
    top5: float | None
    sha256: str
    archive_sha256: str

    @property
    def file(self) -> str:
        return f"{self.name}.onnx"

    @property
    def archive(self) -> str:
        return f"{self.name}.tar.gz"

    @property
    def variant(self) -> str | None:
        """The named network, if the file says how its images are prepared."""
        depth, version, _ = self.name.removeprefix("resnet").split("-", 2)
        prefix = "preact_" if version == "v2" else ""
        return f"{prefix}resnet{depth}" if self.kind == "gluon" else None

    @property
    def refusal(self) -> str:
        """Why the model is not served by name; empty if it is."""
        reason = REFUSED.get(self.kind, "")
        return reason.format(url=f"{URL}/{self.file}", file=self.file)

    @property
    def metrics(self) -> dict[str, Any]:
        if self.top1 is None or self.top5 is None:
            return {}
        figures = {"top1": round(self.top1 / 100, 5), "top5": round(self.top5 / 100, 5)}
        return {"imagenet1k-val": {**figures, "images": 50_000, "measured_by": "onnx-zoo"}}


def _rows() -> Iterator[ZooModel]:
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield ZooModel(
                name=row["name"],
                kind=cast("Kind", row["kind"]),
                opset=int(row["opset"]),
                size=int(row["size"]),
                top1=float(row["top1"]) if row["top1"] else None,
                top5=float(row["top5"]) if row["top5"] else None,
                sha256=row["sha256"],
                archive_sha256=row["archive_sha256"],
            )


MODELS = tuple(_rows())


def of_file(path: Path) -> ZooModel | None:
    """The zoo's model in an `.onnx` file, recognised by its checksum."""
    size = path.stat().st_size
    if all(row.size != size for row in MODELS):
        return None
    digest = files.sha256(path)
    return next((row for row in MODELS if row.sha256 == digest), None)


def names() -> list[str]:
    """The models that SPECs can name."""
    return [row.name for row in MODELS if not row.refusal]


def find(name: str) -> ZooModel:
    """The model called `name`, as in `resnet50-v1-7`.

    Raises:
        ValueError: the zoo has no such ResNet, or it is not served; the message says why.
    """
    for row in MODELS:
        if name == row.name:
            if row.refusal:
                raise ValueError(f"{name}: {row.refusal}")
            return row
    raise ValueError(f"the ONNX model zoo has no ResNet called {name!r}; {hint(name, names())}")


def as_rows() -> list[dict[str, Any]]:
    """The table as JSON values."""
    return [
        {
            "name": row.name,
            "kind": row.kind,
            "opset": row.opset,
            "bytes": row.size,
            "top1": row.top1,
            "top5": row.top5,
            "sha256": row.sha256,
            "archive_sha256": row.archive_sha256,
            "variant": row.variant,
            "spec": None if row.refusal else f"onnx-zoo:{row.name}",
            "refusal": row.refusal or None,
        }
        for row in MODELS
    ]
