"""The weights that a SPEC names."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from models import builtin, bundle, bundling, files, variants
from models.bundle import Bundle, BundleError
from models.interchange import convert, hub, specs, variables
from models.interchange.assumptions import InputUnknown
from models.naming import in_utf8
from models.preprocess import CIFAR, IMAGENET
from models.resnet import ResNet


@dataclass(frozen=True)
class Loaded:
    """`source` says where the weights come from; `sha256` is the file's, None without a file."""

    bundle: Bundle
    source: str
    sha256: str | None


def load(spec: str | os.PathLike[str], *, allow: Collection[str] = ()) -> ResNet:
    """The network that `spec` names, in evaluation mode; for the arguments see `read`.

    Raises:
        BundleError: see `read`.
    """
    return read(spec, allow=allow).network()


def read(spec: str | os.PathLike[str], *, allow: Collection[str] = ()) -> Bundle:
    """The bundle that `spec` names: weights, preprocessing, labels, and where they come from.

    `spec`: `builtin:NAME`, `random:VARIANT`, `torchvision:VARIANT`, `torchvision:VARIANT:WEIGHTS`,
        `onnx-zoo:NAME` or `hf:OWNER/NAME`; or the path of a bundle, of a file that is converted,
        such as an ONNX graph, or of a folder with one of them. Downloads are kept in
        `$XDG_CACHE_HOME/resnet-serve`, by default `~/.cache/resnet-serve`.
    `allow`: code of one's own that may be imported and run, as `package.module:Class`, or
        `package.module` for all of a module; see `models.own_code`.

    Raises:
        BundleError: one line with the spec and its problem.
    """
    name = os.fspath(spec)
    opened = find(name).bundle
    try:
        return opened.allowing(allow)
    except ValueError as error:
        raise BundleError(specs.in_one_line(name, error)) from None


def find(
    spec: str, architecture: dict[str, Any] | None = None, cache_dir: Path | None = None
) -> Loaded:
    """What `spec` names, see `read`; code of one's own that it names is not yet imported.

    `architecture` overrides fields of a random network, or defines one without a name (`random:`).
    `cache_dir` holds downloads.

    Raises:
        BundleError: one line with the spec and its problem.
    """
    try:
        return _find(spec, architecture or {}, cache_dir)
    except (ValueError, TypeError) as error:
        if isinstance(error, BundleError) and str(error).startswith(spec):
            raise
        raise BundleError(specs.in_one_line(spec, error)) from None


def _find(spec: str, architecture: dict[str, Any], cache_dir: Path | None) -> Loaded:
    kind, colon, rest = spec.partition(":")
    if kind == "random" and colon:
        return Loaded(_untrained(rest, architecture), spec, None)
    if architecture:
        raise ValueError(specs.ONLY_RANDOM)
    if kind == "builtin" and colon:
        specs.check_builtin(rest)
        with resources.as_file(builtin.file(rest)) as path:
            return _from_file(path, spec)
    if kind in DOWNLOADS and colon:
        folder = (cache_dir or variables.cache_dir()) / kind
        made = DOWNLOADS[kind](rest, folder)
        return Loaded(made, spec, made.provenance["sha256"])
    path = specs.path_of(spec)
    if path.is_dir():
        path = specs.only_one(path)
    # Clients of a service must not learn its folders.
    return _from_file(path, in_utf8(path.name))


DOWNLOADS = {
    "torchvision": hub.from_torchvision,
    "onnx-zoo": hub.from_onnx_zoo,
    "hf": hub.from_huggingface,
}


def _from_file(path: Path, source: str) -> Loaded:
    if not path.is_file():
        raise ValueError(specs.no_file(str(path)))
    foreign = convert.recognise(path)
    try:
        found = convert.convert(foreign, path) if foreign else bundle.read(path, allow=None)
    except InputUnknown as error:
        remedy = f"`resnet-serve convert --from {foreign}` makes a bundle that records it"
        raise ValueError(f"{error}; {remedy}") from None
    return Loaded(found, source, files.sha256(path))


def _untrained(variant: str, architecture: dict[str, Any]) -> Bundle:
    network = specs.architecture_of(variant, architecture)
    if variant:
        return bundling.untrained(network, variant, variants.variant(variant).input)
    spec = IMAGENET if network.stem == "imagenet" else CIFAR
    return bundling.untrained(network, specs.UNNAMED, spec)
