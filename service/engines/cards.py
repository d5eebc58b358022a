"""Whether CUDA devices can be used, and if not, what to do about it."""

from __future__ import annotations

import re
import warnings

import torch

from service.engines import faults
from service.errors import ConfigError

GUIDE = "docs/guides/gpu-host.md"
# What torch says where there is no GPU, or none is visible to this process.
NO_CARD = ("Found no NVIDIA driver", "No CUDA GPUs are available")
TOO_OLD = re.compile(r"driver on your system is too old \(found version (\d+)\)")
# Code for a processor, as sm_90, or for the driver's compiler, as compute_90. With the suffix "a"
# it is for that processor alone.
ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def available() -> int:
    """How many CUDA devices this process can use.

    Raises:
        ConfigError: there are some, but CUDA cannot be used.
    """
    if not _is_built_for_gpus():
        return 0
    with warnings.catch_warnings():  # What torch warns of is an error here, or `check` says it.
        warnings.simplefilter("ignore")
        try:
            # Counting alone asks the driver's management library, to which no driver is too old.
            torch.cuda.init()  # type: ignore[no-untyped-call]
            return torch.cuda.device_count()
        except Exception as error:  # noqa: BLE001 - torch raises errors of several kinds
            if any(phrase in str(error) for phrase in NO_CARD):
                return 0
            raise ConfigError(f"device: {_why(error)}: {GUIDE}") from None


def _is_built_for_gpus() -> bool:
    return torch.version.cuda is not None or torch.version.hip is not None


def _why(error: Exception) -> str:
    """Why CUDA cannot be used, and what to do."""
    if (found := TOO_OLD.search(str(error))) is None:
        text = faults.in_one_line(error).rstrip(".")
        return f"there is a GPU, but it cannot be used: {text}; repair it, or use cpu"
    major, minor = divmod(int(found[1]) // 10, 100)
    return (
        f"the NVIDIA driver ({major}.{minor}) is too old for this PyTorch, which was built for "
        f"CUDA {torch.version.cuda}; update the driver, or install a PyTorch for an older CUDA"
    )


def missing(device: str, count: int) -> ConfigError:
    """The error for a device that is not among the `count` available ones."""
    if not _is_built_for_gpus():
        return ConfigError(
            f"device: {device} is not available: this PyTorch has no CUDA support; use cpu, or "
            f"install a PyTorch that was built for CUDA: {GUIDE}"
        )
    return ConfigError(
        f"device: {device} is not available, torch sees {count} CUDA devices; use auto or cpu"
    )


def check(device: str) -> None:
    """Checks that this PyTorch contains code for an available device.

    Raises:
        ConfigError: it does not.
    """
    index = int(device.partition(":")[2])
    built = [found for each in torch.cuda.get_arch_list() if (found := ARCHITECTURE.match(each))]
    major, minor = torch.cuda.get_device_capability(index)
    if built and not any(_runs(code, major, minor) for code in built):
        name = torch.cuda.get_device_name(index)
        raise ConfigError(
            f"device: this PyTorch has no code for {device}, a {name} of compute capability "
            f"{major}.{minor}, but for {', '.join(code[0] for code in built)}; install a PyTorch "
            f"that has, or use cpu: {GUIDE}"
        )


def _runs(code: re.Match[str], major: int, minor: int) -> bool:
    """Whether a device of that compute capability runs it."""
    kind, *numbers, suffix = code.groups()
    made_for = [int(number) for number in numbers]
    if suffix == "a":
        return made_for == [major, minor]
    same_family = made_for[0] == major or (kind == "compute" and not suffix)
    return same_family and made_for <= [major, minor]
