"""SPECs as text: what they name, as far as names and files tell, without torch or the network."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from models import builtin, own_code, variants
from models.interchange import onnx_zoo, torchvision_weights
from models.interchange.formats import REPOSITORY, SPEC_KINDS
from models.suggestions import hint, nearest

SUFFIXES = (".safetensors", ".onnx")
NO_FILE = (
    "no such file; a SPEC is builtin:NAME, random:VARIANT, torchvision:VARIANT, onnx-zoo:NAME, "
    "hf:OWNER/NAME, or the path of a bundle, an ONNX file, or a folder that contains one"
)
# safetensors refuses longer headers.
MOST_HEADER = 100_000_000


def check(spec: str, allow: Collection[str] | None = None) -> None:
    """Refuses a SPEC that names nothing, or a file that cannot be read, as far as can be
    determined without reading weights or using the network.

    `allow`: a bundle may name no other code, see `models.own_code`; None: it may name any.

    Raises:
        ValueError: one line with the spec and the problem.
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
            _check_repository(rest)
        else:
            _check_file(Path(spec), allow)
    except ValueError as error:
        raise ValueError(in_one_line(spec, error)) from None


def _check_repository(name: str) -> None:
    if not REPOSITORY.fullmatch(name):
        raise ValueError("name a repository as OWNER/NAME or OWNER/NAME@REVISION")


def check_builtin(name: str) -> None:
    """Raises ValueError if no such bundle ships with the package."""
    if name not in builtin.names():
        raise ValueError(f"no such embedded model; {hint(name, builtin.names())}")


def in_one_line(spec: str, error: Exception) -> str:
    """An error's text that begins with the SPEC."""
    text = str(error)
    return text if text.startswith(spec) else f"{spec.removesuffix(':')}: {text}"


def no_file(spec: str) -> str:
    """The message for a SPEC that is neither a file nor anything else."""
    meant = " or ".join(_meant(spec))
    return f"{NO_FILE}{f'; did you mean {meant}?' if meant else ''}"


def _meant(spec: str) -> list[str]:
    """SPECs whose kind was mistyped or left out."""
    kind, colon, rest = spec.partition(":")
    if colon:
        near = nearest(kind, [each.rstrip(":") for each in SPEC_KINDS])
        return [f"{name}:{rest}" for name in near]
    found: list[str] = []
    for name in variants.meant(spec):
        found += [f"builtin:{own}" for own in builtin.names() if own.partition("-")[0] == name]
        if any(row.variant == name for row in torchvision_weights.WEIGHTS):
            found.append(f"torchvision:{name}")
        found.append(f"random:{name}")
    if found or "/" in spec or "." in spec:
        return found
    return [f"builtin:{name}" for name in nearest(spec, builtin.names())]


def only_one(folder: Path) -> Path:
    """The one file in a folder that can be read, as orchestrators place it.

    Raises:
        ValueError: there are none or several.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise ValueError(
            f"a folder must contain exactly one {' or '.join(SUFFIXES)} file; it has {names}"
        )
    return files[0]


def _check_file(path: Path, allow: Collection[str] | None) -> None:
    if path.is_dir():
        path = only_one(path)
    if not path.is_file():
        raise ValueError(no_file(str(path)))
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if path.suffix != ".safetensors":
                return
            header = file.read(length) if length <= MOST_HEADER else b""
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(str(error.strerror)) from None
    try:
        described = json.loads(header)
        metadata = described.pop("__metadata__", {})
        end = max((tensor["data_offsets"][1] for tensor in described.values()), default=0)
        complete = size == 8 + length + end
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        complete = False
    if not complete:
        raise ValueError("not a complete safetensors file")
    if "resnet-serve" not in metadata:
        raise ValueError("safetensors, but not a bundle; `resnet-serve convert` makes one")
    if allow is not None:
        _check_code(metadata["resnet-serve"], allow)


def _check_code(description: str, allow: Collection[str]) -> None:
    try:
        described = json.loads(description)
        named = [(what, described[what]) for what in ("block", "head") if what in described]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("its resnet-serve metadata is damaged") from None
    for what, path in named:
        own_code.check_path(path, what)
        own_code.check_allowed(path, what, allow)
