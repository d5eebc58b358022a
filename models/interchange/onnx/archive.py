"""ONNX files as the model zoo hands them out: alone, or with test data in a folder or archive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.bundle import BundleError
from models.interchange import onnx_zoo, reference, unpacking
from models.interchange.imported import (
    EVERYTHING,
    NORMALISATION,
    Imported,
    Said,
)
from models.interchange.onnx import importer


def read(path: Path, said: Said) -> Imported:
    """The network of an `.onnx` file, or of the only one in a folder or `.tar.gz` archive, with
    the test data beside it.

    A file of the ONNX model zoo is recognised by its checksum: its preprocessing and accuracy
    are known.

    Raises:
        BundleError: see `importer.read`; or the archive is damaged, unsafe or too large, or has no
            or several `.onnx` files, or the zoo's file is one that is not read.
    """
    if not unpacking.is_packed(path):
        return _recognised(path, said)
    try:
        with unpacking.unpacked(path) as folder:
            model = _only(folder, path)
            try:
                found = _recognised(model, said)
                pairs = reference.within(model.parent, shown=path)
            except BundleError as error:
                raise BundleError(str(error).replace(str(folder), str(path))) from None
            name = model.relative_to(folder).as_posix()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    return replace(
        found,
        pairs=tuple(pairs),
        file=model if path.is_dir() else None,
        provenance={**found.provenance, "file": name},
        notes=found.notes if pairs else (*found.notes, "there is no test data beside the model"),
    )


def _only(folder: Path, path: Path) -> Path:
    files = sorted(
        file for file in folder.rglob("*") if file.suffix.lower() == ".onnx" and file.is_file()
    )
    if len(files) != 1:
        names = ", ".join(file.relative_to(folder).as_posix() for file in files) or "none"
        raise BundleError(f"{path}: must hold exactly one .onnx file; it has {names}")
    return files[0]


def _recognised(path: Path, said: Said) -> Imported:
    """What the importer reads, and what the zoo says about it."""
    try:
        row = onnx_zoo.of_file(path)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    if row and row.kind == "quantised":
        raise BundleError(f"{path}: {row.name} of the ONNX model zoo is {row.refusal}")
    found = importer.read(path, said)
    if row is None:
        return found
    provenance = {**found.provenance, "weights": row.name}
    if row.kind == "caffe2":
        asked = NORMALISATION | {"channels"}
        return replace(found, said=found.said | {"labels"}, asked=asked, provenance=provenance)
    # The zoo measured its files as they are.
    changed = said.input or said.numerics
    return replace(
        found,
        layout="ONNX model zoo",
        spec=onnx_zoo.INPUT,
        said=EVERYTHING,
        asked=frozenset(),
        name=found.name or row.name,
        metrics={} if changed else row.metrics,
        provenance=provenance,
    )
