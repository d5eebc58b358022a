"""SPECs as text: what they name, as far as names and files tell, without torch or the network."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from models import builtin, own_code, variants
from models.architecture import Architecture
from models.bundle_header import METADATA_KEY, NOT_A_BUNDLE, refuse_other
from models.interchange import onnx_zoo, torchvision_weights
from models.interchange.formats import REPOSITORY, SPEC_KINDS
from models.interchange.signatures import ARCHIVES, GZIP, NO_ONNX, begins_as_onnx, is_whole_protobuf
from models.naming import name_from
from models.suggestions import hint, nearest

SUFFIXES = (".safetensors", ".onnx")
NO_FILE = (
    "no such file; a SPEC is builtin:NAME, random:VARIANT, torchvision:VARIANT, onnx-zoo:NAME, "
    "hf:OWNER/NAME, or the path of a bundle, an ONNX file, or a folder that contains one"
)
# safetensors refuses longer headers.
MOST_HEADER = 100_000_000
UNNAMED = "custom"  # the name of a random network without a variant
ONLY_RANDOM = "architecture: only random networks take one; bundles have their own"


@dataclass(frozen=True)
class Named:
    """What is known of a SPEC's model before its weights are read.

    `name`: the name in its bundle; None if it must be downloaded first. `calibrated`: whether it
    was calibrated for 8 bits.
    """

    name: str | None = None
    calibrated: bool = False


def check(
    spec: str,
    allow: Collection[str] | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> Named:
    """Refuses a SPEC that names nothing, or a file that cannot be read, as far as can be
    determined without reading weights or using the network.

    `allow`: a bundle may name no other code, see `models.own_code`; None: it may name any.
    `architecture`: see `architecture_of`.

    Raises:
        ValueError: one line with the spec and the problem.
    """
    try:
        return _check(spec, allow, architecture or {})
    except (ValueError, TypeError) as error:
        raise ValueError(in_one_line(spec, error)) from None


def _check(spec: str, allow: Collection[str] | None, architecture: Mapping[str, Any]) -> Named:
    kind, colon, rest = spec.partition(":")
    if kind == "random" and colon:
        architecture_of(rest, architecture)
        return Named(rest or UNNAMED)
    if architecture:
        raise ValueError(ONLY_RANDOM)
    if kind == "builtin" and colon:
        check_builtin(rest)
        with resources.as_file(builtin.file(rest)) as path:
            return _check_file(path, allow)
    if kind == "torchvision" and colon:
        variant, _, weights = rest.partition(":")
        return Named(torchvision_weights.find(variant, weights).variant)
    if kind == "onnx-zoo" and colon:
        return Named(onnx_zoo.find(rest).name)
    if kind == "hf" and colon:
        _check_repository(rest)
        return Named()
    return _check_file(path_of(spec), allow)


def architecture_of(variant: str, changes: Mapping[str, Any]) -> Architecture:
    """The architecture of `random:VARIANT`, with `changes`, or of `random:`, which has them all.

    Raises:
        ValueError, TypeError: there is no such variant or field, or a value is invalid.
    """
    if variant:
        return variants.override(variants.variant(variant).architecture, **changes)
    names = [field.name for field in fields(Architecture)]
    for name in changes:
        if name not in names:
            raise ValueError(f"architecture: it has no field {name!r}; {hint(name, names)}")
    required = [field.name for field in fields(Architecture) if field.default is MISSING]
    if missing := [name for name in required if name not in changes]:
        raise ValueError(f"architecture: it lacks {', '.join(missing)}")
    return Architecture(**changes)


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
    if Path(spec).exists():
        return "not a regular file; copy it to one"
    meant = " or ".join(_meant(spec))
    return f"no such file; did you mean {meant}?" if meant else NO_FILE


def _meant(spec: str) -> list[str]:
    """SPECs whose kind was mistyped or left out, or files with a similar name."""
    kind, colon, rest = spec.partition(":")
    if colon:
        near = nearest(kind, [each.rstrip(":") for each in SPEC_KINDS])
        return [f"{name}:{rest}" for name in near]
    if "/" not in spec and (found := _named(spec)):
        return found
    path = Path(spec)
    try:
        beside = [each.name for each in path.parent.iterdir() if _may_be(each)]
    except OSError:
        beside = []
    if near := [name for name in beside if name.partition(".")[0] == path.name.partition(".")[0]]:
        near = nearest(path.name, near) or near[:1]
    if near := near or nearest(path.name, beside):
        return [str(path.parent / near[0])]
    if spec.count("/") == 1 and REPOSITORY.fullmatch(spec) and not path.suffix[1:].isalpha():
        return [f"hf:{spec}"]
    return []


def _may_be(path: Path) -> bool:
    return path.suffix in SUFFIXES


def _named(spec: str) -> list[str]:
    """SPECs of a network or an embedded bundle that is named without its kind."""
    found: list[str] = []
    for name in variants.meant(spec):
        found += [f"builtin:{own}" for own in builtin.names() if own.partition("-")[0] == name]
        if any(row.variant == name for row in torchvision_weights.WEIGHTS):
            found.append(f"torchvision:{name}")
        found.append(f"random:{name}")
    if found or "." in spec:
        return found
    return [f"builtin:{name}" for name in nearest(spec, builtin.names())]


def path_of(spec: str) -> Path:
    """The path that a SPEC is. The empty one would be this folder."""
    if not spec:
        raise ValueError(NO_FILE)
    return Path(spec)


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


def _check_file(path: Path, allow: Collection[str] | None) -> Named:
    try:
        if path.is_dir():
            path = only_one(path)
        if not path.is_file():
            raise ValueError(no_file(str(path)))
        with path.open("rb") as file:
            start = file.read(16)
            if _is_onnx(path, start):
                if path.suffix.lower() == ".onnx" and not is_whole_protobuf(file):
                    raise ValueError(NO_ONNX)
                return Named(name_from(path.name.partition(".")[0]))
            refuse_other(start, size := path.stat().st_size)
            length = int.from_bytes(start[:8], "little")
            file.seek(8)
            header = file.read(length) if length <= MOST_HEADER else b""
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
        raise ValueError("not a complete safetensors file; copy or download it again")
    if METADATA_KEY not in metadata:
        raise ValueError(NOT_A_BUNDLE)
    try:
        bundle = json.loads(metadata[METADATA_KEY])
        code = [(what, bundle[what]) for what in ("block", "head") if what in bundle]
        named = Named(bundle.get("name"), bool(bundle.get("calibration")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("its resnet-serve metadata is damaged") from None
    for what, name in code if allow is not None else ():
        own_code.check_path(name, what)
        own_code.check_allowed(name, what, allow or ())
    return named


def _is_onnx(path: Path, start: bytes) -> bool:
    """Whether a file is read as ONNX: by its name, as an archive of the zoo's, or by content."""
    name = path.name.lower()
    return name.endswith((".onnx", *ARCHIVES)) or start.startswith(GZIP) or begins_as_onnx(start)
