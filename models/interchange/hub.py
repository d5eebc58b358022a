"""Weights to download: torchvision's, the ONNX model zoo's, and repositories on the Hugging Face
hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from models import files
from models.bundle import Bundle, BundleError
from models.interchange import fetching, hub_repository, onnx_zoo, reference, torchvision_weights
from models.interchange.convert import convert
from models.interchange.fetching import Published
from models.interchange.imported import Said

T = TypeVar("T")


def from_torchvision(spec: str, cache: Path) -> Bundle:
    """The bundle of `VARIANT` or `VARIANT:WEIGHTS`, from a file cached in `cache`.

    If `cache` cannot be written, the file is downloaded to a temporary folder.

    Raises:
        ValueError: there are no such weights, or the download failed.
    """
    variant, _, weights = spec.partition(":")
    row = torchvision_weights.find(variant, weights)
    said = Said(name=row.variant, variant=row.variant)
    file = fetching.published("torchvision", spec)
    return _used(
        f"torchvision:{spec}",
        cache,
        lambda folder: convert("torchvision", file.fetch(folder), said),
    )


def from_onnx_zoo(name: str, cache: Path) -> Bundle:
    """The bundle of the ONNX model zoo's `NAME.onnx`, from a file cached in `cache`.

    Raises:
        ValueError: there is no such model, it is not served, or the download failed.
    """
    row = onnx_zoo.find(name)
    said = Said(name=row.name, variant=row.variant)
    file = fetching.published("onnx-zoo", name)
    return _used(
        f"onnx-zoo:{name}", cache, lambda folder: convert("onnx", file.fetch(folder), said)
    )


def zoo_test_data(name: str, cache: Path) -> list[reference.Pair]:
    """The inputs and outputs that the ONNX model zoo's `NAME.tar.gz` holds, cached in `cache`.

    Raises:
        ValueError: see `from_onnx_zoo`.
    """
    row = onnx_zoo.find(name)
    file = Published(f"{onnx_zoo.URL}/{row.archive}", row.archive_sha256)
    return _used(f"onnx-zoo:{name}", cache, lambda folder: reference.read([file.fetch(folder)]))


def from_huggingface(spec: str, cache: Path) -> Bundle:
    """The bundle of a repository `OWNER/NAME`, or `OWNER/NAME@REVISION`, on the Hugging Face hub,
    from files cached in `cache`. Supports the ResNets of timm and transformers.

    Raises:
        ValueError: there is no such repository, no network, or it is another kind of model.
    """

    def read(folder: Path) -> Bundle:
        found = hub_repository.snapshot(spec, folder)
        name = spec.partition("@")[0].rpartition("/")[2]
        called = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")
        made = convert(found.kind, found.folder / found.weights, Said(name=called))
        made.provenance["source"] = f"hf:{spec}"
        if found.commit:
            made.provenance["commit"] = found.commit
        return made

    return _used(f"hf:{spec}", cache, read)


def _used(spec: str, cache: Path, use: Callable[[Path], T]) -> T:
    """What `use` makes of downloads in `cache`, or in a temporary folder if that fails."""
    try:
        return fetching.explained(spec, cache, lambda: use(cache))
    except OSError as error:
        unwritable = f"{cache}: {error.strerror or error}"
    try:
        with files.scratch("download") as folder:
            return fetching.explained(spec, cache, lambda: use(folder))
    except OSError as error:
        raise BundleError(f"{unwritable}; the temporary folder failed too: {error}") from None
