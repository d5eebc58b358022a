"""Checking SPECs by their text and by the files that they name, without torch."""

from __future__ import annotations

import json
from pathlib import Path

from models import builtin, variants
from models.interchange import onnx_zoo, torchvision_weights
from models.interchange.formats import REPOSITORY
from models.suggestions import hint, nearest
from service.config.choices import SPEC_KINDS
from service.errors import ConfigError

SUFFIXES = (".safetensors", ".onnx")
NO_FILE = (
    "no such file; a SPEC is builtin:NAME, random:VARIANT, torchvision:VARIANT, onnx-zoo:NAME, "
    "hf:OWNER/NAME, or the path of a bundle, an ONNX file, or a folder that contains one"
)
# safetensors refuses longer headers.
MOST_HEADER = 100_000_000


def check_builtin(name: str) -> None:
    """Raises ConfigError if no such bundle ships with the package."""
    if name not in builtin.names():
        raise ConfigError(f"no such embedded model; {hint(name, builtin.names())}")


def check(spec: str) -> None:
    """Refuses a SPEC that names nothing, or a file that cannot be served, as far as can be
    determined without reading weights or using the network.

    Raises:
        ConfigError: one line with the spec and the problem.
    """
    kind, colon, rest = spec.partition(":")
    try:
        if kind == "builtin" and colon:
            check_builtin(rest)
        elif kind == "random" and colon:
            if rest:  # Otherwise the setting `architecture` has all fields.
                variants.variant(rest)
        elif kind == "torchvision" and colon:
            variant, _, weights = rest.partition(":")
            torchvision_weights.find(variant, weights)
        elif kind == "onnx-zoo" and colon:
            onnx_zoo.find(rest)
        elif kind == "hf" and colon:
            if not REPOSITORY.fullmatch(rest):
                raise ConfigError("name a repository as OWNER/NAME or OWNER/NAME@REVISION")
        else:
            _check_file(Path(spec))
    except ValueError as error:
        raise ConfigError(f"{spec}: {error}") from None


def check_folder(spec: str, folder: Path | None) -> None:
    """Refuses a file outside `folder`, whether or not it exists: who may name SPECs over HTTP must
    not learn what else is on the machine.

    Raises:
        ConfigError: one line with the spec and the problem.
    """
    if spec.startswith(SPEC_KINDS):
        return
    try:
        inside = folder is not None and Path(spec).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # no path, or links in a circle
        inside = False
    if not inside:
        raise ConfigError(
            f"{spec}: not among the files that may be served over HTTP: those in model_folder"
            f"{'' if folder else ', which is not set,'} and those of the configuration"
        )


def no_file(spec: str) -> str:
    """The message for a SPEC that is neither a file nor anything else."""
    kind, colon, _ = spec.partition(":")
    near = nearest(kind, [name.rstrip(":") for name in SPEC_KINDS]) if colon else []
    return f"{NO_FILE}{f'; did you mean {near[0]}:?' if near else ''}"


def only_one(folder: Path) -> Path:
    """The one file in a folder that can be served, as orchestrators place it.

    Raises:
        ConfigError: there are none or several.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise ConfigError(
            f"a folder must contain exactly one {' or '.join(SUFFIXES)} file; it has {names}"
        )
    return files[0]


def _check_file(path: Path) -> None:
    if path.is_dir():
        path = only_one(path)
    if not path.is_file():
        raise ConfigError(no_file(str(path)))
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if path.suffix != ".safetensors":
                return
            header = file.read(length) if length <= MOST_HEADER else b""
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(str(error.strerror)) from None
    try:
        described = json.loads(header)
        metadata = described.pop("__metadata__", {})
        end = max((tensor["data_offsets"][1] for tensor in described.values()), default=0)
        complete = size == 8 + length + end
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        complete = False
    if not complete:
        raise ConfigError("not a complete safetensors file")
    if "resnet-serve" not in metadata:
        raise ConfigError("safetensors, but not a bundle; `resnet-serve convert` makes one")
