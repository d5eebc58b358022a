"""Import and export of weights from and to other ecosystems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models import files, variants
from models import labels as label_files
from models.bundle import Bundle, BundleError, WeightsMismatch, check_fit, name_from
from models.interchange.flax import importer as flax
from models.interchange.imported import Imported
from models.interchange.keras import importer as keras
from models.interchange.onnx import export as onnx_export
from models.interchange.onnx import importer as onnx
from models.interchange.pytorch import cifar, export, huggingface, timm, torch_resnet, torchvision
from models.preprocess import RGB
from models.resnet import on_meta
from models.suggestions import hint

COUNTER = "num_batches_tracked"
FORMATS: dict[str, Callable[[Path], Imported]] = {
    "cifar": cifar.read,
    "flax": flax.read,
    "huggingface": huggingface.read,
    "keras": keras.read,
    "onnx": onnx.read,
    "timm": timm.read,
    "torch_resnet": torch_resnet.read,
    "torchvision": torchvision.read,
}
EXPORTERS: dict[str, Callable[[Bundle, Path, Mapping[str, Any]], None]] = {
    "onnx": onnx_export.write,
    "timm": export.to_timm,
    "torchvision": export.to_torchvision,
}
# Formats that are recognised by their files' content.
RECOGNISED: dict[str, Callable[[bytes], bool]] = {
    "onnx": onnx.begins,
}


class NormalisationUnknown(BundleError):
    """Neither the file nor the caller says how images are normalised."""


def recognise(path: Path) -> str | None:
    """The key of `FORMATS` for a file with a known suffix or known first bytes, else None."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in RECOGNISED:
        return suffix
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return None  # Reading it will raise the error.
    return next((name for name, begins in RECOGNISED.items() if begins(start)), None)


def convert(
    format: str,
    path: Path,
    *,
    name: str | None = None,
    variant: str | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
    labels: str | None = None,
    numerics: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle of the weights in a file of another ecosystem.

    `format`: a key of `FORMATS`; some of them read folders too.
    `name`: by default the name in the file, or else that of the file.
    `variant`: only checked; names and shapes determine the network.
    `mean`, `std`: override those of the file's layout, and are required if it has none.
    `labels`: see `models.labels.read`.
    `numerics`: fields of `Architecture` that the file cannot reveal, such as `stride_at`, if they
        differ from the format's usual values.

    Raises:
        BundleError: the file is something else, or incomplete; the message names the reason.
        WeightsMismatch: tensors are missing or unexpected.
    """
    if format not in FORMATS:
        raise BundleError(f"no format is called {format!r}; {hint(format, FORMATS)}")
    source = FORMATS[format](path)
    if numerics:
        changed = variants.override(source.architecture, **numerics)
        source = replace(source, architecture=changed)
    row = variants.find(source.architecture)
    if variant is not None and (row is None or variants.variant(variant).name != row.name):
        actual = row.name if row else "a network that has no name"
        raise BundleError(f"{path}: holds {actual}, not {variant}")
    network = on_meta(source.architecture)
    # Only training without momentum reads these counters, and many files lack them.
    counters = {n: torch.tensor(0) for n in network.state_dict() if n.endswith(COUNTER)}
    tensors = counters | source.tensors
    try:
        check_fit(network, tensors, row.name if row else "a ResNet")
    except WeightsMismatch as error:
        raise WeightsMismatch(f"{path}: {error}", error.difference) from None
    mean, std = mean or source.mean, std or source.std
    if mean is None or std is None:
        raise NormalisationUnknown(
            f"{path}: its layout ({source.layout}) does not say how images were normalised; "
            "give --mean r,g,b and --std r,g,b"
        )
    classes = source.architecture.num_classes
    return Bundle(
        name=name or source.name or name_from(path.name.partition(".")[0]),
        variant=row.name if row else None,
        architecture=source.architecture,
        input=replace(source.spec, mean=mean, std=std),
        labels=label_files.read(labels)
        if labels
        else source.labels or label_files.default(classes),
        tensors=tensors,
        metrics=dict(source.metrics),
        temperature=source.temperature,
        card=source.card,
        provenance={
            **source.provenance,
            "source": path.name,
            "sha256": files.sha256(source.file or path),
            "format": format,
            "layout": source.layout,
        },
    )


def export_to(format: str, bundle: Bundle, path: Path, **options: Any) -> None:
    """Writes the weights of a bundle in another ecosystem's format.

    `format` is a key of `EXPORTERS`; `options` depend on the format.

    Raises:
        BundleError: that ecosystem does not have this network; the message names the difference.
    """
    if format not in EXPORTERS:
        raise BundleError(f"no format to write is called {format!r}; {hint(format, EXPORTERS)}")
    EXPORTERS[format](bundle, path, options)
