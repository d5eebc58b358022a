"""Import and export of weights from and to other ecosystems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import files, variants
from models import labels as label_files
from models.bundle import Bundle, BundleError, WeightsMismatch, check_fit
from models.interchange import alternatives, assumptions, comparison, unpacking
from models.interchange.assumptions import InputUnknown
from models.interchange.flax import importer as flax
from models.interchange.imported import Imported, Said
from models.interchange.keras import importer as keras
from models.interchange.onnx import archive
from models.interchange.onnx import export as onnx_export
from models.interchange.pytorch import cifar, export, huggingface, timm, torch_resnet, torchvision
from models.interchange.reference import Pair
from models.interchange.signatures import begins_as_onnx
from models.naming import in_utf8, name_from
from models.resnet import on_meta
from models.suggestions import hint

COUNTER = "num_batches_tracked"
FORMATS: dict[str, Callable[[Path, Said], Imported]] = {
    "cifar": cifar.read,
    "flax": flax.read,
    "huggingface": huggingface.read,
    "keras": keras.read,
    "onnx": archive.read,
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
    "onnx": begins_as_onnx,
}


def recognise(path: Path) -> str | None:
    """The key of `FORMATS` for a file with a known suffix or known first bytes, else None."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in RECOGNISED:
        return suffix
    try:
        if unpacking.is_archive(path):
            return "onnx"  # The one format that comes in archives.
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return None  # Reading it will raise the error.
    return next((name for name, begins in RECOGNISED.items() if begins(start)), None)


def convert(format: str, path: Path, said: Said | None = None) -> Bundle:
    """A bundle of the weights in a file of another ecosystem.

    `format`: a key of `FORMATS`; some of them read folders too.
    `said`: what the user says of the file. The provenance has what neither says, under "assumed".

    Raises:
        BundleError: the file is something else, or incomplete; the message names the reason.
        InputUnknown: the user must say how images are prepared.
        WeightsMismatch: tensors are missing or unexpected.
    """
    if format not in FORMATS:
        raise BundleError(f"no format is called {format!r}; {hint(format, FORMATS)}")
    files.check_regular(path)
    said = said or Said()
    source = FORMATS[format](path, said)
    if said.numerics:
        changed = variants.override(source.architecture, **said.numerics)
        source = replace(source, architecture=changed)
    if said.outputs is not None:
        source = replace(source, outputs=said.outputs)
    source = assumptions.as_two_classes(source, said)
    row = variants.find(source.architecture)
    if said.variant is not None and (
        row is None or variants.variant(said.variant).name != row.name
    ):
        actual = row.name if row else "a network that has no name"
        raise BundleError(f"{path}: holds {actual}, not {said.variant}")
    tensors = _fitting(source, row.name if row else "a ResNet", path)
    try:
        return _checked(_described(format, source, said, tensors, path), source.pairs)
    except InputUnknown as error:
        raise InputUnknown(f"{path}: {error}") from None
    except Differs as error:
        raise Differs(f"{path}: {error}") from None
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


class Differs(BundleError):
    """A network does not compute what its reference pairs say."""


def _checked(bundle: Bundle, pairs: Sequence[Pair]) -> Bundle:
    """The bundle, with the result in its provenance, if it agrees with the pairs.

    Raises:
        Differs: it does not; the message says how far off it is, and what would fit.
    """
    if not pairs:
        return bundle
    found = [comparison.compare(bundle, pair) for pair in pairs]
    if not all(each.agrees for each in found):
        worst = max(found, key=lambda each: each.relative)
        blind = next((each for each in found if each.blind), None)
        if blind is not None:
            raise Differs(f"the network {blind.in_words()}")
        others = alternatives.search(bundle, pairs, comparison.TOLERANCE)
        raise Differs(f"the network {worst.in_words()}; {others.in_words()}")
    bundle.provenance["checked"] = comparison.record(found)
    return bundle


def _fitting(source: Imported, what: str, path: Path) -> dict[str, Tensor]:
    network = on_meta(source.architecture)
    # Only training without momentum reads these counters, and many files lack them.
    counters = {n: torch.tensor(0) for n in network.state_dict() if n.endswith(COUNTER)}
    tensors = counters | source.tensors
    try:
        check_fit(network, tensors, what)
    except WeightsMismatch as error:
        raise WeightsMismatch(f"{path}: {error}", error.difference) from None
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise BundleError(
                f"{path}: {name} has values that are not finite (NaN, infinite, or too large for "
                "float32): its training diverged, or the file is damaged; convert an earlier one"
            )
        if name.endswith("running_var") and value.min() < 0:
            raise BundleError(f"{path}: {name} has negative variances: the file is damaged")
    return _apart(tensors)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as a bundle's file wants them."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, value in tensors.items():
        at = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if at in seen else value
        seen.add(at)
    return apart


def _described(
    format: str, source: Imported, said: Said, tensors: dict[str, Tensor], path: Path
) -> Bundle:
    row, classes = variants.find(source.architecture), source.architecture.num_classes
    spec = assumptions.input_of(source, said)
    labels = source.labels or label_files.default(classes)
    if said.labels:
        labels = label_files.read(said.labels)
        if len(labels) == 1 and classes == 2:
            labels = assumptions.two_classes(labels[0])
    left_open = assumptions.assumed(source, spec, said, labels)
    if said.strict and left_open:
        raise BundleError(
            "neither the file nor an option says what --strict asks for; give it, as in "
            f"{assumptions.as_options(left_open)}"
        )
    provenance = {
        **source.provenance,
        "source": in_utf8(path.name),
        "sha256": files.sha256(source.file or path),
        "format": format,
        "layout": source.layout,
    }
    if left_open:
        provenance["assumed"] = assumptions.as_json(left_open)
    if source.notes:
        provenance["notes"] = list(source.notes)
    return Bundle(
        name=said.name or source.name or name_from(path.name.partition(".")[0]),
        variant=row.name if row else None,
        architecture=source.architecture,
        input=spec,
        labels=labels,
        outputs=source.outputs,
        tensors=tensors,
        metrics=dict(source.metrics),
        temperature=source.temperature,
        card=source.card,
        provenance=provenance,
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
