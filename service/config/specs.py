"""SPECs by their text and by the files they name, without torch: what completes and checks them."""

from __future__ import annotations

import json
from pathlib import Path

from models import builtin, variants
from models.interchange import torchvision_weights
from models.interchange.formats import REPOSITORY
from models.suggestions import hint, nearest
from service.errors import ConfigError

KINDS = ("builtin:", "random:", "torchvision:", "hf:")
SUFFIXES = (".safetensors", ".onnx")
NO_FILE = (
    "no such file; a SPEC is builtin:NAME, random:VARIANT, torchvision:VARIANT, "
    "hf:OWNER/NAME, or the path of a bundle or an ONNX file, or of a folder with one"
)
# Longer headers safetensors itself refuses.
MOST_HEADER = 100_000_000


def check_builtin(name: str) -> None:
    """Raises ConfigError where no such bundle is shipped."""
    if name not in builtin.names():
        raise ConfigError(f"builtin: has no {name!r}; {hint(name, builtin.names())}")


def check(spec: str) -> None:
    """Refuses a SPEC that names nothing, or a file that is none to be served, as far as that can
    be told without reading weights or asking anybody.

    Raises:
        ConfigError: one line that names the spec and what is wrong with it.
    """
    kind, colon, rest = spec.partition(":")
    try:
        if kind == "builtin" and colon:
            check_builtin(rest)
        elif kind == "random" and colon:
            if rest:  # Else the setting `architecture` says all.
                variants.variant(rest)
        elif kind == "torchvision" and colon:
            variant, _, weights = rest.partition(":")
            torchvision_weights.find(variant, weights)
        elif kind == "hf" and colon:
            if not REPOSITORY.fullmatch(rest):
                raise ConfigError("name a repository as OWNER/NAME or OWNER/NAME@REVISION")
        else:
            _check_file(Path(spec))
    except ValueError as error:
        raise ConfigError(f"{spec}: {error}") from None


def no_file(spec: str) -> str:
    """What to say of a SPEC that is no file's path and nothing else either."""
    kind, colon, _ = spec.partition(":")
    near = nearest(kind, [each.rstrip(":") for each in KINDS]) if colon else []
    return f"{NO_FILE}{f'; did you mean {near[0]}:?' if near else ''}"


def only_one(folder: Path) -> Path:
    """The file in a folder that can be served, as orchestrators put it there.

    Raises:
        ConfigError: there is none, or several.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(f"a folder must have one file {' or '.join(SUFFIXES)}; it has {names}")
    return found[0]


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
        end = max((each["data_offsets"][1] for each in described.values()), default=0)
        whole = size == 8 + length + end
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        whole = False
    if not whole:
        raise ConfigError("not a whole safetensors file")
    if "resnet-serve" not in metadata:
        raise ConfigError("safetensors, but no bundle; `resnet-serve convert` makes one")
