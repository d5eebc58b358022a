"""Loading the bundle that a SPEC names."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from models import bundle, files, variants
from models.architecture import Architecture
from models.bundle import Bundle
from models.interchange import convert, hub
from models.interchange.assumptions import InputUnknown
from models.preprocess import CIFAR, IMAGENET
from models.suggestions import hint
from service.config import loading, specs
from service.errors import ConfigError


@dataclass(frozen=True)
class Loaded:
    """`source` says where the weights come from; `sha256` is the file's, None without a file."""

    bundle: Bundle
    source: str
    sha256: str | None


def load(
    spec: str, architecture: dict[str, Any] | None = None, cache_dir: Path | None = None
) -> Loaded:
    """The bundle that `spec` names: `builtin:NAME`, `random:VARIANT`, `hf:OWNER/NAME`,
    `torchvision:VARIANT`, `torchvision:VARIANT:WEIGHTS` or `onnx-zoo:NAME`, or the path of a
    bundle, of a file that is converted, such as an ONNX graph, or of a folder with one of them.

    `architecture` overrides fields of a random network, or defines one without a name (`random:`).
    `cache_dir` holds downloads; the default is that of the settings.

    Raises:
        ConfigError: one line with the spec and its problem.
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
        if kind == "onnx-zoo" and colon:
            folder = (cache_dir or loading.load().cache_dir) / "onnx-zoo"
            return _downloaded(hub.from_onnx_zoo(rest, folder), spec)
        if kind == "hf" and colon:
            folder = (cache_dir or loading.load().cache_dir) / "hf"
            return _downloaded(hub.from_huggingface(rest, folder), spec)
        path = Path(spec)
        if path.is_dir():
            path = specs.only_one(path)
        # Clients must not learn the service's folders.
        return _from_file(path, path.name)
    except (ValueError, TypeError) as error:
        message = (
            str(error) if str(error).startswith(spec) else f"{spec.removesuffix(':')}: {error}"
        )
        raise ConfigError(message) from None


def _downloaded(bundle: Bundle, spec: str) -> Loaded:
    return Loaded(bundle, spec, bundle.provenance["sha256"])


def _from_file(path: Path, source: str) -> Loaded:
    if not path.is_file():
        raise ConfigError(specs.no_file(str(path)))
    foreign = convert.recognise(path)
    try:
        loaded = convert.convert(foreign, path) if foreign else bundle.read(path)
    except InputUnknown as error:
        hint = f"`resnet-serve convert --from {foreign}` makes a bundle that records it"
        raise ConfigError(f"{error}; {hint}") from None
    return Loaded(loaded, source, files.sha256(path))


def _untrained(variant: str, architecture: dict[str, Any]) -> Bundle:
    if variant:
        known = variants.variant(variant)
        return bundle.untrained(
            variants.override(known.architecture, **architecture), variant, known.input
        )
    names = [field.name for field in fields(Architecture)]
    for name in architecture:
        if name not in names:
            raise ConfigError(f"architecture: it has no field {name!r}; {hint(name, names)}")
    required = [field.name for field in fields(Architecture) if field.default is MISSING]
    if missing := [name for name in required if name not in architecture]:
        raise ConfigError(f"architecture: it lacks {', '.join(missing)}")
    custom = Architecture(**architecture)
    return bundle.untrained(custom, "custom", IMAGENET if custom.stem == "imagenet" else CIFAR)
