"""What some settings allow. Needs no pydantic, so that shell completion can import it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Engine = Literal["auto", "fused", "eager", "compile", "openvino"]
Decode = Literal["host", "device"]
# Whose clients are answered as theirs expect; see docs/guides/platforms.md.
Platform = Literal["kserve_v1", "torchserve", "sagemaker", "vertex"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
ENGINES: tuple[str, ...] = get_args(Engine)
PLATFORMS: tuple[Platform, ...] = get_args(Platform)
# Of `convert`, as the modules of `models` define them.
CROPS = ("center", "center_floor", "center_truncate", "before_resize", "squash", "letterbox")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CHANNELS = ("rgb", "bgr", "grey", "rgba")
OUTPUTS = ("exclusive", "independent")
VIEWS = ("plain", "mirrored")
STORAGES = ("fp32", "fp16")
DEVICES = ("auto", "cpu", "cuda", "cuda:0")
SERVED_DEVICES = (*DEVICES, "cuda:all")  # of `serve`
MOST_DEVICES = 33  # of all models: the CPU and 32 GPUs


def most_devices(wanted: Iterable[str | list[str]]) -> int:
    """The most devices that models need whose `device` settings are these; which ones exist, only
    an engine process knows."""
    names = {name for each in wanted for name in ([each] if isinstance(each, str) else each)}
    if "cuda:all" in names:
        return MOST_DEVICES
    return len({"cuda:0" if name in ("auto", "cuda") else name for name in names})
