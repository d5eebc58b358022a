"""The devices, engines and precisions that serve a model."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch

from models.extras import install
from models.hardware import native_precision
from service.config.settings import ModelSettings
from service.engines import cards
from service.errors import ConfigError

log = logging.getLogger(__name__)


def devices_of(settings: ModelSettings) -> list[str]:
    """The devices that the model runs on, each with its own engine and each once.

    Raises:
        ConfigError: a device is not available, or cannot compute in the precision.
    """
    requested = settings.device if isinstance(settings.device, list) else [settings.device]
    # A broken GPU does not matter to who does not ask for one.
    available = cards.available() if set(requested) != {"cpu"} else 0
    devices = list(dict.fromkeys(d for name in requested for d in _named(name, available)))
    for device in devices:
        _check(settings, device)
    return devices


def _named(name: str, available: int) -> list[str]:
    """The devices that a name in the settings means, where torch sees so many CUDA devices."""
    if name == "cpu" or (name == "auto" and not available):
        return ["cpu"]
    number = name.partition(":")[2] or "0"
    if number == "all" and available:
        return [f"cuda:{index}" for index in range(available)]
    if number == "all" or int(number) >= available:
        raise cards.missing(name if ":" in name else "cuda:0", available)
    return [f"cuda:{int(number)}"]


def _check(settings: ModelSettings, device: str) -> None:
    on_cpu = device == "cpu"
    if not on_cpu:
        cards.check(device)
    if on_cpu and settings.precision == "fp16":
        raise ConfigError("precision: fp16 needs a CUDA device; use auto, bf16 or fp32")
    if settings.engine == "fused" and on_cpu:
        raise ConfigError("engine: fused needs a CUDA device; use auto, openvino or compile")
    if settings.engine == "openvino" and not on_cpu:
        raise ConfigError(f"engine: openvino runs on the CPU, not on {device}; use auto or fused")
    if settings.engine == "compile" and not on_cpu:
        raise ConfigError(
            f"engine: compile runs on the CPU, not on {device}; use auto, fused or eager"
        )
    if settings.engine == "openvino" and not has_openvino():
        raise ConfigError(f"engine: openvino is not installed; {install('cpu')}")
    if settings.decode == "device":
        _check_decoder(device)
    if settings.precision == "int8":
        if not on_cpu or settings.engine not in ("auto", "openvino"):
            raise ConfigError("precision: int8 needs device cpu and engine openvino")
        if not has_openvino():
            raise ConfigError(f"precision: int8 needs openvino; {install('cpu')}")


def _check_decoder(device: str) -> None:
    if device == "cpu":
        raise ConfigError("decode: device needs a CUDA device; use host")
    if find_spec("torchvision") is None:
        raise ConfigError(f"decode: device needs torchvision; {install('gpu')}")


def engines_for(settings: ModelSettings, device: str) -> list[str]:
    """Kinds of engines for one of `devices_of(settings)`: the first serves first, and each later
    one replaces the one before it as soon as it is warm."""
    if settings.engine != "auto":
        return [settings.engine]
    if device != "cpu":
        return ["fused"]
    # OpenVINO compiles in less time than plain PyTorch needs for its first batches.
    return ["openvino"] if has_openvino() else ["eager", "compile"]


@cache
def advise_openvino() -> None:
    """Says, once in a process, what a CPU without OpenVINO costs and what to do about it."""
    log.warning(
        "OpenVINO is not installed, so PyTorch computes on the CPU, at about half the speed "
        "(measured with ResNet-50 on two cores, bf16); %s",
        install("cpu"),
    )


def precision_of(settings: ModelSettings, device: str) -> str:
    """The precision on `device`: the one in the settings, or the fastest in hardware."""
    if settings.precision != "auto":
        return settings.precision
    return native_precision(device)


def has_openvino() -> bool:
    return find_spec("openvino") is not None


def set_cpu_threads(count: int) -> None:
    """Sets how many threads torch's CPU operators use, in the whole process."""
    torch.set_num_threads(count)
