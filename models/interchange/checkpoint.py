"""PyTorch checkpoint files, read as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.bundle import BundleError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The float32 state dict in a `.pth`, `.th` or `.pt` file, without `module.` prefixes.

    Nothing in the file is executed: torch reads it with `weights_only=True`.

    Raises:
        BundleError: it holds no state dict, or more than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    # torch raises whatever damage leads to, and its messages advise what must not be done.
    except Exception as error:  # noqa: BLE001
        reason = type(error).__name__
        raise BundleError(f"{path}: no PyTorch checkpoint of plain tensors ({reason})") from None
    return {
        _strip(name): value.float() if value.is_floating_point() else value
        for name, value in _state_dict(content, path).items()
    }


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise BundleError(f"{path}: holds no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise BundleError(f"{path}: holds {name!r}, which is no tensor")
    return content


def _strip(name: str) -> str:
    return name.removeprefix("module.")
