"""From a SPEC to a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from models import bundle, files, variants
from models.architecture import Architecture
from models.bundle import Bundle
from models.interchange import convert, hub
from models.preprocess import CIFAR, IMAGENET
from service.config import loading, specs
from service.errors import ConfigError


@dataclass(frozen=True)
class Loaded:
    """`source` names where the weights lie; `sha256` is the file's, None where there is none."""

    bundle: Bundle
    source: str
    sha256: str | None


def load(
    spec: str, architecture: dict[str, Any] | None = None, cache_dir: Path | None = None
) -> Loaded:
    """The bundle that `spec` names: `builtin:NAME`, `random:VARIANT`, `hf:OWNER/NAME`,
    `torchvision:VARIANT` or `torchvision:VARIANT:WEIGHTS`, or the path of a bundle's file or of an
    ONNX graph, which is converted, or of a folder that has one of them.

    `architecture` overrides fields of a random network's, or gives all of one that has no name
    (`random:`). `cache_dir` keeps what is downloaded; by default as the settings say.

    Raises:
        ConfigError: one line that names the spec and what is wrong with it.
    """
    kind, colon, rest = spec.partition(":")
    try:
        if kind == "random" and colon:
            return Loaded(_untrained(rest, architecture or {}), spec, None)
        if architecture:
            raise ConfigError("architecture: only random networks take one; bundles have their own")
        if kind == "builtin" and colon:
            specs.check_builtin(rest)
            with resources.as_file(
                resources.files("models.builtin").joinpath(f"{rest}.safetensors")
            ) as path:
                return _from_file(path, spec)
        if kind == "torchvision" and colon:
            folder = (cache_dir or loading.load().cache_dir) / "torchvision"
            return _downloaded(hub.from_torchvision(rest, folder), spec)
        if kind == "hf" and colon:
            return _downloaded(hub.from_huggingface(rest), spec)
        path = Path(spec)
        if path.is_dir():
            path = specs.only_one(path)
        # Callers of the service need not know its folders.
        return _from_file(path, path.name)
    except (ValueError, TypeError) as error:
        message = str(error) if str(error).startswith(spec) else f"{spec}: {error}"
        raise ConfigError(message) from None


def _downloaded(found: Bundle, spec: str) -> Loaded:
    return Loaded(found, spec, found.provenance["sha256"])


def _from_file(path: Path, source: str) -> Loaded:
    if not path.is_file():
        raise ConfigError(specs.no_file(str(path)))
    foreign = convert.recognise(path)
    try:
        found = convert.convert(foreign, path) if foreign else bundle.read(path)
    except convert.NormalisationUnknown as error:
        hint = f"`resnet-serve convert --from {foreign}` makes a bundle that records it"
        raise ConfigError(f"{error}; {hint}") from None
    return Loaded(found, source, files.sha256(path))


def _untrained(variant: str, architecture: dict[str, Any]) -> Bundle:
    if variant:
        row = variants.variant(variant)
        return bundle.untrained(
            variants.override(row.architecture, **architecture), variant, row.input
        )
    try:
        described = Architecture(**architecture)
    except TypeError as error:
        raise ConfigError(f"architecture: {str(error).partition(' ')[2]}") from None
    return bundle.untrained(
        described, "custom", IMAGENET if described.stem == "imagenet" else CIFAR
    )
