"""PyTorch checkpoint files, read without executing code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from models.bundle import BundleError
from models.interchange.formats import IN_FOLDERS, INDEX
from models.interchange.imported import NOTHING, Said
from models.interchange.pytorch import old_tar, other_files, pickles, reparametrised, states
from models.interchange.pytorch.pickles import Refused


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """`tensors`: a float32 state dict, counters as they are, under the file's names. `notes`: see
    `Imported`."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def weights_file(path: Path) -> Path:
    """`path`, or the weights within it if it is a folder from the Hugging Face hub.

    Raises:
        BundleError: the folder has no weights.
    """
    if not path.is_dir():
        return path
    for name in (*IN_FOLDERS, *(f"{name}{INDEX}" for name in IN_FOLDERS)):
        if (path / name).is_file():
            return path / name
    raise BundleError(f"{path}: a folder without {' or '.join(IN_FOLDERS)}")


def read_checkpoint(path: Path, said: Said = NOTHING) -> Checkpoint:
    """The state dict in a `.pth`, `.th`, `.pt`, `.bin` or `.safetensors` file, or in the files of
    an index.

    Nothing in the file is executed: torch reads it with `weights_only=True`.

    Raises:
        BundleError: the file contains no state dict, or several and `said.key` names none.
    """
    try:
        tensors, notes = states.choose(_read(path), said.key)
        tensors = reparametrised.folded(tensors)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise BundleError(f"{path}: not a whole safetensors file ({error})") from None
    except Refused as error:
        raise BundleError(f"{path}: {error}") from None
    # Damage raises any error, and torch's messages give unsafe advice.
    except Exception:  # noqa: BLE001
        raise BundleError(
            f"{path}: not a PyTorch checkpoint of plain tensors, or damaged; save the weights "
            f"again: {pickles.SAVE}"
        ) from None
    return Checkpoint(tensors=tensors, notes=notes)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file.

    Raises:
        BundleError: the file is not a JSON object.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise BundleError(f"{path}: not JSON, or damaged") from None
    if not isinstance(content, dict):
        raise BundleError(f"{path}: not a JSON object")
    return content


def _read(path: Path) -> Any:
    if path.name.endswith(INDEX):
        return _indexed(path)
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors header begins with a brace, after its length.
    if start[8:] == b"{":
        return safetensors.torch.load_file(path)
    if (what := other_files.described(path)) is not None:
        raise Refused(what)
    return old_tar.read(path) if old_tar.members(path) else pickles.read(path)


def _indexed(path: Path) -> dict[str, Any]:
    files = (read_json(path) or {}).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise Refused("an index without a weight_map")
    content: dict[str, Any] = {}
    for name in sorted(set(map(str, files.values()))):
        # A name may lead nowhere else.
        if Path(name).name != name or name.endswith(INDEX):
            raise Refused(f"an index that names {name!r}, which is no file beside it")
        if not (path.parent / name).is_file():
            raise Refused(f"an index that names {name}, which is not beside it; download it too")
        part = _read(path.parent / name)
        if not isinstance(part, dict):
            raise Refused(f"its part {name} holds no tensors")
        content |= part
    if missing := sorted(files.keys() - content.keys()):
        raise Refused(f"its parts lack {', '.join(missing[:3])}")
    return content
