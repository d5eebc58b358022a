"""PyTorch checkpoint files, read without executing code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from models.bundle import BundleError
from models.interchange.imported import NOTHING, Said

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params")
# Stored beside the weights by the training scripts of torchvision and timm.
HARMLESS: list[Any] = [argparse.Namespace]
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")


def weights_file(path: Path) -> Path:
    """`path`, or the weights within it if it is a folder from the Hugging Face hub.

    Raises:
        BundleError: the folder has no weights.
    """
    if not path.is_dir():
        return path
    for name in IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    raise BundleError(f"{path}: a folder without {' or '.join(IN_FOLDERS)}")


def read_checkpoint(path: Path, said: Said = NOTHING) -> dict[str, Tensor]:
    """The float32 state dict in a `.pth`, `.th`, `.pt`, `.bin` or `.safetensors` file, without
    `module.` prefixes.

    Nothing in the file is executed: torch reads it with `weights_only=True`.

    Raises:
        BundleError: the file contains no state dict, or more than tensors.
    """
    try:
        content = _read(path)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise BundleError(f"{path}: not a whole safetensors file ({error})") from None
    # Damage raises any error, and torch's messages give unsafe advice.
    except Exception as error:  # noqa: BLE001
        reason = type(error).__name__
        raise BundleError(f"{path}: not a PyTorch checkpoint of plain tensors ({reason})") from None
    return {
        _strip(name): value.detach().float() if value.is_floating_point() else value
        for name, value in _state_dict(content, path).items()
    }


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file.

    Raises:
        BundleError: the file is not a JSON object.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise BundleError(f"{path}: not a JSON object")
    return content


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors header begins with a brace, after its length.
    if start[8:] == b"{":
        return safetensors.torch.load_file(path)
    with torch.serialization.safe_globals(HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise BundleError(f"{path}: holds no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise BundleError(f"{path}: holds {name!r}, which is not a tensor")
    return content


def _strip(name: str) -> str:
    return name.removeprefix("module.")
